"""What a host has kept of its own checks, as the page reads it: one command, whatever is there."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import pytest

from deploy import commands
from deploy.local import LocalTransport
from healthchecks.kept_reports import KeptReports, parse_kept
from healthchecks.results import append_history, write_last
from tests.unit.health_host import report

BOX = LocalTransport("box")


def read(directory: Path, runs: int = 10, path: str | None = None) -> KeptReports:
    argv = commands.read_kept_reports(PurePosixPath(directory), runs)
    done = BOX.run(argv if path is None else ["env", f"PATH={path}", "/bin/sh", *argv[1:]])
    assert done.exit_code == 0, done.last_words
    return parse_kept(done.stdout)


def without_gzip(tmp_path: Path) -> str:
    """A PATH that has everything that the script needs but gzip."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cat", "date", "tail"):
        (programs / name).symlink_to(f"/bin/{name}" if Path(f"/bin/{name}").exists() else f"/usr/bin/{name}")
    return str(programs)


def test_the_last_report_and_the_last_runs_come_in_one_reply(tmp_path: Path) -> None:
    directory = tmp_path / "a state $HOME"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    for _ in range(12):
        append_history(directory / "history.jsonl", report())
    write_last(directory / "last.json", report())
    for path in (None, without_gzip(tmp_path)):
        kept = read(directory, path=path)
        assert (kept.scheduled, kept.report, len(kept.runs)) == (True, report(), 10)
        assert abs(kept.now - datetime.now(UTC).timestamp()) < 60


def test_a_host_that_has_kept_nothing_says_so(tmp_path: Path) -> None:
    assert read(tmp_path / "nowhere") == KeptReports(read(tmp_path / "nowhere").now, scheduled=False)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "last.json").write_text("")
    append_history(tmp_path / "history.jsonl", report())
    kept = read(tmp_path)
    assert (kept.scheduled, kept.report, kept.problem, len(kept.runs)) == (True, None, None, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_no_empty_answer(tmp_path: Path) -> None:
    write_last(tmp_path / "last.json", report())
    (tmp_path / "last.json").chmod(0)
    done = BOX.run(commands.read_kept_reports(PurePosixPath(tmp_path), 10))
    assert done.exit_code != 0
    assert done.last_words == f"{tmp_path}/last.json may not be read"
