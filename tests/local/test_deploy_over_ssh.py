"""The whole job on a host behind a real SSH server: nothing of ours may take it for this machine."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from console.changes import deploy_hosts, exit_code, remove_hosts
from console.paths import CANARY
from console.run import _TRANSPORTS, transport_for
from console.smoke import SmokeTask, smoke_hosts
from console.trust import trust_asking
from console.views import show_status
from deploy.errors import ExitCode, HostUnreachable
from deploy.outcomes import Outcome
from deploy.remove import Models
from deploy.report import Report
from testbed.demo import WEIGHTS_FILE, WEIGHTS_REPO
from testbed.mirror import MirrorRepo, start_mirror
from tests.contract.sshd import Sshd, running_sshd
from tests.local.conftest import SIMULATED, Site
from tests.own_modelfiles import all_cases


class RemoteSite(Site):
    """The same site, its host reached by an address and a port."""

    server: Sshd

    def write(self) -> None:
        super().write()
        here = "box ansible_connection=local"
        there = f"box ansible_host=127.0.0.1 ansible_port={self.server.port}"
        self.inventory.write_text(self.inventory.read_text().replace(here, there))


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[RemoteSite]:
    weights = MirrorRepo(repo=WEIGHTS_REPO, revisions={"master": {WEIGHTS_FILE: CANARY}})
    with running_sshd(tmp_path / "sshd") as server, start_mirror([weights]) as mirror:
        made = RemoteSite(directory=tmp_path, mirror=mirror, modelfiles=all_cases(tmp_path))
        made.server = server
        made.add_release("0.17.5")
        yield made
        for process in made.processes():
            process.kill()
        for transport in _TRANSPORTS.values():
            transport.close()
        _TRANSPORTS.clear()


def test_the_whole_job_runs_over_ssh(remote: RemoteSite) -> None:
    first = remote.deploy()
    assert first.error is None
    assert first.outcome is Outcome.CHANGED
    assert remote.served().keys() == {"myqwen2:latest"}
    # The host got the weights by hard link from one file, and no archive at all.
    assert [path.name for path in (remote.root / "opt/ollama/releases").iterdir()] == ["0.17.5"]
    assert not list(remote.root.rglob("*.tar.zst"))

    second = remote.deploy()
    assert (second.outcome, second.steps_done) == (Outcome.OK, 0)
    assert remote.plan().is_empty

    run = remote.run
    assert show_status(run, drift_code=True) is ExitCode.DONE
    smoked = [one.outcome for one in smoke_hosts(run, run.hosts(), SmokeTask())]
    assert exit_code(smoked) is ExitCode.DONE
    assert all(case["passed"] for case in smoked[0].verdicts["myqwen2"].cases)

    removed = remove_hosts(run, run.hosts(), Models.REMOVE)
    assert removed[0].error is None
    assert not remote.root.exists()
    assert remote.processes() == []


def test_an_upgrade_that_does_not_verify_leaves_the_old_release_serving_there_too(remote: RemoteSite) -> None:
    assert remote.deploy().error is None
    before = remote.served()
    broken = remote.directory / "broken"
    broken.write_text(
        SIMULATED.read_text().replace("python=\n", "echo 'panic: broken'; exit 2\npython=\n", 1)
    )
    remote.add_release("0.17.6", binary=broken)
    remote.pins.unlink()
    remote.version = "0.17.6"
    failed = remote.deploy()
    assert failed.outcome is Outcome.FAILED
    assert failed.error is not None
    assert "panic: broken" in str(failed.error.cause)
    assert "release 0.17.5 serves again" in str(failed.error.unchanged)
    assert remote.served() == before


def test_a_host_with_an_unknown_key_is_unreachable_until_it_is_trusted(remote: RemoteSite) -> None:
    remote.server.known_hosts.unlink()
    run = remote.run
    outcome = deploy_hosts(run, run.hosts(), "deploy")[0]
    assert outcome.outcome is Outcome.UNREACHABLE
    assert isinstance(outcome.error, HostUnreachable)
    assert outcome.error.hint == "./fleet trust box"

    def trust(*, yes: bool) -> tuple[ExitCode, list[dict[str, object]]]:
        output = io.StringIO()
        report = Report(as_json=True, stdout=output, stderr=io.StringIO())
        code = trust_asking(report, str(remote.inventory), "box", yes=yes)
        return code, [json.loads(line) for line in output.getvalue().splitlines()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "isatty", lambda _: False)
        code, events = trust(yes=False)
    assert code is ExitCode.USAGE
    assert events[0]["event"] == "host_keys"
    code, events = trust(yes=True)
    assert code is ExitCode.DONE
    code, events = trust(yes=False)
    assert (code, events[-1]["changed"]) == (ExitCode.DONE, 0)
    assert transport_for(run.hosts()[0]).run(["true"]).exit_code == 0
