"""The flags of `deploy` that say how a change goes through a fleet: what cannot be meant reaches no host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.local.test_demo import fleet

PINS = f"""
[[server]]
version = "0.17.5"
architecture = "amd64"
revision = "v0.17.5"
file = "ollama-linux-amd64.tar.zst"
size_bytes = 1000
sha256 = "{"a" * 64}"
"""


@pytest.fixture
def inventory(tmp_path: Path) -> str:
    path = tmp_path / "inventory.ini"
    (tmp_path / "pins.toml").write_text(PINS)
    # Nobody is there: whoever tried to reach it would exit with 4.
    here = "127.0.0.1 ansible_port=1 ollama_version=0.17.5 ollama_gpu=none"
    path.write_text(f"[all]\na ansible_host={here}\nb ansible_host={here}\nc ansible_host={here}\n")
    return str(path)


def test_a_pace_that_cannot_be_meant_reaches_no_host(tmp_path: Path, inventory: str) -> None:
    done = fleet(tmp_path, "deploy", "--yes", "--inventory", inventory, "--batch", "0")
    assert done.returncode == 1
    assert "expected counts or percentages of hosts, such as 1,5,25%, got `0`" in done.stderr
    assert "left unchanged: everything" in done.stderr


def test_hosts_that_are_off_take_no_place_in_a_batch_and_are_errors_of_the_junit_report(
    tmp_path: Path, inventory: str
) -> None:
    junit = tmp_path / "deploy.xml"
    words = ["--yes", "--json", "--batch", "1", "--junit", str(junit), "--inventory", inventory]
    done = fleet(tmp_path, "deploy", *words)
    assert done.returncode == 4, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert not [event for event in told if event["event"] == "batch_started"]
    assert [event["outcome"] for event in told if event["event"] == "host_done"] == ["unreachable"] * 3
    assert (told[-1]["unreachable"], told[-1]["failed"], told[-1]["skipped"]) == (3, 0, 0)
    assert 'tests="3" failures="0" errors="3"' in junit.read_text()


@pytest.mark.parametrize(
    "words", [["deploy", "--soak=abc"], ["deploy", "--nosuch"], ["run"], ["run", "a", "b"]]
)
def test_the_last_event_is_the_summary_of_a_command_line_that_cannot_be_meant_too(
    tmp_path: Path, words: list[str]
) -> None:
    done = fleet(tmp_path, *words, "--json")
    assert done.returncode == 1
    error, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert (error["event"], error["kind"], summary["event"]) == ("error", "UsageError", "summary")
    assert done.stderr.startswith("error: ")
