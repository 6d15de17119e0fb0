"""Server-sent events, read as the standard says (WHATWG HTML, 9.2.6), noting what no OpenAI client expects.

Legal and silently accepted: CRLF or CR line ends, comments, a byte order mark, `event:`, `id:` and `retry:`
fields, fields of any other name, a field's name without a colon, data over several lines, no space after the
colon.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from healthchecks.toolcalls.strict_json import parse_body

DONE = "[DONE]"
_MORE_BLANK_LINES = re.compile("\n{3,}")
_FIELDS = ("data", "event", "id", "retry")
# The standard takes any line for a field. JSON, HTML and prose in the midst of a stream are none that anybody
# meant.
_FIELD_NAME = re.compile(r"\w[\w.-]{0,63}")
_FIRST_LINE = re.compile(r"[^\r\n]{0,100}")
_DATA_LINE = re.compile(r"(?:^|[\r\n])data(?:[:\r\n]|$)")


@dataclass(frozen=True)
class Events:
    """The data of each event, in order.

    `types` has those that an `event` field gives, by number, less `message`, which is that of all others.
    `stray_lines` counts the lines that are no field of an event, `first_stray_line` is the first of them.
    `unended`: the body ends before the blank line that ends its last event. `glued` counts the events behind
    which a single line end stood for that blank line; they are parted all the same.
    """

    data: tuple[str, ...]
    types: Mapping[int, str]
    first_stray_line: str
    stray_lines: int
    unended: bool
    glued: int


def parse_events(text: str) -> Events:
    """Split the text of an event stream; nothing is refused."""
    text = text.removeprefix("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\n\n\n" in text:
        text = _MORE_BLANK_LINES.sub("\n\n", text)
    data: list[str] = []
    types: dict[int, str] = {}
    strays: list[str] = []
    stray_count = glued = 0
    # The last block has no blank line behind it; when all is well it is empty.
    blocks = text.split("\n\n")
    ended = 0
    for block in blocks:
        ended = len(data)
        # The usual event, and the reason why ten megabytes take a fraction of a second.
        if block.startswith("data:") and "\n" not in block:
            data.append(_value(block))
            continue
        lines, type_ = [], ""
        for line in block.split("\n"):
            name = line.partition(":")[0]
            if name == "data":
                lines.append(_value(line))
            elif name == "event":
                type_ = line[len("event:") :].removeprefix(" ")
            elif name and not _FIELD_NAME.fullmatch(name):
                stray_count += 1
                strays = strays or [line]
        if _are_events(lines):
            glued += len(lines) - 1
            data += lines
        elif lines:
            data.append("\n".join(lines))
        if type_ not in ("", "message"):
            types.update((number, type_) for number in range(ended, len(data)))
    stray = strays[0] if strays else ""
    return Events(tuple(data), types, stray, stray_count, unended=len(data) > ended, glued=glued)


def looks_like_events(text: str) -> bool:
    """Does this text begin with a field or a comment of an event stream?"""
    begun = _FIRST_LINE.match(text.lstrip("\ufeff \r\n"))
    line = begun.group() if begun else ""
    name = line.partition(":")[0]
    if line.startswith(":") or name in _FIELDS:
        return True
    # A field that nobody knows might be the beginning of any text.
    return bool(_FIELD_NAME.fullmatch(name)) and _DATA_LINE.search(text) is not None


def _value(line: str) -> str:
    return line[6:] if line.startswith("data: ") else line[5:]


def _are_events(lines: Sequence[str]) -> bool:
    """Is each line of an event's data one of its own? The last may have been cut."""
    return len(lines) > 1 and all(line.strip() == DONE or _is_object(line) for line in lines[:-1])


def _is_object(line: str) -> bool:
    if not line.strip().startswith("{"):
        return False
    try:
        parse_body(line)
    except (ValueError, RecursionError):
        return False
    return True
