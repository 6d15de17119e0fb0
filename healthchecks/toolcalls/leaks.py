"""Rules 29, 30 and 50: calls and tokens of the chat template that the server let through as text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

from healthchecks.toolcalls.asked import Asked
from healthchecks.toolcalls.exchange import INTEROP
from healthchecks.toolcalls.findings import Findings, show

# Hermes and Qwen, Qwen-Agent, Qwen3-Coder, Mistral; any `<|token|>` of Llama, ChatML, Harmony, DeepSeek.
_TOKEN = re.compile(
    r"</?tool_call>|</?tools>|</?tool_response>|✿(?:FUNCTION|ARGS|RESULT|RETURN)✿|<function=|\[TOOL_CALLS\]"
    r"|<[|\uff5c][\w\u2581]{1,40}[|\uff5c]>"
)
_NAME = re.compile(
    r"""["']name["']\s*:\s*["']([^"'\n]{1,64})["'](\s*,\s*["'](?:arguments|parameters)["']\s*:\s*["'{])?"""
)


def find_token(text: str) -> str | None:
    """The first token of a chat template in `text`."""
    match = _TOKEN.search(text)
    return match.group() if match else None


def check_content(pieces: list[str], where: str, asked: Asked, found: Findings) -> None:
    """Rules 30 and 50. `pieces` is the content as it came: the one of a plain reply, or one for each chunk.

    A leak inside one piece is rule 30; one that shows only when the pieces are joined is rule 50.
    """
    found.looked_at(30)
    if len(pieces) > 1:
        found.looked_at(50)
    text = "".join(pieces)
    ends: list[int] = []
    for piece in pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    for start, end, reason in _leaks(text, asked):
        inside_one_piece = bisect_right(ends, start) == bisect_right(ends, end - 1)
        found.add(30 if inside_one_piece else 50, INTEROP, where, reason)


def _leaks(text: str, asked: Asked) -> Iterator[tuple[int, int, str]]:
    """At most one leak of each kind."""
    token = _TOKEN.search(text)
    if token:
        yield token.start(), token.end(), f"the text holds {show(token.group())}"
    opened = text.rfind("<think>")
    if opened > text.rfind("</think>"):
        yield opened, opened + len("<think>"), "the text holds a `<think>` that is never closed"
    for name in _NAME.finditer(text):
        if name.group(2) or (asked.tools and name.group(1) in asked.tools):
            yield name.start(), name.end(), f"the text holds a call of {show(name.group(1))} as JSON"
            return
