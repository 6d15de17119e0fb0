"""The lock's holder on the host, under every shell that a host may have, and what people are told of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from deploy import commands, host_lock
from deploy.errors import HostLocked
from deploy.journal import Journal, parse_entries, this_user
from deploy.local import LocalTransport
from tests.contract.shells import need

BOX = LocalTransport("box")
OWNER = '{"owner": "ana@laptop", "pid": 1, "since": "2026-03-01T04:30:05Z", "what": "deploy"}'
SHELLS = ("sh", "bash --posix", "busybox sh")

Start = Callable[[], subprocess.Popen[str]]


@pytest.fixture(params=SHELLS)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Starts a holder of `state/lock`, whose lease program and systemctl note what they are asked.

    A server runs when there is a file `active`.
    """
    words = request.param.split()
    need(words[0])
    lease = tmp_path / "lease program"
    lease.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/renewed"\necho noise\necho noise >&2\n')
    lease.chmod(0o755)
    systemctl = tmp_path / "bin/systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(
        f'#!/bin/sh\necho noise\necho noise >&2\n[ "$1" != is-active ] || exec test -e "{tmp_path}/active"\n'
        f'exec >>"{tmp_path}/started"\nflock -n "{tmp_path}/state/lock" echo free\necho "$@"\n'
    )
    systemctl.chmod(0o755)
    lock = PurePosixPath(tmp_path / "state/lock")
    started: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        _, *script = commands.hold_lock(lock, OWNER, PurePosixPath(lease))
        holder = subprocess.Popen(
            [*words, *script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
            env={**os.environ, "PATH": f"{systemctl.parent}:{os.environ['PATH']}"},
        )
        started.append(holder)
        return holder

    yield run
    for holder in started:
        holder.kill()
        holder.communicate()


def first_line(holder: subprocess.Popen[str]) -> str:
    assert holder.stdout is not None
    return holder.stdout.readline().rstrip("\n")


def tell(holder: subprocess.Popen[str], *lines: str) -> None:
    assert holder.stdin is not None
    for line in lines:
        holder.stdin.write(f"{line}\n")


def end(holder: subprocess.Popen[str], *lines: str) -> str:
    """What it still said, after it has read these lines and the end."""
    tell(holder, *lines)
    return holder.communicate(timeout=20)[0]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.mark.fault(31)
@pytest.mark.parametrize("leap_seconds", [-86400, 0, 86400])
def test_the_second_is_told_the_age_the_holders_pid_and_the_owner(
    start: Start, tmp_path: Path, leap_seconds: int
) -> None:
    """The age is that of the holder's process: a clock that leaps makes the file older or younger."""
    holder = start()
    assert first_line(holder) == "locked"
    taken = time.time() + leap_seconds
    os.utime(tmp_path / "state/lock", (taken, taken))
    word, age, pid, owner = first_line(start()).split(" ", 3)
    assert (word, pid, owner) == ("held", str(holder.pid), OWNER)
    assert 0 <= int(age) < 30


def test_the_age_of_a_holder_that_cannot_be_looked_at_is_that_of_the_file(
    start: Start, tmp_path: Path
) -> None:
    assert first_line(start()) == "locked"
    lock = tmp_path / "state/lock"
    lock.write_text(f"{OWNER}\n")
    taken = time.time() - 300
    os.utime(lock, (taken, taken))
    word, age, pid, _ = first_line(start()).split(" ", 3)
    assert (word, pid) == ("held", "-")
    assert 300 <= int(age) < 330


def test_a_released_lock_names_nobody_and_its_next_holder_hears_of_nobody(
    start: Start, tmp_path: Path
) -> None:
    holder = start()
    assert first_line(holder) == "locked"
    assert end(holder, "alive", "done") == ""
    assert (tmp_path / "state/lock").read_text() == ""
    assert first_line(start()) == "locked"


@pytest.mark.fault(33)
@pytest.mark.parametrize("death", ["end of input", "terminated", "killed"])
def test_the_lock_of_a_dead_holder_is_taken_over_with_its_name(start: Start, death: str) -> None:
    holder = start()
    assert first_line(holder) == "locked"
    if death == "end of input":
        end(holder, "alive")
    else:
        holder.send_signal(signal.SIGTERM if death == "terminated" else signal.SIGKILL)
        holder.wait(20)
    answers: list[str] = []

    def is_free() -> bool:
        # A child that was just being started has the lock's file open until it closes it.
        answers.append(first_line(start()))
        return not answers[-1].startswith("held")

    wait_until(is_free)
    assert answers[-1] == f"locked after {OWNER}"


@pytest.mark.parametrize(
    ("server", "last", "asked"),
    [
        ("active", "alive", ["free", "--no-ask-password --no-block start ollama-fleet-load.service"]),
        ("active", "done", []),
        ("stopped", "alive", []),
    ],
)
def test_the_holder_of_a_controller_that_died_frees_the_lock_and_has_the_host_load_what_it_serves(
    start: Start, tmp_path: Path, server: str, last: str, asked: list[str]
) -> None:
    (tmp_path / server).touch()
    holder = start()
    assert first_line(holder) == "locked"
    assert end(holder, last) == ""
    started = tmp_path / "started"
    assert (started.read_text().splitlines() if started.exists() else []) == asked


def test_a_terminated_holder_reads_no_further_line(start: Start) -> None:
    holder = start()
    assert first_line(holder) == "locked"
    holder.terminate()
    holder.wait(20)

    def is_gone() -> bool:
        try:
            tell(holder, "alive")
        except OSError:
            return True
        return False

    wait_until(is_gone)


def test_every_line_renews_a_lease_that_is_there_and_says_nothing(start: Start, tmp_path: Path) -> None:
    holder = start()
    assert first_line(holder) == "locked"
    (tmp_path / "state/lease").touch()
    assert end(holder, "alive", "alive", "done") == ""
    assert (tmp_path / "renewed").read_text() == "renew\nrenew\n"


def test_without_a_lease_nothing_is_renewed(start: Start, tmp_path: Path) -> None:
    holder = start()
    assert first_line(holder) == "locked"
    assert end(holder, "alive", "alive", "done") == ""
    assert not (tmp_path / "renewed").exists()


def test_a_lock_whose_file_was_removed_while_it_was_waited_for_is_taken_on_the_new_one(
    start: Start, tmp_path: Path
) -> None:
    lock = tmp_path / "state/lock"
    lock.parent.mkdir()
    # The shell opens the file, then runs `flock`: in between its name goes away.
    tools = tmp_path / "tools"
    tools.mkdir()
    real = shutil.which("flock")
    (tools / "flock").write_text(
        f'#!/bin/sh\n[ -e "{tmp_path}/once" ] || {{ : >"{tmp_path}/once"; rm -r "{lock.parent}"; }}\n'
        f'exec {real} "$@"\n'
    )
    (tools / "flock").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        holder = start()
        said = first_line(holder)
    assert (tmp_path / "once").exists()
    assert said == "locked"
    assert first_line(start()).startswith("held ")


def test_a_lock_that_its_holder_removed_is_not_made_again(start: Start, tmp_path: Path) -> None:
    holder = start()
    assert first_line(holder) == "locked"
    (tmp_path / "state/lock").unlink()
    end(holder, "done")
    assert list((tmp_path / "state").iterdir()) == []


# What people are told.


def refusal(lock: Path) -> HostLocked:
    with pytest.raises(HostLocked) as refused, host_lock.host_lock(BOX, PurePosixPath(lock), "other"):
        pass
    return refused.value


def test_the_error_says_who_since_when_how_long_and_how_to_end_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with host_lock.host_lock(BOX, PurePosixPath(lock), "deploy"):
        error = refusal(lock)
        holder = lock.read_text().splitlines()[1]
    assert error.sentence.startswith(f"`box` is locked by {this_user()} (pid {os.getpid()}, deploy, since 2")
    assert re.search(r"Z, \d+ s ago\)$", error.sentence)
    assert error.hint == (
        "wait for it; if that process hangs, end its hold on the host: "
        f"./fleet run --limit box --yes 'kill {holder}'"
    )


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7199, "119 min"), (7200, "2 h")]
)
def test_an_age_is_told_in_words(seconds: int, words: str) -> None:
    error = host_lock._refused("box", PurePosixPath("/lock"), f"held {seconds} - {OWNER}")
    assert error.sentence.endswith(f"since 2026-03-01T04:30:05Z, {words} ago)")
    assert error.hint == "wait for it; a dead holder frees the lock by itself within a minute"


