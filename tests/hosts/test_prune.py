"""A host that systemd runs is pruned while it serves, and never of what it may need again."""

from __future__ import annotations

import pytest

from console.prune import prune_asking
from console.rollback import rollback_asking
from deploy.errors import ExitCode
from deploy.rollback import Asked
from testbed.hosts_kinds import Kind
from tests.hosts.site import HostSite, until
from tests.hosts.test_rollback import ask, temperature, told

DROP_IN = "/etc/systemd/system/ollama.service.d/50-fleet.conf"
LEASE = "/usr/local/lib/ollama-fleet/lease"


def releases(site: HostSite) -> list[str]:
    return site.sh("ls -A /opt/ollama/releases").split()


def prune(site: HostSite, keep: int = 2, *, models: bool = False) -> ExitCode:
    return prune_asking(site.run, keep, models=models, yes=True)


@pytest.mark.parametrize("host", [Kind.RICH, Kind.POOR], indirect=True)
def test_a_host_is_pruned_to_what_it_serves_and_can_go_back_to(site: HostSite) -> None:
    assert site.deploy().error is None
    for version, temperature_now in (("0.17.6", "0.6"), ("0.17.7", "0.5"), ("0.17.8", "0.4")):
        site.add_release(version)
        site.version = version
        site.edit_model(f"temperature {temperature(site)}", f"temperature {temperature_now}")
        assert site.deploy().error is None
    pid = site.sh("systemctl show -p MainPID ollama")

    # While a switch is not confirmed, the host may go back to any of them.
    site.sh(f"{LEASE} take {DROP_IN}")
    assert prune(site, keep=0) is ExitCode.DONE
    assert releases(site) == ["0.17.5", "0.17.6", "0.17.7", "0.17.8"]
    site.sh(f"{LEASE} end")

    # What a cut run and a hand have left: the first goes, the second is not ours.
    ask(site, "/api/copy", {"source": "myqwen2", "destination": "myqwen2:candidate"})
    site.sh("mkdir /opt/ollama/releases/.unpack-0.17.4-1 /opt/ollama/releases/mine")
    occupied = int(site.sh("du -sk /opt/ollama/releases/0.17.5 | cut -f 1")) * 1024
    assert prune(site) is ExitCode.DONE, site.output.getvalue()[-2000:]
    assert releases(site) == ["0.17.7", "0.17.8", "mine"]
    removed = [event for event in told(site, "step_done") if event["step"] == "RemoveRelease"]
    assert [event["subject"] for event in removed] == ["release 0.17.5", "release 0.17.6"]
    assert 0.8 * occupied < int(removed[0]["freed_bytes"]) <= occupied
    assert "myqwen2:candidate" not in site.facts().models
    assert site.sh("systemctl show -p MainPID ollama") == pid
    assert site.loaded()
    assert site.plan().is_empty
    assert prune(site, keep=0) is ExitCode.DONE
    assert releases(site) == ["0.17.7", "0.17.8", "mine"]

    # There is a way back, and it is taken without a byte from the mirror.
    asked_mirror = len(site.mirror.requests)
    assert rollback_asking(site.run, Asked(), yes=True) is ExitCode.DONE, site.output.getvalue()[-2000:]
    assert (site.current(), site.running(), temperature(site)) == ("0.17.7", "0.17.7", "0.5")
    assert len(site.mirror.requests) == asked_mirror
    until("the model is loaded", site.loaded)

    assert prune(site, keep=0, models=True) is ExitCode.DONE
    assert releases(site) == ["0.17.7", "0.17.8", "mine"]
    assert set(site.facts().models) == {"myqwen2:latest"}
    assert temperature(site) == "0.5"
    assert site.loaded()
