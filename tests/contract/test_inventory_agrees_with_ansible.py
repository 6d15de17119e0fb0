"""Generated inventories, realistic and nasty, read by us and by Ansible: the same listing or two refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from deploy.errors import FleetError
from deploy.inventory import Inventory, parse_inventory, render_list
from tests.contract.inventory_files import FILES, PATTERNS
from tests.inventory_examples import EXAMPLES, Example

COUNT = int(os.environ.get("FLEET_INVENTORY_EXAMPLES", "100"))


def ansible_environment(directory: Path) -> dict[str, str]:
    """Nothing of the user's own Ansible: no configuration, no collections, no files in the home directory."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    return {
        **kept,
        "ANSIBLE_CONFIG": str(directory / "ansible.cfg"),
        "ANSIBLE_HOME": str(directory / "home"),
        "ANSIBLE_LOCAL_TEMP": str(directory / "tmp"),
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
        "ANSIBLE_HOST_PATTERN_MISMATCH": "error",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "LC_ALL": "C.UTF-8",
    }


class Oracle:
    """The long-lived Ansible, asked one file at a time."""

    def __init__(self, directory: Path) -> None:
        (directory / "ansible.cfg").touch()
        self.directory = directory
        self.path = directory / "inventory.ini"
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("ansible_oracle.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=directory,
            env=ansible_environment(directory),
        )

    def ask(self, content: bytes, patterns: list[str]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.path.write_bytes(content)
        self._process.stdin.write(json.dumps({"path": str(self.path), "patterns": patterns}) + "\n")
        self._process.stdin.flush()
        reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        return reply

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    oracle = Oracle(tmp_path_factory.mktemp("oracle"))
    yield oracle
    oracle.stop()


def canonical(listing: dict[str, Any]) -> str:
    """As text: it tells 1 from True and from 1.0, which `==` does not."""
    shown = {**listing, "_meta": {key: value for key, value in listing["_meta"].items() if key != "profile"}}
    return json.dumps(shown, sort_keys=True)


def read_by_us(path: Path) -> Inventory | FleetError:
    try:
        return parse_inventory(path)
    except FleetError as error:
        return error


def hosts_of(inventory: Inventory, pattern: str) -> list[str] | None:
    try:
        return [host.name for host in inventory.select(pattern)]
    except FleetError:
        return None


@settings(
    max_examples=COUNT,
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(content=FILES, patterns=st.lists(PATTERNS, max_size=3))
def test_any_file_means_to_us_what_it_means_to_ansible(
    oracle: Oracle, content: str, patterns: list[str]
) -> None:
    theirs = oracle.ask(content.encode(), patterns)
    ours = read_by_us(oracle.path)
    if "refused" in theirs:
        event("refused")
        assert isinstance(ours, FleetError), f"Ansible refuses: {theirs['refused']}"
        assert str(ours).startswith("error: ")
        return
    event("accepted")
    assert isinstance(ours, Inventory), f"we refuse: {ours}"
    assert canonical(render_list(ours)) == canonical(theirs["list"])
    assert [(name, list(host.groups)) for name, host in ours.hosts.items()] == list(theirs["groups"].items())
    assert [hosts_of(ours, pattern) for pattern in patterns] == theirs["hosts"]


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=list(EXAMPLES))
def test_an_example_of_the_unit_tests_is_what_ansible_says(oracle: Oracle, example: Example) -> None:
    theirs = oracle.ask(example.text.encode("utf-8", "surrogateescape"), [])
    ours = read_by_us(oracle.path)
    assert ("refused" in theirs) == (example.hosts is None)
    if isinstance(ours, Inventory):
        assert canonical(render_list(ours)) == canonical(theirs["list"])


REALISTIC = """\
# a fleet
bastion ansible_host=10.0.0.1 ansible_port=2222 note="two words"

[gpu]
gpu[01:05:2] ansible_user=ops
gpu-[a:c].example.org:2200
[2001:db8::1]:22

[cpu]
cpu1 labels="{'rack': [1, (2, 3)], 4: None}"

[fleet:children]
gpu
cpu

[fleet:vars]
ollama_version = 0.17.5
ratio = 1.0
text = '1.0'
flags = [True, no]

[gpu:vars]
ansible_group_priority = 10
ratio = 2
"""


def run_the_command(oracle: Oracle, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-inventory")),
            "-i",
            str(oracle.path),
            "--list",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=oracle.directory,
        env=ansible_environment(oracle.directory),
    )


def test_the_oracle_answers_as_the_real_command_does(oracle: Oracle) -> None:
    answered = oracle.ask(REALISTIC.encode(), [])["list"]
    assert json.loads(run_the_command(oracle).stdout) == answered
    ours = read_by_us(oracle.path)
    assert isinstance(ours, Inventory), ours
    assert canonical(render_list(ours)) == canonical(answered)


def test_the_oracle_refuses_as_the_real_command_does(oracle: Oracle) -> None:
    assert "refused" in oracle.ask(b"[gpu:children]\nmissing\n", [])
    assert run_the_command(oracle).returncode != 0


def test_a_limited_listing_is_that_of_the_real_command(oracle: Oracle) -> None:
    oracle.path.write_text(REALISTIC)
    theirs = json.loads(run_the_command(oracle, "--limit", "gpu:!gpu03:bastion").stdout)
    ours = render_list(parse_inventory(oracle.path), limit="gpu:!gpu03:bastion")
    assert canonical(ours) == canonical(theirs)
