"""`./fleet testbed up` and `down`: nothing stays behind, however `up` ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import hosts_machine, hosts_tree
from testbed.hosts import alone_in, take_down
from testbed.hosts_cgroup import cgroup_name, processes_in_cgroup
from testbed.hosts_machine import MachineRefused
from testbed.hosts_state import identify, is_alive
from testbed.hosts_tree import Suite, find_base, mounts_below

PROJECT = Path(__file__).resolve().parents[2]


class Testbed:
    """`./fleet testbed` with a state and a cache of its own."""

    __test__ = False

    def __init__(self, directory: Path) -> None:
        self.home = directory
        self.directory = directory / "state/ollama-fleet/hosts"
        self.cache = directory / "cache/ollama-fleet"
        self.environment = {
            **os.environ,
            "XDG_STATE_HOME": str(directory / "state"),
            "XDG_CACHE_HOME": str(directory / "cache"),
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(PROJECT), "testbed", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def state(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.directory / "state.json").read_text())
        except FileNotFoundError:
            return {"network": None, "hosts": [], "cached": []}
        return found

    def left(self, state: dict[str, Any]) -> list[str]:
        """What is still there of what the state names, and of what it does not."""
        names = [host["name"] for host in state["hosts"]]
        prefix = state["network"]["prefix"] if state["network"] else None
        links = json.loads(subprocess.check_output(["ip", "-json", "link", "show"]))
        found = [str(path) for path in mounts_below(self.home)]
        found += [link["ifname"] for link in links if prefix and link["ifname"] == f"fb-{prefix}"]
        found += [link["ifname"] for link in links if link["ifname"] in {f"vb-{name}" for name in names}]
        found += [f"process {pid} of {name}" for name in names for pid in processes_in_cgroup(name)]
        found += [
            str(path) for name in names for path in Path("/sys/fs/cgroup").glob(f"**/{cgroup_name(name)}")
        ]
        found += [name for name in names if Path("/run/systemd/nspawn/propagate", name).exists()]
        found += [str(path) for path in self.home.rglob("*") if path.is_file()]
        return found


@pytest.fixture
def testbed(tmp_path: Path) -> Iterator[Testbed]:
    made = Testbed(tmp_path)
    yield made
    if made.directory.exists():
        with alone_in(made.directory):
            take_down(made.directory)


def test_up_makes_hosts_that_answer_and_down_leaves_nothing(testbed: Testbed) -> None:
    code, said = testbed.run("up", "--hosts", "2")
    assert code == 0, said
    state = testbed.state()
    first, second = (host["name"] for host in state["hosts"])
    assert f"{first} ansible_host=10.99." in said
    assert "ansible_user=root" in said
    config = testbed.directory / "ssh_config"
    for name in (first, second):
        said = subprocess.check_output(["ssh", "-F", str(config), name, "hostname"], text=True)
        assert said.strip() == name

    code, said = testbed.run("up")
    assert code == 1
    assert f"running: {first}, {second}" in said
    assert len(testbed.state()["hosts"]) == 2

    code, said = testbed.run("down")
    assert code == 0, said
    assert f"taken down: {first}, {second}" in said
    assert testbed.left(state) == []
    assert testbed.run("down")[0] == 0


def is_claimed(state: dict[str, Any]) -> bool:
    return state["network"] is not None


def has_cached(state: dict[str, Any]) -> bool:
    return bool(state["cached"])


def has_host(state: dict[str, Any]) -> bool:
    return bool(state["hosts"])


def has_leader(state: dict[str, Any]) -> bool:
    return bool(state["hosts"]) and state["hosts"][0]["leader"] is not None


def has_second_leader(state: dict[str, Any]) -> bool:
    return len(state["hosts"]) > 1 and state["hosts"][1]["leader"] is not None


@pytest.mark.parametrize("moment", [is_claimed, has_cached, has_host, has_leader, has_second_leader])
def test_down_leaves_nothing_of_an_up_that_was_killed(
    testbed: Testbed, moment: Callable[[dict[str, Any]], bool]
) -> None:
    up = testbed.start("up", "--hosts", "2")
    deadline = time.monotonic() + 60
    while not moment(testbed.state()):
        assert time.monotonic() < deadline
        assert up.poll() is None, up.communicate()[0]
    up.kill()
    state = testbed.state()
    up.communicate()
    code, said = testbed.run("down")
    assert code == 0, said
    assert testbed.left(state) == []


def test_ctrl_c_takes_away_what_was_made(testbed: Testbed) -> None:
    up = testbed.start("up", "--hosts", "2")
    deadline = time.monotonic() + 60
    while not has_leader(testbed.state()):
        assert time.monotonic() < deadline
    state = testbed.state()
    up.send_signal(signal.SIGINT)
    said, _ = up.communicate(timeout=60)
    assert up.returncode == 130, said
    assert testbed.left(state) == []
    assert not testbed.directory.exists()


def test_down_waits_for_nobody_who_makes_a_fleet(testbed: Testbed) -> None:
    with alone_in(testbed.directory):
        code, said = testbed.run("down")
        assert code == 5, said
        assert "another `testbed up` or `down`" in said
        assert testbed.run("up")[0] == 5


def test_hosts_of_an_earlier_boot_of_this_machine_are_forgotten_without_killing_anybody(
    testbed: Testbed,
) -> None:
    """The number of a leader can be another process's after a reboot."""
    testbed.directory.mkdir(parents=True)
    bystander = subprocess.Popen(["sleep", "600"])
    identity = identify(bystander.pid)
    assert identity is not None
    leader = {"pid": identity.pid, "start_ticks": identity.start_ticks, "boot_id": "of another boot"}
    hosts = [{"name": "tgone1", "number": 1, "kind": "RICH", "leader": leader}]
    network = {"prefix": "tgone", "subnet": "10.99.7.0/24"}
    state = {"network": network, "hosts": hosts, "cached": []}
    (testbed.directory / "state.json").write_text(json.dumps(state))
    assert testbed.run("down")[0] == 0
    assert is_alive(identity)
    bystander.kill()
    bystander.wait()
    assert not testbed.directory.exists()


