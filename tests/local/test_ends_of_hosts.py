"""Every host of a run has an end that is told, whatever became of the others or of the run."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from console import changes, views
from console.gpu import show_gpus
from console.health import show_health
from console.logs import Wanted, show_logs
from console.page import write_page
from console.prune import prune_asking
from console.remote_run import run_asking
from console.rollback import rollback_asking
from console.run import Run, make_sources
from console.smoke import SmokeTask, smoke_inventory
from deploy.converge import probe_host
from deploy.desired import Desired
from deploy.errors import ExitCode
from deploy.facts import HostFacts
from deploy.local import LocalTransport
from deploy.outcomes import Outcome
from deploy.plan import everything, only_download
from deploy.report import Report
from deploy.rollback import Asked
from deploy.transport import Transport
from tests.local.test_demo import environment, fleet
from tests.local.test_deploy_flags import PINS

PROJECT = Path(__file__).resolve().parents[2]
OFF = "ansible_host=127.0.0.1 ansible_port=1"
SECONDS = 60

Inventory = Callable[..., str]


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    """Writes one, of the hosts' lines; `here` is this machine, where nothing is deployed yet."""

    def write(*lines: str) -> str:
        path = tmp_path / "inventory.ini"
        (tmp_path / "pins.toml").write_text(PINS)
        own = f"here ansible_connection=local ollama_service=process ollama_root={tmp_path}/root"
        hosts = "\n".join(own if line == "here" else line for line in lines)
        path.write_text(f"[all]\n{hosts}\n[all:vars]\nollama_version=0.17.5\nollama_gpu=none\n")
        return str(path)

    return write


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of somebody who takes the connection and says nothing."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        yield f"ansible_host=127.0.0.1 ansible_port={listener.getsockname()[1]}"


def events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def ends(told: list[dict[str, Any]]) -> dict[str, str]:
    return {event["host"]: event["outcome"] for event in told if event["event"] == "host_done"}


def test_a_plan_that_nobody_agrees_to_ends_with_every_host_skipped_and_a_report(
    tmp_path: Path, inventory: Inventory
) -> None:
    junit = tmp_path / "deploy.xml"
    words = ["--json", "--junit", str(junit), "--inventory", inventory("here", f"off {OFF}")]
    done = fleet(tmp_path, "deploy", *words)
    assert done.returncode == ExitCode.UNREACHABLE, done.stderr
    told = events(done.stdout)
    assert ends(told) == {"here": "skipped", "off": "unreachable"}
    assert next(event["reason"] for event in told if event.get("outcome") == "skipped") == "nobody agreed"
    assert (told[-1]["skipped"], told[-1]["unreachable"], told[-1]["hosts"]) == (1, 1, 2)
    assert 'tests="2" failures="0" errors="1"' in junit.read_text()
    assert not (tmp_path / "root").exists()


def test_the_error_of_a_host_out_of_reach_is_told_once(tmp_path: Path, inventory: Inventory) -> None:
    done = fleet(tmp_path, "deploy", "--json", "--inventory", inventory(f"a {OFF}", f"b {OFF}"))
    told = events(done.stdout)
    assert [event["host"] for event in told if event["event"] == "error"] in (["a", "b"], ["b", "a"])
    assert ends(told) == {"a": "unreachable", "b": "unreachable"}


