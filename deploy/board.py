"""Many hosts at once, readable at four and at two hundred: what each does now, and how far all are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any

LINES_AT_MOST = 12
# Of the beginning that names share, when it is cut.
_SHARED_KEPT = 4

DETAILS = frozenset({"plan", "step_started", "soak", "progress", "blob", "case", "check", "rates"})
"""The events of one host's work, of which a board shows the last; `--json` has them all."""


@dataclass(kw_only=True)
class _Doing:
    since: float
    words: str = "looking at it"
    share: str = ""


@dataclass(kw_only=True)
class Board:
    """What the hosts of a run are doing, from its events; `now` is a clock in seconds."""

    hosts: int
    now: Callable[[], float]
    done: int = 0
    failed: int = 0
    unreachable: int = 0
    batch: str = ""
    running: dict[str, _Doing] = field(default_factory=dict)

    def hear(self, event: str, host: str | None, fields: Mapping[str, Any]) -> None:
        """Take note of an event; of those that say nothing of the progress none is taken."""
        if host is None:
            self._hear_of_all(event, fields)
        elif event == "host_done":
            self.running.pop(host, None)
            self.done += 1
            self.failed += fields["outcome"] == "failed"
            self.unreachable += fields["outcome"] == "unreachable"
        elif event == "surveyed" and fields["steps"]:
            # Its turn comes with its batch.
            self.running.pop(host, None)
        elif event == "host_started":
            self.running[host] = _Doing(since=self.now())
        elif host in self.running:
            _hear_of_one(self.running[host], event, fields)

    def _hear_of_all(self, event: str, fields: Mapping[str, Any]) -> None:
        if event == "survey_started":
            self.batch = "before the first batch"
        elif event == "batch_started" and fields["of"] > 1:
            self.batch = f"batch {fields['number']} of {fields['of']}"

    def total(self) -> str:
        """How far all are, in one line."""
        parts = [f"{self.done} of {self.hosts} hosts done, {self.failed} failed"]
        if self.unreachable:
            parts[0] += f", {self.unreachable} unreachable"
        return " \u00b7 ".join([self.batch, *parts] if self.batch else parts)

    def lines(self, at_most: int = LINES_AT_MOST, width: int = 255) -> Sequence[tuple[str, str, str]]:
        """Host, what it does and for how long; those that have worked longest first, the rest summed up.

        Names get so many columns at most.
        """
        now = self.now()
        working = sorted(self.running.items(), key=lambda item: item[1].since)
        shown = working if len(working) <= at_most else working[: at_most - 1]
        names = shortened([host for host, _ in shown], width)
        lines = [
            (name, f"{doing.words}{doing.share}", f"{now - doing.since:.0f} s")
            for name, (_, doing) in zip(names, shown, strict=True)
        ]
        if len(shown) < len(working):
            lines.append((f"\u2026 and {len(working) - len(shown)} more", "", ""))
        return lines


def shortened(names: Sequence[str], width: int) -> Sequence[str]:
    """Those that are longer lose the beginning that all of them share, nearly; then their end."""
    long = [name for name in names if len(name) > width]
    prefix = commonprefix(long)  # noqa: RUF071 - of letters, not of directories
    shared = len(prefix) - _SHARED_KEPT if len(long) > 1 else 0

    def cut(name: str) -> str:
        if len(name) > width and shared > 1:
            name = f"…{name[shared:]}"
        return name if len(name) <= width else f"{name[: width - 1]}…"

    return [cut(name) for name in names]


def _hear_of_one(doing: _Doing, event: str, fields: Mapping[str, Any]) -> None:
    if event == "step_started":
        doing.words, doing.share = f"{fields['phase']}: {fields['step']} {fields['subject']}", ""
    elif event == "progress":
        total = fields.get("total_bytes")
        doing.share = f", {100 * fields['bytes'] // total} %" if total else ""
    elif event == "case":
        doing.share = f", {fields['case']}"
    elif event == "soak":
        doing.words, doing.share = f"watched until it has been up for {fields['seconds']:g} s", ""
    elif event == "surveyed":
        doing.words = "nothing to change, checking what it serves"
