"""JSON as RFC 8259 has it: Python's parser, less what it tolerates, and telling what it drops."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Python's int() takes quadratic time on long digits, and a float holds no more than 308.
_MOST_DIGITS = 300


def _integer(digits: str) -> Any:
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


_BODY = json.JSONDecoder(parse_int=_integer, parse_constant=_refuse_constant)


def parse_body(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, for NaN and Infinity too; RecursionError when too deep."""
    return _BODY.decode(text)


@dataclass(frozen=True)
class Decoded:
    """A decoded `arguments` text: its value, object keys that came twice, numbers that are not finite."""

    value: Any
    doubled_keys: tuple[str, ...]
    not_finite: tuple[str, ...]


def parse_arguments(text: str) -> Decoded:
    """Decode an `arguments` text. Raises ValueError; RecursionError when nested too deeply."""
    doubled: list[str] = []
    not_finite: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                doubled.append(key)
            found[key] = value
        return found

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            not_finite.append(digits)
        return value

    def integer(digits: str) -> Any:
        return int(digits) if len(digits) <= _MOST_DIGITS else number(digits)

    decoder = json.JSONDecoder(
        object_pairs_hook=pairs, parse_float=number, parse_int=integer, parse_constant=number
    )
    value = decoder.decode(text)
    return Decoded(value, tuple(doubled), tuple(not_finite))


def spelled(value: Any) -> str:
    """The same text for the same JSON value: in whatever order its keys, and 1 as 1.0, but not as true."""
    by_value = json.loads(json.dumps(value), parse_float=_by_value)
    return json.dumps(by_value, sort_keys=True)


def _by_value(digits: str) -> Any:
    value = float(digits)
    return int(value) if value.is_integer() else value


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in it, itself too, without recursion."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def walk(value: Any) -> Iterator[Any]:
    """Every scalar below `value`, and every object key, without recursion."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield from item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
        else:
            yield item
