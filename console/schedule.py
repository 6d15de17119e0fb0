"""The task `schedule`: the health agent built where it is not yet, and the hosts that it is given to."""

from __future__ import annotations

from pathlib import Path

from console.agent import PLATFORMS, given_agent, make_agents
from console.changes import deploy_asking
from console.run import Run
from deploy.desired import Desired, ServiceBackend
from deploy.errors import AgentNotBuilt, ExitCode
from deploy.plan import only_schedule


def schedule_asking(run: Run, agent: Path | None, *, yes: bool) -> ExitCode:
    """Without an agent the hosts are scheduled all the same: a shell checks what it can there."""
    hosts = run.hosts()
    for desired in hosts:
        if desired.server.backend is not ServiceBackend.SYSTEMD:
            text = "no timer with ollama_service=process: ./fleet health --every 5m checks it from here"
            run.report("note", desired.host, text=text)
    architectures = _architectures(hosts)
    if agent is not None:
        given_agent(agent, architectures)
    elif architectures:
        try:
            make_agents(architectures, run.report.say)
        except AgentNotBuilt as error:
            run.report.error(error)
    return deploy_asking(run, "schedule", only_schedule, yes=yes, verify=False)


def _architectures(hosts: tuple[Desired, ...]) -> list[str]:
    """Those that a host which checks itself may have: an archive of the server is pinned for each."""
    wanted = {
        name
        for desired in hosts
        if desired.health is not None and desired.server.backend is ServiceBackend.SYSTEMD
        for name in desired.server.archives
    }
    return sorted(wanted & PLATFORMS.keys())
