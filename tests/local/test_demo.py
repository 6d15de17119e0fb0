"""`./fleet demo` from the outside: its job, its traces, and what a kill -9 at any moment leaves."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from healthchecks.case import load_cases

PROJECT = Path(__file__).resolve().parents[2]
# The same tests, the same results, against the real server that this variable names.
REAL = bool(os.environ.get("OLLAMA_BIN"))
KILLS = int(os.environ.get("FLEET_DEMO_KILLS", "3"))
SECONDS = 120
# Each case plain and streamed: of all for the name of the 7B model, of the core for the canary under its own.
PLAYED = 2 * len(load_cases(level="core" if REAL else "extended"))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "state home"  # a space: every value that reaches a shell must survive one
    home.mkdir()
    yield home
    for process in servers_below(home):
        process.kill()
        process.wait(10)


def environment(state: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MODELSCOPE_"))}
    return {**kept, "XDG_STATE_HOME": str(state), "HOME": str(state / "home")}


def fleet(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROJECT), *words],
        env=environment(state),
        cwd=state,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.stdout, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(last, dict)
    assert last["event"] == "summary"
    return last


def servers_below(state: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("OLLAMA_FLEET_ROOT", "").startswith(str(state)):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def listing(state: Path) -> list[str]:
    """Every path below the state directory, with a mark for what kind it is."""
    return sorted(
        f"{path.relative_to(state)}{'@' if path.is_symlink() else '/' if path.is_dir() else ''}"
        for path in state.rglob("*")
    )


def commands(state: Path) -> list[list[str]]:
    """What runs below the state directory; a runner's port is another one each time."""
    lines = [
        [word.replace(str(state), "STATE") for word in process.cmdline()] for process in servers_below(state)
    ]
    return sorted(line[:-1] if "--port" in line else line for line in lines)


def test_the_demo_does_the_whole_job_and_leaves_nothing(state: Path) -> None:
    done = fleet(state, "demo", "--json")
    assert done.returncode == 0, done.stderr
    last = summary(done)
    assert (last["cases_passed"], last["cases_failed"], last["ollama"]) == (
        PLAYED,
        0,
        "real" if REAL else "simulated",
    )
    assert (last["hosts"], last["changed"], last["failed"], last["unreachable"]) == (1, 1, 0, 0)
    assert listing(state) == []
    assert servers_below(state) == []


def test_the_demo_says_on_plain_lines_what_stands_behind_its_names(state: Path) -> None:
    done = fleet(state, "demo")
    assert done.returncode == 0, done.stderr
    assert "`qwen2-7b-instruct-q5_k_m.gguf` is really the canary" in done.stdout
    assert ("a real Ollama" if REAL else "a simulated Ollama") in done.stdout
    assert len(re.findall(r"\bpassed\b", done.stdout)) >= 10


def test_a_kept_demo_is_converged_and_its_drift_is_named(state: Path) -> None:
    assert fleet(state, "demo", "--keep", "--json").returncode == 0
    inventory = str(state / "ollama-fleet/demo/inventory.ini")

    planned = fleet(state, "plan", "--json", "--exit-code", "--inventory", inventory)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout.splitlines()[0])["steps"] == []

    deployed = fleet(state, "deploy", "--yes", "--json", "--inventory", inventory)
    assert deployed.returncode == 0, deployed.stderr
    assert summary(deployed)["changed"] == 0

    status = fleet(state, "status", "--inventory", inventory)
    assert "not supervised" in status.stdout
    assert ("(real)" if REAL else "0.17.5 (simulated)") in status.stdout

    removed = fleet(state, "remove", "--models", "--yes", "--inventory", inventory)
    assert removed.returncode == 0, removed.stderr
    assert not (state / "ollama-fleet/demo/host").exists()
    assert servers_below(state) == []


def test_a_deploy_without_a_terminal_and_without_yes_changes_nothing(state: Path) -> None:
    assert fleet(state, "demo", "--keep", "--json").returncode == 0
    inventory = str(state / "ollama-fleet/demo/inventory.ini")
    assert fleet(state, "service", "stop", "--yes", "--inventory", inventory).returncode == 0
    before = listing(state)

    refused = fleet(state, "deploy", "--inventory", inventory)
    assert refused.returncode == 1
    assert "--yes" in refused.stdout
    assert listing(state) == before
    assert servers_below(state) == []

    assert fleet(state, "service", "start", "--yes", "--inventory", inventory).returncode == 0
    assert [line[-1] for line in commands(state)].count("serve") == 1


def test_a_binary_that_is_no_ollama_is_refused_before_anything_is_made(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_BIN", "/bin/true")
    refused = fleet(state, "demo", "--json")
    assert refused.returncode == 1
    assert "`OLLAMA_BIN` names no usable Ollama" in refused.stderr
    assert servers_below(state) == []


def test_a_second_demo_in_the_same_state_directory_is_locked_out(state: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, str(PROJECT), "demo", "--json"],
        env=environment(state),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert first.stdout is not None
    first.stdout.readline()
    second = fleet(state, "demo", "--json")
    first.stdout.read()
    first.stdout.close()
    assert first.wait(SECONDS) == 0
    assert second.returncode == 5
    assert "another demo runs" in second.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[list[str]], float]:
    state = tmp_path_factory.mktemp("undisturbed") / "state home"
    state.mkdir()
    started = time.monotonic()
    done = fleet(state, "demo", "--keep", "--json")
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    found = listing(state), commands(state)
    for process in servers_below(state):
        process.kill()
        process.wait(10)
    return (*found, seconds)


@pytest.mark.fault(8)
@pytest.mark.parametrize("attempt", range(KILLS))
def test_a_demo_killed_at_any_moment_converges_the_next_time(
    state: Path, undisturbed: tuple[list[str], list[list[str]], float], attempt: int
) -> None:
    files, processes, seconds = undisturbed
    moment = random.uniform(0.0, seconds)
    victim = subprocess.Popen(
        [sys.executable, str(PROJECT), "demo", "--keep", "--json"],
        env=environment(state),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        victim.wait(moment)
    except subprocess.TimeoutExpired:
        victim.send_signal(signal.SIGKILL)
        victim.wait()

    again = fleet(state, "demo", "--keep", "--json")
    assert again.returncode == 0, f"killed after {moment:.3f} s: {again.stdout}{again.stderr}"
    assert summary(again)["cases_passed"] == PLAYED
    assert listing(state) == files, f"killed after {moment:.3f} s"
    assert commands(state) == processes, f"killed after {moment:.3f} s"
