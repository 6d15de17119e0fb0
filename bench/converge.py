"""A converge that changes nothing, beside what plain OpenSSH needs to log in: alternately, in one run.

Ours is measured inside one process, from the first connect to the last reply; the start of that process,
Python and all that it imports, is told beside it. OpenSSH's is one `ssh HOST id -u` a host, all at once.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.hosts import bench_hosts, environment, run_fleet
from deploy.errors import CommandFailed
from deploy.report import Report
from testbed.hosts import PracticeFleet
from testbed.hosts_kinds import Kind

ROUNDS = 9
KINDS = (Kind.RICH, Kind.POOR, Kind.PASSWORD, Kind.OLD)
"""In turn, always the same ones: figures of other days are compared with these."""
TARGET_RATIO = 1.5
TARGET_START_SECONDS = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One of each, in seconds."""

    start_seconds: float
    converge_seconds: float
    openssh_seconds: float


def run(report: Report, hosts: int) -> int:
    """Print the figures; 2 when a target is missed."""
    with bench_hosts([KINDS[number % len(KINDS)] for number in range(hosts)], report.say) as fleet:
        first = run_fleet("deploy", "--yes", "--soak=0", "--inventory", str(fleet.inventory))
        if first.returncode != 0:
            raise CommandFailed(sentence="the first `deploy` failed", cause=first.stderr or first.stdout)
        _round(fleet)  # The first one finds cold caches.
        rounds = []
        for _ in range(ROUNDS):
            rounds.append(_round(fleet))
            report.say(
                f"converge {rounds[-1].converge_seconds:.3f} s, OpenSSH {rounds[-1].openssh_seconds:.3f} s, "
                f"process start {rounds[-1].start_seconds:.3f} s"
            )
    converge = statistics.median(item.converge_seconds for item in rounds)
    openssh = statistics.median(item.openssh_seconds for item in rounds)
    start = statistics.median(item.start_seconds for item in rounds)
    ratio = converge / openssh
    report(
        "bench",
        None,
        what="converge that changes nothing",
        hosts=hosts,
        rounds=ROUNDS,
        converge_seconds=round(converge, 3),
        openssh_seconds=round(openssh, 3),
        ratio=round(ratio, 2),
        start_seconds=round(start, 3),
    )
    report.table(
        f"a converge that changes nothing on {hosts} hosts, medians of {ROUNDS} rounds",
        ["", "seconds", "beside plain OpenSSH", "target"],
        [
            ["plain OpenSSH, one login to each", f"{openssh:.3f}", "1.00", ""],
            [
                "converge, connect to last reply",
                f"{converge:.3f}",
                f"{ratio:.2f}",
                f"<= {TARGET_RATIO}",
            ],
            ["process start before it", f"{start:.3f}", "", f"< {TARGET_START_SECONDS} s"],
        ],
    )
    return 0 if ratio <= TARGET_RATIO and start < TARGET_START_SECONDS else 2


def _round(fleet: PracticeFleet) -> Round:
    start, converge = _ours(fleet.inventory)
    return Round(start_seconds=start, converge_seconds=converge, openssh_seconds=_openssh(fleet))


def _ours(inventory: Path) -> tuple[float, float]:
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "bench.converge", str(inventory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        ready = child.stdout.readline()
        started = time.monotonic() - began
        said, _ = child.communicate("go\n")
    if ready != "ready\n" or child.returncode != 0:
        raise CommandFailed(sentence="the `converge` of the bench failed", cause=ready + said)
    return started, float(said)


def _openssh(fleet: PracticeFleet) -> float:
    began = time.monotonic()
    logins = [
        subprocess.Popen(
            ["ssh", "-F", str(fleet.access.config), host.name, "id -u"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for host in fleet.hosts
    ]
    if sum(login.wait() for login in logins):
        raise CommandFailed(sentence="a login by `ssh` failed")
    return time.monotonic() - began


def _child(arguments: Sequence[str]) -> int:
    """The process that is measured: everything is imported and read before it says `ready`."""
    import deploy.ssh  # noqa: F401 - loaded by the first connect otherwise
    from console.changes import deploy_hosts
    from console.run import Run, make_sources

    (inventory,) = arguments
    with Path("/dev/null").open("w") as nowhere:
        task = Run(
            report=Report(as_json=True, stdout=nowhere),
            sources=make_sources(inventory, None),
            limit=None,
            forks=10,
            stop_requested=threading.Event(),
        )
        hosts = task.hosts()
        task = replace(task, forks=len(hosts))
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.monotonic()
        outcomes = deploy_hosts(task, hosts, "deploy")
        seconds = time.monotonic() - began
    if any(outcome.outcome != "ok" for outcome in outcomes):
        print("; ".join(f"{item.host}: {item.outcome} {item.error or ''}" for item in outcomes))
        return 2
    print(seconds)
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
