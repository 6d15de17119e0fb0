"""What a run tells people: of what has changed, one message; a dead man's switch, that there was a run.

Nothing of it happens without `notify.urls` in the directory of the health checks, or a credential of systemd.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from healthchecks.addresses import Addresses, read_addresses
from healthchecks.dead_man import START_SECONDS, Signal, send_pings
from healthchecks.delivery import deliver
from healthchecks.health_config import HealthConfig
from healthchecks.health_report import HealthReport, State
from healthchecks.notices import checks_of, make_notice
from healthchecks.spool import Spool


class Run(Protocol):
    """What the agent hands to its outputs."""

    @property
    def directory(self) -> Path: ...
    @property
    def config(self) -> HealthConfig: ...
    @property
    def report(self) -> HealthReport: ...


class NotTold(Exception):
    """Somebody did not get what they should; for whom a message waits, gets it with a later run."""


def ping_start(directory: Path) -> None:
    """A run begins. What goes wrong is told when it ends, if it still goes wrong then."""
    try:
        addresses = read_addresses(directory)
    except (OSError, ValueError):
        return
    if addresses is not None and addresses.pings:
        send_pings(addresses.pings, Signal.START, seconds=START_SECONDS)


def ping_end(run: Run) -> None:
    """A run has ended, and whether a check fails. Raises NotTold."""
    try:
        addresses = read_addresses(run.directory)
    except (OSError, ValueError):
        # `notify` says so.
        return
    if addresses is not None and addresses.pings:
        signal = Signal.FAIL if run.report.state is State.FAIL else Signal.SUCCESS
        _raise(send_pings(addresses.pings, signal))


def notify(run: Run) -> None:
    """One message of what has changed, to all targets, after those that still wait.

    Raises:
        NotTold: a line or the file says nothing, a message does not arrive, or it cannot be kept on the disk.
    """
    problems: list[str] = []
    addresses: Addresses | None = Addresses()
    try:
        addresses = read_addresses(run.directory)
    except (OSError, ValueError) as refused:
        # The messages wait until it can be read.
        problems.append(str(refused))
    if addresses is None or (not addresses.targets and not addresses.problems and not problems):
        return
    problems += addresses.problems
    spool = Spool(run.directory)
    notice = make_notice(spool.failing, run.report, checks_of(run.config))
    if notice is not None:
        spool.add(notice)
    problems += deliver(spool, addresses.targets)
    if spool.problem is not None:
        problems.append(f"the spool cannot be written, and a message may come again: {spool.problem}")
    _raise(problems)


def _raise(problems: list[str]) -> None:
    if problems:
        raise NotTold("; ".join(problems))
