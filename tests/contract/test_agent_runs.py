"""The agent run back to back, as `./fleet bench health` plays a day of it."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.agent_runs import play
from healthchecks.agent import FAILED, UNDER_WAY
from tests.contract.prometheus import DASHBOARDS

PROJECT = DASHBOARDS.parent


def test_a_dozen_runs_count_right_leave_nothing_behind_and_none_runs_beside_another(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "healthchecks.agent")
    played = play(command, tmp_path / "host", 12, PYTHONPATH=str(PROJECT))
    assert played.faults == ()
    assert {run.exit_code for run in played.runs} == {FAILED}
    # On a machine that is busy the second may come when the first has ended; `faults` counts either.
    assert [run.exit_code in (UNDER_WAY, FAILED) for run in played.beside] == [True]
    assert played.rss_growth < 1.1
