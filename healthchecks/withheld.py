"""Keeps the API key out of what a server said, however the server spells it.

Servers quote a key that they refuse, and answers are kept, judged and shown. Where the bytes hold the key it
is replaced. Where only what is read from them does (escapes of JSON, pieces in the events of a stream) the
whole body is given up: no reader of it can be trusted to leave it in pieces.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

SHORTEST_SECRET = 8
"""Shorter keys are placeholders such as `ollama` or `none`, which may stand anywhere."""

WITHHELD = b"withheld: this answer spells out the API key"
WHY_WITHHELD = "the answer spells out the API key, so it is not kept"

_UNICODE_ESCAPE = re.compile(r"\\+u([0-9a-fA-F]{4})")


def is_secret(key: str | None) -> bool:
    """Whether there is a key to be withheld."""
    return key is not None and len(key) >= SHORTEST_SECRET


def without_key(key: str, text: str) -> str:
    """`text` with stars where it has the key, as it is or as JSON writes it."""
    for spelled in {key, json.dumps(key)[1:-1]}:
        text = text.replace(spelled, "***")
    return text


def without_key_bytes(key: str, body: bytes) -> bytes:
    """The same of bytes, or `WITHHELD` where whoever decodes them would read the key."""
    for spelled in {key, json.dumps(key)[1:-1]}:
        body = body.replace(spelled.encode(), b"***")
    return WITHHELD if _spells(key, body.decode("utf-8", "replace")) else body


def tells_key(key: str, value: Any) -> bool:
    """Whether a text anywhere in `value`, dataclasses and what JSON has, holds the key."""
    try:
        return any(_shows(key, text) for _, text in _texts(value, ()))
    except RecursionError:
        return True  # Nobody can tell.


def _spells(key: str, text: str) -> bool:
    if _shows(key, text):
        return True
    joined: defaultdict[tuple[Any, ...], list[str]] = defaultdict(list)
    # The package loads the judge, which a converge that changes nothing does without.
    from healthchecks.toolcalls.sse import looks_like_events, parse_events

    for document in parse_events(text).data if looks_like_events(text) else (text,):
        for place, piece in _decoded_texts(document):
            joined[place].append(piece)
    return any(_shows(key, "".join(pieces)) for pieces in joined.values() if len(pieces) > 1)


def _decoded_texts(document: str) -> list[tuple[tuple[Any, ...], str]]:
    """None of what nobody can decode: that is seen as it is."""
    try:
        return list(_texts(json.loads(document), ()))
    except (ValueError, RecursionError):
        return []


def _shows(key: str, text: str) -> bool:
    """Backslashes do not count: they stand before whatever JSON may escape, at any depth of JSON in JSON."""
    read = _UNICODE_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    return key.replace("\\", "") in read.replace("\\", "")


def _texts(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Each text and its place; what clients join in a stream has one place: lists count by `index` alone."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        at = (*place, value["index"]) if isinstance(value.get("index"), int) else place
        for name, item in value.items():
            yield from _texts(item, (*at, name))
    elif dataclasses.is_dataclass(value):
        yield from _texts(vars(value), place)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, place)
