"""The hosts of a bench: nobody takes them from a run that goes on, and those of a killed one are removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.hosts import hosts_named, remove_abandoned
from deploy.errors import HostLocked
from testbed.hosts import PracticeFleet, open_fleet


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "ollama-fleet"


def test_a_second_run_of_a_name_is_refused_and_leaves_the_first_its_hosts() -> None:
    with hosts_named("chaos-5", [], print) as fleet:
        remove_abandoned("chaos-*")
        with pytest.raises(HostLocked, match="another `chaos-5`"), hosts_named("chaos-5", [], print):
            pytest.fail("two runs have the same hosts")
        assert fleet.inventory.parent.is_dir()


def test_what_a_killed_run_has_left_is_removed_by_the_next_one(state: Path) -> None:
    left: PracticeFleet = open_fleet(state / "chaos-6", ["chaos"], print)
    assert left.directory.is_dir()
    with hosts_named("chaos-5", [], print):
        remove_abandoned("chaos-*")
        assert not left.directory.exists()
    assert not Path("/sys/class/net", left.network.bridge).exists()
