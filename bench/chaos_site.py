"""What a chaos run plays with: hosts with small disks, a mirror of their own, and what each should be."""

from __future__ import annotations

import random
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.hosts import environment, fleet_command, hosts_named, remove_abandoned
from console.paths import CANARY
from testbed.archive import make_release_archive
from testbed.demo import (
    SERVER_REPO,
    VERSION,
    WEIGHTS_FILE,
    WEIGHTS_REPO,
    WEIGHTS_REVISION,
    archive_name,
    render_pins,
)
from testbed.hosts import NEXT_VERSION, PracticeFleet
from testbed.hosts_host import Host
from testbed.hosts_kinds import Kind
from testbed.hosts_machine import Tell, call
from testbed.hosts_tree import PYTHON
from testbed.mirror import Mirror, MirrorRepo, start_mirror

VERSIONS = (VERSION, NEXT_VERSION)
FAILING = {
    "0.17.8": "echo 'panic: broken'; exit 2",
    "0.17.9": "export OLLAMA_SIMULATED_FAULT=text-calls",
}
"""Releases that do not start, or fail the suite, by what their server does first."""
KINDS = (Kind.RICH, Kind.POOR, Kind.OLD, Kind.PASSWORD)
HOSTS = 3
STORE = "/srv/store/models"
# Small file systems of their own can be filled, and outlive a power cut: they are mounted by this machine.
DISKS = ("opt/ollama", "var/lib/ollama-fleet", "srv/store")
DISK_MIB = 128
LIBRARY_BYTES = 6 * 1024 * 1024
SIMULATED = Path(__file__).resolve().parents[1] / "testbed/ollama.py"
# A lease of 180 s would be waited for in every other round. A drop-in of the operator's own is no drift.
LEASE_SECONDS = 5
_SHORT_LEASE = f"""
mkdir -p /etc/systemd/system/ollama-fleet-lease.timer.d
printf '[Timer]\\nOnActiveSec=\\nOnActiveSec={LEASE_SECONDS}s\\n' \\
    >/etc/systemd/system/ollama-fleet-lease.timer.d/short.conf
systemctl daemon-reload
"""


@dataclass(kw_only=True)
class Wanted:
    """What the inventory says of one host."""

    version: str = VERSION
    parallel: int = 1


@dataclass(kw_only=True)
class ChaosSite:
    """The hosts, what they are to be, and the one way to start a `./fleet` that deploys to them."""

    fleet: PracticeFleet
    mirror: Mirror
    wanted: dict[str, Wanted] = field(default_factory=dict)

    @property
    def hosts(self) -> Sequence[Host]:
        return self.fleet.hosts

    @property
    def _cache(self) -> Path:
        return self.fleet.directory / "cache"

    def write_inventory(self) -> None:
        """As `wanted` says."""
        lines = ["[all]"]
        for host in self.hosts:
            wanted = self.wanted[host.name]
            lines.append(
                f"{host.name} ansible_host={host.address} ansible_user={host.user}"
                f" ollama_version={wanted.version} ollama_num_parallel={wanted.parallel}"
            )
        lines += [
            "",
            "[all:vars]",
            f"ansible_ssh_private_key_file={shlex.quote(str(self.fleet.access.key))}",
            "ollama_service=systemd",
            "ollama_gpu=none",
            "ollama_models=myqwen2",
            f"ollama_models_dir={STORE}",
        ]
        self.fleet.inventory.write_text("\n".join(lines) + "\n")

    def start(self, words: Sequence[str], hosts: Sequence[Host]) -> subprocess.Popen[str]:
        """A whole `./fleet WORDS --yes --json` of its own on these hosts; its events come on `stdout`."""
        limit = ":".join(host.name for host in hosts)
        flags = ("--yes", "--json", "--inventory", str(self.fleet.inventory), "--limit", limit)
        return subprocess.Popen(
            fleet_command(*words, *flags),
            env={
                **environment(),
                "MODELSCOPE_ENDPOINT": self.mirror.url,
                "XDG_CACHE_HOME": str(self._cache),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def renew(self, index: int) -> Host:
        """A new host in the place of one."""
        old = self.hosts[index]
        self.fleet.remove(old)
        new = self.fleet.add(old.kind)
        self.fleet.hosts.sort(key=lambda host: host.number)
        make_ready([new])
        self.wanted[new.name] = Wanted()
        return new

    def forget_downloads(self) -> None:
        """What this machine has fetched is fetched again."""
        shutil.rmtree(self._cache, ignore_errors=True)


def disks_of(host: Host) -> Sequence[Path]:
    """The host's small file systems, seen from this machine."""
    return [host.root / disk for disk in DISKS]


def kinds_of(seed: int) -> Sequence[Kind]:
    """Which hosts a seed has."""
    return random.Random(f"{seed} kinds").sample(KINDS, HOSTS)


@contextmanager
def chaos_site(seed: int, tell: Tell) -> Iterator[ChaosSite]:
    """Hosts of the seed's kinds and a mirror with two releases, while the context lasts.

    Every seed has a directory of its own: several may run at once. Raises as `bench_hosts`.
    """
    remove_abandoned("chaos-*")
    with hosts_named(f"chaos-{seed}", kinds_of(seed), tell) as fleet:
        make_ready(fleet.hosts)
        repos = _make_repos(fleet.directory)
        fleet.pins.write_text(render_pins(repos))
        with start_mirror(repos) as mirror:
            site = ChaosSite(fleet=fleet, mirror=mirror)
            site.wanted = {host.name: Wanted() for host in fleet.hosts}
            site.write_inventory()
            yield site


def make_ready(hosts: Sequence[Host]) -> None:
    """New hosts get their small disks and their short lease."""
    for host in hosts:
        _give_disks(host)
    for host in hosts:
        host.wait_for_ssh()
        host.shell(_SHORT_LEASE)


def _give_disks(host: Host) -> None:
    host.kill9()
    for disk in disks_of(host):
        disk.mkdir(parents=True, exist_ok=True)
        call(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=755", "tmpfs", str(disk)])
    host.start()


def _make_repos(directory: Path) -> Sequence[MirrorRepo]:
    """Releases are the same simulated Ollama under several names, with a library that takes its time."""
    libraries = directory / "libraries"
    libraries.mkdir()
    (libraries / "libggml-none.so").write_bytes(random.Random(0).randbytes(LIBRARY_BYTES))
    archives = {}
    for version in (*VERSIONS, *FAILING):
        archive = make_release_archive(
            directory / "releases" / version / archive_name(),
            version=version,
            compression="tar.zst",
            binary=_make_failing(directory, version) if version in FAILING else SIMULATED,
            libraries=libraries,
            python=PYTHON,
        )
        archives[f"v{version}"] = {archive.name: archive}
    return (
        MirrorRepo(repo=SERVER_REPO, revisions=archives),
        MirrorRepo(repo=WEIGHTS_REPO, revisions={WEIGHTS_REVISION: {WEIGHTS_FILE: CANARY}}),
    )


def _make_failing(directory: Path, version: str) -> Path:
    """Only the server fails: the client of the same release loads its models."""
    text = SIMULATED.read_text()
    begin = "python=\n"
    assert text.count(begin) == 1
    path = directory / f"failing-{version}"
    path.write_text(text.replace(begin, f'{begin}if [ "$1" = serve ]; then {FAILING[version]}; fi\n'))
    return path
