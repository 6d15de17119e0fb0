"""How a host is reached. `local` is one transport; SSH is another; neither adds a meaning of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from deploy.facts import ProcessId

Progress = Callable[[int], None]
"""Gets the bytes done so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A command that ended."""

    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def last_words(self) -> str:
        """The end of what it said, for an error's cause."""
        text = (self.stderr.strip() or self.stdout.strip()).decode(errors="replace")
        return "\n".join(text.splitlines()[-20:])


class Channel(Protocol):
    """A command that is kept running on the host while something else is done (the host lock)."""

    def read_line(self, timeout_seconds: float) -> str:
        """The next line of its output without the newline; `""` when it ended."""
        ...

    def write_line(self, text: str) -> None:
        """Send one line; raises HostUnreachable when the command is gone."""
        ...

    def close(self) -> None:
        """Close its standard input, which ends it, and wait."""
        ...


class Transport(Protocol):
    """Every value is passed as an argument vector or as bytes: nothing is ever interpreted on the way."""

    @property
    def host(self) -> str: ...

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 60.0) -> Completed:
        """Run a command to its end. Raises HostUnreachable or, on timeout, CommandFailed."""
        ...

    def send(self, argv: Sequence[str], chunks: Iterable[bytes], *, stall_seconds: float = 60.0) -> Completed:
        """Run a command that reads a stream of any length.

        When making the chunks fails, the command sees the end of its input, and the error is raised. Raises
        HostUnreachable when nothing moves for `stall_seconds`.
        """
        ...

    def open_channel(self, argv: Sequence[str]) -> Channel:
        """Start a command and keep its standard input open."""
        ...

    def local_path(self, path: PurePosixPath) -> Path | None:
        """The same file as this process sees it; None where the host is not this machine."""
        ...

    def exists(self, path: PurePosixPath) -> bool:
        """Whether anything has this name, a link that leads nowhere too."""
        ...

    def put(self, source: Path, target: PurePosixPath, *, on_progress: Progress) -> None:
        """Bring a file of this machine to the host, by rename, going on where a cut attempt ended.

        Raises CommandFailed or HostUnreachable; what had the target's name is then still there.
        """
        ...

    def http_url(self, url: str) -> AbstractContextManager[str]:
        """A URL under which this process reaches `url` of the host while the context lasts."""
        ...

    def fresh(self) -> AbstractContextManager[Transport]:
        """The same host by a connection of its own, opened now. Raises HostUnreachable."""
        ...

    def is_running(self, process: ProcessId) -> bool:
        """Whether exactly this process still runs (a zombie does not)."""
        ...

    def stop(self, process: ProcessId, *, timeout_seconds: float) -> None:
        """SIGTERM, then SIGKILL after the timeout, children included. No error when it is already gone."""
        ...

    def close(self) -> None: ...
