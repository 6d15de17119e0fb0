"""Who changed what on a host, and when: one JSON line an event, kept on the host itself."""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from deploy import commands
from deploy.errors import CommandFailed, FleetError, designed_error
from deploy.outcomes import Events
from deploy.transport import Transport

LIMIT_BYTES = 1024 * 1024
"""A journal above this becomes `journal.jsonl.1`, over the one before: two of these at most."""


def this_user() -> str:
    """`user@controller`: who we are to other people, in the journal and in the lock."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # Containers run under numbers that no passwd file knows.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def render_entry(
    *,
    at: datetime,
    who: str,
    what: str,
    result: str,
    changes: Sequence[str] = (),
    release: str | None = None,
    before: Mapping[str, Any] | None = None,
    seconds: float | None = None,
) -> str:
    """One line of JSON, pure ASCII. `at` has a time zone and is written in UTC; what is None is left out.

    `before` is what the run replaces, as `deploy.rollback.served_before` tells it.
    """
    entry = {
        "at": at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "who": who,
        "what": what,
        "result": result,
        "changes": list(changes),
        "release": release,
        "before": before or None,
        "seconds": seconds,
    }
    return json.dumps({key: value for key, value in entry.items() if value is not None})


def parse_entries(text: str) -> tuple[dict[str, Any], ...]:
    """The entries of a journal; a line that is none, cut short by a crash, becomes `{"text": LINE}`."""
    return tuple(_parse_entry(line) for line in text.split("\n") if line.strip())


def _parse_entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) else {"text": line}


def render_entry_line(entry: Mapping[str, Any]) -> str:
    """One entry for people."""
    if "text" in entry:
        return str(entry["text"])
    at, who, what, result = (entry.get(name, "?") for name in ("at", "who", "what", "result"))
    words = [f"{at}  {who}  {what}: {result}"]
    changes = [*map(str, entry.get("changes") or ())]
    release = f"release {entry['release']}" if entry.get("release") is not None else None
    if release and release not in changes:
        words.append(release)
    if changes:
        words.append(", ".join(changes))
    if entry.get("seconds") is not None:
        words.append(f"{entry['seconds']} s")
    return "; ".join(words)


def append_entry(transport: Transport, journal: PurePosixPath, line: str) -> None:
    """Append a line and sync it, in one command. Raises CommandFailed or HostUnreachable."""
    done = transport.run(commands.append_entry(journal, line, LIMIT_BYTES))
    if done.exit_code != 0:
        raise CommandFailed(
            sentence=f"`{journal}` could not be written", host=transport.host, cause=done.last_words
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """The journal of one host, as a task writes it: `what` is the task."""

    transport: Transport
    path: PurePosixPath
    what: str
    events: Events

    def write(
        self,
        result: str,
        *,
        changes: Sequence[str] = (),
        release: str | None = None,
        before: Mapping[str, Any] | None = None,
        seconds: float | None = None,
    ) -> None:
        """One entry. A journal that cannot be written (a full disk) is told and stops nothing."""
        line = render_entry(
            at=datetime.now(UTC),
            who=this_user(),
            what=self.what,
            result=result,
            changes=changes,
            release=release,
            before=before,
            seconds=seconds,
        )
        try:
            append_entry(self.transport, self.path, line)
        except FleetError as error:
            cause = f": {error.cause}" if error.cause else ""
            self.note(f"not in the journal, {error.sentence}{cause}")

    def note(self, text: str) -> None:
        """Words for whoever runs the task."""
        self.events("note", self.transport.host, text=text)

    @contextmanager
    def changing(
        self, changes: Sequence[str], *, release: str | None = None, before: Mapping[str, Any] | None = None
    ) -> Iterator[None]:
        """`started` before, `done` or `failed` after: a run that was killed has no end."""
        started = time.monotonic()

        def end(result: str) -> None:
            seconds = round(time.monotonic() - started, 1)
            self.write(result, changes=changes, release=release, before=before, seconds=seconds)

        self.write("started", changes=changes, release=release, before=before)
        try:
            yield
        except Exception as failure:
            error = designed_error(failure)
            kept = f"; left unchanged: {error.unchanged}" if error.unchanged else ""
            end(f"failed: {error.sentence}{kept}")
            raise
        end("done")
