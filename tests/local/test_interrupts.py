"""What Ctrl-C, a closed terminal and a reader that goes away do to a running `./fleet`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.errors import ExitCode
from deploy.fleet import each
from tests.local.test_demo import environment, listing, servers_below
from tests.local.test_deploy_flags import PINS

PROJECT = Path(__file__).resolve().parents[2]
SECONDS = 60


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for process in servers_below(tmp_path):
        process.kill()
        process.wait(10)


def start(state: Path, *words: str) -> subprocess.Popen[str]:
    """In a process group of its own, as a shell starts it: a terminal signals the whole group."""
    return subprocess.Popen(
        [sys.executable, str(PROJECT), *words],
        env=environment(state),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_until(process: subprocess.Popen[str], event: str, step: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        told = json.loads(line)
        if (told["event"], told.get("step")) == (event, step):
            return
    pytest.fail(f"no {event} of {step}")


@pytest.mark.fault(9)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_lets_the_step_end_and_cleans_up(
    state: Path, number: signal.Signals
) -> None:
    process = start(state, "demo", "--json")
    read_until(process, "step_started", "UnpackRelease")
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, err
    told = [json.loads(line) for line in out.splitlines()]
    assert told[-1]["event"] == "summary"
    assert [item["kind"] for item in told if item["event"] == "error"] == ["Interrupted"]
    assert any(item["event"] == "step_done" and item["step"] == "UnpackRelease" for item in told)
    assert servers_below(state) == []
    assert listing(state) == []


@pytest.mark.fault(9)
def test_the_second_ctrl_c_ends_at_once_and_the_next_demo_converges(state: Path) -> None:
    process = start(state, "demo", "--json")
    read_until(process, "step_started", "StartServer")
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    assert "press Ctrl-C again" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "./fleet status shows what became of it" in err
    assert json.loads(out.splitlines()[-1])["event"] == "summary"

    again = start(state, "demo", "--json")
    out, err = again.communicate(timeout=SECONDS)
    assert again.returncode == 0, err
    assert listing(state) == []


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """It takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        yield listener


def fill(writing: int) -> None:
    """Nothing more goes into the pipe until somebody reads."""
    # Opened anew: what is set here must not be set for the process that writes.
    again = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while os.write(again, b"\n" * 4096):
            pass
    with contextlib.suppress(BlockingIOError):
        while os.write(again, b"\n"):
            pass
    os.close(again)


@pytest.mark.parametrize("words", ["deploy --yes --json", "deploy --yes"])
def test_two_ctrl_c_end_a_run_whose_reader_stands_still(
    state: Path, silent: socket.socket, words: str
) -> None:
    port = silent.getsockname()[1]
    (state / "pins.toml").write_text(PINS)
    (state / "inventory.ini").write_text(
        f"mute1 ansible_host=127.0.0.1\nmute2 ansible_host=127.0.0.1\n[all:vars]\nansible_port={port}\n"
        "ollama_version=0.17.5\nollama_gpu=none\n"
    )
    reading, writing = os.pipe()
    try:
        with subprocess.Popen(
            [sys.executable, str(PROJECT), *words.split(), "--inventory", str(state / "inventory.ini")],
            env=environment(state),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            deadline = threading.Timer(SECONDS, process.kill)
            deadline.start()
            try:
                (one, _), (other, _) = silent.accept(), silent.accept()
                fill(writing)
                # One host is lost, and a thread begins to tell it.
                one.close()
                process.send_signal(signal.SIGINT)
                assert any("press Ctrl-C again" in line for line in process.stderr)
                process.send_signal(signal.SIGINT)
                assert process.wait() == ExitCode.INTERRUPTED
                other.close()
            finally:
                deadline.cancel()
                process.kill()
    finally:
        os.close(reading)
        os.close(writing)


def test_a_second_ctrl_c_does_not_wait_for_the_work_of_a_thread() -> None:
    running, end = threading.Event(), threading.Event()

    def work(_: int) -> None:
        running.set()
        end.wait(SECONDS)

    def interrupt() -> None:
        assert running.wait(SECONDS)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        each([1], work, 1)
    assert not end.is_set()
    end.set()


def waits_for_futures(thread: threading.Thread) -> bool:
    """Whether it has come to the end of what it calls there."""
    calls = [
        frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._current_frames()[thread.ident or 0])
    ]
    return calls[0] == "wait" and "each" in calls and "start" not in calls


def test_a_signal_that_another_thread_was_given_is_heard_at_once() -> None:
    heard = threading.Event()

    def work(_: int) -> bool:
        deadline = time.monotonic() + SECONDS
        while not waits_for_futures(threading.main_thread()) and time.monotonic() < deadline:
            pass
        # The kernel may choose any thread; the handler runs in the main one, which nothing has woken.
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        return heard.wait(SECONDS)

    earlier = signal.signal(signal.SIGUSR1, lambda *_: heard.set())
    try:
        assert each([1], work, forks=1) == (True,)
    finally:
        signal.signal(signal.SIGUSR1, earlier)


def test_all_hosts_end_before_the_error_of_one_is_raised() -> None:
    ended = []

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("the first")
        ended.append(number)

    with pytest.raises(ValueError, match="the first"):
        each([0, 1, 2], work, 1)
    assert ended == [1, 2]


def test_a_reader_that_goes_away_does_not_stop_the_work(state: Path) -> None:
    process = start(state, "demo", "--keep")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(SECONDS) == 0
    assert process.stderr.read() == ""
    process.stderr.close()
    assert len(servers_below(state)) == 1


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "2>&-", "| true"])
@pytest.mark.parametrize("words", ["--list", "plan", "plan --json", "render myqwen2"])
def test_output_that_cannot_be_written_is_no_traceback(state: Path, words: str, redirection: str) -> None:
    inventory = state / "inventory.ini"
    inventory.write_text("h ansible_connection=local ollama_rooot=/x\n")
    where = f"--inventory {inventory}" if words.startswith("plan") else ""
    done = subprocess.run(
        ["sh", "-c", f'"$0" "$1" {words} {where} {redirection}', sys.executable, str(PROJECT)],
        env=environment(state),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_ctrl_c_while_the_command_line_is_read_ends_with_130_too(state: Path) -> None:
    script = (
        "import os, runpy, signal, sys, invoke\n"
        "invoke.Program.parse_tasks = lambda _: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.argv = ['fleet', 'plan']\n"
        "runpy.run_path(sys.orig_argv[-1], run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(PROJECT)],
        env=environment(state),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "")
