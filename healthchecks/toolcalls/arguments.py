"""Rules 18 to 20, 25 to 27 and 29: the `arguments` of one call."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from healthchecks.toolcalls.asked import Asked
from healthchecks.toolcalls.exchange import INTEROP, MUST, WARN
from healthchecks.toolcalls.findings import Findings, names, show
from healthchecks.toolcalls.known import NUMBERS_AS_FLOAT64
from healthchecks.toolcalls.leaks import find_token
from healthchecks.toolcalls.strict_json import parse_arguments, walk

_LARGEST_EXACT_FLOAT = 2**53
_BROKEN_CHARACTER = re.compile("[\ufffd\ud800-\udfff]")
_SHORTEST_COMPARED = 6
_MOST_COMPARED = 200
_NEEDS_ESCAPING = re.compile(r"""["'\\<>&\x00-\x1f]|[^\x00-\x7f]""")


def check_arguments(
    raw: Any, where: str, *, cut: bool, unended: bool, asked: Asked, found: Findings
) -> dict[str, Any] | None:
    """Check and decode one `arguments`; None when it is not an object.

    `cut`: max_tokens ended the reply here, so that half a JSON text is worth a warning only. `unended`: the
    stream broke off here, so that it says nothing of whoever wrote it.
    """
    if unended and isinstance(raw, str) and not _is_json(raw):
        return None
    value = _decode(raw, where, WARN if cut else INTEROP, found) if isinstance(raw, str) else raw
    if not isinstance(value, dict):
        return None
    _check_values(value, where, asked, found)
    return value


def _decode(raw: str, where: str, severity: str, found: Findings) -> dict[str, Any] | None:
    """Rules 19 and 20, and 25 for what is lost in decoding."""
    found.looked_at(20)
    if not raw.strip():
        found.add(20, severity, where, "the arguments are an empty text; no arguments are `{}`")
        return None
    found.looked_at(19)
    try:
        decoded = parse_arguments(raw)
    except (ValueError, RecursionError) as problem:
        found.add(19, severity, where, _why_not_json(raw, problem))
        return None
    if decoded.doubled_keys:
        found.add(25, INTEROP, where, f"keys come twice: {names(decoded.doubled_keys)}")
    if decoded.not_finite:
        found.add(25, INTEROP, where, f"numbers are not finite: {names(decoded.not_finite)}")
    if isinstance(decoded.value, dict):
        return decoded.value
    if isinstance(decoded.value, str) and _is_json_object(decoded.value):
        found.add(19, INTEROP, where, "the arguments were encoded as JSON twice")
    else:
        found.add(20, INTEROP, where, f"the arguments decode to {show(decoded.value)}, not to an object")
    return None


def check_is_string(raw: Any, where: str, found: Findings) -> None:
    """Rule 18."""
    found.looked_at(18)
    if not isinstance(raw, str):
        found.add(18, MUST, where, f"the arguments are {show(raw)}, not a string")


def _why_not_json(raw: str, problem: Exception) -> str:
    if isinstance(problem, RecursionError):
        return "the arguments are nested too deeply to be read"
    if isinstance(problem, json.JSONDecodeError) and problem.msg == "Extra data":
        return f"text follows the JSON of the arguments: {show(raw[problem.pos :])}"
    return f"the arguments are not JSON: {show(raw)}"


def _is_json(text: str) -> bool:
    try:
        parse_arguments(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(parse_arguments(text).value, dict)
    except (ValueError, RecursionError):
        return False


def _check_values(arguments: dict[str, Any], where: str, asked: Asked, found: Findings) -> None:
    found.looked_at(25, 29)
    compared = 0
    for value in walk(arguments):
        if isinstance(value, str):
            _check_characters(value, where, asked, found)
            # Each comparison reads the whole conversation.
            if compared < _MOST_COMPARED and _NEEDS_ESCAPING.search(value):
                compared += 1
                _check_round_trip(value, where, asked, found)
        elif isinstance(value, (int, float)) and abs(value) >= _LARGEST_EXACT_FLOAT:
            given = asked.long_integers.get(float(value), frozenset())
            if value in given:
                found.looked_at(27)
            elif given:
                reason = f"{show(value)} is not the integer of the conversation, only its nearest float64"
                found.add(27, INTEROP, where, reason, NUMBERS_AS_FLOAT64)


def _check_characters(text: str, where: str, asked: Asked, found: Findings) -> None:
    """Rules 25 and 29, for what was not in the conversation before."""
    broken = _BROKEN_CHARACTER.search(text)
    if broken and broken.group() not in asked.text:
        found.add(25, INTEROP, where, f"a string holds U+FFFD or half a surrogate pair: {show(text)}")
    token = find_token(text, asked)
    if token:
        found.add(29, INTEROP, where, f"a string holds {show(token)}")


def _check_round_trip(text: str, where: str, asked: Asked, found: Findings) -> None:
    """Rule 26, where it can be known: the conversation holds the text, or what it was before an escape.

    Not where it was asked for, and not for a few characters, which are anywhere.
    """
    if _is_in(text, asked):
        found.looked_at(26)
    elif not asked.speaks_of_escapes and any(
        plain != text and len(plain) >= _SHORTEST_COMPARED and _is_in(plain, asked)
        for plain in _with_one_escape_less(text)
    ):
        found.add(26, INTEROP, where, f"{show(text)} is an escaped form of what the conversation holds")


def _is_in(text: str, asked: Asked) -> bool:
    """Does the conversation hold the text, as it is or as it is spelled in JSON?"""
    spellings = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    return any(spelling in asked.text for spelling in spellings)


def _with_one_escape_less(text: str) -> Iterator[str]:
    """What `text` was before it was escaped as JSON or HTML once too often, or its UTF-8 read as Latin-1."""
    with suppress(ValueError):
        yield str(json.loads(f'"{text}"'))
    yield html.unescape(text)
    with suppress(UnicodeError):
        yield text.encode("latin-1").decode("utf-8")
