"""What a hand, a disk or a mistake did to a host, and that one deploy (or two) makes it good again."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from console.changes import deploy_asking, deploy_hosts, remove_hosts
from console.paths import CANARY, PROJECT
from console.run import Run
from deploy import apply, services
from deploy.compose import Sources
from deploy.converge import probe_host
from deploy.desired import Desired
from deploy.errors import ChecksumMismatch, CommandFailed, ExitCode, HostLocked, HostUnreachable, PortTaken
from deploy.facts import HostFacts
from deploy.host_lock import host_lock
from deploy.local import LocalChannel, LocalTransport
from deploy.outcomes import Outcome
from deploy.plan import everything
from deploy.remove import Models
from deploy.report import Report
from deploy.steps import Step
from deploy.transport import Transport
from testbed.demo import free_port
from tests.local.conftest import Site

SIMULATED = PROJECT / "testbed/ollama.py"


def step_names(site: Site) -> list[str]:
    return [type(step).__name__ for step in site.plan().steps]


@pytest.mark.parametrize(
    "damage",
    [
        lambda release: (release / "bin/ollama").unlink(),
        lambda release: (release / "bin/ollama").write_text("exit 1"),
        lambda release: (release / "lib/ollama/README").unlink(),
    ],
)
def test_a_damaged_release_is_unpacked_again_and_the_server_restarted(
    site: Site, damage: Callable[[Path], object]
) -> None:
    site.deploy()
    pids = [process.pid for process in site.processes()]
    damage(site.root / "opt/ollama/releases/0.17.5")
    assert any("damaged" in step.reason for step in site.plan().steps)
    outcome = site.deploy()
    assert outcome.error is None, str(outcome.error)
    assert [process.pid for process in site.processes()] != pids
    assert site.plan().is_empty


def test_a_current_link_that_leads_elsewhere_is_put_right(site: Site) -> None:
    site.deploy()
    current = site.root / "opt/ollama/current"
    current.unlink()
    current.symlink_to("/somewhere/0.17.5")
    assert step_names(site) == ["SwitchRelease"]
    assert site.deploy().error is None
    assert str(current.readlink()) == "releases/0.17.5"


@pytest.mark.parametrize(
    "manifest", ["[]", '{"layers": [1]}', '{"layers": [{"digest": 5}]}', "", "[" * 200_000]
)
def test_a_damaged_manifest_is_a_model_to_make_again(site: Site, manifest: str) -> None:
    site.deploy()
    path = site.root / "var/lib/ollama/models/manifests/registry.ollama.ai/library/myqwen2/latest"
    path.write_text(manifest)
    assert step_names(site)[0] == "CreateModel"
    assert site.deploy().error is None
    assert site.plan().is_empty


def weights_on_host(site: Site) -> tuple[Path, Path]:
    blob = next((site.root / "var/lib/ollama/models/blobs").glob("sha256-971af595*"))
    artefact = next((site.root / "var/lib/ollama-fleet/artefacts").glob("sha256-971af595*/*.gguf"))
    return blob, artefact


def test_weights_cut_short_in_the_cache_are_fetched_again(site: Site) -> None:
    site.deploy()
    blob, artefact = weights_on_host(site)
    artefact.write_bytes(b"GGUF")  # the blob is the same file by hard link
    assert step_names(site)[0] == "FetchWeights"
    assert site.deploy().error is None
    assert blob.read_bytes() == CANARY.read_bytes()


def test_weights_that_rotted_in_the_cache_are_refused_and_then_fetched_again(site: Site) -> None:
    site.deploy()
    blob, artefact = weights_on_host(site)
    blob.unlink()
    artefact.write_bytes(bytes(CANARY.stat().st_size))
    error = site.deploy().error
    assert isinstance(error, ChecksumMismatch)
    assert "was there before" in str(error.unchanged)
    outcome = site.deploy()
    assert outcome.error is None, str(outcome.error)
    assert blob.read_bytes() == CANARY.read_bytes()


def test_two_models_on_one_gguf_are_fetched_once_and_healed_alone(site: Site) -> None:
    site.model = "myqwen2,canary"
    outcome = site.deploy()
    assert outcome.error is None, str(outcome.error)
    assert set(site.served()) == {"myqwen2:latest", "canary:latest"}
    assert [s["step"] for s in site.events("plan")[0]["steps"]].count("FetchWeights") == 1

    # The file in the cache has the other model's file name.
    weights_on_host(site)[0].unlink()
    site.model = "canary"
    outcome = site.deploy()
    assert outcome.error is None, str(outcome.error)


def test_an_error_that_nobody_designed_brings_the_old_state_back_and_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.deploy()
    model = site.served()
    site.settings["ollama_num_parallel"] = "2"

    def fail(_step: Step, _site: apply.Site) -> None:
        raise KeyError("tag")

    monkeypatch.setattr("deploy.apply._verify", fail)
    outcome = site.deploy()
    assert outcome.outcome is Outcome.FAILED
    assert isinstance(outcome.error, CommandFailed)
    assert "KeyError" in outcome.error.sentence
    assert "serves again, as before" in str(outcome.error.unchanged)
    assert "OLLAMA_NUM_PARALLEL" not in site.processes()[0].environ()
    assert site.served() == model


def test_a_directory_that_cannot_be_made_is_a_designed_error(site: Site) -> None:
    site.root.mkdir()
    (site.root / "opt").write_text("a file")
    error = site.deploy().error
    assert isinstance(error, CommandFailed)
    assert str(site.root / "opt") in str(error)


def test_a_lock_that_cannot_be_made_says_why(site: Site) -> None:
    site.root.mkdir()
    (site.root / "var").write_text("a file")
    error = site.deploy().error
    assert isinstance(error, CommandFailed)
    assert "could not be taken" in error.sentence
    assert "var" in str(error.cause)


@pytest.fixture
def beside_a_far_host(site: Site) -> Run:
    """The site, and before it in the inventory a host where nobody listens."""
    site.write()
    site.inventory.write_text(
        site.inventory.read_text().replace(
            "[all]\n", f"[all]\nfar ansible_host=127.0.0.1 ansible_port={free_port()}\n", 1
        )
    )
    return Run(
        report=Report(as_json=True, stdout=site.output, stderr=io.StringIO()),
        sources=Sources(inventory=site.inventory, modelfiles=site.modelfiles, pins=site.pins),
        limit=None,
        forks=2,
        stop_requested=threading.Event(),
        endpoint=site.mirror.url,
    )


@pytest.mark.fault(45)
def test_a_host_that_cannot_be_reached_fails_alone(beside_a_far_host: Run) -> None:
    run = beside_a_far_host
    for outcomes in (deploy_hosts(run, run.hosts(), "deploy"), remove_hosts(run, run.hosts(), Models.REMOVE)):
        far, box = outcomes
        assert isinstance(far.error, HostUnreachable)
        assert far.outcome is Outcome.UNREACHABLE
        assert box.outcome is Outcome.CHANGED, str(box.error)


def test_who_agrees_to_a_plan_gets_it_although_a_host_cannot_be_reached(
    site: Site, beside_a_far_host: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("console.changes.may_change", lambda _report, *, yes: not yes)
    code = deploy_asking(beside_a_far_host, "deploy", everything, yes=False, verify=False)
    assert code is ExitCode.UNREACHABLE
    last = json.loads(site.output.getvalue().splitlines()[-1])
    assert (last["changed"], last["unreachable"], last["failed"]) == (1, 1, 0)


def test_a_host_whose_plan_nobody_saw_is_not_changed_by_who_agreed_to_the_others(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write()
    place = f"ollama_root={site.directory}/later ollama_host=127.0.0.1:{free_port()}"
    later = f"later ansible_connection=local {place}"
    site.inventory.write_text(site.inventory.read_text().replace("[all]\n", f"[all]\n{later}\n", 1))
    run = Run(
        report=Report(as_json=True, stdout=site.output, stderr=io.StringIO()),
        sources=Sources(inventory=site.inventory, modelfiles=site.modelfiles, pins=site.pins),
        limit=None,
        forks=2,
        stop_requested=threading.Event(),
        endpoint=site.mirror.url,
    )

    def look(desired: Desired, transport: Transport) -> HostFacts:
        if desired.host == "later":
            raise HostUnreachable(sentence="no SSH connection to `later`")
        return probe_host(desired, transport)

    # Only while the plans are made: it is back when they are carried out.
    monkeypatch.setattr("console.changes.probe_host", look)
    monkeypatch.setattr("console.changes.may_change", lambda _report, *, yes: not yes)
    code = deploy_asking(run, "deploy", everything, yes=False, verify=False)
    assert code is ExitCode.UNREACHABLE
    assert [(event["host"], event["outcome"]) for event in site.events("host_done")] == [
        ("later", "unreachable"),
        ("box", "changed"),
    ]
    [last] = site.events("summary")
    assert (last["hosts"], last["changed"], last["unreachable"]) == (2, 1, 1)
    assert not (site.directory / "later").exists()


@pytest.fixture
def lose_lock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What the holder does itself after a minute without a word."""
    channels: list[LocalChannel] = []
    open_channel = LocalTransport.open_channel

    def remember(self: LocalTransport, argv: tuple[str, ...]) -> LocalChannel:
        channels.append(open_channel(self, argv))
        return channels[-1]

    def lose() -> None:
        holder = channels[-1]._process
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait(10)
        assert holder.stdin is not None
        # Its reader has the other end of the pipe too. timeout(1), once it runs, makes it a group of its own:
        # then it lives on, and ends with the next line.
        with contextlib.suppress(BrokenPipeError):
            os.write(holder.stdin.fileno(), b"alive\n")
        poller = select.poll()
        poller.register(holder.stdin, 0)
        assert poller.poll(10_000)

    monkeypatch.setattr(LocalTransport, "open_channel", remember)
    return lose


