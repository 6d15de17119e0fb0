"""From the seconds of every round to a table, ratios and what was promised of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TIMES_FASTER = {"Ansible": 10.0, "pyinfra": 2.0}
"""How much faster ours must be where all is done. A first deploy is above all the hosts' own work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Of one tool in one round, or their medians: on bare hosts, and where everything is there."""

    first: float
    again: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One tool beside the two ends of the scale: ours, and one script by plain OpenSSH."""

    name: str
    seconds: Seconds
    beside_openssh: Seconds
    ours_is_faster: Seconds

    @property
    def target(self) -> float | None:
        return next((times for name, times in TIMES_FASTER.items() if self.name.startswith(name)), None)

    @property
    def is_missed(self) -> bool:
        return self.target is not None and self.ours_is_faster.again < self.target

    def row(self) -> list[str]:
        """Of the table whose columns are `COLUMNS`."""
        target = "" if self.target is None else f">= {self.target:g}"
        return [
            self.name,
            *_cells(self.seconds.first, self.beside_openssh.first, self.ours_is_faster.first),
            *_cells(self.seconds.again, self.beside_openssh.again, self.ours_is_faster.again),
            target,
        ]


COLUMNS = ["", "first deploy, s", "/ OpenSSH", "/ ours", "nothing to do, s", "/ OpenSSH", "/ ours", "target"]


def medians(rounds: Sequence[Mapping[str, Seconds]]) -> dict[str, Seconds]:
    """Of every tool over all rounds."""
    return {
        name: Seconds(
            first=statistics.median(one[name].first for one in rounds),
            again=statistics.median(one[name].again for one in rounds),
        )
        for name in rounds[0]
    }


def compare(measured: Mapping[str, Seconds], ours: str, openssh: str) -> tuple[Compared, ...]:
    """Every tool beside ours and beside plain OpenSSH, in the order given."""

    def times(one: Seconds, other: Seconds) -> Seconds:
        return Seconds(first=one.first / other.first, again=one.again / other.again)

    return tuple(
        Compared(
            name=name,
            seconds=seconds,
            beside_openssh=times(seconds, measured[openssh]),
            ours_is_faster=times(seconds, measured[ours]),
        )
        for name, seconds in measured.items()
    )


def _cells(seconds: float, beside_openssh: float, ours_is_faster: float) -> list[str]:
    return [f"{seconds:.2f}", f"{beside_openssh:.1f}", f"{ours_is_faster:.1f}"]
