"""Server-sent events, read as the standard says (WHATWG HTML, 9.2.6), noting what no OpenAI client expects.

Legal and silently accepted: CRLF or CR line ends, comments, a byte order mark, `event:`, `id:` and `retry:`
fields, data over several lines, no space after the colon.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MORE_BLANK_LINES = re.compile("\n{3,}")


@dataclass(frozen=True)
class Events:
    """The data of each event, in order.

    `stray_lines` counts the lines that are no field of an event, `first_stray_line` is the first of them.
    `unended`: the body ends before the blank line that ends its last event.
    """

    data: tuple[str, ...]
    first_stray_line: str
    stray_lines: int
    unended: bool


def parse_events(text: str) -> Events:
    """Split the text of an event stream; nothing is refused."""
    text = text.removeprefix("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\n\n\n" in text:
        text = _MORE_BLANK_LINES.sub("\n\n", text)
    data: list[str] = []
    strays: list[str] = []
    stray_count = 0
    # The last block has no blank line behind it; when all is well it is empty.
    blocks = text.split("\n\n")
    ended = 0
    for block in blocks:
        ended = len(data)
        # The usual event, and the reason why ten megabytes take a fraction of a second.
        if block.startswith("data:") and "\n" not in block:
            data.append(_value(block))
            continue
        lines = []
        for line in block.split("\n"):
            if line.startswith("data:") or line == "data":
                lines.append(_value(line))
            elif line and not line.startswith((":", "event:", "id:", "retry:")):
                stray_count += 1
                strays = strays or [line]
        if lines:
            data.append("\n".join(lines))
    return Events(tuple(data), strays[0] if strays else "", stray_count, unended=len(data) > ended)


def looks_like_events(text: str) -> bool:
    """Does this text begin with a field or a comment of an event stream?"""
    return text.lstrip("\ufeff \r\n").startswith(("data:", "event:", "id:", "retry:", ":"))


def _value(line: str) -> str:
    return line[6:] if line.startswith("data: ") else line[5:]
