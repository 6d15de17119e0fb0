"""Our line in a crontab: when it starts the checks, how it is known again, and the files that it needs.

It stands in the own crontab of the user whom the host is reached as, by crontab(1), and nowhere else. Every
cron has that: Debian's, cronie, busybox. A file in /etc/cron.d would leave the user's table alone, but
busybox reads none, and only root may write there: two ways where one does. So our line ends with a mark that
names its root, and whatever does not end so is somebody else's and stays byte for byte.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

from deploy.commands import render_command
from deploy.desired import Desired, HostFile
from deploy.facts import HostFacts
from deploy.units import (
    DAY_MINUTES,
    HOUR_MINUTES,
    Hand,
    health_arguments,
    health_program,
    period_text,
    render_file,
)

DEADLINE_SECONDS = 720
"""Of a whole run, as the unit's TimeoutStartSec."""

_SIGNED = re.compile(r"(?P<rest>.*) # sha256 (?P<sha256>[0-9a-f]{16}) (?P<mark># ollama-fleet: .*)")


def line_mark(root: PurePosixPath) -> str:
    """What our line ends with. The root is in it: a user may have two, and so two lines."""
    return f"# ollama-fleet: {root}"


def cron_line(desired: Desired, every_minutes: int) -> str:
    """crontab(5): a moment of the host's own in every period, the program, our signature and our mark."""
    program = render_command((str(desired.paths.cron_program),))
    rest = f"{_schedule(every_minutes, _own_minute(desired.host, every_minutes))} {program}"
    return f"{rest} # sha256 {_sha256(rest)} {line_mark(desired.paths.root)}"


def line_written_by(line: str) -> Hand:
    """Ours is a line that is as some version of us wrote it."""
    found = _SIGNED.fullmatch(line)
    return Hand.OURS if found is not None and _sha256(found["rest"]) == found["sha256"] else Hand.OTHER


def why_no_cron(desired: Desired, facts: HostFacts) -> str | None:
    """What keeps cron from starting the checks of a host without systemd; None where it can."""
    cron = facts.cron
    if cron is None:
        return "there is no crontab"
    if cron.is_refused:
        return f"crontab does not let {cron.user} in"
    if cron.daemon is None:
        return "no cron daemon runs"
    if "%" in str(desired.paths.root):
        # crontab(5): the end of the command, unless escaped; busybox knows no escape.
        return f"cron ends a command at the `%` of {desired.paths.root}"
    return None


def cron_files(desired: Desired, every_minutes: int) -> tuple[HostFile, ...]:
    """What has a host without systemd check itself, beside the line."""
    paths = desired.paths
    return (
        health_program(desired),
        render_file(
            paths.cron_program,
            "health-cron.sh.j2",
            mode="755",
            every=period_text(every_minutes),
            every_seconds=every_minutes * 60,
            deadline_seconds=DEADLINE_SECONDS,
            log=render_command((str(paths.cron_log),)),
            last=render_command((str(paths.health / "last.json"),)),
            program=render_command((str(paths.health_program),)),
            arguments=render_command(health_arguments(desired)),
        ),
    )


def _own_minute(host: str, every_minutes: int) -> int:
    """By the host's name, so that it is always the same, and hosts are spread over the period or the hour."""
    digest = hashlib.sha256(host.encode()).digest()
    return int.from_bytes(digest[:8], "big") % min(every_minutes, HOUR_MINUTES)


def _schedule(every_minutes: int, minute: int) -> str:
    """The five fields, with nothing but what busybox reads too."""
    if every_minutes == 1:
        return "* * * * *"
    if every_minutes < HOUR_MINUTES:
        return f"{minute}-59/{every_minutes} * * * *"
    if every_minutes == HOUR_MINUTES:
        return f"{minute} * * * *"
    return f"{minute} {'0' if every_minutes == DAY_MINUTES else f'*/{every_minutes // HOUR_MINUTES}'} * * *"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
