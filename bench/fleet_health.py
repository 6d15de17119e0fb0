"""`./fleet health` on many hosts that take their time: what it takes longer than one of them, and its CPU.

One practice host stands for all of them under as many names, each with an SSH login of its own. What checks
there is a program that answers after five seconds with a report that the host has really given: it is the
controller that is measured, and this machine could not compute the checks of so many hosts at once.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.hosts import bench_hosts, run_fleet
from deploy.errors import CommandFailed
from deploy.report import Report
from testbed.hosts import PracticeFleet
from testbed.hosts_host import Host
from testbed.hosts_kinds import Kind

HOSTS = 32
ANSWER_SECONDS = 5.0
ROUNDS = 3
TARGET_WALL_RATIO = 1.5

_AGENT = "/usr/local/lib/ollama-fleet/agent/bench.pex"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one `./fleet health`, the start of its process included."""

    hosts: int
    wall_seconds: float
    cpu_seconds: float


def run(report: Report) -> int:
    """Print the figures; 2 when the target is missed."""
    with _slow_host(report) as fleet:
        inventory = fleet.directory / "many.ini"
        inventory.write_text(render_aliases(fleet.inventory.read_text(), fleet.hosts[0].name, HOSTS))
        costs: dict[int, list[Cost]] = {1: [], HOSTS: []}
        for number in range(ROUNDS):
            for hosts, found in costs.items():
                found.append(measure(inventory, hosts))
                report.say(f"round {number + 1}: {hosts} hosts in {found[-1].wall_seconds:.2f} s")
    one, many = median(costs[1]), median(costs[HOSTS])
    ratio = many.wall_seconds / one.wall_seconds
    further = (many.cpu_seconds - one.cpu_seconds) / (HOSTS - 1)
    rows = [
        ["1 host", f"{one.wall_seconds:.2f}", "1.00", f"{one.cpu_seconds:.2f}", ""],
        [
            f"{HOSTS} hosts",
            f"{many.wall_seconds:.2f}",
            f"{ratio:.2f}",
            f"{many.cpu_seconds:.2f}",
            f"{further * 1000:.0f}",
        ],
        ["target", "", f"<= {TARGET_WALL_RATIO}", "", ""],
    ]
    title = f"health of hosts that answer after {ANSWER_SECONDS:g} s, medians of {ROUNDS} rounds"
    report.table(title, ["", "wall s", "beside one", "CPU s", "CPU ms a further host"], rows)
    report(
        "bench",
        None,
        what="health",
        hosts=HOSTS,
        wall_ratio=round(ratio, 3),
        cpu_milliseconds_per_host=round(further * 1000, 1),
    )
    return 2 if ratio > TARGET_WALL_RATIO else 0


def render_aliases(inventory: str, host: str, count: int) -> str:
    """The inventory with its one host under as many names: `many01`, `many02`, ..."""
    lines = inventory.splitlines()
    (line,) = [line for line in lines if line.startswith(f"{host} ")]
    names = [f"many{number:02}{line.removeprefix(host)}" for number in range(1, count + 1)]
    place = lines.index(line)
    return "\n".join([*lines[:place], *names, *lines[place + 1 :], ""])


def measure(inventory: Path, hosts: int) -> Cost:
    """A whole `./fleet health` of so many hosts. Raises CommandFailed where one of them gave no report."""
    words = ["health", "--json", "--inventory", str(inventory)]
    if hosts == 1:
        words += ["--limit", "many01"]
    before, began = _cpu_of_children(), time.monotonic()
    done = run_fleet(*words)
    wall_seconds, cpu_seconds = time.monotonic() - began, _cpu_of_children() - before
    reported = [event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "health"]
    if done.returncode != 0 or len(reported) != hosts:
        raise CommandFailed(
            sentence=f"`{len(reported)}` of {hosts} hosts gave a report",
            cause=done.stderr or done.stdout[-2000:],
        )
    return Cost(hosts=hosts, wall_seconds=wall_seconds, cpu_seconds=cpu_seconds)


def median(costs: Sequence[Cost]) -> Cost:
    """Of wall time and of CPU, each by itself."""
    return Cost(
        hosts=costs[0].hosts,
        wall_seconds=statistics.median(cost.wall_seconds for cost in costs),
        cpu_seconds=statistics.median(cost.cpu_seconds for cost in costs),
    )


@contextmanager
def _slow_host(report: Report) -> Iterator[PracticeFleet]:
    """A deployed practice host whose checks answer late, and which takes so many logins at once."""
    with bench_hosts([Kind.RICH], report.say) as fleet:
        (host,) = fleet.hosts
        inventory = ("--inventory", str(fleet.inventory))
        deployed = run_fleet("deploy", "--yes", *inventory)
        if deployed.returncode != 0:
            raise CommandFailed(sentence="the `deploy` failed", cause=deployed.stderr or deployed.stdout)
        checked = run_fleet("health", "--quick", "--json", *inventory)
        events = map(json.loads, checked.stdout.splitlines())
        found = next((event for event in events if event["event"] == "health"), None)
        if checked.returncode != 0 or found is None:
            raise CommandFailed(sentence="the host gave no `report`", cause=checked.stderr or checked.stdout)
        _answer_late(host, json.dumps(found))
        yield fleet


def _answer_late(host: Host, report: str) -> None:
    agent = f"import time\ntime.sleep({ANSWER_SECONDS})\nprint({report!r})\n"
    # sshd turns logins away when more than ten are not through yet: a host gets one, this one gets them all.
    host.shell("echo 'MaxStartups 200' >/etc/ssh/sshd_config.d/bench.conf && systemctl reload ssh")
    path = host.root / _AGENT[1:]
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.iterdir():
        other.unlink()
    path.write_text(agent)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
