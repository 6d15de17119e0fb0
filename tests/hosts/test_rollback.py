"""Back to what served before on a host that systemd runs: release and model together, or neither."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from console.paths import PROJECT
from console.rollback import rollback_asking
from deploy.errors import ExitCode
from deploy.rollback import Asked
from testbed.hosts_tree import PYTHON
from tests.hosts.site import HostSite, broken, forget_connections, until

STATE = "/var/lib/ollama-fleet"
# What a lease lasts in these tests, so that nobody waits for three minutes.
SHORT_LEASE = "[Timer]\nOnActiveSec=\nOnActiveSec=4s\n"
WHEN_SERVING = 'python=\nif [ "$1" = serve ]; then {}; fi\n'


def ask(site: HostSite, path: str, body: object) -> str:
    """A request from the host itself, to the server that its clients ask."""
    script = (
        "import sys, urllib.request as u; "
        "r = u.Request('http://127.0.0.1:11434' + sys.argv[1], sys.argv[2].encode()); "
        "print(u.urlopen(r, timeout=20).read().decode())"
    )
    return site.sh(shlex.join([PYTHON, "-c", script, path, json.dumps(body)]))


def temperature(site: HostSite, tag: str = "latest") -> str:
    shown = json.loads(ask(site, "/api/show", {"model": f"myqwen2:{tag}"}))["parameters"]
    return next(str(line.split()[1]) for line in shown.splitlines() if line.startswith("temperature"))


def state(site: HostSite) -> tuple[str, str, str]:
    """The current release, the one that runs, and the temperature of what is served as `latest`."""
    return site.current(), site.running(), temperature(site)


OLD, NEW = ("0.17.5", "0.17.5", "0.7"), ("0.17.7", "0.17.7", "0.5")


def change_both(site: HostSite) -> None:
    """One deploy that switches the release and replaces the model."""
    site.add_release("0.17.7")
    site.version = "0.17.7"
    site.edit_model("PARAMETER temperature 0.7", "PARAMETER temperature 0.5")
    outcome = site.deploy()
    assert outcome.error is None, str(outcome.error)
    assert state(site) == NEW


def told(site: HostSite, event: str) -> Sequence[dict[str, str]]:
    lines = [json.loads(line) for line in site.output.getvalue().splitlines()]
    return [line for line in lines if line["event"] == event]


def shorten_lease(site: HostSite) -> None:
    """A drop-in of the operator's own is no drift of ours."""
    timer = "/etc/systemd/system/ollama-fleet-lease.timer.d"
    site.sh(f"mkdir -p {timer}; printf '{SHORT_LEASE}' >{timer}/short.conf; systemctl daemon-reload")


def leases(site: HostSite) -> str:
    return site.sh(f"ls {STATE} | grep -c lease || true")


def test_release_and_model_are_back_in_seconds_without_a_byte_and_forward_again(site: HostSite) -> None:
    assert site.deploy().error is None
    assert state(site) == OLD
    change_both(site)
    asked_mirror = len(site.mirror.requests)
    for expected in (OLD, NEW):
        began = time.monotonic()
        assert rollback_asking(site.run, Asked(), yes=True) is ExitCode.DONE, site.output.getvalue()[-2000:]
        seconds = time.monotonic() - began
        print(f"rolled back to {expected} in {seconds:.1f} s")
        assert seconds < 60
        assert state(site) == expected
        assert site.loaded()
        assert leases(site) == "0"
    assert len(site.mirror.requests) == asked_mirror
    assert site.plan().is_empty

    # A reboot does not change what was decided.
    assert rollback_asking(site.run, Asked(), yes=True) is ExitCode.DONE
    forget_connections()
    site.host.kill9()
    site.host.start()
    site.host.wait_for_ssh()
    until("serves after the boot with the model loaded", site.loaded)
    assert state(site) == OLD
    assert {"SwitchRelease", "CreateModel"} <= set(site.kinds())


def test_only_the_model_goes_back_where_the_last_deploy_changed_only_it(site: HostSite) -> None:
    assert site.deploy().error is None
    change_both(site)
    site.edit_model("PARAMETER temperature 0.5", "PARAMETER temperature 0.6")
    assert site.deploy().error is None
    pid = site.sh("systemctl show -p MainPID ollama")
    assert rollback_asking(site.run, Asked(), yes=True) is ExitCode.DONE
    assert state(site) == NEW
    assert site.sh("systemctl show -p MainPID ollama") == pid
    assert site.loaded()


