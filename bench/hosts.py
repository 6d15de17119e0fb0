"""Practice hosts for a bench: made for it, taken away after it, also when an earlier one was killed."""

from __future__ import annotations

import os
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from console.paths import CANARY, PROJECT
from console.pin import cache_directory
from deploy.errors import CommandFailed, HostLocked
from deploy.sudo import VARIABLE
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
from testbed.hosts import (
    NEXT_VERSION,
    FleetBusy,
    NoFleet,
    PracticeFleet,
    alone_in,
    fleet_directory,
    open_fleet,
    take_down,
)
from testbed.hosts_host import NotInTime
from testbed.hosts_kinds import Kind
from testbed.hosts_machine import MachineRefused, Tell
from testbed.hosts_tree import PASSWORD, PYTHON
from testbed.machine import Machine, make_machine
from testbed.machine_image import missing_machine_parts
from testbed.mirror import MirrorRepo, start_mirror

SETTINGS = {
    "ollama_service": "systemd",
    "ollama_gpu": "none",
    "ollama_models": "myqwen2",
    "ollama_version": "0.17.5",
}
_INOTIFY_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")
_INOTIFY_PER_HOST = 6
"""What root holds of them on a Debian 12: five by systemd, one by logind (counted); all hosts share them."""
_PREFIXES = tuple(f"bench{letter}" for letter in string.ascii_lowercase)


@contextmanager
def bench_hosts(kinds: Sequence[Kind], tell: Tell) -> Iterator[PracticeFleet]:
    """A fleet with one host of each of these kinds, an inventory and pins, while the context lasts.

    Raises CommandFailed where this machine cannot have one, HostLocked where another bench has it.
    """
    with hosts_named("bench", kinds, tell) as fleet:
        fleet.offer(CANARY, cache_directory())
        fleet.write_inventory(SETTINGS)
        yield fleet


@contextmanager
def hosts_named(name: str, kinds: Sequence[Kind], tell: Tell) -> Iterator[PracticeFleet]:
    """The hosts alone. Fleets of other names may be there at the same time. Raises as `bench_hosts`."""
    check_room(len(kinds), int(_INOTIFY_LIMIT.read_text()) if _INOTIFY_LIMIT.exists() else None)
    directory = fleet_directory().with_name(name)
    try:
        # In a lock of its own: it removes the directory, and who then holds that one holds nothing.
        with suppress(NoFleet), alone_in(directory):
            take_down(directory)
        with alone_in(directory):
            fleet = open_fleet(directory, _PREFIXES, tell)
            try:
                for kind in kinds:
                    fleet.add(kind)
                for host in fleet.hosts:
                    host.wait_for_ssh()
                yield fleet
            finally:
                fleet.down()
    except FleetBusy as busy:
        raise HostLocked(
            sentence=f"another `{name}` has its hosts up", unchanged="everything", hint="wait for it"
        ) from busy
    except MachineRefused as refused:
        raise CommandFailed(
            sentence=refused.sentence, cause=refused.cause, hint=refused.hint or "./fleet testbed down"
        ) from refused
    except NotInTime as late:
        raise CommandFailed(
            sentence=f"the hosts of `{name}` did not start",
            cause=str(late),
            hint="sysctl fs.inotify.max_user_instances: each takes about 8 of them",
        ) from late


def remove_abandoned(pattern: str) -> None:
    """Take down the hosts of these names whose run was killed: nobody holds their directory any more."""
    for directory in sorted(fleet_directory().parent.glob(pattern)):
        with suppress(FleetBusy, NoFleet), alone_in(directory):
            take_down(directory)


def check_room(hosts: int, inotify_limit: int | None) -> None:
    """Whether this machine's kernel lets so many systemds run. Raises CommandFailed with what to set."""
    needed = hosts * _INOTIFY_PER_HOST
    if inotify_limit is not None and needed > inotify_limit:
        raise CommandFailed(
            sentence=f"`{hosts}` practice hosts are more than this machine lets run",
            cause=f"each holds {_INOTIFY_PER_HOST} inotify instances, and root may have {inotify_limit}",
            unchanged="everything",
            hint=f"sysctl fs.inotify.max_user_instances={2 * needed}",
        )


@contextmanager
def bench_machine(tell: Tell) -> Iterator[tuple[Machine, Path]]:
    """An emulated machine that is on, and an inventory for it, while the context lasts.

    What is deployed comes from a mirror of this process. Raises CommandFailed where this machine cannot.
    """
    if missing := missing_machine_parts():
        raise CommandFailed(sentence="`bench cuts` cannot emulate a machine here", cause="; ".join(missing))
    with tempfile.TemporaryDirectory(prefix="fleet-bench-machine-") as name:
        directory = Path(name)
        archives = {
            f"v{version}": make_release_archive(
                directory / version / archive_name(),
                version=version,
                compression="tar.zst",
                binary=PROJECT / "testbed/ollama.py",
                python=PYTHON,
            )
            for version in (VERSION, NEXT_VERSION)
        }
        repos = [
            MirrorRepo(
                repo=SERVER_REPO, revisions={tag: {file.name: file} for tag, file in archives.items()}
            ),
            MirrorRepo(repo=WEIGHTS_REPO, revisions={WEIGHTS_REVISION: {WEIGHTS_FILE: CANARY}}),
        ]
        (directory / "pins.toml").write_text(render_pins(repos))
        try:
            machine = make_machine("machine", directory / "machine", tell)
        except MachineRefused as refused:
            raise CommandFailed(
                sentence=refused.sentence, cause=refused.cause, hint=refused.hint
            ) from refused
        login = {"ansible_ssh_private_key_file": machine.key, **SETTINGS}
        inventory = directory / "inventory.ini"
        here = f"ansible_host={machine.address} ansible_port={machine.port} ansible_user={machine.user}"
        lines = [f"machine {here}", "[all:vars]", *(f"{key}={value}" for key, value in login.items())]
        inventory.write_text("\n".join(lines) + "\n")
        shutil.copyfile(machine.access.known_hosts, directory / "known_hosts")
        with start_mirror(repos) as mirror:
            os.environ["MODELSCOPE_ENDPOINT"] = mirror.url
            try:
                machine.start()
                machine.wait_for_ssh()
                yield machine, inventory
            finally:
                machine.down()


def environment() -> dict[str, str]:
    """That of a controller whose practice hosts ask for the password of sudo, as `./fleet` leaves it."""
    return {**os.environ, VARIABLE: PASSWORD}


def fleet_command(*words: str) -> list[str]:
    """`./fleet WORDS` without the launcher, which has made the environment that runs this."""
    return [sys.executable, str(PROJECT), *words]


def run_fleet(*words: str) -> subprocess.CompletedProcess[str]:
    """A whole `./fleet` of its own, with its output."""
    return subprocess.run(
        fleet_command(*words), env=environment(), capture_output=True, text=True, check=False
    )


def set_in(inventory: Path, settings: Mapping[str, str]) -> None:
    """Other values for settings that the inventory has already."""
    lines = inventory.read_text().splitlines()
    for name, value in settings.items():
        lines = [f"{name}={value}" if line.startswith(f"{name}=") else line for line in lines]
    inventory.write_text("\n".join(lines) + "\n")


def until(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