def test_another_ones_bridge_of_the_same_name_stays(testbed: Testbed) -> None:
    bridge = f"fb-s{os.getpid()}"
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "set", bridge, "alias", "of somebody else"], check=True)
    try:
        testbed.directory.mkdir(parents=True)
        network = {"prefix": bridge.removeprefix("fb-"), "subnet": "10.99.7.0/24"}
        state = {"network": network, "hosts": [], "cached": []}
        (testbed.directory / "state.json").write_text(json.dumps(state))
        assert testbed.run("down")[0] == 0
        assert testbed.left(state) == [bridge]
    finally:
        subprocess.run(["ip", "link", "delete", bridge], check=True)


def _scripted_debootstrap(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    cache = directory / "bases"
    tool = directory / "bin/debootstrap"
    tool.parent.mkdir()
    # Its last words but two: options, suite, target, mirror.
    tool.write_text(f"#!/bin/sh\nfor word; do before=$target target=$mirror mirror=$word; done\n{script}\n")
    tool.chmod(0o755)
    path = f"{tool.parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    monkeypatch.setattr(hosts_machine, "_TOOLS_PATH", path)
    monkeypatch.setattr(hosts_tree, "CACHE", cache)
    return cache


def test_a_debootstrap_that_fails_is_told_with_its_last_words_and_leaves_no_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'mkdir -p "$target/etc"; echo "E: Failed getting release file"; exit 1'
    cache = _scripted_debootstrap(tmp_path, monkeypatch, script)
    with pytest.raises(MachineRefused, match="Failed getting release file"):
        find_base(Suite.BOOKWORM, print)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_a_killed_up_takes_debootstrap_with_it_and_what_it_left_is_no_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'mkdir -p "$target/etc"; echo "I: Retrieving all"; mount -t tmpfs t "$target/etc"; sleep 600'
    cache = _scripted_debootstrap(tmp_path, monkeypatch, script)
    child = os.fork()
    if child == 0:
        find_base(Suite.BOOKWORM, lambda _line: None)
        os._exit(1)
    partial = hosts_tree.base_path(Suite.BOOKWORM).with_suffix(".new")
    deadline = time.monotonic() + 30
    while not (running := _processes_with(str(partial))) or not (partial / "etc").exists():
        assert time.monotonic() < deadline
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while _processes_with(str(partial)):
        assert time.monotonic() < deadline, running
    assert mounts_below(cache) == []
    assert not hosts_tree.base_path(Suite.BOOKWORM).exists()
    hosts_tree.remove_partial_bases()
    assert not partial.exists()


def _processes_with(word: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
