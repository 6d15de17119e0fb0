"""What went wrong, said the same way everywhere.

An error is one sentence with its subject in backticks, then the cause, what was left unchanged and the
exact next command. It carries fields instead of a formatted text, so that `--json` needs nothing more.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """What the process tells its caller; the largest of the hosts' codes wins."""

    DONE = 0
    USAGE = 1
    FAILED = 2
    DRIFT = 3
    UNREACHABLE = 4
    LOCKED = 5
    INTERRUPTED = 130


_FULL = "No space left on device"
"""ENOSPC in the words of the C library; a host that speaks another language keeps the other class."""


@dataclass(kw_only=True, eq=False)
class FleetError(Exception):
    """The root of all designed errors.

    `sentence` has its subject in backticks and no final full stop. `unchanged` completes "left unchanged:".
    `hint` is the exact next command or action. `expected` and `actual` stand on one line together.
    """

    sentence: str
    host: str | None = None
    path: str | None = None
    line: int | None = None
    expected: str | None = None
    actual: str | None = None
    cause: str | None = None
    unchanged: str | None = None
    hint: str | None = None

    exit_code = ExitCode.FAILED

    def __str__(self) -> str:
        return render_error(self)


class UsageError(FleetError):
    """A flag or an argument that cannot be meant."""

    exit_code = ExitCode.USAGE


class InventoryError(FleetError):
    """A line of the inventory that cannot be read, or a key that means nothing."""

    exit_code = ExitCode.USAGE


class ModelError(FleetError):
    """A model in `models.toml`, or its Modelfile, that cannot be used."""

    exit_code = ExitCode.USAGE


class TemplateRefused(ModelError):
    """A TEMPLATE that would hide the tools from the model, or the calls from the server."""


class PinError(FleetError):
    """`pins.toml` is broken, or an artefact has no pin."""

    exit_code = ExitCode.USAGE


@dataclass(kw_only=True, eq=False)
class InputErrors(FleetError):
    """Every problem of the input at once: one run shows all of them."""

    problems: tuple[FleetError, ...] = ()

    exit_code = ExitCode.USAGE


class MirrorError(FleetError):
    """The ModelScope mirror did not answer, or not with what it promised."""


class ChecksumMismatch(MirrorError):
    """Bytes arrived whose size or sha256 is not the pinned one."""


class NotAnArtefact(MirrorError):
    """The bytes are not of the kind the name promises: an HTML login page, a file that is no GGUF."""


class ArchiveRefused(FleetError):
    """An archive with a member that could write outside its directory or gain rights."""


class DiskTooSmall(FleetError):
    """Not enough free space or inodes; what did not fit was not kept."""


class DiskReadOnly(FleetError):
    """A file system that the plan would write to is mounted read-only; nothing was changed."""


class PortTaken(FleetError):
    """Another process listens where Ollama should."""


class ServiceError(FleetError):
    """The server could not be started, stopped or reached."""


class OutOfMemory(ServiceError):
    """The kernel ended the server for the memory it took: a limit of its unit's, or all that the host has."""


class EditedByHand(FleetError):
    """A file of ours was edited by another hand, and nobody said that it may be overwritten."""


class ModelRefused(FleetError):
    """The server refused a model, or holds other bytes than it was given."""


class VerifyFailed(FleetError):
    """The candidate did not pass; what was served before is still served."""


class AgentNotBuilt(FleetError):
    """The one-file health agent could not be put together on this machine."""


class NotConverged(FleetError):
    """Every step ended well and the host still differs from what is desired."""


class GpuUnusable(FleetError):
    """The host should compute on an NVIDIA GPU and cannot."""


class DoesNotFit(FleetError):
    """A model needs more GPU memory than the host can give it; nothing was copied."""


class ProbeFailed(FleetError):
    """The probe's reply could not be read."""


class CommandFailed(FleetError):
    """A command on the host ended with an error nobody had a better name for."""


class HostUnreachable(FleetError):
    """No connection, or it broke."""

    exit_code = ExitCode.UNREACHABLE


