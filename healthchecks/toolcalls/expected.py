"""Rules 53 to 57, where an exchange says what must come back: the same test as that of the smoke suite."""

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
from healthchecks.toolcalls.turn import is_integer
from healthchecks.toolcalls.turns import Turn

ERROR_RULE = 60


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
        found.looked_at(expect.rule)
        reason = unmet(expect, turn.reply, facts)
        if reason is None and expect.rule == 53 and turn.reply.finish_reason != "stop":
            reason = f"the finish reason is {show(turn.reply.finish_reason)}, not `stop`"
        if reason is not None:
            found.add(expect.rule, BEHAVIOURAL, turn.place("message"), printable(reason))


def read_expectation(expect: Mapping[str, Any] | None) -> Expectation | None:
    """None for an exchange without one, for one about an error (rule 60) and for one that makes no sense."""
    if expect is None or expect.get("rule") == ERROR_RULE or why_invalid(expect) is not None:
        return None
    calls = tuple(expect["calls"]) if "calls" in expect else None
    return Expectation(expect["rule"], calls, expect.get("text", {}))


def why_invalid(expect: Mapping[str, Any]) -> str | None:
    """What is wrong with an `expect`: it is one of a case, or `{"rule": 60}` with a `status` or without."""
    if expect.get("rule") == ERROR_RULE:
        status = expect.get("status", 400)
        fits = expect.keys() <= {"rule", "status"} and is_integer(status) and 400 <= status < 500
        return None if fits else "with rule 60 an `expect` has a `status` from 400 to 499 and nothing else"
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
