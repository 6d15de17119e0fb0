"""What killed runs of the tests have left is removed by one worker of the next run, whole."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from testbed.hosts import alone_in
from tests.killed_runs import name_of_run, remove_killed_runs

PREFIX = "fleet-test-of-leftovers-"


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    made = tmp_path / f"{PREFIX}{ended.pid}-x1y2"
    (made / "fleet").mkdir(parents=True)
    (made / "fleet" / "hosts.json").write_text("{}")
    return made


def test_what_a_killed_run_left_is_ended_and_removed(left: Path) -> None:
    ended: list[list[str]] = []
    remove_killed_runs(PREFIX, lambda directory: ended.append([path.name for path in directory.iterdir()]))
    assert (ended, left.exists()) == ([["fleet"]], False)


def test_a_worker_leaves_alone_what_another_one_removes(left: Path) -> None:
    with alone_in(left):
        remove_killed_runs(PREFIX, lambda directory: pytest.fail(f"{directory} is taken down twice"))
    assert (left / "fleet" / "hosts.json").exists()


def test_a_run_that_goes_on_is_left_alone(left: Path) -> None:
    running = left.rename(left.with_name(f"{name_of_run(PREFIX)}x1y2"))
    remove_killed_runs(PREFIX, lambda directory: pytest.fail(f"{directory} is of process {os.getpid()}"))
    assert (running / "fleet" / "hosts.json").exists()