@pytest.mark.parametrize(
    ("batch", "end"),
    [
        ("100%", "failed"),
        # In the survey before the first batch nothing is begun.
        ("1", "skipped"),
    ],
)
def test_the_second_ctrl_c_leaves_no_host_without_an_end(
    tmp_path: Path, inventory: Inventory, silent: str, batch: str, end: str
) -> None:
    junit = tmp_path / "deploy.xml"
    junit.write_text("of yesterday")
    path = inventory(f"off {OFF}", f"mute1 {silent}", f"mute2 {silent}")
    words = ["deploy", "--yes", "--json", "--forks", "2", "--batch", batch]
    words += ["--junit", str(junit), "--inventory", path]
    with subprocess.Popen(
        [sys.executable, str(PROJECT), *words],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # Off ends at once, and its place is taken by the last one.
        seen = [json.loads(process.stdout.readline())]
        while [event.get("host") for event in seen if event["event"] == "host_started"].count("mute2") == 0:
            seen.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        while "press Ctrl-C again" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == ExitCode.INTERRUPTED, err
    told = [*seen, *events(out)]
    assert ends(told) == {"off": "unreachable", "mute1": end, "mute2": end}
    assert told[-1]["event"] == "summary"
    assert (told[-1]["hosts"], told[-1][end], told[-1]["unreachable"]) == (3, 2, 1)
    assert 'tests="3"' in junit.read_text()


def test_a_host_out_of_reach_keeps_no_other_from_its_restart(tmp_path: Path, inventory: Inventory) -> None:
    words = ["--yes", "--json", "--inventory", inventory(f"off {OFF}", "here")]
    told = events(fleet(tmp_path, "service", "restart", *words).stdout)
    assert ends(told).keys() == {"off", "here"}
    assert (ends(told)["off"], told[-1]["hosts"], told[-1]["unreachable"]) == ("unreachable", 2, 1)


@pytest.fixture
def two(tmp_path: Path, inventory: Inventory) -> Run:
    """`poor` and `rich`, which are directories."""
    local = f"ansible_connection=local ollama_service=process ollama_root={tmp_path}"
    return Run(
        report=Report(as_json=True, stdout=io.StringIO(), stderr=io.StringIO()),
        sources=make_sources(inventory(f"poor {local}/poor", f"rich {local}/rich"), None),
        limit=None,
        forks=2,
        stop_requested=threading.Event(),
    )


def test_ctrl_c_at_the_question_leaves_no_host_without_an_end(
    two: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(_report: Report, *, yes: bool) -> bool:
        assert not yes
        raise KeyboardInterrupt

    monkeypatch.setattr(changes, "may_change", press)
    junit = tmp_path / "deploy.xml"
    with pytest.raises(KeyboardInterrupt):
        changes.deploy_asking(two, "deploy", everything, yes=False, verify=False, junit=junit)
    assert ends(told_by(two)) == {"poor": "skipped", "rich": "skipped"}
    assert 'tests="2" failures="0"' in junit.read_text()


def told_by(run: Run) -> list[dict[str, Any]]:
    out = run.report._stdout
    assert isinstance(out, io.StringIO)
    return events(out.getvalue())


TASKS: dict[str, Callable[[Run], object]] = {
    "plan": lambda run: changes.show_plans(run, drift_code=False),
    "deploy": lambda run: changes.deploy_asking(run, "deploy", only_download, yes=True, verify=False),
    "deploy, asking": lambda run: changes.deploy_asking(
        run, "deploy", only_download, yes=False, verify=False
    ),
    "service restart": lambda run: changes.service_asking(run, "restart", yes=True),
    "service stop": lambda run: changes.service_asking(run, "stop", yes=True),
    "remove": lambda run: changes.remove_asking(run, yes=True, models=False),
    "status": lambda run: views.show_status(run, drift_code=False),
    "gpu": show_gpus,
    "health": lambda run: show_health(run, None, quick=True),
    "logs": lambda run: show_logs(run, Wanted(lines=1, since=None, follow=False, journal=False)),
    "page": lambda run: write_page(run, run.sources.inventory.parent / "page.html"),
    "prune": lambda run: prune_asking(run, 2, models=False, yes=True),
    "rollback": lambda run: rollback_asking(run, Asked(release=True, models=False, names=()), yes=True),
    "run": lambda run: run_asking(run, "true", yes=True, timeout_seconds=10),
    "smoke": lambda run: smoke_inventory(run, SmokeTask()),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_host_that_meets_a_mistake_fails_alone(
    two: Run, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def meet(host: str) -> str:
        seen.append(host)
        if host == "poor":
            raise KeyError("a mistake")
        return host

    monkeypatch.setattr(LocalTransport, "__init__", lambda self, host: setattr(self, "_host", meet(host)))
    TASKS[task](two)
    assert {"poor", "rich"} <= set(seen)
    told = told_by(two)
    (error,) = [event for event in told if event["event"] == "error" and event["host"] == "poor"]
    assert (error["kind"], error["sentence"], error["cause"]) == (
        "CommandFailed",
        "`KeyError` was not expected here",
        "'a mistake'",
    )
    assert told[-1]["event"] == "summary"
    assert (told[-1]["hosts"], told[-1]["unreachable"]) == (2, 0)
    assert told[-1]["failed"] >= 1


@pytest.mark.parametrize(
    ("failure", "outcome", "code"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), Outcome.FAILED, ExitCode.FAILED),
        (PermissionError(errno.EACCES, "Permission denied", "/key"), Outcome.FAILED, ExitCode.FAILED),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Outcome.UNREACHABLE, ExitCode.UNREACHABLE),
        (OSError(errno.EHOSTUNREACH, "No route to host"), Outcome.UNREACHABLE, ExitCode.UNREACHABLE),
        (ValueError("a mistake"), Outcome.FAILED, ExitCode.FAILED),
    ],
)
def test_a_plan_tells_a_broken_connection_from_any_other_failure_and_goes_on(
    two: Run,
    failure: Exception,
    outcome: Outcome,
    code: ExitCode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look(desired: Desired, transport: Transport) -> HostFacts:
        if desired.host == "poor":
            raise failure
        return probe_host(desired, transport)

    monkeypatch.setattr("console.changes.probe_host", look)
    poor, rich = changes.make_plans(two, two.hosts())
    assert poor.outcome(Outcome.OK).outcome is outcome
    assert rich.changes
    assert changes.show_plans(two, drift_code=False) is code


def test_a_name_that_can_be_no_name_makes_its_host_unreachable_and_no_other(
    tmp_path: Path, inventory: Inventory
) -> None:
    done = fleet(
        tmp_path, "run", "--yes", "--json", "--inventory", inventory("bad ansible_host=a..b", "here"), "true"
    )
    assert done.returncode == ExitCode.UNREACHABLE, done.stderr
    told = events(done.stdout)
    (error,) = [event for event in told if event["event"] == "error"]
    assert (error["host"], error["kind"]) == ("bad", "HostUnreachable")
    assert "name cannot be resolved" in error["cause"]
    assert [event["host"] for event in told if event["event"] == "command"] == ["here"]


def test_one_host_that_cannot_be_looked_at_takes_no_row_from_the_others(
    two: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptors(desired: Desired, facts: HostFacts, transport: Transport) -> dict[str, Any]:
        if desired.host == "poor":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return look(desired, facts, transport)

    look = views._status_fields
    monkeypatch.setattr(views, "_status_fields", no_descriptors)
    assert views.show_status(two, drift_code=False) is ExitCode.FAILED
    told = told_by(two)
    assert [event["host"] for event in told if event["event"] == "status"] == ["rich"]
    assert (told[-1]["hosts"], told[-1]["failed"]) == (2, 1)
