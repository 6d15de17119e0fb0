"""What every transport must hold: argv literal, bytes exact, exit codes, timeouts; the lock on top."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import commands
from deploy.errors import CommandFailed, HostLocked
from deploy.facts import ProcessId
from deploy.host_lock import host_lock
from deploy.local import LocalTransport

BOX = LocalTransport("box")
PROJECT = Path(__file__).resolve().parents[2]


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4))
@settings(max_examples=40, deadline=None)
def test_hostile_arguments_arrive_as_they_are(words: list[str]) -> None:
    done = BOX.run(commands.shell('for word in "$@"; do printf "%s\\0" "$word"; done', *words))
    assert done.stdout.decode() == "".join(f"{word}\0" for word in words)


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=4
    )
)
@settings(max_examples=40, deadline=None)
def test_a_rendered_command_is_read_back_by_a_shell_as_the_same_words(words: list[str]) -> None:
    line = commands.render_command(["printf", "%s\\0", *words])
    assert subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout.decode() == "".join(
        f"{word}\0" for word in words
    )


def test_bytes_pass_both_ways_unchanged_and_in_any_number() -> None:
    data = bytes(range(256)) * 20_000
    assert BOX.run(["cat"], stdin=data).stdout == data


def test_an_exit_code_is_a_value_and_its_last_words_are_kept() -> None:
    done = BOX.run(["sh", "-c", "echo out; echo why >&2; exit 7"])
    assert (done.exit_code, done.stdout, done.last_words) == (7, b"out\n", "why")


def test_a_command_that_does_not_end_is_given_up() -> None:
    with pytest.raises(CommandFailed, match=r"did not end within 0\.2 s"):
        BOX.run(["sleep", "60"], timeout_seconds=0.2)


def test_a_command_that_does_not_exist_is_an_error_with_a_cause() -> None:
    with pytest.raises(CommandFailed) as failed:
        BOX.run(["no-such-command-here"])
    assert "No such file" in str(failed.value.cause)


def start(tmp_path: Path, program: str) -> ProcessId:
    log = PurePosixPath(tmp_path / "a log/x.log")
    done = BOX.run(commands.start_process(log, {"ONLY": "this $HOME"}, [sys.executable, "-c", program]))
    assert done.exit_code == 0, done.last_words
    pid = int(done.stdout)
    return ProcessId(pid=pid, create_time=psutil.Process(pid).create_time())


def wait_for(log: Path, text: str) -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if log.exists() and text in log.read_text():
            return log.read_text()
        os.sched_yield()
    raise AssertionError(f"{text} did not appear in {log}")


def test_a_started_process_has_exactly_its_environment_and_outlives_its_starter(tmp_path: Path) -> None:
    program = (
        "import os, signal; print(dict(os.environ), os.getsid(0) == os.getpid(), flush=True); signal.pause()"
    )
    process = start(tmp_path, program)
    said = wait_for(tmp_path / "a log/x.log", "}")
    assert "'ONLY': 'this $HOME'" in said
    assert "PATH" not in said
    assert "True" in said
    assert BOX.is_running(process)
    BOX.stop(process, timeout_seconds=5)
    assert not BOX.is_running(process)


def test_a_process_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    child = "import time; time.sleep(600)"
    program = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}]);"
        "print('child', p.pid, flush=True); signal.pause()"
    )
    process = start(tmp_path, program)
    pid = int(wait_for(tmp_path / "a log/x.log", "child").split()[1])
    BOX.stop(process, timeout_seconds=0.2)
    assert not BOX.is_running(process)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_later_process_with_the_same_pid_is_not_touched(tmp_path: Path) -> None:
    process = start(tmp_path, "import signal; signal.pause()")
    stale = ProcessId(pid=process.pid, create_time=process.create_time - 100)
    assert not BOX.is_running(stale)
    BOX.stop(stale, timeout_seconds=1)
    assert BOX.is_running(process)
    BOX.stop(process, timeout_seconds=5)


def test_a_blob_is_placed_only_with_the_right_sha256_and_replaces_a_damaged_one(tmp_path: Path) -> None:
    import hashlib

    source, models = tmp_path / "w.gguf", tmp_path / "models"
    source.write_bytes(b"GGUF good")
    good = hashlib.sha256(b"GGUF good").hexdigest()
    blob = models / f"blobs/sha256-{good}"

    def place(sha256: str) -> tuple[int, str]:
        done = BOX.run(commands.place_blob(PurePosixPath(source), PurePosixPath(models), sha256))
        return done.exit_code, done.stdout.decode().strip()

    assert place(good) == (0, "linked")
    assert blob.stat().st_ino == source.stat().st_ino
    assert place(good) == (0, "present")
    blob.unlink()
    blob.write_bytes(b"GGUF bad!")
    assert place(good) == (0, "linked")
    assert blob.read_bytes() == b"GGUF good"
    assert place("0" * 64)[0] == 65
    assert [path.name for path in (models / "blobs").iterdir()] == [blob.name]


def test_current_is_switched_by_rename(tmp_path: Path) -> None:
    current = PurePosixPath(tmp_path / "opt/current")
    for version in ("1", "2"):
        (tmp_path / f"opt/releases/{version}").mkdir(parents=True)
        done = BOX.run(commands.switch_current(current, PurePosixPath(tmp_path / f"opt/releases/{version}")))
        assert done.exit_code == 0, done.last_words
        assert Path(current).readlink() == Path(f"releases/{version}")
    assert sorted(path.name for path in Path(tmp_path / "opt").iterdir()) == ["current", "releases"]


def test_a_lock_is_held_by_one_and_names_its_owner(tmp_path: Path) -> None:
    lock = PurePosixPath(tmp_path / "state/lock")
    with host_lock(BOX, lock, "deploy"):
        owner = json.loads(Path(lock).read_text())
        assert (owner["pid"], owner["what"]) == (os.getpid(), "deploy")
        with pytest.raises(HostLocked, match=f"pid {os.getpid()}, deploy"), host_lock(BOX, lock, "other"):
            pass
    with host_lock(BOX, lock, "again"):
        pass
    assert Path(lock).read_text() == ""


def test_a_killed_holder_frees_the_lock_by_itself(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import PurePosixPath\n"
        "from deploy.host_lock import host_lock\n"
        "from deploy.local import LocalTransport\n"
        "with host_lock(LocalTransport('box'), PurePosixPath(sys.argv[2]), 'deploy'):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(PROJECT), str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(HostLocked), host_lock(BOX, PurePosixPath(lock), "other"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    deadline = time.monotonic() + 20
    while True:
        try:
            with host_lock(BOX, PurePosixPath(lock), "other"):
                break
        except HostLocked:
            assert time.monotonic() < deadline


def test_a_script_is_given_up_with_its_children(tmp_path: Path) -> None:
    # The child keeps the pipes open: waiting for their end would take as long as the child.
    script = 'sleep 60 & echo $! >"$1"; wait'
    started = time.monotonic()
    with pytest.raises(CommandFailed, match="did not end"):
        BOX.run(commands.shell(script, str(tmp_path / "pid")), timeout_seconds=0.5)
    assert time.monotonic() - started < 30
    child = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_ctrl_c_on_the_terminal_does_not_reach_a_command(tmp_path: Path) -> None:
    done = BOX.run(commands.shell('ps -o pgid= -p $$ 2>/dev/null || cut -d " " -f 5 /proc/$$/stat'))
    assert int(done.stdout) != os.getpgrp()


def test_a_log_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    done = BOX.run(
        commands.start_process(PurePosixPath(tmp_path / "log"), {"PATH": "/bin:/usr/bin"}, ["true"])
    )
    assert done.exit_code != 0
    assert "log" in done.last_words
