"""The same eight tasks by each tool in turn, first on bare hosts, then where everything is done."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.hosts import SETTINGS, bench_hosts, until
from bench.peers.environment import peers_environment
from bench.peers.figures import COLUMNS, Seconds, compare, medians
from bench.peers.tools import OPENSSH, OURS, Tool, Values, close_connections, make_tools
from deploy.errors import CommandFailed
from deploy.report import Report
from testbed.demo import VERSION, archive_name
from testbed.hosts import PracticeFleet
from testbed.hosts_host import Host
from testbed.hosts_kinds import Kind

ROUNDS = 5
ROUNDS_OF_MANY = 3
MANY_HOSTS = 8
SERVES_SECONDS = 120.0

ACCOUNT, HOME, MODELS = "ollama", "/usr/share/ollama", "/srv/ollama"
RELEASE, CURRENT = f"/opt/ollama/releases/{VERSION}", "/opt/ollama/current"
UNIT = "/etc/systemd/system/ollama.service"
DROP_IN = f"{UNIT}.d/50-fleet.conf"

# Everything that any of them has made, as on a host that nobody has deployed to.
_UNDO = f"""
systemctl --quiet disable --now ollama ollama-fleet-load ollama-fleet-boot 2>/dev/null
systemctl stop ollama-fleet-lease.timer 2>/dev/null
rm -rf /etc/systemd/system/ollama* /usr/local/lib/ollama-fleet /opt/ollama /var/lib/ollama-fleet {MODELS}
if id {ACCOUNT} >/dev/null 2>&1; then userdel {ACCOUNT}; fi
rm -rf {HOME} /var/mail/{ACCOUNT}
systemctl daemon-reload
systemctl reset-failed
"""
# Each of the eight tasks, and that the server answers.
_DONE = f"""set -e
id {ACCOUNT} >/dev/null
[ "$(stat -c %U {MODELS})" = {ACCOUNT} ]
[ -s {UNIT} ]
[ -s {DROP_IN} ]
[ -x {RELEASE}/bin/ollama ]
[ "$(readlink -f {CURRENT})" = {RELEASE} ]
systemctl --quiet is-enabled ollama
systemctl --quiet is-active ollama
curl --silent --fail --max-time 5 http://127.0.0.1:11434/api/version >/dev/null
"""
# What is another one after any change.
_STATE = f"""
systemctl show --property=MainPID,ActiveEnterTimestampMonotonic ollama
stat -c '%n %i %Z' {UNIT} {DROP_IN} {RELEASE}/bin/ollama {CURRENT}
"""


def run(report: Report, hosts: int) -> int:
    """Print the figures; 2 when a target is missed."""
    peers = peers_environment(report.say)
    rounds = ROUNDS if hosts <= MANY_HOSTS else ROUNDS_OF_MANY
    with (
        bench_hosts([Kind.RICH] * hosts, report.say) as fleet,
        tempfile.TemporaryDirectory(prefix="fleet-bench-") as work,
    ):
        settings = {name: value for name, value in SETTINGS.items() if name != "ollama_models"}
        # Neither a model nor a health check: nobody else makes them.
        fleet.write_inventory({**settings, "ollama_models_dir": MODELS, "ollama_health_every": "off"})
        tools = _make_tools(fleet, peers, Path(work))
        measured = []
        try:
            # The first round finds cold caches.
            for number in range(rounds + 1):
                seconds = {tool.name: _measure(tool, fleet, Path(work)) for tool in tools}
                if number:
                    measured.append(seconds)
                told = ", ".join(f"{name} {one.first:.2f} {one.again:.2f}" for name, one in seconds.items())
                report.say(f"round {number}, first deploy and nothing to do: {told}")
        finally:
            close_connections(Path(work))
    compared = compare(medians(measured), OURS, OPENSSH)
    for item in compared:
        report(
            "bench",
            None,
            what="eight tasks",
            tool=item.name,
            hosts=hosts,
            rounds=rounds,
            first_seconds=round(item.seconds.first, 3),
            again_seconds=round(item.seconds.again, 3),
            first_times_ours=round(item.ours_is_faster.first, 2),
            again_times_ours=round(item.ours_is_faster.again, 2),
            first_times_openssh=round(item.beside_openssh.first, 2),
            again_times_openssh=round(item.beside_openssh.again, 2),
        )
    title = f"eight tasks on {hosts} hosts of {os.cpu_count()} cores together, medians of {rounds} rounds"
    report.table(title, COLUMNS, [item.row() for item in compared])
    return 2 if any(item.is_missed for item in compared) else 0


def _make_tools(fleet: PracticeFleet, peers: Path, work: Path) -> tuple[Tool, ...]:
    """All tools, with the unit files that ours has written on a first deploy of its own."""
    host = fleet.hosts[0]
    values = Values(
        names=[host.name for host in fleet.hosts],
        ssh_config=str(fleet.access.config),
        known_hosts=str(fleet.access.known_hosts),
        account=ACCOUNT,
        home=HOME,
        release=RELEASE,
        current=CURRENT,
        models_dir=MODELS,
        unit=UNIT,
        drop_in=DROP_IN,
        unit_file=str(work / "ollama.service"),
        drop_in_file=str(work / "50-fleet.conf"),
        archive=str(fleet.directory / "releases" / VERSION / archive_name()),
    )
    tools = make_tools(values, fleet.inventory, peers, work)
    tools[0].run()
    for path, file in ((UNIT, values.unit_file), (DROP_IN, values.drop_in_file)):
        Path(file).write_text(text_for_peers(host.root.joinpath(path[1:]).read_text()))
    return tools


def text_for_peers(text: str) -> str:
    """A unit file of ours without its signature and the mark of the release, which only ours makes."""
    lines = text.splitlines(keepends=True)
    return "".join(
        line for line in lines if not line.startswith(("# Written by", "# The mark of", "EnvironmentFile="))
    )


def _measure(tool: Tool, fleet: PracticeFleet, work: Path) -> Seconds:
    """A whole process on bare hosts, to its end and the answer of every server; then once more."""
    _on_all(fleet, _undo)
    close_connections(work)
    began = time.monotonic()
    tool.run()
    _on_all(fleet, lambda host: _wait_until_done(host, tool.name))
    first = time.monotonic() - began
    before = _on_all(fleet, _state)
    began = time.monotonic()
    tool.run()
    again = time.monotonic() - began
    if _on_all(fleet, _state) != before:
        raise CommandFailed(sentence=f"`{tool.name}` has changed something where all was done")
    return Seconds(first=first, again=again)


def _on_all(fleet: PracticeFleet, work: Callable[[Host], str]) -> list[str]:
    with ThreadPoolExecutor(len(fleet.hosts)) as pool:
        return list(pool.map(work, fleet.hosts))


def _undo(host: Host) -> str:
    return host.shell(_UNDO).stdout


def _state(host: Host) -> str:
    return host.shell(_STATE).stdout


def _wait_until_done(host: Host, tool: str) -> str:
    if not until(lambda: host.shell(_DONE).returncode == 0, SERVES_SECONDS):
        raise CommandFailed(
            sentence=f"after `{tool}` not all of the eight tasks are done",
            host=host.name,
            cause=host.shell(f"set -x\n{_DONE}").stderr.strip(),
        )
    return ""
