"""The `systemd` backend: what is done to `ollama.service`, and the lease that brings it back."""

from __future__ import annotations

from collections.abc import Sequence

from deploy import commands
from deploy.desired import ADOPTED, Desired
from deploy.errors import CommandFailed, FleetError, OutOfMemory, ServiceError, command_failed
from deploy.facts import HostFacts, ProcessId
from deploy.steps import MakeAccount, OverwriteFile, TakeLease, WriteFile
from deploy.systemd_plan import main_server
from deploy.transport import Completed, Transport
from deploy.units import LEASE_TIMER, LOAD_UNIT, UNIT

# The unit's TimeoutStopSec, and a start on a slow disk.
RESTART_SECONDS = 120.0
# As long as the unit itself may take: its TimeoutStartSec.
LOAD_SECONDS = 1800.0


def make_account(transport: Transport, desired: Desired, step: MakeAccount) -> None:
    """The server's account and its groups. Raises CommandFailed."""
    record = desired.paths.account_record
    _run(
        transport, commands.make_account(record, step.name, step.home, step.groups), "`account` was not made"
    )


def write_files(transport: Transport, steps: Sequence[WriteFile | OverwriteFile]) -> None:
    """By rename, in one round trip; what an overwritten one was is copied to its `backup` first.

    Raises CommandFailed with the first file that could not be written. None is, unless all could be received.
    """
    backups = [step.backup if isinstance(step, OverwriteFile) else None for step in steps]
    argv = commands.write_files([step.file for step in steps], backups)
    stdin = b"".join(step.file.text.encode() for step in steps)
    done = transport.run(argv, stdin=stdin, timeout_seconds=RESTART_SECONDS)
    if done.exit_code != 0:
        told = done.stdout.decode(errors="replace").splitlines()
        paths = [str(step.file.path) for step in steps]
        # Twice each: as it has arrived, and as it was written.
        left = [path for times in (1, 2) for path in paths if told.count(path) < times]
        raise _failed(
            transport,
            done,
            f"`{left[0]}` could not be written" if left else "systemd does not read its units",
        )


def enable_units(transport: Transport, names: tuple[str, ...]) -> None:
    """Raises CommandFailed."""
    _run(transport, commands.enable_units(names), f"`{', '.join(names)}` could not be enabled")


def disable_units(transport: Transport, names: tuple[str, ...]) -> None:
    """No start of the host starts them any more. Raises CommandFailed."""
    _run(transport, commands.disable_units(names), f"`{', '.join(names)}` could not be disabled")


def restart(transport: Transport, desired: Desired, account: str, home: str) -> None:
    """Start the unit's server anew and return at once. Raises ServiceError."""
    argv = commands.restart_unit(account, [home, desired.paths.models_dir])
    _run(transport, argv, "`ollama.service` could not be started", kind=ServiceError)


def stop(transport: Transport) -> None:
    """Stop the unit's server, its runners with it. Raises ServiceError."""
    argv = ("systemctl", "stop", UNIT)
    _run(transport, argv, "`ollama.service` could not be stopped", kind=ServiceError)


def load_models(transport: Transport) -> None:
    """Have the unit load the models that is to load them after every start. Raises ServiceError.

    Anew: the run that came with the server's start may have looked before a model was there.
    """
    done = transport.run(commands.load_models(LOAD_UNIT), timeout_seconds=LOAD_SECONDS)
    if done.exit_code != 0:
        log = transport.run(commands.unit_journal([LOAD_UNIT], 5, output="cat"))
        raise ServiceError(
            sentence=f"`{LOAD_UNIT}` does not load the models",
            host=transport.host,
            cause=log.last_words or done.last_words,
            hint=f"./fleet logs --limit {transport.host}",
        )


def is_alive(transport: Transport) -> bool:
    """Whether the server that was started is still that one: one that exits is started again by systemd."""
    done = transport.run(("systemctl", "show", "--property=MainPID,NRestarts", UNIT))
    told = done.stdout.decode(errors="replace").split()
    return "NRestarts=0" in told and "MainPID=0" not in told


