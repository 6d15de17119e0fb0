"""The keys by which hosts are known: the files that hold them, and what is said of any other key."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import paramiko

from deploy.errors import CommandFailed, HostUnreachable

SYSTEM_FILE = Path("/etc/ssh/ssh_known_hosts")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """A key of a server; `name` is the server's in known_hosts, `data` the key in base64.

    `file` is where it was read, None for one that a server offers.
    """

    name: str
    kind: str
    data: str
    file: Path | None = None

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -lf` writes it."""
        digest = hashlib.sha256(base64.b64decode(self.data)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    def __str__(self) -> str:
        return f"{self.kind} {self.fingerprint}" + (f" of {self.file}" if self.file else "")


def fleet_known_hosts() -> Path:
    """`$XDG_CONFIG_HOME/ollama-fleet/known_hosts`, `~/.config` where it is not set."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".config") / "ollama-fleet/known_hosts"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownHosts:
    """Every file that counts. `beside_inventory` need not exist."""

    beside_inventory: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The system's, the user's, the fleet's own and the one beside the inventory."""
        beside = (self.beside_inventory,) if self.beside_inventory else ()
        return (SYSTEM_FILE, Path.home() / ".ssh/known_hosts", fleet_known_hosts(), *beside)

    @property
    def kept(self) -> Path:
        """Where new keys are added: beside the inventory if that file is there, for the whole team."""
        if self.beside_inventory is not None and self.beside_inventory.is_file():
            return self.beside_inventory
        return fleet_known_hosts()

    def keys(self, name: str) -> tuple[HostKey, ...]:
        """What the files know of a server, in their order."""
        found: list[HostKey] = []
        for file in self.files:
            if file.is_file() and (keys := paramiko.HostKeys(str(file)).lookup(name)) is not None:
                found += [
                    HostKey(name=name, kind=kind, data=key.get_base64(), file=file)
                    for kind, key in keys.items()
                ]
        return tuple(found)

    def check(self, host: str, offered: HostKey) -> None:
        """Raises HostUnreachable unless the key is known and no file has another one of its kind."""
        known = self.keys(offered.name)
        if not known:
            raise self._unknown(host, offered)
        comparable = [key for key in known if key.kind == offered.kind]
        # A server that offers no key of a known kind has changed too.
        wrong = [key for key in comparable if key.data != offered.data] if comparable else list(known)
        if wrong:
            raise _changed(host, offered, wrong)

    def add(self, keys: Sequence[HostKey]) -> Path:
        """Add keys to the file that is kept; returns it. Raises CommandFailed."""
        path = self.kept
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with path.open("a+b") as file:
                _end_line(file)
                file.writelines(f"{key.name} {key.kind} {key.data}\n".encode() for key in keys)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CommandFailed(
                sentence=f"`{path}` could not be written",
                cause=error.strerror,
                unchanged="the keys that were known",
                hint=f"ls -ld {path.parent}",
            ) from error
        return path

    def _unknown(self, host: str, offered: HostKey) -> HostUnreachable:
        return HostUnreachable(
            sentence=f"the host key of `{offered.name}` is not known",
            host=host,
            cause=f"it offers {offered}, which none of these files has: {', '.join(map(str, self.files))}",
            unchanged="everything: nothing was sent",
            hint=f"./fleet trust {host}",
        )


def _changed(host: str, offered: HostKey, wrong: Sequence[HostKey]) -> HostUnreachable:
    """The error that is never talked away: a known host answers with another key."""
    files = dict.fromkeys(str(key.file) for key in wrong)
    return HostUnreachable(
        sentence=f"the host key of `{offered.name}` has changed",
        host=host,
        expected=str(wrong[0]),
        actual=str(offered),
        cause="the host was made anew, or somebody answers in its place",
        unchanged="everything: nothing was sent",
        hint="ask who runs it; only if the new key is right: "
        + "; ".join(f"ssh-keygen -R '{offered.name}' -f {shlex.quote(file)}" for file in files)
        + f"; ./fleet trust {host}",
    )


def _end_line(file: BinaryIO) -> None:
    """A file that people edit may lack its last newline; a key written after it would be lost."""
    if file.seek(0, os.SEEK_END) > 0:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