def test_a_lost_lock_stops_the_deploy_before_its_next_step(
    site: Site, monkeypatch: pytest.MonkeyPatch, lose_lock: Callable[[], None]
) -> None:
    monkeypatch.setattr("deploy.apply._unpack", lambda _step, _site: lose_lock())
    error = site.deploy().error
    assert isinstance(error, HostLocked)
    assert "was lost" in error.sentence
    assert error.unchanged == "what serves; what was fetched and unpacked stays for the next run"
    assert site.processes() == []


def test_a_step_that_fails_after_the_lock_was_lost_is_told_as_that_and_nothing_is_taken_back(
    site: Site, monkeypatch: pytest.MonkeyPatch, lose_lock: Callable[[], None]
) -> None:
    def fail(_step: Step, _site: apply.Site) -> None:
        lose_lock()
        raise CommandFailed(sentence="`bin/ollama` was taken away meanwhile")

    monkeypatch.setattr("deploy.apply._unpack", fail)
    went_back: list[str] = []
    monkeypatch.setattr("deploy.converge.go_back", lambda *_, **__: went_back.append("back"))
    error = site.deploy().error
    assert isinstance(error, HostLocked)
    assert "was lost" in error.sentence
    assert error.unchanged == "what serves; what was fetched and unpacked stays for the next run"
    assert went_back == []


