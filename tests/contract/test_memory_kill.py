"""How a host tells that the kernel has ended its server for the memory it took, with a scripted systemd."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.errors import FleetError, OutOfMemory, ServiceError
from deploy.local import LocalTransport
from deploy.systemd import name_memory_kill

BROKEN = ServiceError(sentence="`myqwen2` does not answer", unchanged="everything")
# `systemctl show --property=NAME UNIT` prints the line of that name.
SYSTEMCTL = """#!/bin/sh
grep "^${2#--property=}=" "$(dirname "$0")/unit"
"""
JOURNALCTL = """#!/bin/sh
cat "$(dirname "$0")/journal"
"""
# As systemd 252 says it of a unit with Restart=always, seen on the emulated machine.
KILLED = """\
Started ollama.service - Ollama.
ollama.service: A process of this unit has been killed by the OOM killer.
ollama.service: Main process exited, code=killed, status=9/KILL
ollama.service: Failed with result 'oom-kill'.
ollama.service: Consumed 7.020s CPU time.
ollama.service: Scheduled restart job, restart counter is at 1.
Stopped ollama.service - Ollama.
Started ollama.service - Ollama.
"""
STOPPED = """\
Stopping ollama.service - Ollama...
ollama.service: Deactivated successfully.
Stopped ollama.service - Ollama.
Started ollama.service - Ollama.
"""

Namer = Callable[..., FleetError]


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namer:
    for tool, text in (("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL)):
        (tmp_path / tool).write_text(text)
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def named(journal: str, *, result: str = "success", restarts: int = 0, limit: str) -> FleetError:
        (tmp_path / "unit").write_text(f"Result={result}\nNRestarts={restarts}\nMemoryMax={limit}\n")
        (tmp_path / "journal").write_text(journal)
        return name_memory_kill(LocalTransport("box"), "0.17.7", BROKEN)

    return named


def test_a_server_that_lies_killed_is_told_with_the_limit_of_its_unit(name: Namer) -> None:
    told = name("", result="oom-kill", limit="167772160")
    assert isinstance(told, OutOfMemory)
    assert "release `0.17.7` was killed by the kernel: out of memory (OOM)" in told.sentence
    assert "`MemoryMax=167772160` of `ollama.service` (160 MiB)" in str(told.cause)
    assert BROKEN.sentence in str(told.cause)
    assert (told.unchanged, told.host) == ("everything", "box")
    assert "systemctl cat ollama.service" in str(told.hint)


def test_a_host_without_a_limit_is_told_to_have_been_full(name: Namer) -> None:
    told = name("", result="oom-kill", limit="infinity")
    assert "the host had no memory left" in str(told.cause)
    assert "free -m" in str(told.hint)


def test_a_server_that_runs_again_was_killed_all_the_same(name: Namer) -> None:
    assert isinstance(name(STOPPED + KILLED, restarts=1, limit="1"), OutOfMemory)


@pytest.mark.parametrize(
    ("journal", "restarts"),
    [
        pytest.param(KILLED + STOPPED, 1, id="killed before somebody stopped it"),
        pytest.param(KILLED, 0, id="killed, and started by hand since"),
        pytest.param(STOPPED.replace("Deactivated", "Main process exited"), 1, id="it exits by itself"),
        pytest.param("", 0, id="a journal that says nothing"),
    ],
)
def test_another_end_stays_what_it_was(name: Namer, journal: str, restarts: int) -> None:
    assert name(journal, result="exit-code", restarts=restarts, limit="1") is BROKEN
