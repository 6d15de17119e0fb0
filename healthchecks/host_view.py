"""What the health checks see of the host they run on, and nothing they could change.

`LocalHost` is the machine itself. Heavy imports wait until somebody asks for what needs them.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from healthchecks.child import Ran, run_child
from healthchecks.nvml import GpuReading, read_gpus

PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it; `environment` is empty where this user may not read it."""

    pid: int
    parent_pid: int
    command: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Space:
    """What a user without privileges may still write; some file systems count no inodes: then None."""

    avail_bytes: int
    total_bytes: int
    avail_inodes: int | None


@dataclass(frozen=True)
class Memory:
    """In bytes; `available_bytes` is what can be had without swapping (`MemAvailable`)."""

    total_bytes: int
    available_bytes: int
    swap_total_bytes: int
    swap_used_bytes: int


class HostView(Protocol):
    """Paths are absolute. Everything may raise OSError: a check that cannot look says `unknown`."""

    def run(self, argv: Sequence[str], deadline_seconds: float) -> Ran:
        """Raises FileNotFoundError where there is no such program, TimeoutError at the deadline."""
        ...

    def read_text(self, path: str) -> str | None:
        """None where there is no such file."""
        ...

    def sha256(self, path: str) -> str | None:
        """64 hex digits, None where there is no such file."""
        ...

    def stamp(self, path: str) -> str | None:
        """Another text after every change of a file, None where there is none.

        The time is that of the last change of any kind, which no program can set: stat(2), `st_ctim`.
        """
        ...

    def link_target(self, path: str) -> str | None:
        """Where a link leads, whether anything is there or not; None for what is no link."""
        ...

    def size(self, path: str) -> int | None:
        """In bytes, None where there is no such file."""
        ...

    def space(self, path: str) -> Space: ...

    def memory(self) -> Memory: ...

    def clock_error_seconds(self) -> float | None:
        """How wrong the kernel holds its clock to be, None where it does not say."""
        ...

    def processes(self) -> Sequence[Process]: ...

    def gpus(self, deadline_seconds: float) -> GpuReading:
        """What NVML says; what goes wrong is in the value."""
        ...


class LocalHost:
    """This machine."""

    def run(self, argv: Sequence[str], deadline_seconds: float) -> Ran:
        return run_child(argv, deadline_seconds, {**os.environ, "LC_ALL": "C"})

    def read_text(self, path: str) -> str | None:
        try:
            return Path(path).read_text(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sha256(self, path: str) -> str | None:
        digest = hashlib.sha256()
        try:
            with Path(path).open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    digest.update(piece)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return digest.hexdigest()

    def stamp(self, path: str) -> str | None:
        try:
            found = Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_ctime_ns}"

    def link_target(self, path: str) -> str | None:
        return os.readlink(path) if Path(path).is_symlink() else None  # noqa: PTH115 - as it is written

    def size(self, path: str) -> int | None:
        try:
            return Path(path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def space(self, path: str) -> Space:
        found = os.statvfs(path)
        return Space(
            avail_bytes=found.f_bavail * found.f_frsize,
            total_bytes=found.f_blocks * found.f_frsize,
            avail_inodes=found.f_favail if found.f_files else None,
        )

    def memory(self) -> Memory:
        import psutil

        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        return Memory(memory.total, memory.available, swap.total, swap.used)

    def clock_error_seconds(self) -> float | None:
        # struct timex of adjtimex(2) on 64-bit machines, in words: modes, offset, freq, maxerror in
        # microseconds. With modes 0 it only reads.
        timex = (ctypes.c_long * 32)()
        try:
            found = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
        except AttributeError:
            return None
        return None if found < 0 or ctypes.sizeof(ctypes.c_long) != 8 else timex[3] / 1e6

    def processes(self) -> Sequence[Process]:
        import psutil

        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command, parent = tuple(process.cmdline()), process.ppid()
                environment: Mapping[str, str] = {}
                # Of the servers only: nobody else's environment is looked at.
                if "serve" in command[1:]:
                    with contextlib.suppress(psutil.AccessDenied):
                        environment = process.environ()
                found.append(Process(process.pid, parent, command, environment))
        return found

    def gpus(self, deadline_seconds: float) -> GpuReading:
        return read_gpus(deadline_seconds)
