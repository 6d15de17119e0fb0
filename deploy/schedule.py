"""What has a host check itself, made or taken away: the agent, the timer."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import assert_never

from deploy import commands
from deploy.desired import AgentFile, HostPaths
from deploy.errors import CommandFailed
from deploy.outcomes import Events
from deploy.steps import InstallAgent, StartTimer, StopSchedule
from deploy.transport import Transport

# A run of the checks that is under way is waited for.
AGENT_SECONDS = 300.0


def apply_schedule(
    step: InstallAgent | StartTimer | StopSchedule, transport: Transport, paths: HostPaths, events: Events
) -> None:
    """Make one change. Raises CommandFailed or HostUnreachable; what checked the host before goes on."""
    match step:
        case InstallAgent():
            _install(step.agent, transport, paths, events)
        case StartTimer():
            _run(transport, commands.start_timer(step.name), f"`{step.name}` could not be started")
        case StopSchedule():
            _run(transport, commands.stop_schedule(step.paths), "the health `timer` could not be stopped")
        case _:
            assert_never(step)


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
