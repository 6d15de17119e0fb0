"""A thousand hosts that need nothing, behind a simulated network: what is left is the controller's own work.

A practice host gives the reply to the probe, once bare and once deployed; every simulated host gives the same
after the time of a round trip. The rest is what `deploy` runs: the inventory, the plans, the events.
"""

from __future__ import annotations

import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.hosts import SETTINGS, bench_hosts, run_fleet
from console.pin import cache_directory
from console.run import Run, make_sources, transport_for
from deploy import commands
from deploy.converge import Options, converge, probe_host
from deploy.desired import Desired
from deploy.errors import CommandFailed
from deploy.fleet import each
from deploy.outcomes import HostOutcome, ModelVerdict, Outcome, VerifyRequest
from deploy.plan import plan
from deploy.probe import PROBE_SCRIPT
from deploy.report import Report
from deploy.transport import Completed
from testbed.hosts_kinds import Kind

HOSTS = 1000
FORKS = 50
LATENCY_SECONDS = 0.05
CHECK_TRIPS = 3
"""Of the checks where nothing changes: the version, the load, where the model sits."""

# Whose reply is played for all: the configuration of its health checks would name it alone.
ONE_FOR_ALL = {**SETTINGS, "ollama_health_every": "off"}
TARGET_CPU_SECONDS = 0.002
TARGET_BYTES = 200 * 1024
TARGET_WALL_RATIO = 1.25


class SimulatedHost:
    """A transport that knows the probe and nothing else, a round trip away."""

    def __init__(self, host: str, reply: bytes, latency_seconds: float = LATENCY_SECONDS) -> None:
        self.host = host
        self._reply = reply
        self._latency_seconds = latency_seconds

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 60.0) -> Completed:
        """The probe's reply. Raises CommandFailed for any other command: this host needs none."""
        assert timeout_seconds > self._latency_seconds
        time.sleep(self._latency_seconds)
        if stdin != PROBE_SCRIPT.read_bytes():
            raise CommandFailed(sentence=f"a simulated host knows no `{commands.shown_command(argv)}`")
        return Completed(exit_code=0, stdout=self._reply, stderr=b"")

    @contextmanager
    def http_url(self, url: str) -> Iterator[str]:
        """As it is: nobody asks there."""
        yield url


