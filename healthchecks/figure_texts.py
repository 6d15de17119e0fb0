"""Figures in words, as exact as a person wants to know them."""

from __future__ import annotations

from datetime import datetime, timezone

_GIB = 1024.0**3
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def age_text(seconds: float) -> str:
    """`40 s`, `12 min`, `5 h`, `3 days`: as exact as one wants to know it."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.0f} h"
    return f"{seconds / _DAY:.0f} days"


def size_text(size_bytes: float | None) -> str:
    """In GiB, small ones in MiB."""
    if size_bytes is None:
        return "unknown"
    gib = size_bytes / _GIB
    if not size_bytes:
        return "0 GiB"
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.0f} MiB"


def seconds_text(seconds: float | None) -> str:
    """In seconds, short ones in milliseconds."""
    if seconds is None:
        return "unknown"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def rate_text(rate: float | None) -> str:
    """Tokens per second, three digits of them."""
    return "unknown" if rate is None else f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"


def moment_text(at: float) -> str:
    """In UTC, to the minute."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%m-%d %H:%M")
