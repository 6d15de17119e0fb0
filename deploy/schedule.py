"""What has a host check itself, made or taken away: the agent, the timer, the line in a crontab."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import assert_never

from deploy import commands
from deploy.desired import AgentFile, HostPaths
from deploy.errors import CommandFailed
from deploy.outcomes import Events
from deploy.steps import InstallAgent, StartTimer, StopSchedule, WriteCrontab
from deploy.transport import Transport

# A run of the checks that is under way is waited for.
AGENT_SECONDS = 300.0
RUN_SECONDS = 60


def apply_schedule(
    step: InstallAgent | StartTimer | WriteCrontab | StopSchedule,
    transport: Transport,
    paths: HostPaths,
    events: Events,
) -> None:
    """Make one change. Raises CommandFailed or HostUnreachable; what checked the host before goes on."""
    match step:
        case InstallAgent():
            _install(step.agent, transport, paths, events)
        case StartTimer():
            _run(transport, commands.start_timer(step.name), f"`{step.name}` could not be started")
        case WriteCrontab():
            argv = commands.edit_crontab(step.mark, step.line, step.backup)
            _run(transport, argv, f"the `crontab` of {step.user} could not be written")
            if step.backup is not None:
                events("note", transport.host, text=f"kept a copy of the lines: {step.backup}")
        case StopSchedule() if step.mark is not None:
            end_cron(transport, paths, step.mark)
            _run(transport, commands.remove(step.paths), "what cron has started could not be removed")
        case StopSchedule():
            _run(transport, commands.stop_schedule(step.paths), "the health `timer` could not be stopped")
        case _:
            assert_never(step)


def end_cron(transport: Transport, paths: HostPaths, mark: str) -> None:
    """Cron starts nothing of ours any more, and what it has started has ended, or had its minute."""
    _run(transport, commands.edit_crontab(mark, ""), "our line could not be taken out of the `crontab`")
    argv = commands.wait_for_run(paths.health / "lock", RUN_SECONDS)
    _run(transport, argv, "a run of the checks could not be waited for", 2.0 * RUN_SECONDS)


def _install(agent: AgentFile, transport: Transport, paths: HostPaths, events: Events) -> None:
    """By rename, and then the others go. It is started once: its parts are unpacked, or we hear why not."""
    target = paths.agents / agent.name

    def tell(done_bytes: int) -> None:
        fields = {"bytes": done_bytes, "total_bytes": agent.size_bytes}
        events("progress", transport.host, file=target.name, doing="copying", **fields)

    transport.put(Path(agent.local_path), target, on_progress=tell)
    why = _start(transport, target, paths.health)
    if why:
        text = f"health: a shell checks what it can, since the agent does not start: {why}"
        events("note", transport.host, text=text)


def _start(transport: Transport, agent: PurePosixPath, state: PurePosixPath) -> str:
    """Nothing, or why it does not start: then a shell checks what it can."""
    sentence = f"`{agent}` could not take the place of another one"
    return _run(transport, commands.start_agent(agent, state), sentence, AGENT_SECONDS)


def _run(transport: Transport, argv: commands.Argv, sentence: str, timeout_seconds: float = 60.0) -> str:
    done = transport.run(argv, timeout_seconds=timeout_seconds)
    if done.exit_code != 0:
        raise CommandFailed(
            sentence=sentence,
            host=transport.host,
            cause=done.last_words,
            hint=f"./fleet schedule --limit {transport.host} goes on from here",
        )
    return done.stdout.decode(errors="replace").strip()
