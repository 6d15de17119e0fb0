"""How each misfortune comes and goes. What has begun is undone by `mend`, which may be called twice."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.chaos_schedule import MIRROR_FAULTS, Change, Fault, FaultKind
from bench.chaos_site import ChaosSite, disks_of
from bench.hosts import until
from testbed.hosts_host import Host, NotInTime
from testbed.hosts_machine import MachineRefused
from testbed.mirror import Fault as MirrorFault
from testbed.mirror import FaultKind as MirrorFaultKind

REBOOT_SECONDS = 120.0
FILLER = "filler-of-the-chaos"
_KILL_SERVER = "systemctl kill --signal=KILL ollama.service"
_KILL_LOCK = 'pid=$(sed -n 2p /var/lib/ollama-fleet/lock) && [ -n "$pid" ] && kill -9 "$pid"'
# A session is named after its user; the listener, which is not, lives on.
_KILL_SESSIONS = "pkill -KILL -f '^sshd: [a-z]+@'"


# The host is off, or its link, or the process is gone.
_TOO_LATE = (NotInTime, MachineRefused, subprocess.TimeoutExpired, ProcessLookupError)


@dataclass(kw_only=True)
class Scene:
    """One run and the host that its misfortunes meet.

    `others` are deploys that came in between, with these flags; `marker` is what a reboot changes.
    """

    site: ChaosSite
    host: Host
    run: subprocess.Popen[str]
    flags: Sequence[str]
    others: list[subprocess.Popen[str]] = field(default_factory=list)
    marker: int | None = None

    def begin(self, fault: Fault) -> None:
        """Let it happen now."""
        with suppress(*_TOO_LATE):
            _BEGIN[fault.kind](self)

    def mend(self, fault: Fault) -> None:
        """Its second half, or its end."""
        end = _END.get(fault.kind)
        if end is not None:
            with suppress(*_TOO_LATE):
                end(self)


def _kill_controller(scene: Scene) -> None:
    os.killpg(scene.run.pid, signal.SIGKILL)


def _interrupt(scene: Scene) -> None:
    # As a terminal does it: all of its processes.
    os.killpg(scene.run.pid, signal.SIGINT)


def _cut_power(scene: Scene) -> None:
    if scene.host.is_running:
        with suppress(MachineRefused):
            # A kernel closes the connections of processes that end; one without power says nothing.
            scene.host.cut_link()
        scene.host.kill9()


def _cut_power_and_kill_controller(scene: Scene) -> None:
    _kill_controller(scene)
    _cut_power(scene)


def _switch_on(scene: Scene) -> None:
    if not scene.host.is_running:
        scene.host.start()


def _reboot(scene: Scene) -> None:
    scene.marker = scene.host.boot_marker()
    scene.host.shell("systemctl reboot", timeout_seconds=20)


def _await_reboot(scene: Scene) -> None:
    """What was asked for may not have begun."""
    if scene.marker is not None:
        until(lambda: scene.host.boot_marker() not in (None, scene.marker), REBOOT_SECONDS)


def _shell(script: str) -> Callable[[Scene], None]:
    def begin(scene: Scene) -> None:
        scene.host.shell(script, timeout_seconds=20)

    return begin


def _fill_disks(scene: Scene) -> None:
    for disk in disks_of(scene.host):
        left = os.statvfs(disk)
        with suppress(OSError), Path(disk, FILLER).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize)


def _free_disks(scene: Scene) -> None:
    for disk in disks_of(scene.host):
        Path(disk, FILLER).unlink(missing_ok=True)


def _deploy_too(scene: Scene) -> None:
    scene.others.append(scene.site.start(("deploy", *scene.flags), [scene.host]))


def _spoil_mirror(fault: Callable[[], MirrorFault]) -> Callable[[Scene], None]:
    def begin(scene: Scene) -> None:
        scene.site.mirror.faults.append(fault())

    return begin


def _mend_mirror(scene: Scene) -> None:
    scene.site.mirror.faults.clear()


_HALF_BYTES = 3_000_000
_BEGIN: Mapping[FaultKind, Callable[[Scene], None]] = {
    FaultKind.NONE: lambda _: None,
    FaultKind.CONTROLLER_KILLED: _kill_controller,
    FaultKind.CTRL_C: _interrupt,
    FaultKind.CTRL_C_TWICE: _interrupt,
    FaultKind.CONTROLLER_SLEEPS: lambda scene: os.killpg(scene.run.pid, signal.SIGSTOP),
    FaultKind.POWER_CUT: _cut_power,
    FaultKind.POWER_AND_CONTROLLER: _cut_power_and_kill_controller,
    FaultKind.REBOOT: _reboot,
    FaultKind.LINK_CUT: lambda scene: scene.host.cut_link(),
    FaultKind.SESSIONS_KILLED: _shell(_KILL_SESSIONS),
    FaultKind.SERVER_KILLED: _shell(_KILL_SERVER),
    FaultKind.LOCK_LOST: _shell(_KILL_LOCK),
    FaultKind.DISK_FULL: _fill_disks,
    FaultKind.ANOTHER_DEPLOY: _deploy_too,
    FaultKind.MIRROR_REFUSES: _spoil_mirror(lambda: MirrorFault(kind=MirrorFaultKind.STATUS, status=500)),
    FaultKind.MIRROR_HANGS: _spoil_mirror(
        lambda: MirrorFault(kind=MirrorFaultKind.STALL, after_bytes=_HALF_BYTES)
    ),
    FaultKind.MIRROR_CUTS: _spoil_mirror(
        lambda: MirrorFault(kind=MirrorFaultKind.CUT, after_bytes=_HALF_BYTES)
    ),
    FaultKind.MIRROR_FLIPS: _spoil_mirror(lambda: MirrorFault(kind=MirrorFaultKind.CORRUPT)),
}
_END: Mapping[FaultKind, Callable[[Scene], None]] = {
    FaultKind.CTRL_C_TWICE: _interrupt,
    FaultKind.CONTROLLER_SLEEPS: lambda scene: os.killpg(scene.run.pid, signal.SIGCONT),
    FaultKind.POWER_CUT: _switch_on,
    FaultKind.POWER_AND_CONTROLLER: _switch_on,
    FaultKind.REBOOT: _await_reboot,
    FaultKind.LINK_CUT: lambda scene: scene.host.mend_link(),
    FaultKind.DISK_FULL: _free_disks,
    FaultKind.MIRROR_REFUSES: _mend_mirror,
    FaultKind.MIRROR_HANGS: _mend_mirror,
    FaultKind.MIRROR_CUTS: _mend_mirror,
    FaultKind.MIRROR_FLIPS: _mend_mirror,
}
UNTIL_THE_END = MIRROR_FAULTS | {
    FaultKind.DISK_FULL,
    FaultKind.REBOOT,
}
"""What lasts as long as the run does, whatever its `seconds` say."""

# 0 where it came too late, or was survived. A process that a signal ends has its number, below zero: before
# the first line of ours runs, Ctrl-C is that. The lock goes with its connection: what is cut between steps
# is a lost lock (5), in a step an unreachable host (4).
HONEST: Mapping[FaultKind, frozenset[int]] = {
    FaultKind.NONE: frozenset({0}),
    FaultKind.CONTROLLER_KILLED: frozenset({0, -signal.SIGKILL}),
    FaultKind.CTRL_C: frozenset({0, 130, -signal.SIGINT}),
    FaultKind.CTRL_C_TWICE: frozenset({0, 130, -signal.SIGINT}),
    FaultKind.CONTROLLER_SLEEPS: frozenset({0, 4, 5}),
    FaultKind.POWER_CUT: frozenset({0, 4, 5}),
    FaultKind.POWER_AND_CONTROLLER: frozenset({0, 4, 5, -signal.SIGKILL}),
    # The server is stopped before the network is.
    FaultKind.REBOOT: frozenset({0, 2, 4, 5}),
    FaultKind.LINK_CUT: frozenset({0, 4, 5}),
    FaultKind.SESSIONS_KILLED: frozenset({0, 4, 5}),
    FaultKind.SERVER_KILLED: frozenset({0, 2}),
    # While a server starts, a lost lock is taken for a lost connection: what is written to either is refused.
    FaultKind.LOCK_LOST: frozenset({0, 4, 5}),
    FaultKind.DISK_FULL: frozenset({0, 2}),
    FaultKind.ANOTHER_DEPLOY: frozenset({0, 5}),
    FaultKind.MIRROR_REFUSES: frozenset({0, 2}),
    FaultKind.MIRROR_HANGS: frozenset({0, 2}),
    FaultKind.MIRROR_CUTS: frozenset({0, 2}),
    FaultKind.MIRROR_FLIPS: frozenset({0, 2}),
}
"""The exit codes that each may lead to."""


def honest_codes(kinds: Sequence[FaultKind], change: Change = Change.UPGRADE) -> frozenset[int]:
    """Those of a run that met all of these, or of one that met none."""
    undisturbed = {2} if change is Change.FAILING else {0}
    return frozenset(undisturbed).union(*(HONEST[kind] - {0} for kind in kinds))
