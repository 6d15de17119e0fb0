"""The transport to another machine: one SSH connection a host, the same promises as `deploy.local`."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path, PurePosixPath
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import paramiko

from deploy import ssh_commands
from deploy.commands import Argv, render_command, shown_command
from deploy.errors import CommandFailed, FleetError, HostUnreachable, command_failed
from deploy.facts import ProcessId
from deploy.ssh_connection import CONNECT_SECONDS, SshTarget, close_connection, open_connection
from deploy.ssh_tunnel import open_tunnel
from deploy.sudo import SudoPassword
from deploy.transport import Completed, Progress

STALL_SECONDS = 60.0
HASH_SECONDS = 1800.0
GRACE_SECONDS = 1.0
_CHUNK_BYTES = 256 * 1024
_TELL_BYTES = 4 * 1024 * 1024
_TIDY_SECONDS = 10.0
_NOTICE_SECONDS = 0.5


class Rights(Enum):
    """Whose rights commands have on the host."""

    LOGIN = "login"
    ROOT = "root"


class SshChannel:
    """A command on the host whose standard input we hold: it ends when we do, or when the connection does."""

    def __init__(self, host: str, channel: Any) -> None:
        self._host = host
        self._channel = channel
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._channel.makefile("rb") as lines:
            for line in lines:
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
        try:
            if self._channel.exit_status_ready():
                raise OSError("it has ended")
            self._channel.sendall(text.encode() + b"\n")
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise HostUnreachable(
                sentence="the command on the `channel` is gone", host=self._host, cause=str(error)
            ) from error

    def close(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown_write()
        self._channel.status_event.wait(5)
        self._channel.close()
        self._reader.join(timeout=5)


class SshTransport:
    """`deploy.transport.Transport` over SSH. It connects at the first use, and again when it was cut."""

    def __init__(self, target: SshTarget, rights: Rights, password: SudoPassword) -> None:
        self._target = target
        self._rights = rights
        self._password = password
        self._connecting = threading.Lock()
        self._connection: Any = None
        self._elevate: Callable[[Sequence[str]], tuple[Argv, bytes]] = _as_login

    @property
    def host(self) -> str:
        return self._target.host

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 60.0) -> Completed:
        self._connect()
        # What nobody waits for any more must not run on; the host ends it by itself.
        limited = ssh_commands.with_limit(argv, timeout_seconds + GRACE_SECONDS)
        words, preface = self._elevate(limited)
        try:
            done = self._exchange(words, _pieces(preface + stdin), _Patience(timeout_seconds))
        except TimeoutError:
            raise CommandFailed(
                sentence=f"`{shown_command(argv)}` did not end within {timeout_seconds:g} s", host=self.host
            ) from None
        if done.exit_code in (126, 127) and done.stderr.startswith(b"timeout:"):
            raise CommandFailed(
                sentence=f"`{shown_command(argv)}` could not be started",
                host=self.host,
                cause=done.last_words,
            )
        return done

    def send(
        self, argv: Sequence[str], chunks: Iterable[bytes], *, stall_seconds: float = STALL_SECONDS
    ) -> Completed:
        self._connect()
        words, preface = self._elevate(argv)

        def stream() -> Iterator[bytes]:
            yield preface
            for chunk in chunks:
                yield from _pieces(chunk)

        try:
            return self._exchange(words, stream(), _Patience(stall_seconds, renewed_by_progress=True))
        except TimeoutError:
            raise HostUnreachable(
                sentence=f"`{shown_command(argv)}` took no more bytes",
                host=self.host,
                cause=f"nothing moved for {stall_seconds:g} s",
            ) from None

    def open_channel(self, argv: Sequence[str]) -> SshChannel:
        self._connect()
        words, preface = self._elevate(argv)
        with self._told():
            channel = self._start(words)
            channel.sendall(preface)
        return SshChannel(self.host, channel)

    def local_path(self, path: PurePosixPath) -> None:
        """None: no file of the host is a file here."""

    def exists(self, path: PurePosixPath) -> bool:
        return self._answer(ssh_commands.exists(path), f"`{path}` could not be looked at") == "yes"

    def put(self, source: Path, target: PurePosixPath, *, on_progress: Progress) -> None:
        size_bytes = source.stat().st_size
        part = target.with_name(f".{target.name}.part")
        offset = int(self._answer(ssh_commands.size_of(part), f"`{part}` could not be looked at"))
        offset = offset if offset <= size_bytes else 0
        with source.open("rb") as file:
            file.seek(offset)
            sent = self.send(ssh_commands.append(part, offset), _told_chunks(file, offset, on_progress))
        _check(sent, f"`{part}` could not be written", self.host)
        sha256 = _sha256(source) if offset else ""
        finish = ssh_commands.finish(part, target, size_bytes, sha256)
        done = self.run(finish, timeout_seconds=HASH_SECONDS)
        if done.exit_code == 66:
            # The part was of another file, and is removed: once more from the start.
            self.put(source, target, on_progress=on_progress)
            return
        _check(done, f"`{target}` could not be written", self.host)

    @contextmanager
    def http_url(self, url: str) -> Iterator[str]:
        self._connect()
        split = urlsplit(url)
        there = (split.hostname or "127.0.0.1", split.port or 80)
        with open_tunnel(self.host, self._connection.transport, there) as port:
            yield split._replace(netloc=f"127.0.0.1:{port}").geturl()

    @contextmanager
    def fresh(self) -> Iterator[SshTransport]:
        other = SshTransport(self._target, self._rights, self._password)
        try:
            yield other
        finally:
            other.close()

    def is_running(self, process: ProcessId) -> bool:
        return self._answer(ssh_commands.is_running(process), "the processes could not be listed") == "yes"

    def stop(self, process: ProcessId, *, timeout_seconds: float) -> None:
        done = self.run(ssh_commands.stop(process, timeout_seconds), timeout_seconds=timeout_seconds + 60)
        _check(done, f"the process `{process.pid}` could not be stopped", self.host)

    def close(self) -> None:
        with self._connecting:
            if self._connection is not None:
                close_connection(self._connection)
                self._connection = None

    def _connect(self) -> None:
        with self._connecting:
            if self._connection is not None and self._connection.is_connected:
                return
            if self._connection is not None:
                close_connection(self._connection)
                self._connection = None
            self._connection = open_connection(self._target)
            try:
                user_id, *sudo = self._greet()
                if self._rights is Rights.ROOT and user_id != "0":
                    self._elevate = _by_sudo if sudo else self._sudo_with_password()
            except BaseException:
                close_connection(self._connection)
                self._connection = None
                raise

    def _greet(self) -> list[str]:
        """The user's number, and `sudo` where that works without a password."""
        done = self._plain(ssh_commands.greet(self._rights.value))
        said = done.stdout.decode(errors="replace")
        ending = f"{ssh_commands.HOSTILE}\n"
        words = said.removeprefix(ending).split()
        if not said.startswith(ending) or not words or not words[0].isdecimal():
            raise CommandFailed(
                sentence=f"the login shell on `{self.host}` does not do what it is told",
                host=self.host,
                cause=f"it answered: {(said or done.last_words)[:200]!r}",
                unchanged="everything",
                hint="the user's login shell must be a POSIX one (sh, bash, dash, zsh), print nothing of its "
                "own and be allowed to run commands",
            )
        return words

    def _sudo_with_password(self) -> Callable[[Sequence[str]], tuple[Argv, bytes]]:
        """The password is proven before anything depends on it."""
        line = self._password.ask(self.host).encode() + b"\n"
        tried = self._plain(ssh_commands.check_sudo_password(), line)
        if tried.exit_code != 0:
            raise CommandFailed(
                sentence=f"`sudo` on `{self.host}` refuses this user or password",
                host=self.host,
                cause=tried.last_words,
                unchanged="everything",
                hint=f"ssh -t {self._target.address} sudo -k true",
            )

        def elevate(argv: Sequence[str]) -> tuple[Argv, bytes]:
            mark = secrets.token_hex(16)
            return ssh_commands.sudo_with_password(argv, mark), line + mark.encode() + b"\n"

        return elevate

    def _plain(self, argv: Argv, stdin: bytes = b"") -> Completed:
        try:
            return self._exchange(argv, _pieces(stdin), _Patience(CONNECT_SECONDS))
        except TimeoutError:
            raise HostUnreachable(
                sentence=f"`{self.host}` runs no command",
                host=self.host,
                cause=f"`{shown_command(argv)}` did not end within {CONNECT_SECONDS} s",
                unchanged="everything",
            ) from None

    def _answer(self, argv: Argv, sentence: str) -> str:
        done = self.run(argv)
        _check(done, sentence, self.host)
        return done.stdout.decode(errors="replace").strip()

    def _start(self, argv: Sequence[str]) -> Any:
        channel = self._connection.transport.open_session(timeout=CONNECT_SECONDS)
        # Paramiko waits for ever for the host's consent: behind a jump host a link may stall unnoticed.
        giving_up = threading.Timer(CONNECT_SECONDS, _give_up, [channel])
        giving_up.daemon = True
        giving_up.start()
        try:
            channel.exec_command(render_command(argv).encode(errors="surrogateescape"))
        finally:
            giving_up.cancel()
        return channel

    def _exchange(self, argv: Sequence[str], chunks: Iterable[bytes], patience: _Patience) -> Completed:
        """Raises TimeoutError when the patience ends, HostUnreachable when the connection does."""
        with self._told():
            channel = self._start(argv)
        try:
            stdout, stderr = _Drain(channel.recv), _Drain(channel.recv_stderr)
            self._feed(channel, chunks, patience)
            for drain in (stdout, stderr):
                drain.join(patience.left_seconds)
            if not channel.status_event.wait(patience.left_seconds):
                raise TimeoutError
            if channel.exit_status < 0 and self._is_cut():
                raise self._cut("while it ran")
            return Completed(
                exit_code=channel.exit_status, stdout=bytes(stdout.data), stderr=bytes(stderr.data)
            )
        finally:
            channel.close()

    def _feed(self, channel: Any, chunks: Iterable[bytes], patience: _Patience) -> None:
        for chunk in _or_end(channel, chunks):
            channel.settimeout(patience.left_seconds)
            try:
                channel.sendall(chunk)
            except TimeoutError:
                raise
            except (OSError, EOFError, paramiko.SSHException) as error:
                if self._is_cut():
                    raise self._cut(str(error)) from error
                # It ended without reading all: its exit code tells why.
                return
            patience.progress()
        with contextlib.suppress(OSError, EOFError):
            channel.shutdown_write()

    def _is_cut(self) -> bool:
        # Paramiko's thread closes the channels shortly before it says that the connection is gone.
        self._connection.transport.join(_NOTICE_SECONDS)
        return not self._connection.is_connected

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self._cut(str(error)) from error

    def _cut(self, cause: str) -> FleetError:
        return HostUnreachable(
            sentence=f"the SSH connection to `{self.host}` was cut",
            host=self.host,
            cause=cause or "it was closed",
            hint="run the same command again: it goes on from there",
        )


