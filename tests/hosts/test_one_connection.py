"""What a converge that changes nothing costs a host: one login, one probe."""

from __future__ import annotations

import pytest

import deploy.converge
from deploy.desired import Desired
from deploy.facts import HostFacts
from deploy.outcomes import Outcome
from deploy.transport import Transport
from tests.hosts.site import HostSite, forget_connections, until


def logins(site: HostSite) -> int:
    """As its sshd has told them, asked past SSH."""
    journal = site.host.shell("journalctl -u ssh -q --no-pager -o cat").stdout
    return sum(1 for line in journal.splitlines() if line.startswith("Accepted publickey"))


def test_a_converge_that_changes_nothing_logs_in_once_and_probes_once(
    site: HostSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.deploy().error is None
    forget_connections()
    probes = []
    probe = deploy.converge.probe_host

    def counted(desired: Desired, transport: Transport) -> HostFacts:
        probes.append(desired.host)
        return probe(desired, transport)

    monkeypatch.setattr("deploy.converge.probe_host", counted)
    before = logins(site)
    again = site.deploy()
    assert (again.error, again.outcome) == (None, Outcome.OK)
    assert probes == ["box"]
    # journald writes what sshd has told it a little later.
    until("the login is in the journal", lambda: logins(site) > before)
    assert logins(site) == before + 1
