"""Does a reply hold what its case expects: calls in any order, or text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from healthchecks.case import Expectation
from healthchecks.toolcalls import Call, Reply

_SHOWN_CHARACTERS = 300


def unmet(expect: Expectation, reply: Reply, facts: Mapping[str, Sequence[str]]) -> str | None:
    """Why `reply` is not what is expected, in one sentence; None where it is.

    Args:
        facts: what the database says, by the names of `healthchecks.database.FACTS`: the right texts.
    """
    if expect.calls is not None:
        return _unmet_calls(expect.calls, reply)
    return _unmet_text(expect.text, reply, facts)


def _unmet_calls(expected: Sequence[Mapping[str, Any]], reply: Reply) -> str | None:
    if len(reply.calls) != len(expected):
        names = ", ".join(f"`{call['name']}`" for call in expected)
        return f"{_count(len(expected))} expected ({names}), {_shown(reply)} came"
    for number, call in enumerate(expected):
        # One more each time, so that the first that finds no partner is the one to name.
        if not _pairable(expected[: number + 1], reply.calls):
            reasons = [_mismatch(call, actual) for actual in reply.calls]
            return next((reason for reason in reasons if reason), f"`{call['name']}` came too seldom")
    return None


def _pairable(expected: Sequence[Mapping[str, Any]], calls: Sequence[Call]) -> bool:
    """Whether each expected call can have a call of its own: order does not matter."""
    if not expected:
        return True
    return any(
        _mismatch(expected[0], call) is None and _pairable(expected[1:], [*calls[:at], *calls[at + 1 :]])
        for at, call in enumerate(calls)
    )


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
    return None


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
    """Equal and of one type, so that neither "5" nor true passes for a number."""
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
        return f"{_count(len(reply.calls))} ({calls[:_SHOWN_CHARACTERS]})"
    content = (reply.content or "").strip()
    return f'the text "{content[:_SHOWN_CHARACTERS]}"' if content else "nothing"


def _count(calls: int) -> str:
    return "1 call" if calls == 1 else f"{calls} calls"
