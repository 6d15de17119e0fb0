"""A run of the health checks ends whatever a check does, and its report and configuration survive JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from healthchecks import api
from healthchecks.health import (
    CHECKS,
    CheckResult,
    Effort,
    HealthReport,
    State,
    Thresholds,
    parse_config,
    parse_report,
    render_config,
    render_report,
    run_checks,
    worst_of,
)
from healthchecks.health_facts import FACTS, GPU_FACTS, MODEL_FACTS
from healthchecks.judgement import HealthCheck, Judgement, Look
from healthchecks.nvml import HANGS, GpuReading
from tests.unit.health_host import CONFIG, NOW, FakeHost, FakeServer, report

PROJECT = Path(__file__).resolve().parents[2]
LOOKS = [check for check in CHECKS if check.effort is Effort.LOOK]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake = FakeServer()
    monkeypatch.setattr(api, "send", fake.send)
    return fake


def passes(_: Look) -> Judgement:
    return Judgement(State.PASS, "all is well")


def breaks(_: Look) -> Judgement:
    raise ZeroDivisionError("by nothing")


def test_a_host_as_it_was_deployed_passes_every_check_that_looks(server: FakeServer) -> None:
    found = run_checks(CONFIG, FakeHost(), NOW, effort=Effort.LOOK)
    assert {result.check: result.reason for result in found.checks if result.state is not State.PASS} == {}
    assert [result.check for result in found.checks] == [check.name for check in LOOKS]
    assert found.state is State.PASS
    assert found.started == "2026-11-26T03:00:00Z"


def test_every_fact_is_promised_and_found_on_a_healthy_host(server: FakeServer) -> None:
    checks = [check for check in CHECKS if check.name != "toolcall"]
    facts = run_checks(CONFIG, FakeHost(), NOW, checks=checks).facts
    assert set(facts) == set(FACTS)
    assert [set(model) for model in facts["models"]] == [set(MODEL_FACTS)]
    assert [set(gpu) for gpu in facts["gpus"]] == [set(GPU_FACTS)]
    unknown = {name for name, value in facts.items() if value is None}
    assert unknown == set()
    assert {name for name, value in facts["models"][0].items() if value is None} == {
        "toolcall_ok",
        "toolcall_seconds",
    }
    assert facts["unit"] == {"active": True, "restarts": 2}


def test_a_host_without_a_gpu_is_asked_nothing_of_one(server: FakeServer) -> None:
    host = FakeHost()
    found = run_checks(replace(CONFIG, gpu="none"), host, NOW, effort=Effort.LOOK)
    assert not [result.check for result in found.checks if result.check.startswith("gpu")]
    assert host.readings == 0


def test_a_driver_is_asked_once_a_run(server: FakeServer) -> None:
    host = FakeHost(reading=GpuReading(code=HANGS, said="no answer within 20 s"))
    found = run_checks(CONFIG, host, NOW, effort=Effort.LOOK)
    assert host.readings == 1
    assert found.state is State.FAIL


def test_a_check_that_breaks_is_unknown_and_the_others_still_run() -> None:
    checks = [HealthCheck("broken", "", breaks), HealthCheck("well", "", passes)]
    broken, well = run_checks(CONFIG, FakeHost(), NOW, checks=checks).checks
    assert (broken.state, well.state) == (State.UNKNOWN, State.PASS)
    assert broken.reason == "could not be found out: ZeroDivisionError: by nothing"
    assert broken.evidence == {"exception": "ZeroDivisionError"}


def test_a_check_that_hangs_is_unknown_and_left_behind() -> None:
    release = threading.Event()

    def hangs(_: Look) -> Judgement:
        release.wait(30)
        return Judgement(State.PASS, "too late")

    checks = [HealthCheck("hung", "", hangs), HealthCheck("well", "", passes)]
    found = run_checks(CONFIG, FakeHost(), NOW, deadline_seconds=0.05, checks=checks)
    release.set()
    hung, well = found.checks
    assert (hung.state, well.state) == (State.UNKNOWN, State.PASS)
    assert hung.reason == "`hung` did not answer within 0.05 s"
    assert found.seconds < 5


def test_a_check_has_its_own_deadline_where_it_names_one() -> None:
    def waits(_: Look) -> Judgement:
        threading.Event().wait(0.2)
        return Judgement(State.PASS, "in time")

    checks = [HealthCheck("slow", "", waits, deadline_seconds=lambda _: 20.0)]
    [slow] = run_checks(CONFIG, FakeHost(), NOW, deadline_seconds=0.01, checks=checks).checks
    assert slow.state is State.PASS


def test_a_fact_that_nobody_promised_makes_its_check_unknown() -> None:
    def tells(_: Look) -> Judgement:
        return Judgement(State.PASS, "all is well", facts={"colour": "red"})

    [told] = run_checks(CONFIG, FakeHost(), NOW, checks=[HealthCheck("told", "", tells)]).checks
    assert told.state is State.UNKNOWN
    assert "`colour` is no fact" in told.reason


@pytest.mark.parametrize(
    ("states", "worst"),
    [
        ([State.PASS, State.UNKNOWN], State.UNKNOWN),
        ([State.UNKNOWN, State.WARN, State.PASS], State.WARN),
        ([State.WARN, State.FAIL, State.UNKNOWN], State.FAIL),
        ([], State.UNKNOWN),
    ],
)
def test_unknown_ranks_between_pass_and_warn(states: list[State], worst: State) -> None:
    assert worst_of(states) is worst


def test_a_report_survives_json(server: FakeServer) -> None:
    found = run_checks(CONFIG, FakeHost(), NOW, effort=Effort.LOOK)
    rendered = json.loads(json.dumps(render_report(found)))
    assert rendered["state"] == "pass"
    assert parse_report(rendered) == found


def test_a_configuration_survives_json() -> None:
    changed = replace(CONFIG, thresholds=Thresholds(api_warn_seconds=2.5))
    assert parse_config(json.loads(json.dumps(render_config(changed)))) == changed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "`format` is 2, and this version reads 1"),
        ({"host": 7}, "`host` is 7, not a text"),
        ({"checks": [{"check": "api", "state": "red"}]}, "`checks[0].state` is 'red', not one of pass, warn"),
        ({"checks": [3]}, "`checks[0]` is 3, not an object"),
        ({"seconds": True}, "`seconds` is True, not a number"),
        ({"facts": None}, "`facts` is None, not an object"),
    ],
)
def test_a_report_that_is_none_is_refused_with_its_field(change: dict[str, Any], says: str) -> None:
    document = {**render_report(report()), **change}
    with pytest.raises(ValueError, match="`") as caught:
        parse_report(document)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": None}, "`url` is None, not a text"),
        ({"backend": "cron"}, "`backend` is 'cron', not one of systemd, process"),
        ({"models": [{}]}, "`models[0].name` is missing"),
        ({"gpu_expected_count": "two"}, "`gpu_expected_count` is 'two', not a whole number"),
        ({"thresholds": {"api_warn": 1}}, "`thresholds.api_warn` is no threshold"),
        ({"thresholds": {"api_warn_seconds": "1"}}, "`thresholds.api_warn_seconds` is '1', not a number"),
    ],
)
def test_a_configuration_that_is_none_is_refused_with_its_field(change: dict[str, Any], says: str) -> None:
    document = {**render_config(CONFIG), **change}
    with pytest.raises(ValueError, match="`") as caught:
        parse_config(document)
    assert says in str(caught.value)


def test_what_is_no_object_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="`the report` is"):
        parse_report([])


def test_names_of_checks_are_labels_and_none_comes_twice() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name.islower() for name in names)


def test_results_are_equal_by_value() -> None:
    one = CheckResult("api", State.PASS, "answers")
    assert HealthReport("a", "t", 1.0, (one,), {}) == HealthReport("a", "t", 1.0, (one,), {})


def test_checks_that_only_look_load_nothing_heavy() -> None:
    heavy = ["jsonschema", "psutil", "pynvml", "tenacity"]
    program = f"import sys, healthchecks.health; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
