"""Rules 53 to 58, where an exchange says what must come back: the same test as that of the smoke suite."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jsonschema

from healthchecks.case import Expectation
from healthchecks.expectations import unmet
from healthchecks.toolcalls.exchange import BEHAVIOURAL
from healthchecks.toolcalls.findings import Findings, printable, show
from healthchecks.toolcalls.rules import RULES
from healthchecks.toolcalls.turn import is_integer
from healthchecks.toolcalls.turns import Turn


def check_expected(turns: Sequence[Turn], facts: Mapping[str, Sequence[str]], found: Findings) -> None:
    """Each exchange by its own `expect`.

    Args:
        facts: as for `unmet`; an expectation that asks for another fact is not judged.
    """
    for turn in turns:
        expect = read_expectation(turn.exchange.expect)
        if expect is None or turn.reply is None:
            continue
        fact = expect.text.get("database_says")
        if fact is not None and fact not in facts:
            continue
        if "prompt_grows" in (turn.exchange.expect or {}):
            continue  # Rule 61 compares the exchanges themselves.
        if expect.rule == 59:
            continue  # What `tool_choice` asks for stands in the request, and servers are known to ignore it.
        found.looked_at(expect.rule)
        reason = unmet(expect, turn.reply, facts)
        if reason is None and expect.rule == 53 and turn.reply.finish_reason != "stop":
            reason = f"the finish reason is {show(turn.reply.finish_reason)}, not `stop`"
        if reason is not None:
            found.add(expect.rule, BEHAVIOURAL, turn.place("message"), printable(reason))


def read_expectation(expect: Mapping[str, Any] | None) -> Expectation | None:
    """None where a reply cannot meet it: there is none, it makes no sense, or an error is due."""
    if expect is None or "error" in expect or why_invalid(expect) is not None:
        return None
    lists: dict[str, Any] = {key: tuple(value) for key, value in expect.items() if isinstance(value, list)}
    given: dict[str, Any] = {"calls": None, "text": {}, **expect, **lists}
    return Expectation(**given)


def why_invalid(expect: Mapping[str, Any]) -> str | None:
    """What is wrong with an `expect`: it is one of a case, or `{"rule": 60, "error": [STATUS, ...]}`."""
    if len(expect.keys() - {"rule", "may_refuse"}) != 1:
        return "besides `rule` it says one thing that is due, as `calls`, `text` or `error`"
    if "error" in expect:
        statuses = expect["error"]
        listed = isinstance(statuses, list) and all(is_integer(s) and 400 <= s < 500 for s in statuses)
        fits = listed and statuses and is_integer(expect.get("rule")) and expect["rule"] in RULES
        return None if fits else "`error` is a list of statuses from 400 to 499, beside a `rule`"
    try:
        problem = next(_validator().iter_errors(dict(expect)), None)
    except RecursionError:
        return "it is nested too deeply"
    return None if problem is None else printable(problem.message)


@cache
def _validator() -> jsonschema.Draft202012Validator:
    """Of the part of a case's schema that is about `expect`."""
    file = importlib.resources.files("healthchecks").joinpath("case.schema.json")
    parts = json.loads(file.read_text(encoding="utf-8"))["$defs"]
    return jsonschema.Draft202012Validator({**parts["expect"], "$defs": parts})
