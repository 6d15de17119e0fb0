"""The spool loses nothing: whatever fails to be sent, whatever cannot be written, wherever a run is cut."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthchecks import spool as spool_module
from healthchecks.notices import Notice
from healthchecks.spool import Spool

EVERYBODY = ("slack", "feishu")


class Cut(BaseException):
    """The run ends here, as by kill -9."""


def notice(number: int, *failing: str) -> Notice:
    return Notice(
        f"title {number}", f"body {number}", f"2026-11-26T03:{number % 60:02d}:00Z", bool(failing), failing
    )


def titles(spool: Spool, target: str) -> list[str]:
    return [message.notice.title for message in spool.waiting_for(target)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def test_a_message_waits_until_everybody_has_it_and_a_new_process_knows(directory: Path) -> None:
    spool = Spool(directory)
    spool.add(notice(1, "disk"))
    spool.add(notice(2))
    spool.mark_delivered(1, "slack", EVERYBODY)
    later = Spool(directory)
    assert titles(later, "slack") == ["title 2"]
    assert titles(later, "feishu") == ["title 1", "title 2"]
    for number in (1, 2):
        for target in EVERYBODY:
            later.mark_delivered(number, target, EVERYBODY)
    assert Spool(directory).messages == ()
    assert [path.name for path in (directory / "spool").iterdir()] == ["reserve"]


def test_what_was_made_known_is_known_after_its_message_has_gone(directory: Path) -> None:
    spool = Spool(directory)
    assert spool.failing == frozenset()
    spool.add(notice(1, "disk", "api"))
    spool.mark_delivered(1, "slack", ["slack"])
    again = Spool(directory)
    assert again.failing == {"disk", "api"}
    again.add(notice(2, "api"))
    assert Spool(directory).failing == {"api"}
    assert again.messages[0].number == 2, "numbers are not given twice"


def test_one_who_is_told_no_more_keeps_no_message_waiting(directory: Path) -> None:
    spool = Spool(directory)
    spool.add(notice(1, "disk"))
    spool.mark_delivered(1, "slack", EVERYBODY)
    spool.drop_delivered([])
    assert len(spool.messages) == 1, "a file that cannot be read names nobody"
    spool.drop_delivered(["slack"])
    assert Spool(directory).messages == ()


def test_of_more_than_a_thousand_the_oldest_are_dropped_and_it_is_told_how_many(directory: Path) -> None:
    spool = Spool(directory, messages_kept=3)
    for number in range(1, 8):
        spool.add(notice(number, "disk"))
    kept = [message.notice for message in Spool(directory).messages]
    assert [one.title for one in kept] == ["ollama-fleet: 5 messages were dropped", "title 6", "title 7"]
    assert "from 2026-11-26T03:01:00Z until 2026-11-26T03:05:00Z" in kept[0].body
    assert spool_module.MESSAGES_KEPT == 1_000


def test_who_has_got_the_dropped_messages_is_not_told_of_them(directory: Path) -> None:
    spool = Spool(directory, messages_kept=2)
    for number in (1, 2):
        spool.add(notice(number, "disk"))
        spool.mark_delivered(number, "slack", EVERYBODY)
    spool.add(notice(3))
    assert titles(spool, "slack") == ["title 3"]
    assert titles(spool, "feishu") == ["ollama-fleet: 2 messages were dropped", "title 3"]


def test_a_file_that_is_no_message_stops_nobody_and_the_rest_of_a_cut_write_goes(directory: Path) -> None:
    Spool(directory).add(notice(1, "disk"))
    (directory / "spool/00000000.json").write_text('{"number": 0')
    (directory / "spool/.00000002.json.abc").write_text("{")
    (directory / "notified.json").write_text("[]")
    spool = Spool(directory)
    assert titles(spool, "slack") == ["title 1"]
    assert spool.failing == {"disk"}
    assert not (directory / "spool/.00000002.json.abc").exists()


class Disk:
    """One on which every change is counted, and may be refused or the first that does not happen."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.changes = 0
        self.cut_at: int | None = None
        self.free_bytes: int | None = None
        self.reserve: Path | None = None
        self._real = spool_module._replace_durably
        self._real_remove = Spool._remove
        patch.setattr(spool_module, "_replace_durably", self.replace)
        # A bound method would not get the spool.
        patch.setattr(Spool, "_remove", lambda spool, number: self.remove(spool, number))  # noqa: PLW0108

    def count(self) -> None:
        self.changes += 1
        if self.changes == self.cut_at:
            raise Cut

    def remove(self, spool: Spool, number: int) -> None:
        self.count()
        self._real_remove(spool, number)

    def replace(self, path: Path, content: bytes) -> None:
        self.count()
        if self.free_bytes is not None:
            free = (
                self.free_bytes
                if self.reserve is None or self.reserve.exists()
                else spool_module.RESERVE_BYTES
            )
            if len(content) > free:
                raise OSError(errno.ENOSPC, "No space left on device")
        self._real(path, content)


