"""A practice fleet: real systemd hosts with SSH on this machine, made in seconds, gone without a trace.

`open_fleet` makes the network and the keys, `PracticeFleet.add` one host after the other, `take_down` removes
what any run has made, also one that was killed. Everything is written down in `state.json` before it is made.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from testbed.archive import make_release_archive
from testbed.demo import (
    SERVER_REPO,
    VERSION,
    WEIGHTS_FILE,
    WEIGHTS_REPO,
    WEIGHTS_REVISION,
    archive_name,
    demo_directory,
    render_pins,
)
from testbed.hosts_host import Access, Host, end_host
from testbed.hosts_kinds import Kind, prepare_tree
from testbed.hosts_machine import MachineRefused, Tell, call, check_machine
from testbed.hosts_network import FIRST_HOST, LAST_HOST, Network, claim_network, release_network
from testbed.hosts_state import HostRecord, State, is_alive, read_state, state_file, write_file, write_state
from testbed.hosts_tree import PYTHON, clone, find_base, mounts_below, remove_partial_bases, unmount_below
from testbed.mirror import MirrorRepo

NEXT_VERSION = "0.17.7"
"""A second release for upgrades. Both are the same simulated Ollama under two names."""
HOSTS_AT_MOST = LAST_HOST - FIRST_HOST + 1


class FleetThere(Exception):
    """The directory has a practice fleet already; the text says which of its hosts run."""


class FleetBusy(Exception):
    """Another process makes or takes down the fleet of this directory at the moment."""


class NoFleet(Exception):
    """There is nothing to take down."""


def fleet_directory() -> Path:
    """Where `./fleet testbed up` makes its fleet, beside the demo: `$XDG_STATE_HOME/ollama-fleet/hosts`."""
    return demo_directory().with_name("hosts")


@dataclass(kw_only=True)
class PracticeFleet:
    """The hosts of one directory, and what a client needs to reach them."""

    directory: Path
    tell: Tell
    network: Network
    hosts: list[Host] = field(default_factory=list)
    cached: tuple[str, ...] = ()

    @property
    def access(self) -> Access:
        return Access(
            key=self.directory / "id_ed25519",
            known_hosts=self.directory / "known_hosts",
            config=self.directory / "ssh_config",
        )

    @property
    def inventory(self) -> Path:
        return self.directory / "inventory.ini"

    @property
    def pins(self) -> Path:
        return self.directory / "pins.toml"

    def add(self, kind: Kind) -> Host:
        """Make a host and switch it on. It is there when its `wait_for_ssh` returns."""
        base = find_base(kind.trait.suite, self.tell)
        number = min(set(range(1, HOSTS_AT_MOST + 1)) - {host.number for host in self.hosts})
        name = f"{self.network.prefix}{number}"
        host = Host(
            name=name,
            number=number,
            kind=kind,
            address=self.network.address(number),
            home=self.directory / name,
            bridge=self.network.bridge,
            access=self.access,
            remember=self._remember,
        )
        self.hosts.append(host)
        self._remember()
        host.home.mkdir()
        _make_key(host.home / "host_key")
        root = clone(base, host.home)
        prepare_tree(
            root,
            kind,
            name=name,
            address=f"{host.address}/{self.network.subnet.prefixlen}",
            host_key=host.home / "host_key",
            login_key=self.access.key.with_suffix(".pub").read_text(),
        )
        self._write_access()
        host.start()
        return host

    def remove(self, host: Host) -> None:
        """Switch a host off and remove all that was made for it."""
        host.kill9()
        _remove_host(self.directory, host.name)
        self.hosts.remove(host)
        self._write_access()
        self._remember()

    def down(self) -> None:
        """Take the fleet away, hosts that this process started included."""
        for host in list(self.hosts):
            host.kill9()
        take_down(self.directory)

    def offer(self, weights: Path, cache: Path, versions: Sequence[str] = (VERSION, NEXT_VERSION)) -> None:
        """Write pins, and put what they pin into a cache of verified files, so that no mirror is needed.

        `weights` are the bytes of the one model; the releases are simulated ones for the hosts' own Python.
        """
        archives = {}
        for version in versions:
            archives[f"v{version}"] = make_release_archive(
                self.directory / "releases" / version / archive_name(),
                version=version,
                compression="tar.zst",
                binary=Path(__file__).with_name("ollama.py"),
                python=PYTHON,
            )
        repos = (
            MirrorRepo(
                repo=SERVER_REPO, revisions={tag: {file.name: file} for tag, file in archives.items()}
            ),
            MirrorRepo(repo=WEIGHTS_REPO, revisions={WEIGHTS_REVISION: {WEIGHTS_FILE: weights}}),
        )
        text = render_pins(repos).partition("\n")[2]
        write_file(self.pins, f"# Written by `./fleet testbed up` from the files that it made.\n{text}")
        files = {file: file.name for file in archives.values()} | {weights: WEIGHTS_FILE}
        self._fill_cache(cache, files)

    def _fill_cache(self, cache: Path, files: Mapping[Path, str]) -> None:
        """`sha256-<hex>/<file>`: the layout of the cache of what was downloaded and proven."""
        for source, name in files.items():
            data = source.read_bytes()
            target = cache / f"sha256-{hashlib.sha256(data).hexdigest()}" / name
            if target.exists():
                continue
            partial = target.with_name(f".{name}.practice")
            self.cached = (*self.cached, str(partial), str(target))
            self._remember()
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, partial)
            partial.replace(target)

    def write_inventory(self, settings: Mapping[str, str]) -> None:
        """All hosts in the group `practice`, with `settings` for all of them."""
        lines = ["# Written by `./fleet testbed up`: hosts to practise on; `./fleet testbed down` ends them."]
        lines += ["[practice]"]
        for host in self.hosts:
            lines.append(f"# {host.kind.trait.told}")
            lines.append(f"{host.name} ansible_host={host.address} ansible_user={host.user}")
        lines += ["", "[practice:vars]", f"ansible_ssh_private_key_file={shlex.quote(str(self.access.key))}"]
        lines += [f"{name}={value}" for name, value in settings.items()]
        write_file(self.inventory, "\n".join(lines) + "\n")

    def _write_access(self) -> None:
        """The hosts' keys, and OpenSSH's configuration for those who log in by hand: ssh_config(5)."""
        keys, lines = [], []
        for host in self.hosts:
            kind, key = (host.home / "host_key.pub").read_text().split()[:2]
            keys.append(f"{host.name},{host.address} {kind} {key}\n")
            lines.append(f"Host {host.name}\n    HostName {host.address}\n    User {host.user}\n")
        options = {
            "IdentityFile": f'"{self.access.key}"',
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": f'"{self.access.known_hosts}"',
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "2",
        }
        lines += ["Host *\n", *(f"    {name} {value}\n" for name, value in options.items())]
        write_file(self.access.known_hosts, "".join(keys))
        write_file(self.access.config, "".join(lines))

    def _remember(self) -> None:
        records = tuple(
            HostRecord(name=host.name, number=host.number, kind=host.kind.name, leader=host.leader)
            for host in self.hosts
        )
        write_state(self.directory, State(network=self.network, hosts=records, cached=self.cached))


def open_fleet(directory: Path, prefixes: Sequence[str], tell: Tell) -> PracticeFleet:
    """An empty fleet with a network and keys; of `prefixes`, names for it, the first free one is taken.

    A prefix has at most 9 characters: a host's name ends in its number, its link's name has 15 (IFNAMSIZ).
    Raises MachineRefused, or FleetThere where the directory has one.
    """
    found = read_state(directory)
    if found is not None:
        raise FleetThere(_tell_state(found))
    check_machine()
    assert all(len(prefix) <= 9 for prefix in prefixes), prefixes
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def wanted(network: Network) -> None:
        write_state(directory, State(network=network))

    network = claim_network(prefixes, owner=directory.resolve(), wanted=wanted)
    fleet = PracticeFleet(directory=directory, tell=tell, network=network)
    _make_key(fleet.access.key)
    return fleet


def take_down(directory: Path) -> tuple[str, ...]:
    """Remove everything that a fleet has made, be it half made or half removed; returns its hosts' names.

    Raises NoFleet where nothing is left of one, MachineRefused where something cannot be removed.
    """
    if not directory.exists():
        raise NoFleet(str(directory))
    state = read_state(directory) or State()
    if state.hosts or state.network:
        check_machine()
    for host in state.hosts:
        end_host(host.name, host.leader)
        _remove_host(directory, host.name)
    if state.network is not None:
        release_network(state.network, owner=directory.resolve())
    for name in state.cached:
        Path(name).unlink(missing_ok=True)
        with suppress(OSError):
            # What is not empty is not only ours.
            Path(name).parent.rmdir()
            Path(name).parent.parent.rmdir()
    _remove_all_but_state(directory)
    # Last: as long as it is there, the next `down` knows what may be left.
    state_file(directory).unlink(missing_ok=True)
    directory.rmdir()
    with suppress(OSError):
        directory.parent.rmdir()
    if os.geteuid() == 0:
        remove_partial_bases()
    return tuple(host.name for host in state.hosts)


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Nobody else makes or takes down this fleet; the kernel ends it with us. Raises FleetBusy."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FleetBusy(str(directory)) from None
        # Opened just before its holder removed it: that directory is nobody's any more.
        if not (directory.exists() and os.path.samestat(os.fstat(descriptor), directory.stat())):
            raise FleetBusy(str(directory))
        yield
    finally:
        os.close(descriptor)


def _remove_all_but_state(directory: Path) -> None:
    unmount_below(directory)
    for path in directory.iterdir():
        if path == state_file(directory):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove_host(directory: Path, name: str) -> None:
    home = directory / name
    _remove_nspawn_lock(home / "root")
    unmount_below(home)
    if mounts_below(home.resolve()):
        raise MachineRefused(
            sentence=f"`{home}` has mounts that do not go away", hint=f"umount -R {home}/root"
        )
    if home.exists():
        shutil.rmtree(home)
    for lock in directory.glob(f".#{name}*"):
        lock.unlink()


def _remove_nspawn_lock(root: Path) -> None:
    """What nspawn leaves when it is killed: its lock of the directory (systemd 252)."""
    with suppress(OSError):
        status = root.stat()
        Path(f"/run/systemd/nspawn/locks/inode-{status.st_dev}:{status.st_ino}").unlink()


def _make_key(path: Path) -> None:
    call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "practice", "-f", str(path)])


def _tell_state(state: State) -> str:
    running = [host.name for host in state.hosts if is_alive(host.leader)]
    off = [host.name for host in state.hosts if host.name not in running]
    told = [f"running: {', '.join(running)}"] if running else []
    told += [f"off: {', '.join(off)}"] if off else []
    return "; ".join(told) or "it has no hosts"
