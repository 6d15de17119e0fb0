"""The kinds of practice hosts: what a fleet meets in a data centre is not all alike."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from uuid import uuid4

from testbed.hosts_machine import call
from testbed.hosts_tree import OWN_DIRECTORY, PYTHON, Suite

# A real busybox host has no other `sh`; Python's own directory is the only place where it is found.
_IMPOVERISH = f"""set -eu
rm -f /usr/bin/curl /usr/bin/zstd /usr/bin/zstd?* /usr/bin/unzstd /usr/bin/pzstd
rm -f /usr/bin/sudo /usr/bin/sudo?* /usr/bin/strace
mv -f "$(readlink -f /usr/bin/python3)" {PYTHON}
rm -f /usr/bin/python3* /usr/bin/pydoc3* /usr/bin/py3*
ln -sf busybox /bin/sh
sed -i '/^root:/s,:[^:]*$,:/bin/sh,' /etc/passwd
"""
_SUDO_WITH_PASSWORD = "echo 'admin ALL=(ALL:ALL) ALL' >/etc/sudoers.d/admin\n"  # noqa: S105 - no password


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """What makes a kind: the release it is made of, who logs in, what is done to the tree."""

    told: str
    suite: Suite = Suite.BOOKWORM
    user: str = "admin"
    script: str = ""


class Kind(Enum):
    """In the order in which a fleet gets them; the next host after the last kind is of the first again."""

    RICH = Trait(told="Debian 12, sudo without a password")
    POOR = Trait(
        told="Debian 12 without sudo, curl, zstd and python on PATH; /bin/sh is busybox; root logs in",
        user="root",
        script=_IMPOVERISH,
    )
    PASSWORD = Trait(told="Debian 12, sudo wants a password", script=_SUDO_WITH_PASSWORD)
    OLD = Trait(told="Debian 11, sudo without a password", suite=Suite.BULLSEYE)
    NEW = Trait(told="Debian 13, sudo without a password", suite=Suite.TRIXIE)

    @property
    def trait(self) -> Trait:
        return self.value


def kind_of(number: int) -> Kind:
    """The kind of the host with this number, which counts from 1."""
    kinds = tuple(Kind)
    return kinds[(number - 1) % len(kinds)]


def prepare_tree(root: Path, kind: Kind, *, name: str, address: str, host_key: Path, login_key: str) -> None:
    """Give a clone its name, its address (`10.99.0.11/24`), its keys and what makes its kind."""
    texts = {
        "etc/hostname": f"{name}\n",
        "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost\n",
        "etc/machine-id": f"{uuid4().hex}\n",
        "etc/ssh/authorized_keys": login_key,
        "etc/ssh/ssh_host_ed25519_key": host_key.read_text(),
        "etc/ssh/ssh_host_ed25519_key.pub": host_key.with_suffix(".pub").read_text(),
        f"{OWN_DIRECTORY[1:]}/network": f"ADDRESS={address}\n",
    }
    for path, text in texts.items():
        (root / path).unlink(missing_ok=True)
        (root / path).write_text(text)
    (root / "etc/ssh/ssh_host_ed25519_key").chmod(0o600)
    if kind.trait.script:
        call(["chroot", str(root), "/bin/bash", "-s"], stdin=kind.trait.script)
