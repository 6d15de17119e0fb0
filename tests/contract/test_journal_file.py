"""The journal's file on a host: whole lines, a bound, and no deploy that fails because of it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from deploy import commands
from deploy.errors import CommandFailed, HostUnreachable, ServiceError
from deploy.journal import LIMIT_BYTES, Journal, append_entry, parse_entries
from deploy.local import LocalTransport

BOX = LocalTransport("box")


class Told:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def __call__(self, event: str, host: str | None, **fields: Any) -> None:
        self.notes.append(fields["text"])


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a state $HOME/journal.jsonl"


@pytest.fixture
def journal(path: Path, told: Told) -> Journal:
    return Journal(transport=BOX, path=PurePosixPath(path), what="deploy", events=told)


def read(path: Path, lines: int = 100) -> str:
    done = BOX.run(commands.read_entries(PurePosixPath(path), lines))
    assert done.exit_code == 0, done.last_words
    return done.stdout.decode()


def results(path: Path) -> list[str]:
    return [entry["result"] for entry in parse_entries(read(path))]


def test_entries_are_appended_and_read_last_lines_only(path: Path) -> None:
    assert read(path) == ""
    for word in ("one", "two", "three"):
        append_entry(BOX, PurePosixPath(path), word)
    assert read(path) == "one\ntwo\nthree\n"
    assert read(path, 2) == "two\nthree\n"


def test_a_line_that_was_cut_short_does_not_spoil_the_next(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"at": ')
    append_entry(BOX, PurePosixPath(path), "whole")
    assert path.read_text() == '{"at": \nwhole\n'


def test_a_long_journal_is_moved_aside_and_still_read(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("x" * LIMIT_BYTES + "\n")
    Path(f"{path}.1").write_text("the oldest\n")
    append_entry(BOX, PurePosixPath(path), "new")
    assert path.read_text() == "new\n"
    assert Path(f"{path}.1").stat().st_size == LIMIT_BYTES + 1
    append_entry(BOX, PurePosixPath(path), "newer")
    assert read(path, 2) == "new\nnewer\n"
    assert read(path, 3).startswith("xxx")


def test_a_journal_that_cannot_be_written_is_a_note_and_no_error(
    path: Path, journal: Journal, told: Told
) -> None:
    path.parent.write_text("a file")
    journal.write("done")
    (note,) = told.notes
    assert note.startswith(f"not in the journal, `{path}` could not be written: ")


def test_a_full_disk_is_a_note_and_no_error(tmp_path: Path, told: Told) -> None:
    # Every write to it fails with ENOSPC: full(4).
    (tmp_path / "journal.jsonl").symlink_to("/dev/full")
    path = PurePosixPath(tmp_path / "journal.jsonl")
    with Journal(transport=BOX, path=path, what="deploy", events=told).changing(["x"]):
        pass
    assert len(told.notes) == 2
    assert all("not in the journal" in note for note in told.notes)


def test_a_host_that_is_gone_is_a_note_and_no_error(
    journal: Journal, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object, **__: object) -> None:
        raise HostUnreachable(sentence="the connection was cut")

    monkeypatch.setattr(LocalTransport, "run", cut)
    journal.write("done")
    assert told.notes == ["not in the journal, the connection was cut"]


def test_a_change_is_there_before_it_begins_and_its_end_after(path: Path, journal: Journal) -> None:
    with journal.changing(["release 0.17.5"], release="0.17.5"):
        assert results(path) == ["started"]
    assert results(path) == ["started", "done"]
    last = parse_entries(read(path))[-1]
    assert (last["changes"], last["release"], last["what"]) == (["release 0.17.5"], "0.17.5", "deploy")
    assert last["seconds"] >= 0


def test_a_change_that_fails_says_why_and_what_serves(path: Path, journal: Journal) -> None:
    with pytest.raises(ServiceError), journal.changing(["x"]):
        raise ServiceError(sentence="`x` died", unchanged="release 0.17.4 serves again, as before")
    assert results(path) == [
        "started",
        "failed: `x` died; left unchanged: release 0.17.4 serves again, as before",
    ]


def test_a_failure_that_nobody_designed_is_kept_too(path: Path, journal: Journal) -> None:
    with pytest.raises(KeyError), journal.changing(["x"]):
        raise KeyError("tag")
    assert results(path)[-1] == "failed: `KeyError` was not expected here"


def test_entries_that_cannot_be_read_are_an_error(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(CommandFailed):
        append_entry(BOX, PurePosixPath(path), "x")