class _Patience:
    """A deadline; one for a stream begins anew with every chunk."""

    def __init__(self, seconds: float, *, renewed_by_progress: bool = False) -> None:
        self._seconds = seconds
        self._renewed = renewed_by_progress
        self._end = time.monotonic() + seconds

    @property
    def left_seconds(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def progress(self) -> None:
        if self._renewed:
            self._end = time.monotonic() + self._seconds


class _Drain:
    """One of a command's two outputs, read while the other and its input are busy."""

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self.data = bytearray()
        self._receive = receive
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                piece = self._receive(_CHUNK_BYTES)
            except TimeoutError:
                # The channel's timeout is the writer's; the reader ends with the channel.
                continue
            if not piece:
                return
            self.data += piece

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise TimeoutError


def _by_sudo(argv: Sequence[str]) -> tuple[Argv, bytes]:
    return ssh_commands.sudo(argv), b""


def _as_login(argv: Sequence[str]) -> tuple[Argv, bytes]:
    return tuple(argv), b""


def _or_end(channel: Any, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """When what makes the chunks fails, the command is given the time to notice the end and to tidy up."""
    try:
        yield from chunks
    except GeneratorExit:
        raise
    except Exception:
        with contextlib.suppress(OSError, EOFError):
            channel.shutdown_write()
        channel.status_event.wait(_TIDY_SECONDS)
        raise


def _pieces(data: bytes) -> Iterator[bytes]:
    # paramiko copies what is left after every packet: small pieces keep that linear.
    for start in range(0, len(data), _CHUNK_BYTES):
        yield data[start : start + _CHUNK_BYTES]


def _told_chunks(file: Any, offset: int, on_progress: Progress) -> Iterator[bytes]:
    done_bytes = told_bytes = offset
    while piece := file.read(_CHUNK_BYTES):
        yield piece
        done_bytes += len(piece)
        if done_bytes - told_bytes >= _TELL_BYTES:
            on_progress(done_bytes)
            told_bytes = done_bytes
    on_progress(done_bytes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _give_up(channel: Any) -> None:
    """Wakes whoever waits for its answer; the connection may end at this very moment."""
    with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
        channel.close()


def _check(done: Completed, sentence: str, host: str) -> None:
    if done.exit_code != 0:
        raise command_failed(sentence=sentence, host=host, cause=done.last_words)