def check_still_serves(host: str, facts: HostFacts, verified: Sequence[ProcessId]) -> None:
    """What was verified must be what is confirmed. Raises ServiceError when it has ended since."""
    server = main_server(facts)
    if server is None or not all(server.process.same_as(process) for process in verified):
        raise ServiceError(
            sentence="the server ended after it was verified",
            host=host,
            cause=f"`{UNIT}` was started again by systemd, or does not run",
            hint=f"./fleet logs --limit {host}",
        )


def take_lease(transport: Transport, desired: Desired, step: TakeLease) -> None:
    """From now on the host goes back by itself. Raises CommandFailed."""
    _run(transport, commands.take_lease(desired.paths.lease_program, step.files), "no `lease` was taken")


def end_lease(transport: Transport, desired: Desired) -> None:
    """What runs now stays. By a new connection: who could log in no more would be without a way back."""
    with transport.fresh() as fresh:
        _run(fresh, (str(desired.paths.lease_program), "end"), "the `lease` was not ended")


def runs_out(transport: Transport) -> bool:
    """Whether the host would go back by itself: a lease that is over, or that failed, has no timer."""
    return transport.run(("systemctl", "is-active", "--quiet", LEASE_TIMER)).exit_code == 0


def revert(transport: Transport, desired: Desired, cause: str) -> str:
    """What served when the lease was taken serves again; returns its release. Raises ServiceError."""
    argv = (str(desired.paths.lease_program), "revert", cause)
    sentence = "the `lease` could not bring back what served before"
    said = _run(transport, argv, sentence, kind=ServiceError).removeprefix("reverted to ")
    return ADOPTED if said == "none" else said


def name_memory_kill(transport: Transport, version: str, error: FleetError) -> FleetError:
    """The same error, or its cause: the kernel ended the server since the deploy has started it.

    A server that was killed is seen as a connection that breaks, or a model that does not answer. Asked
    before anything is started again.
    """
    try:
        done = transport.run(commands.memory_kill(UNIT))
    except FleetError:
        return error
    said = dict(line.partition("=")[::2] for line in done.stdout.decode(errors="replace").splitlines())
    if said.get("killed") != "yes":
        return error
    limit = said.get("MemoryMax", "")
    # In bytes; a unit without one has `infinity`.
    if limit.isdecimal():
        cause = f"`MemoryMax={limit}` of `{UNIT}` ({int(limit) / 2**20:.0f} MiB) was reached"
        command, otherwise = f"systemctl cat {UNIT}", "shows who set `MemoryMax=`: raise it"
    else:
        cause = "the host had no memory left; the unit itself has no limit"
        command, otherwise = "free -m", "shows what there is: end what else takes memory"
    return OutOfMemory(
        sentence=f"the server of release `{version}` was killed by the kernel: out of memory (OOM)",
        host=transport.host,
        cause=f"{cause}; first seen as: {error.sentence}",
        unchanged=error.unchanged,
        hint=f"./fleet run --limit {transport.host} --yes '{command}' {otherwise}, or take a smaller model",
    )


def _run(
    transport: Transport,
    argv: commands.Argv,
    sentence: str,
    *,
    kind: type[FleetError] = CommandFailed,
) -> str:
    """What it printed."""
    done = transport.run(argv, timeout_seconds=RESTART_SECONDS)
    if done.exit_code != 0:
        raise _failed(transport, done, sentence, kind)
    return done.stdout.decode(errors="replace").strip()


def _failed(
    transport: Transport, done: Completed, sentence: str, kind: type[FleetError] = CommandFailed
) -> FleetError:
    return command_failed(
        kind=kind,
        sentence=sentence,
        host=transport.host,
        cause=done.last_words,
        hint=f"./fleet logs --limit {transport.host}; on the host: systemctl status ollama",
    )
