"""A host that ends at a random moment of a deploy: what serves then, and what comes next.

`kills` ends all processes of a container, whose page cache is this machine's and survives: that every rename
lies between two syncs is the business of tests/hosts/test_durable.py. `cuts` is a power cut of an emulated
machine, which loses what was not synced.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.hosts import bench_hosts, bench_machine, environment, fleet_command, run_fleet, set_in, until
from deploy.errors import CommandFailed
from deploy.report import Report
from testbed.demo import VERSION
from testbed.hosts import NEXT_VERSION
from testbed.hosts_kinds import Kind
from testbed.reached import ReachedHost

# Emulated, a server needs half a minute for what takes it a second.
SERVES_SECONDS = 120.0
# The release that the unit's process was started from, by its mark: `current` may link elsewhere by then.
_SERVES = """
pid=$(systemctl show --property=MainPID --value ollama)
mark=$(tr '\\0' '\\n' <"/proc/$pid/environ" 2>/dev/null | grep '^OLLAMA_FLEET_RELEASE=') || exit 0
file=$(grep -lx "$mark" /opt/ollama/releases/*/release.env) && basename "$(dirname "$file")"
"""
_LOADED = "/opt/ollama/current/bin/ollama ps 2>/dev/null"
# What an upgrade fetches and unpacks is fetched and unpacked in every round.
_FORGET = "rm -rf /opt/ollama/releases/{0} /opt/ollama/previous /var/lib/ollama-fleet/artefacts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One round: where the deploy was, and what was seen afterwards; `wrong` is empty when all is well."""

    number: int
    seconds: float
    step: str
    serves: str
    wrong: str = ""


def run(report: Report, count: int, seed: int) -> int:
    """Containers: print a line a round and the sum; 2 when one went wrong."""
    with bench_hosts([Kind.RICH], report.say) as fleet:
        (host,) = fleet.hosts
        return _rounds(report, host, fleet.inventory, count, seed, what="kill -9 of a host")


def run_cuts(report: Report, count: int, seed: int) -> int:
    """The same of an emulated machine."""
    with bench_machine(report.say) as (machine, inventory):
        return _rounds(report, machine, inventory, count, seed, what="power cut of an emulated machine")


def _rounds(report: Report, host: ReachedHost, inventory: Path, count: int, seed: int, *, what: str) -> int:
    moments = random.Random(seed)
    report.say(f"seed {seed}")
    _deploy(inventory, VERSION)
    began = time.monotonic()
    _deploy(inventory, NEXT_VERSION)
    upgrade_seconds = time.monotonic() - began
    report.say(f"an upgrade takes {upgrade_seconds:.1f} s")
    versions = (NEXT_VERSION, VERSION)
    kills = []
    for number in range(1, count + 1):
        old, new = versions
        host.shell(_FORGET.format(new))
        seconds = moments.uniform(0, upgrade_seconds)
        kill = _kill(host, inventory, number, seconds, old=old, new=new)
        kills.append(kill)
        report.say(f"{number}: {seconds:.2f} s, {kill.step}, serves {kill.serves} {kill.wrong}".rstrip())
        report(
            "bench",
            None,
            what="kill",
            number=number,
            seconds=round(seconds, 2),
            step=kill.step,
            serves=kill.serves,
            wrong=kill.wrong,
        )
        versions = (new, old)
    rows = [
        [str(kill.number), f"{kill.seconds:.2f}", kill.step, kill.serves, kill.wrong or "yes"]
        for kill in kills
    ]
    title = f"{what} in an upgrade of {upgrade_seconds:.1f} s, seed {seed}"
    report.table(title, ["", "seconds", "in the step", "serves then", "converges, then nothing"], rows)
    wrong = sum(1 for kill in kills if kill.wrong)
    report.say(f"{count - wrong} of {count} as promised")
    return 2 if wrong else 0


def _deploy(inventory: Path, version: str) -> None:
    set_in(inventory, {"ollama_version": version})
    done = run_fleet("deploy", "--yes", "--soak=0", "--inventory", str(inventory))
    if done.returncode != 0:
        raise CommandFailed(sentence=f"`deploy` of {version} failed", cause=done.stderr or done.stdout)


def _kill(host: ReachedHost, inventory: Path, number: int, seconds: float, *, old: str, new: str) -> Kill:
    set_in(inventory, {"ollama_version": new})
    words = fleet_command("deploy", "--yes", "--soak=0", "--json", "--inventory", str(inventory))
    with subprocess.Popen(
        words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as deploy:
        time.sleep(seconds)
        host.kill9()
        deploy.kill()
        said, _ = deploy.communicate()
    step = _last_step(said)
    host.start()
    host.wait_for_ssh()
    loaded = until(lambda: "myqwen2" in host.shell(_LOADED).stdout, SERVES_SECONDS)
    serves = _serves(host)
    wrong = []
    if not loaded or serves not in (old, new):
        wrong.append(f"serves {serves or 'nothing'}, model {'loaded' if loaded else 'not loaded'}")
    for nth, wanted in (("second", None), ("third", 0)):
        done = run_fleet("deploy", "--yes", "--soak=0", "--json", "--inventory", str(inventory))
        last = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
        if done.returncode != 0 or (wanted is not None and last.get("changed") != wanted):
            wrong.append(f"the {nth} deploy: exit {done.returncode}, {last.get('changed')} changed")
    if _serves(host) != new:
        wrong.append(f"serves {_serves(host)} in the end")
    return Kill(number=number, seconds=seconds, step=step, serves=serves, wrong="; ".join(wrong))


def _last_step(said: str) -> str:
    """The step that had begun and not ended; what stands before the first one and after the last one."""
    events = [json.loads(line) for line in said.splitlines() if line.endswith("}")]
    steps = [event for event in events if event["event"] in ("step_started", "step_done")]
    if not steps:
        return "before the first"
    last = steps[-1]
    return f"{last['phase']} {last['step']}" if last["event"] == "step_started" else f"after {last['step']}"


def _serves(host: ReachedHost) -> str:
    return host.shell(_SERVES).stdout.strip()
