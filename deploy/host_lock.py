"""One deploy at a time per host: `flock` on the host, held by a command that lives no longer than we do."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from deploy.commands import hold_lock
from deploy.errors import CommandFailed, FleetError, HostLocked, HostUnreachable
from deploy.journal import Journal, this_user
from deploy.transport import Channel, Transport

HEARTBEAT_SECONDS = 20.0
ANSWER_SECONDS = 30.0
# The holder on the host gives up after 60 s of silence: see commands.hold_lock.
OWN_HOLDER_SECONDS = 70.0
ASK_AGAIN_SECONDS = 1.0
# A host that goes back by itself starts a server and loads its models: templates/lease.sh.
REVERT_SECONDS = 180.0
_REVERTING = "lease"


def render_owner(what: str) -> str:
    """One line of JSON: who holds the lock, since when by their own clock, for what."""
    return json.dumps(
        {
            "owner": this_user(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "what": what,
        }
    )


CheckHeld = Callable[[], None]
"""Raises HostLocked when the lock was lost, as after a laptop's sleep; asked before every step."""


@contextmanager
def host_lock(
    transport: Transport, lock: PurePosixPath, what: str, journal: Journal | None = None
) -> Iterator[CheckHeld]:
    """Hold the host's lock while the context lasts.

    Raises HostLocked with the owner, the lock's age and how to release it when somebody else holds it. A
    holder whose controller died, was killed or lost its connection frees it by itself; `journal` then tells
    and keeps that this one took over. A host that goes back by itself is waited for. While the lock is held,
    a rollback lease on the host is renewed.
    """
    told: list[str] = []

    def is_reverting(owner: str) -> bool:
        if _parse_owner(owner).get("owner") != _REVERTING:
            return False
        if journal is not None and not told:
            told.append("the host is going back by itself to what it served; waiting until it has")
            journal.note(told[0])
        return True

    with _taken(transport, lock, what, is_reverting, REVERT_SECONDS) as (before, check_held):
        if before and journal is not None:
            _tell_takeover(journal, before)
        yield check_held


@contextmanager
def retaken_lock(transport: Transport, lock: PurePosixPath, what: str) -> Iterator[CheckHeld]:
    """The lock once more, after the connection that held it was cut: to bring back what was there before.

    A holder of ours that has not noticed yet is waited for. Raises HostLocked where somebody else has the
    lock or had it since: what was there before is not what they left.
    """
    with _taken(transport, lock, what, lambda owner: _is_ours(owner, what), OWN_HOLDER_SECONDS) as (
        before,
        check_held,
    ):
        if not _is_ours(before, what):
            raise HostLocked(
                sentence=f"somebody else has had the lock of `{transport.host}` since", host=transport.host
            )
        yield check_held


@contextmanager
def _taken(
    transport: Transport, lock: PurePosixPath, what: str, is_awaited: Callable[[str], bool], seconds: float
) -> Iterator[tuple[str, CheckHeld]]:
    """The lock, with the line of a holder that died with it; so long an awaited holder is waited for."""
    deadline = time.monotonic() + seconds
    while True:
        channel = transport.open_channel(hold_lock(lock, render_owner(what)))
        with _beating(channel, transport.host) as check_held:
            answer = channel.read_line(timeout_seconds=ANSWER_SECONDS)
            word, _, before = answer.partition(" after ")
            if word == "locked":
                yield before, check_held
                return
        if time.monotonic() > deadline or not is_awaited(_owner_line(answer)):
            raise _refused(transport.host, lock, answer)
        time.sleep(ASK_AGAIN_SECONDS)


@contextmanager
def _beating(channel: Channel, host: str) -> Iterator[CheckHeld]:
    """The holder hears of us while the context lasts, and is let go at its end."""
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
                sentence=f"the lock of `{host}` was lost",
                host=host,
                cause="its connection was cut, this process slept for more than a minute, "
                "or somebody ended the lock's holder",
                hint="run the same command again",
            ) from error

    try:
        threading.Thread(target=beat, daemon=True).start()
        yield check_held
    finally:
        stop.set()
        _release(channel)


def _release(channel: Channel) -> None:
    """Without the word the holder would take it for a death, and the next one would be told of it."""
    with contextlib.suppress(HostUnreachable):
        channel.write_line("done")
    channel.close()


def _tell_takeover(journal: Journal, owner: str) -> None:
    text = f"took over the lock of {_name(_parse_owner(owner))}, whose run ended without releasing it"
    journal.note(text)
    journal.write(text)


def _refused(host: str, lock: PurePosixPath, answer: str) -> FleetError:
    word, age, holder, line = _parts(answer)
    if word != "held":
        return CommandFailed(
            sentence=f"the lock `{lock}` could not be taken",
            host=host,
            cause=answer or "the shell that should hold it said nothing",
            unchanged="everything",
            hint=f"ls -ld {lock.parent}; command -v flock timeout",
        )
    owner = _parse_owner(line)
    return HostLocked(
        sentence=f"`{host}` is locked by {_name(owner, _age(age))}",
        host=host,
        unchanged="everything",
        hint=_how_to_release(host, owner, holder),
    )


def _parts(answer: str) -> tuple[str, str, str, str]:
    """Of a refusal: its word, the lock's age, the holder's pid, and the line of the owner."""
    word, age, holder, line, *_ = [*answer.split(" ", 3), "", "", "", ""]
    return word, age, holder, line


def _owner_line(answer: str) -> str:
    return _parts(answer)[3]


def _is_ours(line: str, what: str) -> bool:
    """Whether this process wrote it: it holds a host's lock once at a time."""
    owner = _parse_owner(line)
    return (owner.get("owner"), owner.get("pid"), owner.get("what")) == (this_user(), os.getpid(), what)


def _parse_owner(line: str) -> dict[str, Any]:
    """What `render_owner` wrote; empty for anything else."""
    try:
        owner = json.loads(line)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) and {"owner", "pid", "what", "since"} <= owner.keys() else {}


def _name(owner: dict[str, Any], age: str = "") -> str:
    if not owner:
        return f"somebody who has not written a name{age and f' ({age[2:]})'}"
    return f"{owner['owner']} (pid {owner['pid']}, {owner['what']}, since {owner['since']}{age})"


def _age(seconds: str) -> str:
    """As the host tells it, whose clock need not agree with the owner's: `since` is the owner's.

    None where it is below zero: the host's clock was set back, and nothing else was there to go by.
    """
    if not seconds.isdecimal():
        return ""
    minutes = int(seconds) // 60
    if minutes < 1:
        return f", {seconds} s ago"
    return f", {minutes} min ago" if minutes < 120 else f", {minutes // 60} h ago"


def _how_to_release(host: str, owner: dict[str, Any], holder: str) -> str:
    if not holder.isdecimal():
        return "wait for it; a dead holder frees the lock by itself within a minute"
    end = f"./fleet run --limit {shlex.quote(host)} --yes 'kill {holder}'"
    if owner.get("owner") == this_user() and not _is_running(owner.get("pid")):
        return f"that process is gone and its lock ends within a minute; to end it at once: {end}"
    return f"wait for it; if that process hangs, end its hold on the host: {end}"


def _is_running(pid: Any) -> bool:
    """Whether a process of this machine exists, whosever it is."""
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
