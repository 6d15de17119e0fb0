"""Does a reply hold what its case expects: calls in any order, text, an end or an error."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from typing import Any

from healthchecks.case import Expectation
from healthchecks.toolcalls import Call, Exchange, Reply
from healthchecks.toolcalls.findings import printable

_SHOWN_CHARACTERS = 300


def unmet(expect: Expectation, reply: Reply, facts: Mapping[str, Sequence[str]]) -> str | None:
    """Why `reply` is not what is expected, in one sentence; None where it is.

    Args:
        facts: what the database says, by the names of `healthchecks.database.FACTS`: the right texts.
    """
    if expect.calls is not None:
        return _unmet_calls(expect.calls, reply)
    if expect.call_of:
        return _unmet_names(expect.call_of, reply)
    if expect.finish is not None:
        ended = reply.finish_reason
        return None if ended == expect.finish else f"`{expect.finish}` expected as the end, `{ended}` came"
    return _unmet_text(expect.text, reply, facts)


def unmet_growth(with_tools: Reply, without: Reply | None) -> str | None:
    """Why the tools did not make the prompt longer (rule 61); None where they did."""
    more, less = _prompt_tokens(with_tools), _prompt_tokens(without)
    if more is None or less is None:
        return "the prompt tokens are not counted, so nobody can tell whether the tools were rendered"
    return None if more > less else f"{more} prompt tokens with the tools, {less} without them"


def unmet_error(statuses: Container[int], exchange: Exchange) -> str | None:
    """Why the answer is no error with one of `statuses` and an error object (rule 60); None where it is."""
    if exchange.status not in statuses:
        body = printable(exchange.body[:_SHOWN_CHARACTERS].decode("utf-8", "replace"))
        return f"HTTP {exchange.status} came: {body}"
    try:
        body = json.loads(exchange.body)
    except (ValueError, RecursionError):
        return f"HTTP {exchange.status} without JSON: {exchange.body[:_SHOWN_CHARACTERS]!r}"
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return f"HTTP {exchange.status} without an `error` object"
    wrong = [key for key in ("message", "type") if not isinstance(error.get(key), str)]
    return f"the error object has no text in `{wrong[0]}`" if wrong else None


def _prompt_tokens(reply: Reply | None) -> int | None:
    tokens = (reply.usage or {}).get("prompt_tokens") if reply is not None else None
    return tokens if isinstance(tokens, int) else None


def _unmet_names(names: Sequence[str], reply: Reply) -> str | None:
    wanted = " or ".join(f"`{name}`" for name in names)
    if reply.calls and all(call.name in names for call in reply.calls):
        return None
    return f"a call of {wanted} expected, {_shown(reply)} came"


def _unmet_calls(expected: Sequence[Mapping[str, Any]], reply: Reply) -> str | None:
    if len(reply.calls) != len(expected):
        names = ", ".join(f"`{call['name']}`" for call in expected)
        return f"{_count(len(expected))} expected ({names}), {_shown(reply)} came"
    # One more each time, so that the first that finds no partner is the one to name.
    taken: dict[int, int] = {}
    given: dict[int, int] = {}
    fitting = [[at for at, made in enumerate(reply.calls) if _mismatch(e, made) is None] for e in expected]
    for number, call in enumerate(expected):
        if not _pair(number, fitting, taken, given):
            reasons = [_mismatch(call, actual) for actual in reply.calls]
            return next((reason for reason in reasons if reason), f"`{call['name']}` came too seldom")
    return None


def _pair(
    number: int, fitting: Sequence[Sequence[int]], taken: dict[int, int], given: dict[int, int]
) -> bool:
    """Give the expected call `number` a call of its own, moving earlier ones to others where that helps.

    Order does not matter. One step of bipartite matching, along an augmenting path: each call is tried once.

    Args:
        fitting: by expected call, the calls that it may have.
        taken: by call, the expected call that has it; `given` is the same the other way round.
    """
    reached_from: dict[int, int] = {}
    waiting = [number]
    while waiting:
        one = waiting.pop()
        for at in fitting[one]:
            if at in reached_from:
                continue
            reached_from[at] = one
            if at in taken:
                waiting.append(taken[at])
                continue
            free: int | None = at
            while free is not None:
                owner = reached_from[free]
                left = given.get(owner)
                taken[free], given[owner] = owner, free
                free = left
            return True
    return False


def _mismatch(expected: Mapping[str, Any], call: Call) -> str | None:
    if call.name != expected["name"]:
        return f"a call of `{expected['name']}` expected, one of `{call.name}` came"
    arguments = call.arguments if call.arguments is not None else {}
    for key, matcher in expected["arguments"].items():
        if key not in arguments:
            return f"`{call.name}` came without `{key}`"
        wanted = _unmatched(matcher, arguments[key])
        if wanted is not None:
            return f"`{call.name}` came with `{key}` = {arguments[key]!r}, expected {wanted}"
    more = [key for key in arguments if key not in expected["arguments"]] if "only" in expected else []
    return (
        f"`{call.name}` came with `{more[0]}` = {arguments[more[0]]!r}, which was not asked for"
        if more
        else None
    )


def _unmatched(matcher: Mapping[str, Any], value: Any) -> str | None:
    """The matcher in words where `value` does not fit it."""
    if "contains" in matcher:
        part = matcher["contains"]
        fits = isinstance(value, str) and part.lower() in value.lower()
        return None if fits else f"something with {part!r}"
    if "any_of" in matcher:
        return (
            None if any(_same(one, value) for one in matcher["any_of"]) else f"one of {matcher['any_of']!r}"
        )
    return None if _same(matcher["equals"], value) else repr(matcher["equals"])


def _same(one: Any, other: Any) -> bool:
    """Equal and of one type all the way down, so that neither "5" nor true passes for a number."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _unmet_text(text: Mapping[str, Any], reply: Reply, facts: Mapping[str, Sequence[str]]) -> str | None:
    if reply.calls:
        return f"text and no call expected, {_shown(reply)} came"
    said = (reply.content or "").lower()
    if not said.strip():
        return "text expected, nothing came"
    wanted: list[Sequence[str]] = []
    if "contains" in text:
        wanted.append([text["contains"]])
    if "any_of" in text:
        wanted.append(text["any_of"])
    if "database_says" in text:
        wanted.append(facts[text["database_says"]])
    for choices in wanted:
        if not any(choice.lower() in said for choice in choices):
            names = " or ".join(f'"{choice}"' for choice in choices)
            return f"text with {names} expected, {_shown(reply)} came"
    return None


def _shown(reply: Reply) -> str:
    if reply.calls:
        calls = ", ".join(f"`{call.name}({call.raw_arguments})`" for call in reply.calls)
        return f"{_count(len(reply.calls))} ({printable(calls)})"
    content = (reply.content or "").strip()
    return f'the text "{printable(content)}"' if content else "nothing"


def _count(calls: int) -> str:
    return "1 call" if calls == 1 else f"{calls} calls"