def _check(_request: VerifyRequest) -> ModelVerdict:
    """As long as the requests of the checks are on their way."""
    time.sleep(CHECK_TRIPS * LATENCY_SECONDS)
    return ModelVerdict(passed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one kind of work, a host; `wall_seconds` are those of all. `trips` are the round trips a host."""

    what: str
    trips: int
    wall_seconds: float
    cpu_seconds: float
    bytes_: float

    @property
    def ideal_seconds(self) -> float:
        """What the round trips alone take where every fork always has a host."""
        return HOSTS / FORKS * self.trips * LATENCY_SECONDS

    @property
    def wall_ratio(self) -> float | None:
        return self.wall_seconds / self.ideal_seconds if self.trips else None

    @property
    def is_missed(self) -> bool:
        is_late = self.wall_ratio is not None and self.wall_ratio > TARGET_WALL_RATIO
        return is_late or self.cpu_seconds >= TARGET_CPU_SECONDS or self.bytes_ >= TARGET_BYTES

    def row(self) -> list[str]:
        ideal, ratio = "", ""
        if self.wall_ratio is not None:
            ideal, ratio = f"{self.ideal_seconds:.2f}", f"{self.wall_ratio:.2f}"
        cells = [f"{self.cpu_seconds * 1000:.2f}", f"{self.bytes_ / 1024:.1f}", f"{self.wall_seconds:.2f}"]
        return [self.what, *cells, ideal, ratio]


def run(report: Report) -> int:
    """Print the figures; 2 when a target is missed."""
    with bench_hosts([Kind.RICH], report.say) as fleet, tempfile.TemporaryDirectory() as directory:
        fleet.write_inventory(ONE_FOR_ALL)
        (desired,) = _task(fleet.inventory).hosts()
        bare = _reply(desired)
        deployed = run_fleet("deploy", "--yes", "--inventory", str(fleet.inventory))
        if deployed.returncode != 0:
            raise CommandFailed(sentence="the `deploy` failed", cause=deployed.stderr or deployed.stdout)
        converged = _reply(desired)
        inventory = Path(directory, "inventory.ini")
        inventory.write_text(render_inventory(HOSTS))
        task = _task(inventory, fleet.pins)
        hosts = task.hosts()
        costs = [
            measure("read the inventory", 0, task.hosts),
            measure("plan a first deploy", 1, lambda: _plan_all(hosts, bare)),
            measure("converge, nothing to change", 1 + CHECK_TRIPS, lambda: _converge_all(hosts, converged)),
        ]
    for cost in costs:
        report(
            "bench",
            None,
            what=cost.what,
            hosts=HOSTS,
            forks=FORKS,
            latency_seconds=LATENCY_SECONDS,
            wall_seconds=round(cost.wall_seconds, 3),
            ideal_seconds=cost.ideal_seconds,
            cpu_milliseconds_per_host=round(cost.cpu_seconds * 1000, 3),
            kib_per_host=round(cost.bytes_ / 1024, 1),
        )
    targets = [
        f"< {TARGET_CPU_SECONDS * 1000:g}",
        f"< {TARGET_BYTES // 1024}",
        "",
        "",
        f"<= {TARGET_WALL_RATIO}",
    ]
    columns = ["", "CPU ms a host", "KiB a host", "wall s", "of round trips alone", "wall / that"]
    title = f"{HOSTS} hosts, {FORKS} at once, a round trip of {LATENCY_SECONDS * 1000:g} ms"
    report.table(title, columns, [*(cost.row() for cost in costs), ["targets", *targets]])
    return 2 if any(cost.is_missed for cost in costs) else 0


def render_inventory(hosts: int) -> str:
    """As a site writes it: every host with its address, one group, the settings once."""
    lines = [f"node{n:04} ansible_host=10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(1, hosts + 1)]
    settings = [f"{name}={value}" for name, value in ONE_FOR_ALL.items()]
    return "\n".join(["[nodes]", *lines, "", "[nodes:vars]", "ansible_user=admin", *settings, ""])


def measure(what: str, trips: int, work: Callable[[], object]) -> Cost:
    """Twice: for the time, and for the memory, since whoever counts every byte takes longer.

    The memory is the most that Python held at once beyond what it held before.
    """
    began, cpu_began = time.monotonic(), time.process_time()
    work()
    wall_seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
    tracemalloc.start()
    try:
        work()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return Cost(
        what=what,
        trips=trips,
        wall_seconds=wall_seconds,
        cpu_seconds=cpu_seconds / HOSTS,
        bytes_=peak / HOSTS,
    )


def _task(inventory: Path, pins: Path | None = None) -> Run:
    return Run(
        report=Report(as_json=True),
        sources=make_sources(str(inventory), None if pins is None else str(pins)),
        limit=None,
        forks=FORKS,
        stop_requested=threading.Event(),
    )


def _reply(desired: Desired) -> bytes:
    """What the practice host answers to the very probe that a deploy sends."""
    heard: list[bytes] = []
    transport: Any = _Overheard(transport_for(desired), heard)
    probe_host(desired, transport)
    return heard[-1]


class _Overheard:
    def __init__(self, transport: Any, heard: list[bytes]) -> None:
        self.host = transport.host
        self._transport = transport
        self._heard = heard

    def run(self, argv: Sequence[str], *, stdin: bytes = b"") -> Completed:
        done: Completed = self._transport.run(argv, stdin=stdin)
        self._heard.append(done.stdout)
        return done


def _plan_all(hosts: Sequence[Desired], reply: bytes) -> None:
    def one(desired: Desired) -> None:
        transport: Any = SimulatedHost(desired.host, reply)
        assert not plan(desired, probe_host(desired, transport)).is_empty

    each(hosts, one, FORKS)


def _converge_all(hosts: Sequence[Desired], reply: bytes) -> None:
    with Path("/dev/null").open("w") as nowhere:
        options = Options(
            task="deploy",
            verify=_check,
            check=_check,
            events=Report(as_json=True, stdout=nowhere),
            stop_requested=threading.Event(),
            cache=cache_directory(),
        )

        def one(desired: Desired) -> HostOutcome:
            transport: Any = SimulatedHost(desired.host, reply)
            return converge(desired, transport, options)

        outcomes = each(hosts, one, FORKS)
    wrong = next((outcome for outcome in outcomes if outcome.outcome is not Outcome.OK), None)
    if wrong is not None:
        raise CommandFailed(sentence=f"a simulated host is {wrong.outcome}", cause=str(wrong.error))
