"""Charts as numbers for a template's SVG: what is drawn, and the same in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Callable, Optional

WIDTH, HEIGHT = 120, 100
"""Of a line's box; its page stretches it. Whole numbers in it keep a page of many hosts small."""

_ACROSS, _ALONG = 1, 4
"""A line at the edge would be cut in half."""

Point = tuple[float, Optional[float]]
"""A moment and what was measured then; None where nothing was."""


@dataclass(frozen=True)
class LineChart:
    """`path` is that of SVG in a box of `WIDTH` by `HEIGHT`, from 0 at its bottom to `most` at its top.

    `first`, `last` and `count` are of what was measured, `since` and `until` the moments of its ends.
    """

    path: str
    least: float
    most: float
    last: float
    count: int
    since: float
    until: float


def draw_line(points: Sequence[Point], worst: Callable[[Sequence[float]], float]) -> LineChart | None:
    """A line over time, broken where nothing was measured; None without two measurements.

    Of the measurements that fall on one place the `worst` is shown: trouble is what one looks for.
    """
    known = [(at, value) for at, value in points if value is not None]
    if len(known) < 2:
        return None
    since, until = min(at for at, _ in points), max(at for at, _ in points)
    values = [value for _, value in known]
    most = max(values)

    def place(point: Point) -> int:
        return round(_ACROSS + (WIDTH - 2 * _ACROSS) * _part(point[0] - since, until - since))

    words, is_drawing = [], False
    for x, group in groupby(sorted(points, key=lambda point: point[0]), key=place):
        here = [value for _, value in group if value is not None]
        if not here:
            is_drawing = False
            continue
        y = round(HEIGHT - _ALONG - (HEIGHT - 2 * _ALONG) * _part(worst(here), most))
        # A point alone is a line without a length, which has round ends.
        words.append(f"L{x} {y}" if is_drawing else f"M{x} {y}h0")
        is_drawing = True
    return LineChart("".join(words), min(values), most, known[-1][1], len(known), since, until)


@dataclass(frozen=True)
class Span:
    """Runs of one state side by side, in percent of the strip's width."""

    state: str
    left: float
    width: float


def draw_strip(states: Sequence[str]) -> tuple[Span, ...]:
    """The states of runs, one beside the other."""
    spans, done = [], 0
    for state, group in groupby(states):
        count = len(list(group))
        spans.append(Span(state, _share(done, len(states)), _share(count, len(states))))
        done += count
    return tuple(spans)


@dataclass(frozen=True)
class Part:
    """A part of a bar, in percent of its width."""

    label: str
    size_bytes: float
    left: float
    width: float


def draw_bar(total: float, used: float, shares: Sequence[tuple[str, float]]) -> tuple[Part, ...]:
    """Who holds what of `used`; `shares` that claim more than is in use are cut there.

    What nobody claims has no label.
    """
    parts, done = [], 0.0
    for label, size in [*shares, ("", used)]:
        here = min(size, used - done) if label else used - done
        if here > 0:
            parts.append(Part(label, size if label else here, _share(done, total), _share(here, total)))
            done += here
    return tuple(parts)


def _part(part: float, whole: float) -> float:
    """From 0 to 1, however small the whole is."""
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


def _share(part: float, whole: float) -> float:
    return round(100 * part / whole, 2) if whole > 0 else 0.0
