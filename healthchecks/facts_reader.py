"""Reads facts of reports: a host may be of another version, or in other hands, and say anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def number_of(values: Mapping[str, Any], key: str) -> float | None:
    """A finite number that is not below zero, as sizes, times and rates are."""
    found = values.get(key)
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return None
    return float(found) if 0 <= found < 1e18 and math.isfinite(found) else None


def text_of(values: Mapping[str, Any], key: str) -> str | None:
    """A text that says something."""
    found = values.get(key)
    return found if isinstance(found, str) and found else None


def truth_of(values: Mapping[str, Any], key: str) -> bool | None:
    """True or false, where one of them is known."""
    found = values.get(key)
    return found if isinstance(found, bool) else None


def mapping_of(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object, empty where there is none."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def objects_of(values: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    """The objects of a list."""
    found = values.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def texts_of(values: Mapping[str, Any], key: str) -> Sequence[str]:
    """The texts of a list."""
    found = values.get(key)
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
