"""A real OpenSSH server on a loopback port, run by whoever runs the tests, and the client's home for it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deploy.ssh import Rights, SshTransport
from deploy.ssh_connection import SshTarget
from deploy.sudo import SudoPassword
from testbed.demo import free_port

KINDS = ("ed25519", "rsa")
MISSING = "OpenSSH's server is not installed: apt install openssh-server"


@dataclass(kw_only=True)
class Sshd:
    """A server with keys of its own. `home` is a client's home that trusts it and is let in by it."""

    directory: Path
    home: Path
    settings: Mapping[str, str]
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """Its name in known_hosts."""
        return f"[127.0.0.1]:{self.port}"

    @property
    def known_hosts(self) -> Path:
        return self.home / ".ssh/known_hosts"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def target(self) -> SshTarget:
        return SshTarget(host="box", address="127.0.0.1", port=self.port)

    def transport(self, rights: Rights = Rights.LOGIN) -> SshTransport:
        return SshTransport(self.target, rights, SudoPassword())

    def public_key(self, kind: str = "ed25519") -> str:
        """`KIND BASE64` of one of the server's keys."""
        return " ".join((self.directory / f"host_{kind}.pub").read_text().split()[:2])

    def trust(self, kind: str = "ed25519") -> None:
        self.known_hosts.write_text(f"{self.name} {self.public_key(kind)}\n")

    def start(self) -> None:
        """Start it and wait until it listens."""
        binary = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        assert binary is not None, MISSING
        if os.getuid() == 0:
            # The service's unit makes it; it must be there when root runs the server: sshd(8).
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = self.directory / "sshd_config"
        config.write_text("".join(f"{key} {value}\n" for key, value in self._all_settings().items()))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([binary, "-D", "-e", "-f", config], stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
        raise AssertionError(f"sshd does not listen: {self.log.read_text()}")

    def _all_settings(self) -> dict[str, str]:
        keys = " ".join(str(self.directory / f"host_{kind}") for kind in KINDS[:1])
        return {
            "ListenAddress": f"127.0.0.1:{self.port}",
            "HostKey": keys,
            "PidFile": "none",
            "AuthorizedKeysFile": str(self.directory / "authorized_keys"),
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "MaxStartups": "100",
            "MaxSessions": "100",
            **self.settings,
        }

    def cut(self) -> None:
        """End every connection without a word, as a crash does; the server itself stays."""
        for child in self.connections():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGKILL)

    def connections(self) -> list[psutil.Process]:
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            # A connection can end by itself between being listed and being asked.
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name().startswith("sshd"):
                    found.append(child)
        return found

    def stop(self) -> None:
        if self.process is not None:
            self.cut()
            self.process.kill()
            self.process.wait(10)
            self.process = None


@contextmanager
def running_sshd(directory: Path, **settings: str) -> Iterator[Sshd]:
    """A server that runs while the context lasts, with `HOME` set to that of a client it lets in.

    `settings` are further lines of its sshd_config, which win.
    """
    server = make_sshd(directory, **settings)
    server.start()
    before = os.environ["HOME"]
    os.environ["HOME"] = str(server.home)
    try:
        yield server
    finally:
        os.environ["HOME"] = before
        server.stop()


def make_sshd(directory: Path, **settings: str) -> Sshd:
    """Keys, a client's home and nothing running yet."""
    directory.mkdir(parents=True, exist_ok=True)
    home = directory / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    for kind in KINDS:
        _make_key(directory / f"host_{kind}", kind)
    _make_key(home / ".ssh/id_ed25519", "ed25519")
    shutil.copyfile(home / ".ssh/id_ed25519.pub", directory / "authorized_keys")
    server = Sshd(directory=directory, home=home, settings=settings)
    (home / ".ssh/config").write_text(f"Host *\n  User {getpass.getuser()}\n")
    server.trust()
    return server


def _make_key(path: Path, kind: str) -> None:
    command = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