@given(
    runs=st.lists(
        st.tuples(st.sets(st.sampled_from(["a", "b"])), st.lists(st.booleans(), max_size=6)), max_size=8
    ),
    cuts=st.lists(st.integers(1, 8) | st.none(), max_size=8),
)
def test_under_any_cuts_and_refusals_everybody_gets_every_change_in_order_and_none_more_than_twice(
    tmp_path_factory: pytest.TempPathFactory,
    runs: list[tuple[set[str], list[bool]]],
    cuts: list[int | None],
) -> None:
    directory = tmp_path_factory.mktemp("health")
    got: dict[str, list[str]] = {target: [] for target in EVERYBODY}
    made: list[str] = []
    cut_runs = 0
    known: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        endings = [*runs, (runs[-1][0] if runs else set(), [True] * 99)]
        for number, (failing, answers) in enumerate(endings):
            disk.changes = 0
            disk.cut_at = cuts[number] if number < min(len(cuts), len(runs)) else None
            left = list(answers)
            title = f"title {number}"
            before = known
            try:
                spool = Spool(directory)
                assert spool.failing == known, "what was made known is not forgotten"
                if failing != known:
                    made.append(title)
                    known = failing
                    spool.add(Notice(title, "body", "at", True, tuple(sorted(failing))))
                for target in EVERYBODY:
                    for message in spool.waiting_for(target):
                        if not left or not left.pop(0):
                            break
                        got[target].append(message.notice.title)
                        spool.mark_delivered(message.number, target, EVERYBODY)
            except Cut:
                cut_runs += 1
                if made[-1:] == [title] and disk.changes == 1:
                    made.remove(title)  # before it was known: the next run finds the change again
                    known = before
    assert Spool(directory).messages == ()
    assert Spool(directory).failing == known
    for target in EVERYBODY:
        once = list(dict.fromkeys(got[target]))
        assert once == made, "each in its order"
        assert len(got[target]) - len(once) <= cut_runs, "a cut repeats one at most"


def test_a_full_disk_is_told_once_from_what_was_set_aside(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    spool = Spool(directory)
    disk.reserve = directory / "spool/reserve"
    assert disk.reserve.stat().st_size == spool_module.RESERVE_BYTES
    disk.free_bytes = 0
    spool.add(notice(1, "disk"))
    assert spool.problem is None
    spool.mark_delivered(1, "slack", ["slack"])
    assert spool.problem is None
    assert Spool(directory).failing == {"disk"}


def test_what_cannot_be_written_at_all_is_sent_all_the_same_and_known_to_be_unwritten(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(spool_module, "_replace_durably", refuse)
    spool = Spool(directory)
    spool.add(notice(1, "disk"))
    assert titles(spool, "slack") == ["title 1"]
    spool.mark_delivered(1, "slack", ["slack"])
    assert spool.problem is not None
    assert spool.waiting_for("slack") == ()
    assert Spool(directory).failing == frozenset()


def test_the_files_are_for_their_owner_alone(directory: Path) -> None:
    Spool(directory).add(notice(1, "disk"))
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.rglob("*.json")}
    assert modes == {"00000001.json": 0o600, "notified.json": 0o600}
    assert (directory / "spool").stat().st_mode & 0o777 == 0o700
    assert json.loads((directory / "notified.json").read_text()) == {
        "format": 1,
        "number": 1,
        "failing": ["disk"],
    }


def test_a_file_in_place_of_the_spool_keeps_no_message_from_anybody_and_is_told(directory: Path) -> None:
    (directory / "spool").write_text("not a directory")
    spool = Spool(directory)
    spool.add(notice(1, "disk"))
    spool.drop_delivered(EVERYBODY)
    assert isinstance(spool.problem, NotADirectoryError)
    assert titles(spool, "slack") == ["title 1"]
    spool.mark_delivered(1, "slack", EVERYBODY)
    assert Spool(directory).failing == frozenset(), "what feishu has not got is told anew"
    spool.mark_delivered(1, "feishu", EVERYBODY)
    assert Spool(directory).failing == {"disk"}
    assert (directory / "spool").read_text() == "not a directory"
