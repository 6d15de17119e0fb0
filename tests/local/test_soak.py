"""The soak window: a new server that dies soon after it was verified is not confirmed."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from console.changes import deploy_hosts
from deploy import apply, soak
from deploy.errors import HostLocked, Interrupted, ServiceError
from deploy.outcomes import HostOutcome
from tests.local.conftest import SIMULATED, Site


@pytest.fixture(autouse=True)
def of_few_cases(site: Site) -> None:
    site.model = "canary"


def offer_upgrade(site: Site, binary: Path = SIMULATED) -> None:
    """0.17.5 serves, and 0.17.6 is wanted."""
    assert site.deploy().error is None
    site.add_release("0.17.6", binary=binary)
    site.pins.unlink()
    site.version = "0.17.6"


def when_watched(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], None]) -> None:
    """It happens as soon as the window begins."""
    emit = apply.Site.emit

    def emit_and_happen(self: apply.Site, event: str, **fields: object) -> None:
        emit(self, event, **fields)
        if event == "soak":
            happen()

    monkeypatch.setattr(apply.Site, "emit", emit_and_happen)


def deploy(site: Site, soak_seconds: float, stop_requested: threading.Event | None = None) -> HostOutcome:
    run = replace(site.run, soak_seconds=soak_seconds, stop_requested=stop_requested or threading.Event())
    return deploy_hosts(run, run.hosts(), "deploy")[0]


def mortal(directory: Path, how: str) -> Path:
    """The simulated Ollama, whose server does this in the background when it is started."""
    path = directory / "mortal-ollama"
    text = SIMULATED.read_text()
    # Without our environment: it must not be taken for a server of ours.
    line = f'if [ "$1" = serve ]; then env -i PATH="$PATH" sh -c \'{how}\' "$$" & fi'
    path.write_text(text.replace("python=\n", f"{line}\npython=\n", 1))
    return path


# Until the deploy looks: the suite has had all the time that it wanted. It ends with the server.
WHEN_WATCHED = 'until [ -e {flag} ]; do kill -0 "$0" || exit; sleep 0.05; done; {then}'


@pytest.fixture
def upgrade(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The new server is killed while it is watched."""
    flag = tmp_path / "watched"
    how = WHEN_WATCHED.format(flag=flag, then='kill -9 "$0"')
    offer_upgrade(site, mortal(tmp_path, how))
    monkeypatch.setattr(soak, "POLL_SECONDS", 0.1)
    when_watched(monkeypatch, flag.touch)
    return site


@pytest.mark.fault(23)
def test_a_server_that_dies_in_the_window_is_taken_back_with_its_age_and_its_log(upgrade: Site) -> None:
    model = upgrade.served()
    outcome = deploy(upgrade, 30.0)
    assert isinstance(outcome.error, ServiceError)
    assert "the server of release `0.17.6` ended " in outcome.error.sentence
    assert " s after its start" in outcome.error.sentence
    assert "it is watched for 30 s; the end of its log:\n" in str(outcome.error.cause)
    assert "/v1/chat/completions" in str(outcome.error.cause)
    assert "release 0.17.5 serves again, as before" in str(outcome.error.unchanged)
    assert upgrade.get("/api/version") == {"version": "0.17.5"}
    assert upgrade.served() == model
    assert len(upgrade.events("soak")) == 1


def test_without_a_window_nobody_waits_for_the_death(upgrade: Site) -> None:
    outcome = deploy(upgrade, 0.0)
    assert outcome.error is None
    assert upgrade.events("soak") == []


def test_a_first_deploy_promotes_nothing_on_a_server_that_dies(upgrade: Site, tmp_path: Path) -> None:
    for process in upgrade.processes():
        process.kill()
        process.wait(10)
    shutil.rmtree(upgrade.root)
    outcome = deploy(upgrade, 30.0)
    assert isinstance(outcome.error, ServiceError)
    assert upgrade.events("step_done")[-1]["step"] == "VerifyModel"
    assert upgrade.processes() == []


def test_ctrl_c_ends_the_window_and_the_old_release_serves(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_upgrade(site)
    stop_requested = threading.Event()
    when_watched(monkeypatch, stop_requested.set)
    outcome = deploy(site, 600.0, stop_requested)
    assert isinstance(outcome.error, Interrupted)
    assert site.get("/api/version") == {"version": "0.17.5"}


def test_a_lock_that_is_lost_in_the_window_is_told_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "POLL_SECONDS", 0.1)
    lock = site.root / "var/lib/ollama-fleet/lock"
    when_watched(monkeypatch, lambda: os.killpg(int(lock.read_text().splitlines()[1]), signal.SIGKILL))
    outcome = deploy(site, 25.0)
    assert isinstance(outcome.error, HostLocked)
    assert outcome.seconds < 25


def test_what_the_verification_took_counts_and_a_host_without_changes_waits_for_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "POLL_SECONDS", 0.1)
    first = deploy(site, 1.0)
    assert first.error is None
    (told,) = site.events("soak")
    assert told["left_seconds"] < told["seconds"] == 1.0
    assert deploy(site, 600.0).seconds < 60
    assert len(site.events("soak")) == 1


def test_a_server_that_is_silent_in_the_window_is_taken_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_upgrade(site)
    monkeypatch.setattr(soak, "ANSWER_SECONDS", 0.5)

    def freeze() -> None:
        for process in site.processes():
            os.kill(process.pid, signal.SIGSTOP)

    when_watched(monkeypatch, freeze)
    outcome = deploy(site, 30.0)
    assert isinstance(outcome.error, ServiceError)
    assert "does not answer any more" in outcome.error.sentence
    assert site.get("/api/version") == {"version": "0.17.5"}
