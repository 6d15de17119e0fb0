"""JSON schema in bounded time: `pattern` and `uniqueItems` of a tool can take as good as for ever."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from healthchecks.toolcalls.strict_json import objects, spelled

_MOST_STEPS = 10_000_000
_LONGEST_BY_REPEATED_GROUPS = 20
_ONE_CHARACTER = re.compile(r"\\.|\[\^?\]?[^\]]*\]", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPEATED = re.compile(r"[*+]|\{\d*,\d*\}")


@cache
def bounded(validator: type[Draft202012Validator]) -> type[Draft202012Validator]:
    """The validator of a draft, which lets pass what would take too long to be held against a pattern."""
    own: Any = {"pattern": _check_pattern, "uniqueItems": _check_unique}
    make: Callable[..., type[Draft202012Validator]] = extend
    return make(validator, own)


def longest_matched(pattern: str) -> int:
    """How many characters are held against a pattern.

    Where it does not match, Python tries every way to share them among its repetitions, and from every
    character on; of a repeated group there may be as many as there are subsets.
    """
    pieces = _ONE_CHARACTER.sub("x", pattern)
    if _REPEATED_GROUP.search(pieces):
        return _LONGEST_BY_REPEATED_GROUPS
    return int(_MOST_STEPS ** (1 / (1 + len(_REPEATED.findall(pieces)))))


def longest_key(schema: Any) -> int:
    """How long a key may be to be held against the `patternProperties` anywhere in a schema."""
    longest = _MOST_STEPS
    for item in objects(schema):
        patterns = item.get("patternProperties")
        if isinstance(patterns, dict):
            longest = min([longest, *map(longest_matched, patterns)])
    return longest


def _check_pattern(
    validator: Any, pattern: str, instance: Any, _schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "string") or len(instance) > longest_matched(pattern):
        return
    if not re.search(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _check_unique(
    validator: Any, unique: Any, instance: Any, _schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not unique or not validator.is_type(instance, "array"):
        return
    if len(set(map(spelled, instance))) < len(instance):
        yield ValidationError(f"{instance!r} has non-unique elements")
