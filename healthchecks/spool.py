"""Messages that wait until everybody has got them: a file each, in the order in which they came about.

A message is one with what it makes known: the file that holds it also holds which checks fail once it is
sent. So there is one moment, a rename, before which a run has told nothing and after which it is never told
again; `notified.json` has the same for the time when no message waits. A cut anywhere loses nothing and
repeats the message that was on its way, at most.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from healthchecks.json_fields import parse_fields
from healthchecks.notices import Notice
from healthchecks.results import replace_file

FORMAT = 1
MESSAGES_KEPT = 1_000
RESERVE_BYTES = 64 * 1024
"""Set aside on the disk: that it is full must be told too, and not anew with every run."""


@dataclass(frozen=True)
class Message:
    """A notice that is not with everybody yet.

    `delivered` are the identities of those who have it. One that took the place of others says how many they
    were (`stands_for`) and from when on (`since`).
    """

    number: int
    notice: Notice
    delivered: tuple[str, ...] = ()
    stands_for: int = 0
    since: str = ""


class Spool:
    """The messages of a host, and what was made known last; one process at a time has it.

    What cannot be written is kept in memory for this run, and `problem` says why: it is sent all the same.
    """

    def __init__(self, directory: Path, messages_kept: int = MESSAGES_KEPT) -> None:
        self.problem: OSError | None = None
        self._directory = directory / "spool"
        self._state_path = directory / "notified.json"
        self._reserve = directory / "spool" / "reserve"
        self._kept = messages_kept
        self._writing = threading.RLock()
        self._messages = _read_messages(self._directory)
        self._stored_number, self._stored_failing = _read_state(self._state_path)
        self._keep_reserve()

    @property
    def messages(self) -> tuple[Message, ...]:
        """In their order."""
        with self._writing:
            return tuple(self._messages[number] for number in sorted(self._messages))

    @property
    def failing(self) -> frozenset[str]:
        """The checks that failed when the last message was made."""
        newest = max(self._messages, default=0)
        if newest > self._stored_number:
            return frozenset(self._messages[newest].notice.failing)
        return frozenset(self._stored_failing)

    def add(self, notice: Notice) -> None:
        """From here on the message is known, and will be sent."""
        with self._writing:
            number = max(self._stored_number, *self._messages, 0) + 1
            self._make_room()
            if self._save(Message(number, notice)):
                # One that is in memory alone is known once it is delivered: until then it is told anew.
                self._keep_state()

    def waiting_for(self, target: str) -> tuple[Message, ...]:
        """What this one has not got yet, in order."""
        return tuple(message for message in self.messages if target not in message.delivered)

    def mark_delivered(self, number: int, target: str, everybody: Collection[str]) -> None:
        """This one has it; once everybody has, it goes."""
        with self._writing:
            message = self._messages[number]
            message = replace(message, delivered=(*message.delivered, target))
            self._messages[number] = message
            if not set(everybody) <= {*message.delivered}:
                self._save(message)
            elif self._keep_state():
                self._remove(number)

    def drop_delivered(self, everybody: Collection[str]) -> None:
        """Messages that only somebody waited for who is no longer told anything."""
        with self._writing:
            gone = [message for message in self.messages if set(everybody) <= {*message.delivered}]
            if everybody and gone and self._keep_state():
                for message in gone:
                    self._remove(message.number)

    def _keep_state(self) -> bool:
        """What the messages make known, for when they are gone; whether it could be written."""
        newest = max(self._messages, default=0)
        if newest <= self._stored_number:
            return True
        failing = self._messages[newest].notice.failing
        state = {"format": FORMAT, "number": newest, "failing": list(failing)}
        if not self._write(self._state_path, state):
            return False
        self._stored_number, self._stored_failing = newest, failing
        return True

    def _save(self, message: Message) -> bool:
        self._messages[message.number] = message
        return self._write(self._path(message.number), {"format": FORMAT, **asdict(message)})

    def _write(self, path: Path, document: dict[str, Any]) -> bool:
        content = (json.dumps(document) + "\n").encode()
        try:
            try:
                _replace_durably(path, content)
            except OSError:
                self._reserve.unlink(missing_ok=True)
                _replace_durably(path, content)
        except OSError as problem:
            self.problem = problem
            return False
        return True

    def _remove(self, number: int) -> None:
        del self._messages[number]
        try:
            self._path(number).unlink(missing_ok=True)
        except OSError as problem:
            self.problem = problem

    def _make_room(self) -> None:
        """Of the oldest two one is left, which says that they are gone."""
        while len(self._messages) >= self._kept:
            oldest, next_one = self.messages[:2]
            self._save(_stand_in(oldest, next_one))
            self._remove(oldest.number)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08d}.json"

    def _keep_reserve(self) -> None:
        if self._reserve.is_file():
            return
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            with self._reserve.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError:
            # There will be room again; until then there is nothing to set aside. Nor is there where `spool`
            # is no directory; whoever writes a message into it says so.
            with suppress(OSError):
                self._reserve.unlink(missing_ok=True)


def _stand_in(oldest: Message, next_one: Message) -> Message:
    """In place of both, for those who have not got both."""
    count = max(oldest.stands_for, 1) + max(next_one.stands_for, 1)
    since = oldest.since or oldest.notice.at
    notice = replace(
        next_one.notice,
        title=f"ollama-fleet: {count} messages were dropped",
        body=f"up to {count} messages from {since} until {next_one.notice.at} could not be sent in time"
        " and made room for newer ones",
        has_problem=True,
    )
    both = tuple(target for target in oldest.delivered if target in next_one.delivered)
    return Message(next_one.number, notice, both, count, since)


def _replace_durably(path: Path, content: bytes) -> None:
    """A rename is on the disk once its directory is."""
    replace_file(path, content)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_messages(directory: Path) -> dict[int, Message]:
    """What is no message, such as the rest of a run that was cut, is none."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        try:
            message = _parse_message(json.loads(path.read_bytes()))
        except (OSError, ValueError):
            continue
        found[message.number] = message
    for cut in directory.glob(".*.json.*"):
        cut.unlink(missing_ok=True)
    return found


def _parse_message(document: Any) -> Message:
    fields = parse_fields(document, "the message")
    notice = parse_fields(fields.mapping("notice"), "the notice")
    return Message(
        number=fields.whole("number"),
        notice=Notice(
            title=notice.text("title"),
            body=notice.text("body"),
            at=notice.text("at"),
            has_problem=notice.truth("has_problem"),
            failing=notice.texts("failing"),
        ),
        delivered=fields.texts("delivered"),
        stands_for=fields.whole("stands_for"),
        since=fields.text("since"),
    )


def _read_state(path: Path) -> tuple[int, tuple[str, ...]]:
    """Of a host that has never told anything nothing is known to fail."""
    try:
        fields = parse_fields(json.loads(path.read_bytes()), "the state")
        return fields.whole("number"), fields.texts("failing")
    except (OSError, ValueError):
        return 0, ()