def cut(_step: Step, _site: apply.Site) -> None:
    raise HostUnreachable(sentence="the SSH connection to `box` was cut")


@pytest.mark.parametrize("left", ["held by another", "let go by another"])
def test_a_host_that_another_deploy_took_while_the_connection_was_cut_is_not_taken_back(
    site: Site, monkeypatch: pytest.MonkeyPatch, lose_lock: Callable[[], None], left: str
) -> None:
    site.deploy()
    site.add_release("0.17.7")
    site.pins.unlink()
    site.version = "0.17.7"
    served = [process.pid for process in site.processes()]
    lock = PurePosixPath(site.root / "var/lib/ollama-fleet/lock")

    with contextlib.ExitStack() as stack:

        def lose(step: Step, it: apply.Site) -> None:
            lose_lock()
            with contextlib.ExitStack() as other:
                other.enter_context(host_lock(LocalTransport("box"), lock, "another deploy"))
                if left == "held by another":
                    stack.enter_context(other.pop_all())
            cut(step, it)

        monkeypatch.setattr("deploy.apply._load", lose)
        error = site.deploy().error
    assert isinstance(error, HostUnreachable)
    assert error.unchanged is not None
    assert error.unchanged.startswith("nothing was taken back: ")
    assert (site.root / "opt/ollama/current").readlink() == Path("releases/0.17.7")
    assert [process.pid for process in site.processes()] != served


