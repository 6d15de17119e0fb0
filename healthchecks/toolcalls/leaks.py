"""Rules 29, 30 and 50: calls and tokens of the chat template that the server let through as text.

Text may speak of both without leaking them: a token that the conversation holds already may come back, and
one that stands in code, or a call in the midst of prose, is worth a warning only.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from healthchecks.toolcalls.asked import Asked
from healthchecks.toolcalls.exchange import INTEROP, WARN
from healthchecks.toolcalls.findings import Findings, show
from healthchecks.toolcalls.template_tokens import TEMPLATE_TOKEN

# A name, and what stands behind it: a call's arguments, or what a tool's own description goes on with.
_NAME = re.compile(
    r"""["'](?P<key>name|function)["']\s*:\s*["'](?P<name>[^"'\n]{1,64})["']\s*"""
    r"""(?:,\s*(?:(?P<arguments>["'](?:arguments|parameters)["']\s*:\s*(?!\{\s*["']type["'])["'{])"""
    r"""|(?P<described>["'](?:description|parameters|type)["'])))?"""
)
_TALK_OF_CALLS = re.compile(r"\bjson\b|\b(?:tool|function)[ _-]?call|[\"']name[\"']", re.IGNORECASE)
_ENDING = re.compile(r"(?:[\s`\]})>|]|</?\w+>|<\|\w+)*")
_BEGINNING = re.compile(r"\s*(?:```\w*\s*)?")
_SHORT = 24


@dataclass(frozen=True)
class _Leak:
    start: int
    end: int
    severity: str
    reason: str


def find_token(text: str, asked: Asked) -> str | None:
    """The first token of a chat template in `text` that the conversation does not hold itself."""
    match = _first_token(text, asked)
    return match.group() if match else None


def _first_token(text: str, asked: Asked) -> re.Match[str] | None:
    matches = TEMPLATE_TOKEN.finditer(text)
    return next((match for match in matches if match.group() not in asked.template_tokens), None)


def check_content(pieces: list[str], where: str, asked: Asked, found: Findings) -> None:
    """Rules 30 and 50. `pieces` is the content as it came: the one of a plain reply, or one for each chunk.

    A leak inside one piece is rule 30; one that shows only when the pieces are joined is rule 50.
    """
    found.looked_at(30)
    if len(pieces) > 1:
        found.looked_at(50)
    text = "".join(pieces)
    leaks = list(_leaks(text, asked))
    if not leaks:
        return
    ends: list[int] = []
    for piece in pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    for leak in leaks:
        inside_one_piece = bisect_right(ends, leak.start) == bisect_right(ends, leak.end - 1)
        found.add(30 if inside_one_piece else 50, leak.severity, where, leak.reason)


def _leaks(text: str, asked: Asked) -> Iterator[_Leak]:
    """At most one leak of each kind."""
    token = _first_token(text, asked)
    if token:
        severity = WARN if _is_in_code(text, token.start(), token.end()) else INTEROP
        yield _Leak(token.start(), token.end(), severity, f"the text holds {show(token.group())}")
    opened = text.rfind("<think>")
    if opened > text.rfind("</think>") and "<think>" not in asked.text:
        end = opened + len("<think>")
        severity = WARN if _is_in_code(text, opened, end) else INTEROP
        yield _Leak(opened, end, severity, "the text holds a `<think>` that is never closed")
    closed = text.find("</think>")
    if closed >= 0 and "<think>" not in text[:closed] and "</think>" not in asked.text:
        end = closed + len("</think>")
        severity = WARN if _is_in_code(text, closed, end) else INTEROP
        yield _Leak(closed, end, severity, "the text holds a `</think>` that nothing opened")
    call = _call_as_text(text, asked)
    if call is not None:
        yield call


def _is_in_code(text: str, start: int, end: int) -> bool:
    """Between a pair of backticks on its line, or in a fenced block."""
    line = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", end)
    before, behind = text[line:start], text[end : len(text) if line_end < 0 else line_end]
    inline = before.count("`") % 2 == 1 and "`" in behind
    return inline or text.count("```", 0, start) % 2 == 1


def _call_as_text(text: str, asked: Asked) -> _Leak | None:
    """The first call that came as JSON in the text: of a declared tool, or of any with arguments."""
    for match in _NAME.finditer(text):
        name, declared = match.group("name"), asked.tools or {}
        if not match.group("arguments") and (name not in declared or match.group("described")):
            continue
        if match.group("key") == "function" and not (match.group("arguments") and name in declared):
            continue  # The key may have any other meaning.
        # Where no tools were sent, whoever asks for such a text gets it; where JSON was asked for, too.
        asked_for = asked.tools == {} or _TALK_OF_CALLS.search(asked.question)
        leaks = not asked_for and _is_all_of_the_text_or_its_end(text)
        reason = f"the text holds a call of {show(name)} as JSON"
        return _Leak(match.start(), match.end(), INTEROP if leaks else WARN, reason)
    return None


def _is_all_of_the_text_or_its_end(text: str) -> bool:
    """Models write a call first or last; what prose goes on after is an example."""
    beginning = _BEGINNING.match(text)
    if beginning and text[beginning.end() : beginning.end() + 1] in ("{", "["):
        return True
    tail = text[text.rfind("}") + 1 :][: 10 * _SHORT]
    return len(_ENDING.sub("", tail).strip()) < _SHORT
