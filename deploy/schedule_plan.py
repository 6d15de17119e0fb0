"""The steps that have a host check itself by timer: files, agent, timer; or that end it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from deploy.desired import AgentFile, Desired, HostFile, ServiceBackend
from deploy.facts import HostFacts, SystemdFacts
from deploy.health_config import metrics_file, render_health_config
from deploy.server_plan import ARCHITECTURES, Release
from deploy.steps import InstallAgent, OverwriteFile, Phase, StartTimer, Step, StopSchedule, WriteFile
from deploy.systemd_plan import is_enabled, line_differences, write_steps
from deploy.units import HEALTH_TIMER, HEALTH_UNIT, health_files


def schedule_steps(desired: Desired, facts: HostFacts, release: Release) -> Iterator[Step]:
    """None on a host that checks itself as desired; on one that only goes back, what the checks must know.

    The `process` backend has no timer: its hosts are checked by `./fleet health`.
    """
    found = facts.systemd
    if desired.server.backend is not ServiceBackend.SYSTEMD or found is None:
        return
    if desired.server.release is not None:
        if str(_config_path(desired)) in found.files:
            yield from _write_config(desired, facts, release, found)
        return
    if desired.health is None:
        yield from _stop(desired, facts, found)
        return
    agent = wanted_agent(desired, facts)
    if agent is not None and facts.agents != {agent.name: agent.size_bytes}:
        there = ", ".join(sorted(facts.agents)) or "absent"
        yield InstallAgent(reason=f"it is {there}", agent=agent)
    files = health_files(desired, desired.health.every_minutes)
    written = [_scheduled(step) for step in write_steps(desired, found, files)]
    yield from written
    yield from _write_addresses(desired, found)
    yield from _write_config(desired, facts, release, found)
    timer = found.units.get(HEALTH_TIMER)
    if any(step.file.path.name == HEALTH_TIMER for step in written):
        yield StartTimer(reason=f"every {files[-1].path.name}", name=HEALTH_TIMER)
    elif timer is None or timer.active_state != "active" or not is_enabled(found, HEALTH_TIMER):
        yield StartTimer(reason="not active", name=HEALTH_TIMER)


def schedule_notes(desired: Desired, facts: HostFacts) -> tuple[str, ...]:
    """What checks the host less well than it could be, or not at all."""
    if desired.health is None or desired.server.backend is not ServiceBackend.SYSTEMD:
        return ()
    if "python3" not in facts.tools:
        told = ", and nobody is notified" if desired.health.addresses else ""
        return (f"health: no python3 on this host, so a shell checks what it can{told}",)
    if wanted_agent(desired, facts) is None and not facts.agents:
        return ("health: a shell checks what it can until ./fleet schedule has built the agent",)
    return ()


def wanted_agent(desired: Desired, facts: HostFacts) -> AgentFile | None:
    """The agent that this machine has for the host; None where nothing on the host could run it."""
    if desired.health is None or "python3" not in facts.tools:
        return None
    return desired.health.agents.get(ARCHITECTURES.get(facts.architecture, facts.architecture))


def _config_path(desired: Desired) -> PurePosixPath:
    return desired.paths.health / "config.json"


def _write_config(
    desired: Desired, facts: HostFacts, release: Release, found: SystemdFacts
) -> Iterator[WriteFile]:
    """It is state, and nobody's to edit: what is there is replaced."""
    text = render_health_config(desired, facts, release)
    file = HostFile(path=_config_path(desired), text=text, mode="600")
    fact = found.files.get(str(file.path))
    if fact is None:
        yield WriteFile(reason="absent", file=file, phase=Phase.SCHEDULE)
    elif fact.text != file.text:
        differences = line_differences(fact.text, file.text)
        yield WriteFile(reason="another state", differences=differences, file=file, phase=Phase.SCHEDULE)
    elif fact.mode != file.mode:
        yield WriteFile(reason=f"mode is {fact.mode}", file=file, phase=Phase.SCHEDULE)


def _write_addresses(desired: Desired, found: SystemdFacts) -> Iterator[WriteFile]:
    """They are compared by sha256 and never shown: that they differ is all that is told."""
    text = desired.health.addresses if desired.health is not None else None
    if text is None:
        return
    file, fact = HostFile(path=desired.paths.addresses, text=text, mode="600"), found.addresses
    if fact is None:
        if text:
            yield WriteFile(reason="absent", file=file, phase=Phase.SCHEDULE)
    elif fact.sha256 != hashlib.sha256(text.encode()).hexdigest():
        yield WriteFile(reason="other addresses", file=file, phase=Phase.SCHEDULE)
    elif (fact.mode, fact.owner) != (file.mode, "root"):
        reason = f"mode is {fact.mode}, owner is {fact.owner}"
        yield WriteFile(reason=reason, file=file, phase=Phase.SCHEDULE)


def _scheduled(step: WriteFile | OverwriteFile) -> WriteFile | OverwriteFile:
    return replace(step, phase=Phase.SCHEDULE)


def _stop(desired: Desired, facts: HostFacts, found: SystemdFacts) -> Iterator[StopSchedule]:
    """The metrics go too: what nobody writes any more would be scraped for ever. So do the addresses."""
    paths = desired.paths
    ours = (paths.health_program, *(paths.units / name for name in (HEALTH_TIMER, HEALTH_UNIT)))
    there = tuple(path for path in ours if str(path) in found.files)
    if there:
        secrets = (paths.addresses,) if found.addresses is not None else ()
        gone = (*there, paths.agents, metrics_file(desired, facts), *secrets)
        yield StopSchedule(reason="ollama_health_every=off", paths=gone)
