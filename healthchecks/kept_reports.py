"""What a host has kept of its own checks, as somebody elsewhere reads it, and what that is worth now."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from healthchecks.health_report import HealthReport, State, parse_report

STALE_PERIODS = 3
"""A report that is older than so many periods tells of a time that is over."""

# What is sent packed is of a host that may be in other hands: a bomb must not fill our memory.
_UNPACKED_BYTES_AT_MOST = 64 * 1024 * 1024
_YEAR_10000 = 253_402_300_800
_GZIP, _GZIP_WINDOW = b"\x1f\x8b", 31


@dataclass(frozen=True)
class Run:
    """A line of the history: `at` in seconds since 1970, the state, the facts."""

    at: float
    state: State
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class KeptReports:
    """`now` is the host's own clock when it was asked: ages need no clock but the one that wrote the report.

    `scheduled` says whether a deploy has left it what it should check. `problem` is why `report` is None
    though there is one.
    """

    now: float
    scheduled: bool
    report: HealthReport | None = None
    runs: tuple[Run, ...] = ()
    problem: str | None = None

    @property
    def age_seconds(self) -> float | None:
        """Of the last report; negative where it is dated ahead of the host's own clock."""
        started = None if self.report is None else parse_moment(self.report.started)
        return None if started is None else self.now - started


def parse_kept(said: bytes) -> KeptReports:
    """The reply to the question of `deploy.commands.read_kept_reports`, packed or not.

    Its lines: the host's time in seconds, `scheduled` or `never`, the last report or nothing, the history,
    the oldest first. A line of the history that is none is left out.

    Raises:
        ValueError: it is no such reply.
    """
    lines = _unpack(said).split(b"\n")
    if len(lines) < 3 or not lines[0].isdigit() or lines[1] not in (b"scheduled", b"never"):
        raise ValueError("the reply is not what was asked for")
    report, problem = _parse_last(lines[2])
    runs = tuple(run for run in map(_parse_run, lines[3:]) if run is not None)
    return KeptReports(
        now=float(int(lines[0][:15])),
        scheduled=lines[1] == b"scheduled",
        report=report,
        runs=runs,
        problem=problem,
    )


def parse_moment(text: Any) -> float | None:
    """Seconds since 1970 of a time as reports have it; None for anything else.

    None too for what is before 1970 or after the year 9999 in UTC, which cannot be written again.
    """
    try:
        at = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except (TypeError, ValueError):
        return None
    return at if 0 <= at < _YEAR_10000 else None


def _unpack(said: bytes) -> bytes:
    if not said.startswith(_GZIP):
        return said
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    try:
        text = unpacker.decompress(said, _UNPACKED_BYTES_AT_MOST)
    except zlib.error as problem:
        raise ValueError(f"the reply cannot be unpacked: {problem}") from problem
    if not unpacker.eof:
        raise ValueError("the reply is cut, or larger than any that we ask for")
    return text


def _parse_last(line: bytes) -> tuple[HealthReport | None, str | None]:
    if not line.strip():
        return None, None
    try:
        return parse_report(json.loads(line)), None
    except (ValueError, OverflowError, RecursionError) as problem:
        return None, f"its last report cannot be read: {problem}"


def _parse_run(line: bytes) -> Run | None:
    try:
        entry = json.loads(line)
        at, state, facts = parse_moment(entry["started"]), State(entry["state"]), entry["facts"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Run(at, state, facts) if at is not None and isinstance(facts, dict) else None
