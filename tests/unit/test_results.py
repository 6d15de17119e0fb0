"""The last report and the history: whole after any cut, and of a bounded size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from healthchecks import results
from healthchecks.health_report import CheckResult, HealthReport, State
from healthchecks.results import append_history, read_history, read_last, write_last

REPORT = HealthReport(
    host="box",
    started="2026-11-26T03:00:00Z",
    seconds=1.5,
    checks=(CheckResult("api", State.PASS, "answers"), CheckResult("disk", State.WARN, "full soon", "prune")),
    facts={"models": [], "api_seconds": 0.01},
)


def test_the_last_report_is_read_as_it_was_written_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    assert read_last(path) is None
    write_last(path, REPORT)
    assert read_last(path) == REPORT
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.json"]


def test_a_report_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.json"
    write_last(path, REPORT)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_last(path, replace(REPORT, host="other"))
    assert read_last(path) == REPORT
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}'])
def test_a_report_of_another_hand_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "last.json"
    path.write_text(text)
    assert read_last(path) is None


def test_a_line_that_was_cut_short_is_taken_away_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append_history(path, REPORT)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert len(list(read_history(path))) == 1
    append_history(path, replace(REPORT, started="2026-11-26T03:05:00Z"))
    assert [entry["started"] for entry in read_history(path)] == [REPORT.started, "2026-11-26T03:05:00Z"]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_line_tells_the_states_and_the_facts(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append_history(path, REPORT)
    (entry,) = read_history(path)
    assert entry == {
        "started": REPORT.started,
        "seconds": 1.5,
        "state": "warn",
        "checks": {"api": "pass", "disk": "warn"},
        "facts": dict(REPORT.facts),
    }


def test_the_last_runs_are_kept_and_the_file_is_written_anew_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RUNS_KEPT", 10)
    monkeypatch.setattr(results, "_SLACK", 3)
    path = tmp_path / "history.jsonl"
    longest = 0
    for number in range(40):
        append_history(path, replace(REPORT, seconds=float(number)))
        longest = max(longest, len(path.read_bytes().splitlines()))
    assert longest == 13
    assert [entry["seconds"] for entry in read_history(path)] == [float(number) for number in range(30, 40)]
    assert read_last(tmp_path / "none") is None
    assert list(read_history(tmp_path / "none")) == []
