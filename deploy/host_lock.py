"""One deploy at a time per host: `flock` on the host, held by a command that lives no longer than we do."""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import PurePosixPath

from deploy.commands import hold_lock
from deploy.errors import CommandFailed, FleetError, HostLocked, HostUnreachable
from deploy.transport import Transport

HEARTBEAT_SECONDS = 20.0
# The holder on the host gives up after 60 s of silence: see commands.hold_lock.


def render_owner(what: str) -> str:
    """One line of JSON: who holds the lock, since when, for what."""
    return json.dumps(
        {
            "owner": f"{_user()}@{socket.gethostname()}",
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "what": what,
        }
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # Containers run under numbers that no passwd file knows.
        return str(os.getuid())


CheckHeld = Callable[[], None]
"""Raises HostLocked when the lock was lost, as after a laptop's sleep; asked before every step."""


@contextmanager
def host_lock(transport: Transport, lock: PurePosixPath, what: str) -> Iterator[CheckHeld]:
    """Hold the host's lock while the context lasts.

    Raises HostLocked with the owner's line when somebody else holds it. A holder whose controller died,
    was killed or lost its connection frees it by itself.
    """
    channel = transport.open_channel(hold_lock(lock, render_owner(what)))
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            try:
                channel.write_line("alive")
            except HostUnreachable:
                return

    def check_held() -> None:
        try:
            channel.write_line("alive")
        except HostUnreachable as error:
            raise HostLocked(
                sentence=f"the lock of `{transport.host}` was lost",
                host=transport.host,
                cause="this process slept for more than a minute, or somebody ended the lock's holder",
                hint="run the same command again",
            ) from error

    try:
        answer = channel.read_line(timeout_seconds=30)
        if answer != "locked":
            raise _refused(transport.host, lock, answer)
        beater = threading.Thread(target=beat, daemon=True)
        beater.start()
        yield check_held
    finally:
        stop.set()
        channel.close()


def _refused(host: str, lock: PurePosixPath, answer: str) -> FleetError:
    word, _, owner = answer.partition(" ")
    if word != "held":
        return CommandFailed(
            sentence=f"the lock `{lock}` could not be taken",
            host=host,
            cause=answer or "the shell that should hold it said nothing",
            unchanged="everything",
            hint=f"ls -ld {lock.parent}; command -v flock timeout",
        )
    try:
        record = json.loads(owner)
        who = f"{record['owner']} (pid {record['pid']}, {record['what']}, since {record['since']})"
    except (ValueError, KeyError, TypeError):
        who = "somebody who has not written a name yet"
    return HostLocked(
        sentence=f"`{host}` is locked by {who}",
        host=host,
        unchanged="everything",
        hint="wait for it; a dead holder frees the lock by itself within a minute",
    )
