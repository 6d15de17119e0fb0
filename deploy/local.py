"""The transport to the machine we run on: no shell, no SSH, the same promises."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from queue import Empty, SimpleQueue

import psutil

from deploy.commands import shown_command
from deploy.errors import CommandFailed, HostUnreachable, designed_error
from deploy.facts import ProcessId
from deploy.transport import Completed, Progress


class LocalChannel:
    """A child process whose standard input we hold: it ends when we do, kill -9 included."""

    def __init__(self, host: str, argv: Sequence[str]) -> None:
        self._host = host
        # A session of its own: Ctrl-C goes to the terminal's whole group, and must not free the lock.
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.decode(errors="replace").rstrip("\n"))
        self._lines.put("")

    def read_line(self, timeout_seconds: float) -> str:
        try:
            return self._lines.get(timeout=timeout_seconds)
        except Empty:
            raise HostUnreachable(
                sentence="the command on the `channel` did not answer",
                host=self._host,
                cause=f"no line within {timeout_seconds:g} s",
            ) from None

    def write_line(self, text: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise HostUnreachable(
                sentence="the command on the `channel` is gone", host=self._host, cause=str(error)
            ) from error

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # It may be gone already, which is what closing is for.
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=5)
        self._process.stdout.close()


class LocalTransport:
    """`deploy.transport.Transport` for this machine."""

    def __init__(self, host: str) -> None:
        self._host = host

    @property
    def host(self) -> str:
        return self._host

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 60.0) -> Completed:
        pipe = subprocess.PIPE
        try:
            # A session of its own: Ctrl-C goes to the terminal's whole group, and a step is finished first.
            process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        except (OSError, ValueError) as error:
            raise CommandFailed(
                sentence=f"`{shown_command(argv)}` could not be started", host=self._host, cause=str(error)
            ) from error
        with process:
            try:
                stdout, stderr = process.communicate(stdin, timeout=timeout_seconds)
            except subprocess.TimeoutExpired as error:
                # The script's own children too: one of them would keep the pipes open.
                os.killpg(process.pid, signal.SIGKILL)
                raise CommandFailed(
                    sentence=f"`{shown_command(argv)}` did not end within {timeout_seconds:g} s",
                    host=self._host,
                ) from error
        return Completed(exit_code=process.returncode, stdout=stdout, stderr=stderr)

    def send(self, argv: Sequence[str], chunks: Iterable[bytes], *, stall_seconds: float = 60.0) -> Completed:
        # Nothing is streamed to this machine in practice: its files are here, and `put` links them.
        return self.run(argv, stdin=b"".join(chunks), timeout_seconds=stall_seconds)

    def open_channel(self, argv: Sequence[str]) -> LocalChannel:
        return LocalChannel(self._host, argv)

    def local_path(self, path: PurePosixPath) -> Path:
        return Path(path)

    def exists(self, path: PurePosixPath) -> bool:
        return os.path.lexists(path)

    def put(self, source: Path, target: PurePosixPath, *, on_progress: Progress) -> None:
        part = Path(target.with_name(f".{target.name}.part"))
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)
            try:
                os.link(source, part)
            except OSError:
                # Another file system, or one without hard links.
                shutil.copyfile(source, part)
            part.replace(target)
            on_progress(source.stat().st_size)
        except OSError as error:
            raise designed_error(error) from error

    @contextmanager
    def http_url(self, url: str) -> Iterator[str]:
        yield url

    @contextmanager
    def fresh(self) -> Iterator[LocalTransport]:
        yield self

    def is_running(self, process: ProcessId) -> bool:
        return _find(process) is not None

    def stop(self, process: ProcessId, *, timeout_seconds: float) -> None:
        found = _find(process)
        if found is None:
            return
        try:
            # A runner outlives a killed server (measured): it must be known before its parent is gone.
            family = [found, *found.children(recursive=True)]
            found.terminate()
            psutil.wait_procs([found], timeout=timeout_seconds)
        except psutil.NoSuchProcess:
            return
        for member in family:
            try:
                if member.status() != psutil.STATUS_ZOMBIE:
                    member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=5)

    def close(self) -> None:
        """Nothing is held."""


def _find(process: ProcessId) -> psutil.Process | None:
    try:
        found = psutil.Process(process.pid)
        if found.status() == psutil.STATUS_ZOMBIE:
            return None
        actual = ProcessId(pid=found.pid, create_time=found.create_time())
    except psutil.NoSuchProcess:
        return None
    return found if actual.same_as(process) else None
