"""What the benches make of their measurements, and what they give to the tools that they measure."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from bench import fleet_health
from bench.hosts import check_room
from bench.peers.compare import text_for_peers
from bench.peers.environment import REQUIREMENTS, pinned_versions
from bench.peers.figures import COLUMNS, Seconds, compare, medians
from bench.peers.tools import TASKS
from bench.scale import FORKS, HOSTS, LATENCY_SECONDS, Cost, SimulatedHost, render_inventory
from console.paths import PROJECT
from deploy.errors import CommandFailed
from deploy.inventory import read_inventory
from deploy.probe import PROBE_SCRIPT

MEASURED = {
    "ours": Seconds(first=4.0, again=1.0),
    "Ansible 2.19": Seconds(first=16.0, again=12.0),
    "pyinfra 3": Seconds(first=5.0, again=1.9),
    "plain": Seconds(first=2.0, again=0.5),
}
COST = Cost(what="converge", trips=4, wall_seconds=4.0, cpu_seconds=0.0019, bytes_=4096.0)


def test_the_median_of_each_tool_counts() -> None:
    rounds = [{"ours": Seconds(first=first, again=1.0)} for first in (9.0, 2.0, 3.0)]
    assert medians(rounds) == {"ours": Seconds(first=3.0, again=1.0)}


def test_every_tool_stands_beside_ours_and_beside_openssh() -> None:
    ansible = compare(MEASURED, "ours", "plain")[1]
    assert ansible.beside_openssh == Seconds(first=8.0, again=24.0)
    assert ansible.ours_is_faster == Seconds(first=4.0, again=12.0)
    assert ansible.row() == ["Ansible 2.19", "16.00", "8.0", "4.0", "12.00", "24.0", "12.0", ">= 10"]
    assert len(ansible.row()) == len(COLUMNS)


def test_a_target_is_missed_by_the_tool_that_is_too_near_where_nothing_is_to_be_done() -> None:
    missed = [item.name for item in compare(MEASURED, "ours", "plain") if item.is_missed]
    assert missed == ["pyinfra 3"]


def test_every_peer_is_pinned_and_every_package_is_locked_by_hash() -> None:
    text = REQUIREMENTS.read_text()
    wanted = pinned_versions(REQUIREMENTS.with_suffix(".in").read_text())
    assert set(wanted) == {"ansible-core", "pyinfra", "fabric"}
    assert wanted.items() <= pinned_versions(text).items()
    packages = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    assert len(packages) > len(wanted)
    assert all("==" in package and "--hash=sha256:" in package for package in packages)


def test_bare_fabric_is_the_fabric_that_ours_is_built_on() -> None:
    ours = pinned_versions((PROJECT / "requirements/run.txt").read_text())
    assert pinned_versions(REQUIREMENTS.read_text())["fabric"] == ours["fabric"]


@pytest.mark.parametrize(
    ("file", "task"), [("playbook.yml", r"^    - name: "), ("openssh.sh", r"\b\d (?=\w)")]
)
def test_each_is_given_eight_tasks(file: str, task: str) -> None:
    text = (TASKS / file).read_text()
    if file == "openssh.sh":
        text = "".join(line for line in text.splitlines(keepends=True) if line.startswith("# "))
    assert len(re.findall(task, text, re.MULTILINE)) == 8


def test_the_scripts_for_other_environments_are_python() -> None:
    for script in sorted(TASKS.glob("*.py")):
        compile(script.read_text(), str(script), "exec")


def test_peers_get_our_unit_files_without_what_only_we_make() -> None:
    text = (
        "# Written by ollama-fleet; sha256: 0\n[Service]\n# The mark of it\nEnvironmentFile=/x\nUser=ollama\n"
    )
    assert text_for_peers(text) == "[Service]\nUser=ollama\n"


def test_round_trips_alone_take_the_hosts_over_the_forks() -> None:
    assert COST.ideal_seconds == pytest.approx(HOSTS / FORKS * 4 * LATENCY_SECONDS)
    assert COST.row() == ["converge", "1.90", "4.0", "4.00", "4.00", "1.00"]
    assert replace(COST, trips=0).row() == ["converge", "1.90", "4.0", "4.00", "", ""]


@pytest.mark.parametrize(
    "change", [{"cpu_seconds": 0.0021}, {"bytes_": 201 * 1024.0}, {"wall_seconds": 5.1}], ids=str
)
def test_each_target_of_the_thousand_hosts_can_be_missed(change: dict[str, Any]) -> None:
    assert not COST.is_missed
    assert replace(COST, **change).is_missed


def test_a_simulated_host_knows_the_probe_and_nothing_else() -> None:
    host = SimulatedHost("node0001", b"reply", latency_seconds=0.0)
    assert host.run(["sh"], stdin=PROBE_SCRIPT.read_bytes()).stdout == b"reply"
    with pytest.raises(CommandFailed, match="knows no `true`"):
        host.run(["true"])


def test_the_inventory_of_a_thousand_hosts_has_as_many_addresses(tmp_path: Any) -> None:
    path = tmp_path / "inventory.ini"
    path.write_text(render_inventory(HOSTS))
    inventory, problems = read_inventory(path)
    assert inventory is not None
    assert problems == []
    addresses = {host.variables["ansible_host"] for host in inventory.hosts.values()}
    assert len(addresses) == len(inventory.hosts) == HOSTS


def test_more_hosts_than_the_kernel_lets_run_are_refused_before_the_first() -> None:
    check_room(16, 128)
    check_room(32, None)
    with pytest.raises(CommandFailed, match="`32` practice hosts") as refused:
        check_room(32, 128)
    assert refused.value.hint == "sysctl fs.inotify.max_user_instances=384"


def test_one_host_stands_under_many_names_and_everything_else_of_the_inventory_stays() -> None:
    lines = [
        "[practice]",
        "# told",
        "bench1 ansible_host=127.0.0.9",
        "",
        "[practice:vars]",
        "ollama_gpu=none",
    ]
    many = fleet_health.render_aliases("\n".join(lines) + "\n", "bench1", 2)
    names = ["many01 ansible_host=127.0.0.9", "many02 ansible_host=127.0.0.9"]
    assert many == "\n".join([*lines[:2], *names, *lines[3:], ""])


def test_of_several_rounds_each_figure_has_its_own_median() -> None:
    costs = [
        fleet_health.Cost(hosts=1, wall_seconds=wall, cpu_seconds=cpu)
        for wall, cpu in ((5.0, 3.0), (9.0, 1.0), (6.0, 2.0))
    ]
    assert fleet_health.median(costs) == fleet_health.Cost(hosts=1, wall_seconds=6.0, cpu_seconds=2.0)
