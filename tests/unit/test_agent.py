"""What the timer runs: one run at a time, its results in order, and its end whatever hangs."""

from __future__ import annotations

import fcntl
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from healthchecks import agent
from healthchecks.agent import CANNOT_RUN, DONE, FAILED, UNDER_WAY, Finished, last_deploy, main
from healthchecks.health import CheckResult, Effort, HealthReport, State, render_config
from healthchecks.health_config import HealthConfig
from healthchecks.health_facts import empty_facts
from healthchecks.results import read_history, read_last
from tests.unit.health_host import CONFIG

PASSED = CheckResult("api", State.PASS, "answers")
FAILING = CheckResult("disk", State.FAIL, "no space\nis left", "./fleet prune")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "health"
    made.mkdir()
    config = replace(CONFIG, root=str(tmp_path), deployed_at=None)
    (made / "config.json").write_text(json.dumps(render_config(config)))
    return made


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[CheckResult]:
    """What the run finds: the checks themselves have tests of their own."""
    found = [PASSED]

    def run(config: HealthConfig, *_: Any, **__: Any) -> HealthReport:
        return HealthReport(config.host, "2026-11-26T03:00:00Z", 0.1, tuple(found), {})

    monkeypatch.setattr(agent, "run_checks", run)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    return found


def test_a_run_keeps_its_report_and_tells_one_line_in_all_and_one_for_each_finding(
    directory: Path, checks: list[CheckResult], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(directory)]) == DONE
    assert capsys.readouterr().out == "pass: 1 of 1 checks passed in 0.1 s\n"
    checks.append(FAILING)
    assert main(["run", str(directory), "--quick"]) == FAILED
    assert capsys.readouterr().out.splitlines() == [
        "fail disk: no space is left; ./fleet prune",
        "fail: 1 of 2 checks passed in 0.1 s",
    ]
    report = read_last(directory / "last.json")
    assert report is not None
    assert report.state is State.FAIL
    assert [entry["state"] for entry in read_history(directory / "history.jsonl")] == ["pass", "fail"]


def test_journald_is_told_how_bad_each_line_is(
    directory: Path,
    checks: list[CheckResult],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    checks.append(FAILING)
    main(["run", str(directory)])
    assert [line[:3] for line in capsys.readouterr().out.splitlines()] == ["<3>", "<3>"]


def test_a_report_is_printed_and_keeps_nothing(
    directory: Path, checks: list[CheckResult], capsys: pytest.CaptureFixture[str]
) -> None:
    checks.append(FAILING)
    assert main(["report", str(directory)]) == FAILED
    assert json.loads(capsys.readouterr().out)["state"] == "fail"
    assert [path.name for path in directory.iterdir()] == ["config.json"]


def test_a_second_run_leaves_while_another_is_under_way_and_the_lock_dies_with_its_holder(
    directory: Path, checks: list[CheckResult], capsys: pytest.CaptureFixture[str]
) -> None:
    with (directory / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["run", str(directory)]) == UNDER_WAY
    assert capsys.readouterr().out == "another run is under way\n"
    assert read_last(directory / "last.json") is None
    assert main(["run", str(directory)]) == DONE


def test_an_output_that_fails_is_told_and_keeps_no_other_from_its_turn(
    directory: Path,
    checks: list[CheckResult],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Finished] = []

    def write_metrics(_: Finished) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(agent, "OUTPUTS", (write_metrics, given.append, agent.OUTPUTS[0]))
    assert main(["run", str(directory)]) == DONE
    assert "write_metrics failed: OSError: [Errno 28] No space left on device" in capsys.readouterr().out
    assert given[0].previous is None
    assert read_last(directory / "last.json") == given[0].report


def test_the_run_before_is_what_a_run_compares_itself_with(
    directory: Path, checks: list[CheckResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Finished] = []
    main(["run", str(directory)])
    checks.append(FAILING)
    monkeypatch.setattr(agent, "OUTPUTS", (given.append,))
    main(["run", str(directory)])
    assert given[0].previous is not None
    assert (given[0].previous.state, given[0].report.state) == (State.PASS, State.FAIL)


def test_checks_that_never_end_end_the_run_at_its_deadline_as_unknown(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(agent, "run_checks", lambda *_, **__: ended.wait(60))
    monkeypatch.setattr(agent, "DEADLINE_SECONDS", 0.05)
    try:
        report = agent.check_host(directory, Effort.LOOK).report
    finally:
        ended.set()
    assert (report.state, report.checks[0].check) == (State.UNKNOWN, "run")


@pytest.mark.parametrize("words", [[], ["run"], ["walk", "/tmp"], ["run", "/tmp", "more"]])
def test_other_words_are_answered_with_the_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == CANNOT_RUN
    assert "usage: agent" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "", "{}", '{"format": 99}'])
def test_a_configuration_that_is_none_is_told(
    directory: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "config.json").unlink()
    if text is not None:
        (directory / "config.json").write_text(text)
    assert main(["run", str(directory)]) == CANNOT_RUN
    assert "the health checks cannot run" in capsys.readouterr().err


def test_the_hosts_own_journal_tells_when_it_was_deployed(directory: Path) -> None:
    journal = directory.parent / "journal.jsonl"
    assert last_deploy(journal) is None
    lines = [
        {"at": "2026-11-25T01:00:00Z", "what": "deploy", "result": "done"},
        {"at": "2026-11-25T02:00:00Z", "what": "deploy", "result": "failed"},
        {"at": "2026-11-25T03:00:00Z", "what": "prune", "result": "done"},
    ]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"at": "20')
    assert last_deploy(journal) == "2026-11-25T01:00:00Z"
    assert agent.read_config(directory).deployed_at == "2026-11-25T01:00:00Z"


def test_a_model_that_gets_slower_than_in_its_first_runs_is_told(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = replace(CONFIG.models[0], baseline_tokens_per_second=None)
    config = replace(CONFIG, models=(canary,), deployed_at=None)
    (directory / "config.json").write_text(json.dumps(render_config(config)))
    seen: list[float | None] = []

    def run(config: HealthConfig, *_: Any, **__: Any) -> HealthReport:
        seen.append(config.models[0].baseline_tokens_per_second)
        facts = {**empty_facts(config), "models": [{"name": "canary", "tokens_per_second": 80.0}]}
        return HealthReport(config.host, "2026-11-26T03:00:00Z", 0.1, (PASSED,), facts)

    monkeypatch.setattr(agent, "run_checks", run)
    for _ in range(6):
        assert main(["run", str(directory)]) == DONE
    assert main(["report", str(directory)]) == DONE
    assert seen == [None] * 5 + [80.0] * 2
