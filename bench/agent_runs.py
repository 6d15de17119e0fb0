"""The health agent run back to back: nothing grows, the counters are right, no run beside another.

A day of a timer that fires every 5 minutes is 288 runs. Each is a process of its own, so what could grow is
what it leaves: files, processes, connections of the server, the history, and with it the memory of the next.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from console.agent import make_agents
from deploy.report import Report
from healthchecks.agent import UNDER_WAY
from healthchecks.health import HealthConfig, ModelConfig, render_config
from healthchecks.results import read_history
from testbed.ollama import start_server

RSS_BYTES = 60 * 1024 * 1024
CPU_SECONDS = 1.0
GROWTH = 1.1
BESIDE = 12
"""Every so many runs another one is started beside it."""

# A process inherits the peak memory of the one that started it (`exec_mmap` of the kernel's fs/exec.c): this
# small one starts the agent, so that it is not our own memory that is measured.
LAUNCHER = """
import json, os, sys, time
began = time.monotonic()
pid = os.fork()
if not pid:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execv(sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(pid, 0)
wall, cpu = time.monotonic() - began, used.ru_utime + used.ru_stime
json.dump([os.waitstatus_to_exitcode(status), wall, cpu, used.ru_maxrss], sys.stdout)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRun:
    """What one run took."""

    exit_code: int
    wall_seconds: float
    cpu_seconds: float
    rss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """All runs, those that were started `beside` another, and what was not as it should be."""

    runs: tuple[AgentRun, ...]
    beside: tuple[AgentRun, ...]
    faults: tuple[str, ...]

    @property
    def rss_growth(self) -> float:
        """Of the last quarter of the runs over the first."""
        quarter = max(len(self.runs) // 4, 1)
        first, last = self.runs[:quarter], self.runs[-quarter:]
        return statistics.median(run.rss_bytes for run in last) / statistics.median(
            run.rss_bytes for run in first
        )


def run(report: Report, count: int) -> int:
    """Play so many runs of the packed agent; 2 when something grew, was counted wrongly, or cost too much."""
    agent = make_agents(["amd64"], report.say)["amd64"]
    with tempfile.TemporaryDirectory(prefix="fleet-agent-runs-") as name:
        unpacked = Path(name) / "agent"
        played = play((sys.executable, agent.local_path), Path(name) / "host", count, PEX_ROOT=str(unpacked))
    report.table("agent runs", ["figure", "median", "most", "target"], _rows(played))
    report.say(f"memory of the last quarter over the first: {played.rss_growth:.3f} (at most {GROWTH})")
    refused = sum(1 for one in played.beside if one.exit_code == UNDER_WAY)
    report.say(f"{count} runs, {len(played.beside)} started beside another, {refused} of them left at once")
    faults = [*played.faults, *_costs(played)]
    for fault in faults:
        report.say(f"fault: {fault}")
    return 2 if faults else 0


def play(command: Sequence[str | Path], root: Path, count: int, **environment: str) -> Played:
    """Run the agent against the simulated server, which nobody supervises: `service` fails in every run."""
    directory = root / "health"
    directory.mkdir(parents=True)
    (root / "var/lib/prometheus/node-exporter").mkdir(parents=True)
    with start_server() as server:
        model = ModelConfig(name="canary", weights_sha256="0" * 64, size_bytes=525_312)
        config = HealthConfig(
            host="box",
            url=server.url,
            root=str(root),
            models_dir=str(server.models_dir),
            current=str(root / "current"),
            previous=str(root / "previous"),
            release="0",
            backend="process",
            models=(model,),
            every_seconds=300.0,
        )
        (directory / "config.json").write_text(json.dumps(render_config(config)))
        argv = (*command, "run", directory, "--quick")
        runs, beside, faults = [], [], []
        left: dict[str, int] = {}
        for number in range(1, count + 1):
            started = [_start(argv, environment)]
            if number % BESIDE == 0:
                started.append(_start(argv, environment))
            ended = [_end(one) for one in started]
            # Which of the two came first is the kernel's to say.
            ended.sort(key=lambda one: one.exit_code == UNDER_WAY)
            runs.append(ended[0])
            beside += ended[1:]
            if number == 1:
                left = _left_behind(root)
            faults += [f"run {number}: {fault}" for fault in _faults(directory, number, beside)]
        if _left_behind(root) != left:
            faults.append(f"{_left_behind(root)} are left behind, and {left} were after the first run")
    return Played(runs=tuple(runs), beside=tuple(beside), faults=tuple(faults))


def _start(argv: Sequence[str | Path], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        (sys.executable, "-S", "-c", LAUNCHER, *argv),
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )


def _end(process: subprocess.Popen[bytes]) -> AgentRun:
    told, _ = process.communicate(timeout=600)
    code, wall, cpu, rss_kib = json.loads(told)
    return AgentRun(exit_code=code, wall_seconds=wall, cpu_seconds=cpu, rss_bytes=rss_kib * 1024)


def _faults(directory: Path, number: int, beside: Sequence[AgentRun]) -> list[str]:
    """What the run left against what it should have."""
    done = number + sum(1 for one in beside if one.exit_code != UNDER_WAY)
    counters = json.loads((directory / "counters.json").read_text())
    text = (directory / "ollama_fleet.prom").read_text()
    copy = directory.parent / "var/lib/prometheus/node-exporter/ollama_fleet.prom"
    expected = {
        "runs_total": f"ollama_fleet_runs_total {float(done)}\n" in text,
        "failures": f'ollama_fleet_check_failures_total{{check="service"}} {float(done)}\n' in text,
        "counters.json": (counters["runs"], counters["failures"]["service"]) == (done, done),
        "history": len(list(read_history(directory / "history.jsonl"))) == min(done, 2_000),
        "the copy for node_exporter": copy.read_text() == text,
    }
    return [f"{what} is wrong after {done}" for what, is_right in expected.items() if not is_right]


def _left_behind(root: Path) -> dict[str, int]:
    """Files below the root, children of ours, and what this process, which serves, holds open."""
    ourselves = psutil.Process()
    return {
        "files": sum(1 for path in root.rglob("*") if path.is_file()),
        "processes": len(ourselves.children(recursive=True)),
        "sockets": len(ourselves.net_connections()),
    }


def _costs(played: Played) -> list[str]:
    most = max(run.rss_bytes for run in played.runs)
    cpu = statistics.median(run.cpu_seconds for run in played.runs[1:] or played.runs)
    found = []
    if most > RSS_BYTES:
        found.append(f"a run took {most / 1024**2:.1f} MiB")
    if cpu > CPU_SECONDS:
        found.append(f"a run took {cpu:.2f} s of CPU")
    if played.rss_growth > GROWTH:
        found.append(f"the runs grew by {played.rss_growth:.3f}")
    return found


def _rows(played: Played) -> list[list[str]]:
    # The first unpacks the agent.
    runs = played.runs[1:] or played.runs
    figures = (
        ("memory", [run.rss_bytes / 1024**2 for run in runs], "MiB", RSS_BYTES / 1024**2),
        ("CPU", [run.cpu_seconds for run in runs], "s", CPU_SECONDS),
        ("wall", [run.wall_seconds for run in runs], "s", None),
    )
    return [
        [
            f"{what}, {unit}",
            f"{statistics.median(values):.2f}",
            f"{max(values):.2f}",
            "" if target is None else f"<= {target:g}",
        ]
        for what, values, unit, target in figures
    ]