class HostLocked(FleetError):
    """Somebody else is deploying to this host."""

    exit_code = ExitCode.LOCKED


class Interrupted(FleetError):
    """Ctrl-C: the running step was finished and the host brought back to what it served."""

    exit_code = ExitCode.INTERRUPTED


def command_failed(
    *,
    sentence: str,
    host: str,
    cause: str,
    kind: type[FleetError] = CommandFailed,
    unchanged: str | None = None,
    hint: str | None = None,
) -> FleetError:
    """A command on a host ended with an error; a full disk is told as such, whatever it was that met it."""
    if _FULL in cause:
        kind = DiskTooSmall
        hint = f"space or inodes are used up: ./fleet run --yes 'df -h; df -i' --limit {host}"
    return kind(sentence=sentence, host=host, cause=cause, unchanged=unchanged, hint=hint)


def designed_error(error: Exception) -> FleetError:
    """Any exception as a designed one: a full disk, a file that cannot be used, or a mistake of ours."""
    if isinstance(error, FleetError):
        return error
    if not isinstance(error, OSError) or error.errno is None:
        return CommandFailed(
            sentence=f"`{type(error).__name__}` was not expected here",
            cause=str(error) or "it says nothing more",
            hint="./fleet status; if it comes again, report it with the command and this text",
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return CommandFailed(
            sentence="this machine has no `file descriptor` left",
            cause=error.strerror,
            hint="fewer hosts at once (--forks 5), or more open files (ulimit -n 4096)",
        )
    path = str(error.filename) if error.filename is not None else "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskTooSmall(
            sentence=f"`{path}` could not be written", cause=error.strerror, hint="df -h; df -i"
        )
    return CommandFailed(
        sentence=f"`{path}` could not be used", cause=error.strerror, hint="check its owner and mode"
    )


@contextmanager
def errors_of(host: str) -> Iterator[None]:
    """Whatever goes wrong inside is a designed error of this host, a mistake of ours too.

    What is done to many hosts at once is done inside it: one host's failure must not end the others' work.
    """
    try:
        yield
    except Exception as failure:
        error = _broken_connection(failure) or designed_error(failure)
        error.host = error.host or host
        if error is failure:
            raise
        raise error from failure


def _broken_connection(failure: Exception) -> FleetError | None:
    is_network = isinstance(failure, ConnectionError | TimeoutError) or (
        isinstance(failure, OSError) and failure.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)
    )
    if not is_network:
        return None
    return HostUnreachable(
        sentence="the `connection` broke",
        cause=str(failure) or type(failure).__name__,
        hint="run the same command again: it goes on from there",
    )


def render_error(error: FleetError) -> str:
    """The text a person reads, without a final newline."""
    if isinstance(error, InputErrors):
        return "\n\n".join(render_error(problem) for problem in error.problems)
    where = ""
    if error.path is not None:
        where = f"{error.path}:{error.line}: " if error.line is not None else f"{error.path}: "
    host = f"{error.host}: " if error.host is not None else ""
    lines = [f"error: {where}{host}{error.sentence}"]
    if error.expected is not None or error.actual is not None:
        lines.append(f"  expected {error.expected}, got {error.actual}")
    if error.cause is not None:
        first, *rest = error.cause.splitlines() or [""]
        lines.append(f"  caused by: {first}")
        lines.extend(f"    {line}" for line in rest)
    if error.unchanged is not None:
        lines.append(f"  left unchanged: {error.unchanged}")
    if error.hint is not None:
        lines += ["", f"hint: {error.hint}"]
    return "\n".join(lines)


def error_fields(error: FleetError) -> dict[str, Any]:
    """The same as plain JSON: `kind` and every field that is set; problems of `InputErrors` nested."""
    result: dict[str, Any] = {"kind": type(error).__name__}
    for field in fields(error):
        value = getattr(error, field.name)
        if field.name == "problems":
            result["problems"] = [error_fields(problem) for problem in value]
        elif value is not None:
            result[field.name] = value
    return result
