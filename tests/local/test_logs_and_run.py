"""`logs` and `run` as they are typed, on hosts that are this machine; the journal of a whole host's life."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from console.changes import remove_hosts, service_asking
from console.logs import Wanted, show_logs
from deploy.errors import ExitCode
from deploy.journal import this_user
from deploy.local import LocalTransport
from deploy.outcomes import Outcome
from deploy.remove import Models
from tests.local.conftest import Site

PROJECT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 30


@dataclass(kw_only=True)
class Fleet:
    """Two hosts that are directories; neither pins nor models are there, and none are needed."""

    directory: Path
    service: str = "process"

    def _root(self, name: str) -> str:
        return f"ollama_root={self.directory}/{name}" if self.service == "process" else ""

    @property
    def words(self) -> list[str]:
        inventory = self.directory / "inventory.ini"
        inventory.write_text(
            "".join(
                f"{name} ansible_connection=local ollama_service={self.service} {self._root(name)}\n"
                for name in ("one", "two")
            )
        )
        return [sys.executable, str(PROJECT), "--", "--inventory", str(inventory)]

    def command(self, task: str, *words: str) -> list[str]:
        python, project, _, *inventory = self.words
        return [python, project, task, *inventory, *words]

    def __call__(self, task: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(task, *words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )

    def write_log(self, host: str, text: str) -> Path:
        log = self.directory / host / "var/log/ollama-fleet/ollama.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text)
        return log


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(directory=tmp_path)


def events(output: str, name: str) -> list[dict[str, Any]]:
    return [event for event in map(json.loads, output.splitlines()) if event["event"] == name]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        os.sched_yield()


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# The command `run`.


def test_a_command_is_one_shell_line_whose_every_end_is_told(fleet: Fleet) -> None:
    line = """name="a  b"; echo "$name $#"; echo 'it'"'"'s' >&2; cat; exit 3"""
    done = fleet("run", "--yes", "--json", line)
    said = events(done.stdout, "command")
    assert sorted(event["host"] for event in said) == ["one", "two"]
    assert {(event["stdout"], event["stderr"], event["exit_code"]) for event in said} == {
        ("a  b 0\n", "it's\n", 3)
    }
    (summary,) = events(done.stdout, "summary")
    assert (summary["hosts"], summary["failed"], done.returncode) == (2, 2, ExitCode.FAILED)


def test_people_see_each_host_before_its_lines(fleet: Fleet) -> None:
    done = fleet("run", "echo out; echo err >&2", "--yes", "--limit", "two")
    first, second, third, last = done.stdout.splitlines()
    assert (first, second) == ("two: out", "two: err")
    assert third.startswith("two: exit code 0, ")
    assert last.startswith("hosts 1, changed 0, failed 0, ")
    assert done.returncode == ExitCode.DONE


def test_without_a_terminal_and_without_yes_nothing_is_run(fleet: Fleet) -> None:
    done = fleet("run", f"touch {fleet.directory}/made")
    assert "would run `touch " in done.stdout
    assert done.returncode == ExitCode.USAGE
    assert not (fleet.directory / "made").exists()


def test_a_command_that_takes_too_long_is_ended_and_fails(fleet: Fleet) -> None:
    done = fleet("run", "--yes", "--limit", "one", "--timeout", "1", 'echo "$$" >"$HOME/pid"; exec sleep 600')
    assert "did not end within 1 s" in done.stderr
    assert done.returncode == ExitCode.FAILED


@pytest.mark.parametrize("words", [["ls", "-la"], ["echo", "status"], [" "], ["--timeout", "0", "true"]])
def test_what_cannot_be_meant_runs_nothing(fleet: Fleet, words: list[str]) -> None:
    done = fleet("run", "--yes", *words)
    assert done.returncode == ExitCode.USAGE
    assert "hint: ./fleet run " in done.stderr
    assert "exit code" not in done.stdout


# The command `logs`.


def test_the_last_lines_of_every_log_are_told_with_their_host(fleet: Fleet) -> None:
    fleet.write_log("one", "first\n\nthird\n")
    done = fleet("logs", "--lines", "1")
    said, missing, _ = done.stdout.splitlines()
    assert said == "one: third"
    assert missing.startswith("two: there is no log yet: ")
    assert done.returncode == ExitCode.DONE
    told = events(fleet("logs", "--json").stdout, "log")
    assert [(event["host"], event["line"]) for event in told] == [
        ("one", "first"),
        ("one", ""),
        ("one", "third"),
    ]


def test_a_followed_log_is_told_line_by_line_until_ctrl_c(fleet: Fleet) -> None:
    logs = {name: fleet.write_log(name, f"old\nlast of {name}\n") for name in ("one", "two")}
    command = fleet.command("logs", "--follow", "--json", "--lines", "1", "--forks", "1")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [json.loads(process.stdout.readline()) for _ in logs]
        assert sorted(event["line"] for event in told) == ["last of one", "last of two"]
        for name, log in logs.items():
            with log.open("a") as file:
                file.write(f"\nnew of {name}\n")
            lines = [json.loads(process.stdout.readline())["line"] for _ in range(2)]
            assert lines == ["", f"new of {name}"]
        family = psutil.Process(process.pid).children(recursive=True)
        tails = [child for child in family if child.name() == "tail"]
        assert len(tails) == len(logs)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert events(rest, "summary")
    assert process.returncode == ExitCode.INTERRUPTED
    # The host's own command ends with its reader.
    wait_until(lambda: not any(map(is_alive, tails)))


@pytest.fixture
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prints its arguments, one a line."""
    program = tmp_path / "bin/journalctl"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def test_a_host_with_systemd_asks_journald_for_the_server_and_our_units(
    fleet: Fleet, journalctl: Path
) -> None:
    fleet.service = "systemd"
    done = fleet("logs", "--json", "--limit", "one", "--lines", "7", "--since", "1 hour ago")
    asked = [event["line"] for event in events(done.stdout, "log")]
    assert asked == [
        *("-u", "ollama.service", "-u", "ollama-fleet-*"),
        *("-n", "7", "--no-pager", "-q", "-o", "short-iso", "--since=1 hour ago"),
    ]