def test_an_owner_of_this_machine_whose_process_is_gone_is_told_as_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    owner = json.dumps({**json.loads(OWNER), "owner": this_user(), "pid": ended.pid})
    error = host_lock._refused("box", PurePosixPath("/lock"), f"held 3 77 {owner}")
    assert str(error.hint).startswith("that process is gone")
    assert str(error.hint).endswith("./fleet run --limit box --yes 'kill 77'")


@pytest.mark.parametrize("owner", ["", "{", "[]", '{"owner": 1}'])
def test_an_owner_that_cannot_be_read_is_somebody(owner: str) -> None:
    error = host_lock._refused("box", PurePosixPath("/lock"), f"held 61 - {owner}")
    assert error.sentence == "`box` is locked by somebody who has not written a name (1 min ago)"


@pytest.mark.fault(33)
def test_a_takeover_is_told_and_stands_in_the_journal(tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []

    def events(event: str, host: str | None, **fields: Any) -> None:
        told.append((event, fields))

    lock = tmp_path / "lock"
    lock.write_text(f"{OWNER}\n77\n")
    path = PurePosixPath(tmp_path / "journal.jsonl")
    journal = Journal(transport=BOX, path=path, what="deploy", events=events)
    for _ in range(2):
        with host_lock.host_lock(BOX, PurePosixPath(lock), "deploy", journal):
            pass
    text = (
        "took over the lock of ana@laptop (pid 1, deploy, since 2026-03-01T04:30:05Z), "
        "whose run ended without releasing it"
    )
    assert told == [("note", {"text": text})]
    entries = parse_entries(Path(path).read_text())
    assert [(entry["who"], entry["what"], entry["result"]) for entry in entries] == [
        (this_user(), "deploy", text)
    ]


def test_a_host_that_goes_back_by_itself_is_waited_for_and_told(tmp_path: Path) -> None:
    lock, told = tmp_path / "state/lock", list[str]()
    lock.parent.mkdir()
    # As templates/lease.sh holds it.
    reverts = f"exec 9>>'{lock}'; flock 9; printf '%s\\n' \"$1\" \"$$\" >'{lock}'; echo; read _; : >'{lock}'"
    owner = '{"owner": "lease", "pid": 7, "since": "2026-03-01T04:30:05Z", "what": "revert"}'
    with subprocess.Popen(
        ["sh", "-c", reverts, "sh", owner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reverting:
        assert reverting.stdout is not None
        reverting.stdout.readline()

        def hear(event: str, host: str | None, **fields: Any) -> None:
            told.append(fields["text"])
            reverting.communicate("\n")

        journal = Journal(transport=BOX, path=PurePosixPath(tmp_path / "journal"), what="deploy", events=hear)
        with host_lock.host_lock(BOX, PurePosixPath(lock), "deploy", journal):
            assert this_user() in lock.read_text()
    assert told == ["the host is going back by itself to what it served; waiting until it has"]


def test_a_host_that_goes_back_for_ever_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_lock, "REVERT_SECONDS", 0.0)
    lock = tmp_path / "lock"
    lock.write_text('{"owner": "lease", "pid": 7, "since": "2026-03-01T04:30:05Z", "what": "revert"}\n')
    with subprocess.Popen(["flock", str(lock), "sh", "-c", "echo; cat"], stdin=-1, stdout=-1) as reverting:
        assert reverting.stdout is not None
        reverting.stdout.readline()
        with pytest.raises(HostLocked), host_lock.host_lock(BOX, PurePosixPath(lock), "deploy"):
            pass
