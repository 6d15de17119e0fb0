"""The steps that have a host check itself, by timer or by cron: files, agent, what starts it; or end it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from deploy.crontab import cron_files, cron_line, line_mark, line_written_by, why_no_cron
from deploy.desired import AgentFile, Desired, Health, HostFile, ServiceBackend
from deploy.facts import CronFacts, FileFact, HostFacts, SecretFact, SystemdFacts
from deploy.health_config import metrics_file, render_health_config
from deploy.server_plan import ARCHITECTURES, Release
from deploy.steps import (
    Difference,
    InstallAgent,
    OverwriteFile,
    Phase,
    StartTimer,
    Step,
    StopSchedule,
    WriteCrontab,
    WriteFile,
)
from deploy.systemd_plan import is_enabled, line_differences, write_steps
from deploy.units import HEALTH_TIMER, HEALTH_UNIT, Hand, health_files, period_text


def schedule_steps(desired: Desired, facts: HostFacts, release: Release) -> Iterator[Step]:
    """None on a host that checks itself as desired; on one that only goes back, what the checks must know.

    Nor on one that has nothing to start them: `schedule_notes` tells what does it from here.
    """
    found = _found(desired, facts)
    if found is None:
        return
    if desired.server.release is not None:
        if str(_config_path(desired)) in found.files:
            yield from _write_config(desired, facts, release, found.files)
        return
    if desired.health is None:
        yield from _stop(desired, facts, found)
        return
    if isinstance(found, CronFacts) and why_no_cron(desired, facts) is not None:
        return
    agent = wanted_agent(desired, facts)
    if agent is not None and facts.agents != {agent.name: agent.size_bytes}:
        there = ", ".join(sorted(facts.agents)) or "absent"
        yield InstallAgent(reason=f"it is {there}", agent=agent)
    if isinstance(found, SystemdFacts):
        files, owner = health_files(desired, desired.health.every_minutes), "root"
    else:
        files, owner = cron_files(desired, desired.health.every_minutes), found.user
    written = [_scheduled(step) for step in write_steps(desired, found.files, files, owner)]
    yield from written
    yield from _write_addresses(desired, found.addresses, owner)
    yield from _write_config(desired, facts, release, found.files)
    if isinstance(found, SystemdFacts):
        yield from _start_timer(desired.health, found, written)
    else:
        yield from _write_line(desired, desired.health, found)


def schedule_notes(desired: Desired, facts: HostFacts) -> tuple[str, ...]:
    """What checks the host less well than it could be."""
    if desired.health is None or _found(desired, facts) is None or without_schedule(desired, facts):
        return ()
    if "python3" not in facts.tools:
        told = ", and nobody is notified" if desired.health.addresses else ""
        return (f"health: no python3 on this host, so a shell checks what it can{told}",)
    if wanted_agent(desired, facts) is None and not facts.agents:
        return ("health: a shell checks what it can until ./fleet schedule has built the agent",)
    return ()


def without_schedule(desired: Desired, facts: HostFacts) -> tuple[str, ...]:
    """That a host has nothing which starts its checks, and the command that does it from here."""
    health = desired.health
    if health is None or desired.server.backend is not ServiceBackend.PROCESS:
        return ()
    why = why_no_cron(desired, facts)
    if why is None:
        return ()
    command = f"./fleet health --every {period_text(health.every_minutes)} --limit {desired.host}"
    return (f"health: nothing on this host starts the checks, {why}; from here: {command}",)


def wanted_agent(desired: Desired, facts: HostFacts) -> AgentFile | None:
    """The agent that this machine has for the host; None where nothing on the host could run it."""
    if desired.health is None or "python3" not in facts.tools:
        return None
    return desired.health.agents.get(ARCHITECTURES.get(facts.architecture, facts.architecture))


def _found(desired: Desired, facts: HostFacts) -> SystemdFacts | CronFacts | None:
    """What of the host could start the checks; None where nothing could."""
    return facts.systemd if desired.server.backend is ServiceBackend.SYSTEMD else facts.cron


def _config_path(desired: Desired) -> PurePosixPath:
    return desired.paths.health / "config.json"


def _write_config(
    desired: Desired, facts: HostFacts, release: Release, found: Mapping[str, FileFact]
) -> Iterator[WriteFile]:
    """It is state, and nobody's to edit: what is there is replaced."""
    text = render_health_config(desired, facts, release)
    file = HostFile(path=_config_path(desired), text=text, mode="600")
    fact = found.get(str(file.path))
    if fact is None:
        yield WriteFile(reason="absent", file=file, phase=Phase.SCHEDULE)
    elif fact.text != file.text:
        differences = line_differences(fact.text, file.text)
        yield WriteFile(reason="another state", differences=differences, file=file, phase=Phase.SCHEDULE)
    elif fact.mode != file.mode:
        yield WriteFile(reason=f"mode is {fact.mode}", file=file, phase=Phase.SCHEDULE)


