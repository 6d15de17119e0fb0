"""The task `schedule`: the health agent built where it is not yet, and the hosts that it is given to."""

from __future__ import annotations

from pathlib import Path

from console.agent import PLATFORMS, given_agent, make_agents
from console.changes import deploy_asking
from console.run import Run, transport_for
from deploy.converge import probe_host
from deploy.crontab import why_no_cron
from deploy.desired import Desired, ServiceBackend
from deploy.errors import AgentNotBuilt, ExitCode, FleetError, errors_of
from deploy.fleet import each
from deploy.plan import only_schedule


def schedule_asking(run: Run, agent: Path | None, *, yes: bool) -> ExitCode:
    """Without an agent the hosts are scheduled all the same: a shell checks what it can there."""
    hosts = run.hosts()
    architectures = _architectures(run, hosts)
    if agent is not None:
        given_agent(agent, architectures)
    elif architectures:
        try:
            make_agents(architectures, run.report.say)
        except AgentNotBuilt as error:
            run.report.error(error)
    return deploy_asking(run, "schedule", only_schedule, yes=yes, verify=False)


def _architectures(run: Run, hosts: tuple[Desired, ...]) -> list[str]:
    """Those that a host which checks itself may have: an archive of the server is pinned for each."""
    checked = each(hosts, _checks_itself, run.forks)
    wanted = {
        name
        for desired, is_checked in zip(hosts, checked, strict=True)
        if is_checked
        for name in desired.server.archives
    }
    return sorted(wanted & PLATFORMS.keys())


def _checks_itself(desired: Desired) -> bool:
    """A notebook without cron needs no agent, which takes minutes to build: the host is asked."""
    if desired.health is None or desired.server.backend is ServiceBackend.SYSTEMD:
        return desired.health is not None
    try:
        with errors_of(desired.host):
            facts = probe_host(desired, transport_for(desired))
    except FleetError:
        # It is told when the host has its turn.
        return False
    return why_no_cron(desired, facts) is None
