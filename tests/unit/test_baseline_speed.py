"""What a model's speed is compared with: that of its first runs, until it is another model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from healthchecks.baseline_speed import RUNS, note_speeds, with_baselines
from healthchecks.health import CheckResult, HealthConfig, HealthReport, State
from healthchecks.health_facts import empty_facts
from tests.unit.health_host import CANARY, CONFIG, OTHER_WEIGHTS

UNMEASURED = replace(CANARY, baseline_tokens_per_second=None)
DEPLOYED = replace(CONFIG, models=(UNMEASURED,))


def ran(config: HealthConfig, speed: float | None, *found: CheckResult) -> HealthReport:
    facts = empty_facts(config)
    facts["models"][0]["tokens_per_second"] = speed
    return HealthReport("gpu01", "2026-11-26T03:00:00Z", 1.0, found, facts)


def baseline(config: HealthConfig, path: Path) -> float | None:
    return with_baselines(config, path).models[0].baseline_tokens_per_second


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The speeds of all the first runs, one of them slow and one fast."""
    made = tmp_path / "speeds.json"
    for speed in (100.0, 30.0, 102.0, 400.0, 98.0):
        note_speeds(made, DEPLOYED, ran(DEPLOYED, speed))
    return made


def test_the_median_of_the_first_runs_is_the_baseline_and_later_runs_change_nothing(path: Path) -> None:
    assert baseline(DEPLOYED, path) == 100.0
    before = path.stat()
    for _ in range(RUNS):
        note_speeds(path, DEPLOYED, ran(DEPLOYED, 5.0))
    assert (baseline(DEPLOYED, path), path.stat()) == (100.0, before)


def test_before_there_are_enough_runs_there_is_no_baseline(tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    for _ in range(RUNS - 1):
        note_speeds(path, DEPLOYED, ran(DEPLOYED, 100.0))
    note_speeds(path, DEPLOYED, ran(DEPLOYED, None))
    assert baseline(DEPLOYED, path) is None
    note_speeds(path, DEPLOYED, ran(DEPLOYED, 100.0))
    assert baseline(DEPLOYED, path) == 100.0


@pytest.mark.parametrize(
    "other",
    [
        replace(DEPLOYED, models=(replace(UNMEASURED, weights_sha256=OTHER_WEIGHTS),)),
        replace(DEPLOYED, release="0.40.0"),
        replace(DEPLOYED, gpu_expected_count=2),
    ],
    ids=["weights", "release", "gpus"],
)
def test_another_model_release_or_number_of_gpus_is_measured_anew(path: Path, other: HealthConfig) -> None:
    assert baseline(other, path) is None
    for _ in range(RUNS):
        note_speeds(path, other, ran(other, 50.0))
    assert baseline(other, path) == 50.0
    assert baseline(DEPLOYED, path) is None, "of what went, nothing is kept"


def test_what_the_deploy_says_counts_for_more_than_what_was_measured(path: Path) -> None:
    told = replace(DEPLOYED, models=(replace(UNMEASURED, baseline_tokens_per_second=70.0),))
    assert baseline(told, path) == 70.0


@pytest.mark.parametrize("check", ["gpu", "gpu_truth", "gpu_heat"])
@pytest.mark.parametrize("state", [State.WARN, State.FAIL])
def test_a_run_on_a_gpu_that_is_not_well_is_nothing_to_compare_with(
    tmp_path: Path, check: str, state: State
) -> None:
    path = tmp_path / "speeds.json"
    for _ in range(RUNS):
        note_speeds(path, DEPLOYED, ran(DEPLOYED, 3.0, CheckResult(check, state, "slow")))
    assert baseline(DEPLOYED, path) is None
    for _ in range(RUNS):
        note_speeds(path, DEPLOYED, ran(DEPLOYED, 90.0, CheckResult("disk", State.FAIL, "full")))
    assert baseline(DEPLOYED, path) == 90.0


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"canary": 3}', '{"canary": {"tokens_per_second": "fast"}}']
)
def test_a_file_that_is_none_is_begun_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "speeds.json"
    path.write_text(text)
    assert baseline(DEPLOYED, path) is None
    note_speeds(path, DEPLOYED, ran(DEPLOYED, 90.0))
    assert json.loads(path.read_text())["canary"]["tokens_per_second"] == [90.0]


def test_a_model_that_is_served_no_more_is_forgotten(path: Path) -> None:
    other = replace(UNMEASURED, name="other")
    note_speeds(path, replace(DEPLOYED, models=(other,)), ran(replace(DEPLOYED, models=(other,)), 60.0))
    assert list(json.loads(path.read_text())) == ["other"]