def test_a_host_whose_lock_went_with_the_connection_is_taken_back_under_the_lock(
    site: Site, monkeypatch: pytest.MonkeyPatch, lose_lock: Callable[[], None]
) -> None:
    site.deploy()
    site.add_release("0.17.7")
    site.pins.unlink()
    site.version = "0.17.7"
    lock = site.root / "var/lib/ollama-fleet/lock"
    owners: list[str] = []

    def back(*_: object, **__: object) -> str:
        with pytest.raises(HostLocked), host_lock(LocalTransport("box"), PurePosixPath(lock), "another"):
            pass
        owners.append(lock.read_text())
        return "what served before"

    def lose(step: Step, it: apply.Site) -> None:
        lose_lock()
        cut(step, it)

    monkeypatch.setattr("deploy.apply._load", lose)
    monkeypatch.setattr("deploy.converge.go_back", back)
    assert isinstance(site.deploy().error, HostUnreachable)
    assert [json.loads(text.splitlines()[0])["what"] for text in owners] == ["deploy"]
    assert lock.read_text() == ""


def test_a_connection_that_is_lost_while_the_server_starts_ends_the_wait_and_the_old_one_serves(
    site: Site, monkeypatch: pytest.MonkeyPatch, lose_lock: Callable[[], None], tmp_path: Path
) -> None:
    site.deploy()
    silent = tmp_path / "silent"
    waits = 'if [ "$1" = serve ]; then while :; do sleep 0.1; done; fi\npython=\n'
    silent.write_text(SIMULATED.read_text().replace("python=\n", waits, 1))
    site.add_release("0.17.7", binary=silent)
    site.pins.unlink()
    site.version = "0.17.7"
    start, started = services.start_server, list[float]()

    def start_and_lose(*arguments: Any) -> None:
        start(*arguments)
        started.append(time.monotonic())
        if len(started) == 1:
            lose_lock()

    monkeypatch.setattr("deploy.services.start_server", start_and_lose)
    error = site.deploy().error
    assert isinstance(error, HostUnreachable)
    assert "the lock of `box` was lost while the server started" in error.sentence
    assert "release 0.17.5 serves again" in str(error.unchanged)
    assert site.get("/api/version") == {"version": "0.17.5"}
    # Not after the minute that a server has to become ready.
    assert started[1] - started[0] < services.START_SECONDS / 2


def test_a_user_without_a_name_can_hold_the_lock(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr(getpass, "getuser", nameless)
    lock = site.run.hosts()[0].paths.lock
    with host_lock(LocalTransport("box"), lock, "a test"):
        assert json.loads(Path(lock).read_text().splitlines()[0])["what"] == "a test"


def test_remove_says_that_a_store_elsewhere_is_kept(site: Site, tmp_path: Path) -> None:
    site.settings["ollama_models_dir"] = str(tmp_path / "elsewhere")
    site.deploy()
    run = site.run
    assert remove_hosts(run, run.hosts(), Models.REMOVE)[0].error is None
    assert any("elsewhere" in note["text"] and "kept" in note["text"] for note in site.events("note"))
    assert (tmp_path / "elsewhere/blobs").is_dir()


def test_remove_takes_away_what_a_refused_deploy_made(site: Site) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        site.port = other.getsockname()[1]
        assert isinstance(site.deploy().error, PortTaken)
        run = site.run
        assert remove_hosts(run, run.hosts(), Models.REMOVE)[0].outcome is Outcome.OK
    assert not site.root.exists()