def _write_addresses(desired: Desired, fact: SecretFact | None, owner: str) -> Iterator[WriteFile]:
    """They are compared by sha256 and never shown: that they differ is all that is told."""
    text = desired.health.addresses if desired.health is not None else None
    if text is None:
        return
    file = HostFile(path=desired.paths.addresses, text=text, mode="600")
    if fact is None:
        if text:
            yield WriteFile(reason="absent", file=file, phase=Phase.SCHEDULE)
    elif fact.sha256 != hashlib.sha256(text.encode()).hexdigest():
        yield WriteFile(reason="other addresses", file=file, phase=Phase.SCHEDULE)
    elif (fact.mode, fact.owner) != (file.mode, owner):
        reason = f"mode is {fact.mode}, owner is {fact.owner}"
        yield WriteFile(reason=reason, file=file, phase=Phase.SCHEDULE)


def _scheduled(step: WriteFile | OverwriteFile) -> WriteFile | OverwriteFile:
    return replace(step, phase=Phase.SCHEDULE)


def _start_timer(
    health: Health, found: SystemdFacts, written: list[WriteFile | OverwriteFile]
) -> Iterator[StartTimer]:
    timer = found.units.get(HEALTH_TIMER)
    if any(step.file.path.name == HEALTH_TIMER for step in written):
        yield StartTimer(reason=f"every {period_text(health.every_minutes)}", name=HEALTH_TIMER)
    elif timer is None or timer.active_state != "active" or not is_enabled(found, HEALTH_TIMER):
        yield StartTimer(reason="not active", name=HEALTH_TIMER)


def _write_line(desired: Desired, health: Health, found: CronFacts) -> Iterator[WriteCrontab]:
    """Last: what it starts is there by then. A line that was commented out was edited too."""
    line = cron_line(desired, health.every_minutes)
    if found.lines == (line,):
        return
    differences = tuple(
        Difference(what="line", actual=old, desired=line) for old in found.lines if old != line
    )
    edited = [old for old in found.lines if line_written_by(old) is Hand.OTHER]
    reason, backup = f"every {period_text(health.every_minutes)}", None
    if edited:
        reason = "edited by hand: " + "; ".join(map(str, differences))
        digest = hashlib.sha256("\n".join(edited).encode()).hexdigest()[:12]
        backup = desired.paths.backups / f"crontab.{digest}"
    yield WriteCrontab(
        reason=reason,
        differences=differences,
        user=found.user,
        line=line,
        mark=line_mark(desired.paths.root),
        backup=backup,
    )


def _stop(desired: Desired, facts: HostFacts, found: SystemdFacts | CronFacts) -> Iterator[StopSchedule]:
    """The metrics go too: what nobody writes any more would be scraped for ever. So do the addresses."""
    paths = desired.paths
    if isinstance(found, SystemdFacts):
        starts, mark = tuple(paths.units / name for name in (HEALTH_TIMER, HEALTH_UNIT)), None
        is_started = False
    else:
        starts, mark = (paths.cron_program,), line_mark(paths.root)
        is_started = bool(found.lines)
    there = tuple(path for path in (paths.health_program, *starts) if str(path) in found.files)
    if there or is_started:
        secrets = (paths.addresses,) if found.addresses is not None else ()
        gone = (*there, paths.agents, metrics_file(desired, facts), *secrets)
        yield StopSchedule(reason="ollama_health_every=off", paths=gone, mark=mark)