def test_a_rollback_whose_proof_fails_leaves_what_served(site: HostSite) -> None:
    fault = "[ ! -e /run/wrong ] || export OLLAMA_SIMULATED_FAULT=missing-argument"
    site.add_release("0.17.5", broken(site, "python=\n", WHEN_SERVING.format(fault)))
    assert site.deploy().error is None
    change_both(site)
    site.sh("touch /run/wrong")
    assert rollback_asking(site.run, Asked(), yes=True) is ExitCode.FAILED
    error = told(site, "error")[-1]
    assert "`myqwen2:previous` did not pass verification" in error["sentence"]
    assert "release 0.17.7 serves again" in error["unchanged"]
    until("the model is loaded", site.loaded)
    assert (state(site), temperature(site, "previous"), leases(site)) == (NEW, "0.7", "0")
    assert site.plan().is_empty

    site.sh("rm /run/wrong")
    assert rollback_asking(site.run, Asked(), yes=True) is ExitCode.DONE
    assert state(site) == OLD


class Killed(BaseException):
    """The controller ends here; nothing of ours runs any more."""


def test_a_rollback_cut_before_it_is_confirmed_goes_back_with_its_models(
    site: HostSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.deploy().error is None
    change_both(site)
    shorten_lease(site)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("deploy.systemd.end_lease", die)
        with pytest.raises(Killed):
            rollback_asking(site.run, Asked(), yes=True)
    # All of it is made; nobody has said that it may stay.
    assert state(site) == OLD
    forget_connections()
    until("what served is back", lambda: site.running() == "0.17.7")
    until("the lease is over", lambda: leases(site) == "0")
    until("the model is loaded", site.loaded)
    assert (state(site), temperature(site, "previous")) == (NEW, "0.7")
    assert rollback_asking(site.run, Asked(), yes=True) is ExitCode.DONE, site.output.getvalue()[-2000:]
    assert state(site) == OLD


def test_what_is_confirmed_stays_as_a_whole_whatever_fails_after_it(
    site: HostSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.deploy().error is None
    change_both(site)

    def fail(*_: object) -> None:
        raise ConnectionResetError("cut")

    with monkeypatch.context() as patch:
        patch.setattr("deploy.ollama_api.OllamaApi.load", fail)
        assert rollback_asking(site.run, Asked(), yes=True) is ExitCode.FAILED
    assert told(site, "error")[-1]["unchanged"] == "what was verified and confirmed serves on"
    assert (state(site), temperature(site, "previous"), leases(site)) == (OLD, "0.5", "0")


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("controller", marks=pytest.mark.fault(8)),
        pytest.param("reboot", marks=pytest.mark.fault(7)),
    ],
)
def test_a_rollback_cut_between_switch_and_proof_ends_on_what_served(site: HostSite, end: str) -> None:
    # It takes its time to start, so that the rollback is certainly cut before anything is proven.
    site.add_release("0.17.5", broken(site, "python=\n", WHEN_SERVING.format("sleep 3")))
    assert site.deploy().error is None
    change_both(site)
    shorten_lease(site)
    limits = ["--limit=box", "--inventory", str(site.write())]
    command = [sys.executable, str(PROJECT), "rollback", "--yes", "--json", *limits]
    with (
        (site.directory / "rollback.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ)) as rollback,
    ):
        try:
            until("the switch is made", lambda: site.current() == "0.17.5" or rollback.poll() is not None)
            assert rollback.poll() is None, (site.directory / "rollback.log").read_text()[-2000:]
            forget_connections()
            rollback.kill()
            rollback.wait(10)
            if end == "reboot":
                site.host.kill9()
                site.host.start()
        finally:
            rollback.kill()
    site.host.wait_for_ssh()
    until("what served is back", lambda: site.current() == "0.17.7")
    until("it serves", lambda: site.running() == "0.17.7")
    until("with its model", site.loaded)
    assert (state(site), temperature(site, "previous")) == (NEW, "0.7")
    assert rollback_asking(site.run, Asked(), yes=True) is ExitCode.DONE, site.output.getvalue()[-2000:]
    assert state(site) == OLD
