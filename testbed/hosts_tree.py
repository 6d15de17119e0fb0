"""The file systems of practice hosts: one base tree a Debian release, made once, a clone for each host."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path

from testbed.hosts_machine import (
    CACHE,
    KEYRING,
    MachineRefused,
    Tell,
    call,
    last_lines,
    locked,
    tools_environment,
)


class Suite(StrEnum):
    """Debian releases that hosts are made of."""

    TRIXIE = "trixie"
    BOOKWORM = "bookworm"
    BULLSEYE = "bullseye"


OFFICIAL_MIRROR = "http://deb.debian.org/debian"
INCLUDED = (
    "systemd systemd-sysv dbus libpam-systemd openssh-server sudo iproute2 python3 procps ca-certificates "
    "curl zstd xz-utils busybox-static strace cron"
).split()
OWN_DIRECTORY = "/opt/fleet-testbed"
"""Where the testbed keeps what is its own on a host."""
PYTHON = f"{OWN_DIRECTORY}/python3"
"""A Python on every practice host, also where there is none on PATH."""
PASSWORD = "practice"  # noqa: S105 - of hosts that only this machine reaches, by key
"""The password of the user `admin`, for `sudo`; nobody can log in with it."""

# The password is hashed by the host's own chpasswd. An empty machine-id is not that of a first boot.
_FINISH = f"""set -eu
useradd --create-home --shell /bin/bash admin
echo 'admin:{PASSWORD}' | chpasswd
echo 'admin ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/admin
chmod 0440 /etc/sudoers.d/admin
mkdir {OWN_DIRECTORY}
ln -s /usr/bin/python3 {PYTHON}
cat >/etc/systemd/system/fleet-testbed-network.service <<'UNIT'
[Unit]
Description=Address of a practice host
DefaultDependencies=no
Before=network.target ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
EnvironmentFile={OWN_DIRECTORY}/network
ExecStart=/bin/ip address replace ${{ADDRESS}} dev host0
ExecStart=/bin/ip link set host0 up
[Install]
WantedBy=multi-user.target
UNIT
cat >/etc/ssh/sshd_config.d/fleet-testbed.conf <<'CONFIG'
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PasswordAuthentication no
CONFIG
systemctl enable fleet-testbed-network.service
systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    console-getty.service
# There for whoever starts it; a host of ours has no need of it.
systemctl disable cron.service
apt-get clean
rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
: >/etc/machine-id
"""
_STAGES = {
    "Retrieving": "downloading packages",
    "Extracting": "unpacking the core",
    "Unpacking": "unpacking packages",
    "Configuring": "configuring packages",
}
# What is mounted below is seen by nobody else, and it ends with us, with all its children, however we end.
ALONE = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--kill-child", "--mount-proc")
"""Before a command that makes a tree."""

_DEB_LINE = re.compile(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)$")


def base_path(suite: Suite) -> Path:
    """Named by everything it is made of, so that a changed recipe makes a new one."""
    recipe = hashlib.sha256("\n".join([*INCLUDED, _FINISH]).encode()).hexdigest()
    return CACHE / f"base-{suite}-{recipe[:12]}"


def find_base(suite: Suite, tell: Tell) -> Path:
    """The base tree of a release, made now if it is not there: about a minute and 350 MB.

    Two who want it at once wait for each other; what a killed run left is no base. Raises MachineRefused.
    """
    base = base_path(suite)
    if base.exists():
        return base
    with locked(
        base.with_name(f"{base.name}.lock"),
        waiting=lambda: tell(f"{suite}: another process makes the base tree; waiting for it"),
    ):
        if not base.exists():
            partial = base.with_name(f"{base.name}.new")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _debootstrap(suite, partial, tell)
                call(["chroot", str(partial), "/bin/sh", "-s"], stdin=_FINISH)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            partial.rename(base)
    return base


def _debootstrap(suite: Suite, target: Path, tell: Tell) -> None:
    mirror = debian_mirror(_sources_of(Path("/etc/apt")), suite)
    began = time.monotonic()
    tell(f"{suite}: making the base tree (once, about a minute) from {mirror}")
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(INCLUDED)}", f"--keyring={KEYRING}"]
    lines: list[str] = []
    told: set[str] = set()
    with subprocess.Popen(
        [*ALONE, *command, suite, str(target), mirror],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=tools_environment(),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            stage = _STAGES.get(line.partition(": ")[2].partition(" ")[0])
            if stage is not None and stage not in told:
                told.add(stage)
                tell(f"{suite}: {stage} ({time.monotonic() - began:.0f} s)")
    if process.returncode != 0:
        raise MachineRefused(
            sentence=f"debootstrap could not make a `{suite}` from {mirror}",
            cause=last_lines("".join(lines)),
            hint=f"curl -I {mirror}/dists/{suite}/InRelease",
        )
    tell(f"{suite}: the base tree is made ({time.monotonic() - began:.0f} s)")


def debian_mirror(sources: Iterable[tuple[str, str]], suite: Suite) -> str:
    """The first mirror that `sources`, pairs of address and suite, name for Debian; else the official one.

    Every mirror of Debian has all its releases that are supported, so another release's is as good.
    """
    codenames = {*Suite, "stable", "oldstable", "oldoldstable", "testing", "sid", "unstable"}
    known = [(address.rstrip("/"), of) for address, of in sources if of in codenames]
    fitting = [address for address, of in known if of == suite] + [address for address, _ in known]
    return fitting[0] if fitting else OFFICIAL_MIRROR


def _sources_of(apt: Path) -> Iterator[tuple[str, str]]:
    for file in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if file.suffix in (".list", ".sources") and file.is_file():
            text = file.read_text(errors="replace")
            yield from parse_sources(text) if file.suffix == ".sources" else parse_list(text)


def parse_list(text: str) -> Iterator[tuple[str, str]]:
    """Address and suite of each `deb` line with the component `main`: sources.list(5), one-line style."""
    for line in text.splitlines():
        found = _DEB_LINE.match(line.partition("#")[0].strip())
        if found is not None and "main" in found[3].split():
            yield found[1], found[2]


def parse_sources(text: str) -> Iterator[tuple[str, str]]:
    """The same from the deb822 style of sources.list(5)."""
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", plain):
        fields = {
            key.strip().lower(): value.split()
            for key, _, value in (
                line.partition(":") for line in re.sub(r"\n[ \t]+", " ", stanza).splitlines()
            )
        }
        if "deb" not in fields.get("types", []) or "main" not in fields.get("components", []):
            continue
        if fields.get("enabled") == ["no"]:
            continue
        for address in fields.get("uris", []):
            for suite in fields.get("suites", []):
                yield address, suite


def clone(base: Path, home: Path) -> Path:
    """A tree of a host's own, `home`/root, which begins as `base` is.

    An overlay where the file system below `home` can carry one; where it cannot (it is an overlay itself, as
    in most containers) a copy.
    """
    root = home / "root"
    for part in ("upper", "work", "root"):
        (home / part).mkdir(parents=True, exist_ok=True)
    # Relative, so that no character of `home` means something in the list of options.
    options = f"lowerdir={base},upperdir=upper,workdir=work"
    try:
        call(["mount", "-t", "overlay", "overlay", "-o", options, "root"], cwd=home)
    except MachineRefused:
        call(["cp", "-a", "--reflink=auto", f"{base}/.", str(root)])
    return root


def mounts_below(directory: Path) -> list[Path]:
    """What is mounted at or below it, the innermost first: proc_pid_mountinfo(5)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        path = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4]))
        if path.is_relative_to(directory):
            found.append(path)
    return found[::-1]


def unmount_below(directory: Path) -> None:
    """Nothing is mounted there any more. Raises MachineRefused."""
    for path in mounts_below(directory.resolve()):
        try:
            call(["umount", str(path)])
        except MachineRefused:
            # A shell that stands in it keeps it busy; it is gone from the tree, which is what matters here.
            call(["umount", "--lazy", str(path)])


def remove_partial_bases() -> None:
    """What killed runs left; not what another one makes at this moment."""
    import fcntl

    for partial in (*CACHE.glob("base-*.new"), *CACHE.glob("machine-*.new")):
        with partial.with_suffix(".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(partial, ignore_errors=True)