def test_a_log_whose_reader_ends_is_an_error_with_its_last_words(fleet: Fleet, journalctl: Path) -> None:
    fleet.service = "systemd"
    done = fleet("logs", "--limit", "one", "--follow")
    assert "one: --follow" in done.stdout
    assert "the last line was: --follow" in done.stderr
    assert done.returncode == ExitCode.FAILED


def test_a_journal_that_journald_cannot_show_is_an_error(fleet: Fleet, journalctl: Path) -> None:
    journalctl.write_text("#!/bin/sh\necho 'No journal files were found.' >&2\nexit 1\n")
    fleet.service = "systemd"
    done = fleet("logs", "--limit", "one")
    assert "caused by: No journal files were found." in done.stderr
    assert done.returncode == ExitCode.FAILED


@pytest.mark.parametrize(
    "words", [["--lines", "-1"], ["--journal", "--follow"], ["--journal", "--since", "today"]]
)
def test_flags_that_do_not_go_together_are_refused(fleet: Fleet, words: list[str]) -> None:
    done = fleet("logs", *words)
    assert done.returncode == ExitCode.USAGE
    assert "`logs` cannot mean that" in done.stderr


def test_since_is_refused_for_a_log_that_is_a_file(fleet: Fleet) -> None:
    fleet.write_log("one", "x\n")
    done = fleet("logs", "--limit", "one", "--since", "today")
    assert "`--since` is for hosts with `ollama_service=systemd`" in done.stderr
    assert done.returncode == ExitCode.FAILED


# The journal of a host's life.


def journal_of(site: Site) -> list[dict[str, Any]]:
    site.output.seek(0)
    site.output.truncate()
    show_logs(site.run, Wanted(lines=100, since=None, follow=False, journal=True))
    return [event["entry"] for event in site.events("journal")]


def test_the_journal_tells_who_changed_what_and_only_that(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert journal_of(site) == []
    assert site.deploy().error is None
    started, done = journal_of(site)
    assert (started["result"], done["result"]) == ("started", "done")
    assert {entry["who"] for entry in (started, done)} == {this_user()}
    assert done["what"] == "deploy"
    assert done["release"] == site.version
    assert f"release {site.version}" in done["changes"]
    assert site.deploy().error is None
    assert len(journal_of(site)) == 2
    service_asking(site.run, "stop", yes=True)
    assert [entry["what"] for entry in journal_of(site)[2:]] == ["service stop", "service stop"]
    monkeypatch.setattr("deploy.services.START_SECONDS", 0.0)
    monkeypatch.setattr(LocalTransport, "is_running", lambda *_: False)
    failed = site.deploy()
    monkeypatch.undo()
    assert failed.error is not None
    last = journal_of(site)[-1]
    assert last["result"].startswith(f"failed: {failed.error.sentence}")
    assert str(failed.error.unchanged) in last["result"]
    outcome = remove_hosts(site.run, site.run.hosts(), Models.REMOVE)[0]
    assert outcome.error is None
    assert not site.root.exists()


def test_a_removal_that_fails_leaves_its_story(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Path(site.run.hosts()[0].paths.log)
    log.parent.mkdir(parents=True)

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error", str(log))

    monkeypatch.setattr("deploy.remove._remove", refuse)
    (failed,) = remove_hosts(site.run, site.run.hosts(), Models.KEEP)
    assert failed.outcome is Outcome.FAILED
    assert "Input/output error" in str(failed.error)
    assert [(entry["what"], entry["result"]) for entry in journal_of(site)] == [
        ("remove", "started"),
        ("remove", f"failed: `{log}` could not be used"),
    ]
