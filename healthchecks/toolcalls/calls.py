"""Rules 13 to 17: the calls of one reply, plain or put together from a stream."""

from __future__ import annotations

import re
from typing import Any

from healthchecks.toolcalls.arguments import check_arguments, check_is_string
from healthchecks.toolcalls.asked import Asked
from healthchecks.toolcalls.exchange import INTEROP, MUST, Call
from healthchecks.toolcalls.findings import Findings, names, show
from healthchecks.toolcalls.schema import check_arguments_fit

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_calls(
    entries: list[Any],
    where: str,
    *,
    from_stream: bool,
    finish_reason: Any,
    asked: Asked,
    found: Findings,
    broke_off: bool = False,
) -> tuple[Call, ...]:
    """Check the entries of a `tool_calls` list found at `where`.

    A call that `max_tokens` cut (only the last can be) may hold half its arguments: that is worth a warning.
    Where the stream `broke_off`, it is that fault and no other.
    """
    ids: set[str] = set(asked.call_ids)
    calls: list[Call] = []
    for position, entry in enumerate(entries):
        at = f"{where}[{position}]"
        if not isinstance(entry, dict):
            found.add(16, MUST, at, f"the call is {show(entry)}, not an object")
            continue
        _check_id(entry.get("id"), at, ids, found)
        name, raw = _check_form(entry, at, asked, found)
        at += ".function.arguments"
        if not from_stream and isinstance(entry.get("function"), dict):
            check_is_string(raw, at, found)
        is_last = position == len(entries) - 1
        cut = finish_reason == "length" and is_last
        unended = broke_off and is_last
        arguments = check_arguments(raw, at, cut=cut, unended=unended, asked=asked, found=found)
        tool = asked.tools.get(name) if asked.tools and isinstance(name, str) else None
        if tool is not None and arguments is not None:
            check_arguments_fit(tool, arguments, at, found)
        calls.append(Call(entry.get("id"), name, raw, arguments, entry.get("index")))
    return tuple(calls)


def _check_id(id_: Any, at: str, ids: set[str], found: Findings) -> None:
    """Rules 13 and 14; `ids` are those of the conversation so far."""
    found.looked_at(13)
    if not isinstance(id_, str):
        found.add(13, MUST, at + ".id", f"the id of the call is {show(id_)}, not a string")
        return
    if not id_.strip():
        found.add(13, INTEROP, at + ".id", "the id of the call is empty")
        return
    found.looked_at(14)
    if id_ in ids:
        found.add(14, INTEROP, at + ".id", f"the id {show(id_)} is another call's already")
    ids.add(id_)


def _check_form(entry: dict[str, Any], at: str, asked: Asked, found: Findings) -> tuple[Any, Any]:
    """Rules 15 to 17; returns the name and the arguments as they are, None where there is no function."""
    found.looked_at(15, 16)
    type_, function = entry.get("type"), entry.get("function")
    if type_ != "function":
        found.add(15, MUST, at + ".type", f"the type of the call is {show(type_)}")
    if not isinstance(function, dict):
        found.add(16, MUST, at + ".function", f"`function` is {show(function)}, not an object")
        return None, None
    if "id" in function:
        found.add(16, INTEROP, at + ".function", "`function` has an id of its own")
    _check_name(function.get("name"), at + ".function.name", asked, found)
    return function.get("name"), function.get("arguments")


def _check_name(name: Any, at: str, asked: Asked, found: Findings) -> None:
    """Rule 17."""
    if not isinstance(name, str):
        found.add(17, MUST, at, f"the called name is {show(name)}, not a string")
        return
    if asked.tools is not None:
        found.looked_at(17)
    if asked.tools is not None and name in asked.tools:
        return  # Whatever its spelling: it is what the request says.
    if name != name.strip() or not _NAME.fullmatch(name):
        found.add(17, INTEROP, at, f"the called name {show(name)} is not [A-Za-z0-9_-]{{1,64}}")
    elif asked.tools is not None:
        declared = names(list(asked.tools)) if asked.tools else "none"
        found.add(17, INTEROP, at, f"no tool {show(name)} was declared; declared: {declared}")
