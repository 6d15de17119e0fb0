"""What this machine must have before it can run hosts of its own, and how its tools are called."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CACHE = Path("/var/cache/ollama-fleet")
"""Base trees and the locks of what all practice fleets of a machine share; it outlives every fleet."""

PACKAGES = {
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
}
"""The tools and the Debian packages they are in."""

# Their numbers are those of linux/capability.h.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18, "CAP_SYS_ADMIN": 21, "CAP_MKNOD": 27}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TOOLS_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_LAST_LINES = 12

Tell = Callable[[str], None]
"""Takes one line for whoever watches."""


@dataclass(kw_only=True)
class MachineRefused(Exception):
    """This machine cannot do it: one sentence, what the tool said, what to do."""

    sentence: str
    cause: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.sentence}: {self.cause}" if self.cause else self.sentence


def missing_parts() -> tuple[str, ...]:
    """What a practice fleet needs and this machine lacks, each as a phrase; empty when it can be tried."""
    packages = _missing_packages()
    return (*_missing_rights(), *([f"Debian packages ({' '.join(packages)})"] if packages else []))


def check_machine() -> None:
    """Raises MachineRefused with everything that is missing."""
    rights, packages = _missing_rights(), _missing_packages()
    if not rights and not packages:
        return
    hints = ["run it as root, in a container that was started with --privileged"] if rights else []
    hints += [f"apt install {' '.join(packages)}"] if packages else []
    raise MachineRefused(
        sentence="`testbed up` cannot run hosts on this machine",
        cause=f"missing: {'; '.join(missing_parts())}",
        hint="; ".join(hints),
    )


def _missing_rights() -> list[str]:
    if os.geteuid() != 0:
        return ["the rights of root (namespaces, mounts and a bridge)"]
    # Of root's rights those that a container usually takes away: `CapEff` of proc_pid_status(5).
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    lacking = [name for name, bit in _CAPABILITIES.items() if not effective & 1 << bit]
    return [f"root's {' and '.join(lacking)} (a container without --privileged)"] if lacking else []


def _missing_packages() -> list[str]:
    packages = {package for tool, package in PACKAGES.items() if find_tool(tool) is None}
    return sorted(packages | (set() if KEYRING.exists() else {"debian-archive-keyring"}))


def find_tool(name: str) -> str | None:
    """Its path, also where a user's PATH leaves out the directories of the system's tools."""
    return shutil.which(name, path=_TOOLS_PATH)


def tools_environment() -> dict[str, str]:
    """The caller's (a proxy must stay), with a PATH of tools and answers that can be read."""
    return {**os.environ, "PATH": _TOOLS_PATH, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def call(argv: Sequence[str], *, stdin: str = "", cwd: Path | None = None) -> str:
    """Run a tool to its end; returns its standard output. Raises MachineRefused with its last words."""
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, cwd=cwd, env=tools_environment(), check=False
        )
    except OSError as error:
        raise MachineRefused(sentence=f"`{argv[0]}` cannot be run", cause=str(error)) from error
    if done.returncode != 0:
        raise MachineRefused(
            sentence=f"`{' '.join(argv[:4])}` failed with exit code {done.returncode}",
            cause=last_lines(done.stderr or done.stdout),
        )
    return done.stdout


def last_lines(text: str) -> str:
    """The end of a log, where the reason usually stands."""
    return "\n".join(text.strip().splitlines()[-_LAST_LINES:]) or "it said nothing"


@contextmanager
def locked(file: Path, *, waiting: Callable[[], None]) -> Iterator[None]:
    """Alone with `file`, which is made where it is missing; `waiting` is called when another holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
