"""`testbed up` and `testbed down`: a practice fleet of this machine's, and what to do with it."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager

from console.paths import CANARY
from console.pin import cache_directory
from deploy.errors import CommandFailed, HostLocked, UsageError
from deploy.sudo import VARIABLE
from testbed.demo import VERSION
from testbed.hosts import (
    HOSTS_AT_MOST,
    NEXT_VERSION,
    FleetBusy,
    FleetThere,
    NoFleet,
    PracticeFleet,
    alone_in,
    fleet_directory,
    open_fleet,
    take_down,
)
from testbed.hosts_host import NotInTime
from testbed.hosts_kinds import Kind, kind_of
from testbed.hosts_machine import CACHE, MachineRefused, Tell
from testbed.hosts_state import state_file
from testbed.hosts_tree import PASSWORD

# A second fleet, in another XDG_STATE_HOME, gets another name.
_PREFIXES = ("practice", *(f"practice{letter}" for letter in string.ascii_lowercase))
_SETTINGS = {
    "ollama_service": "systemd",
    "ollama_gpu": "none",
    "ollama_models": "myqwen2",
    "ollama_version": VERSION,
}


def take_fleet_up(count: int, tell: Tell) -> int:
    """Make `count` hosts that let somebody in, and say what comes next; on any error none is left."""
    if not 1 <= count <= HOSTS_AT_MOST:
        raise UsageError(
            sentence=f"`--hosts {count}` is no number of hosts",
            expected=f"1 to {HOSTS_AT_MOST}",
            actual=str(count),
            unchanged="everything",
            hint="./fleet testbed up --hosts 4",
        )
    directory = fleet_directory()
    with _explained(), alone_in(directory):
        try:
            fleet = open_fleet(directory, _PREFIXES, tell)
            _make_hosts(fleet, count)
        except FleetThere:
            raise
        except BaseException:
            # Ctrl-C too. What cannot be removed now is still written down for `down`.
            if state_file(directory).exists():
                tell("taking away what was made")
            take_down(directory)
            raise
    _tell_next(fleet)
    return 0


def take_fleet_down(tell: Tell) -> int:
    """Remove the fleet, whatever state a run that was killed left it in."""
    directory = fleet_directory()
    with _explained():
        try:
            if not directory.exists():
                raise NoFleet
            with alone_in(directory):
                names = take_down(directory)
        except NoFleet:
            tell("there is no practice fleet")
        else:
            tell(f"taken down: {', '.join(names) or 'a fleet without hosts'}")
    if any(CACHE.glob("base-*")):
        tell(f"kept for the next `up`: the base trees in {CACHE}")
    return 0


def _make_hosts(fleet: PracticeFleet, count: int) -> None:
    fleet.offer(CANARY, cache_directory())
    for number in range(1, count + 1):
        fleet.add(kind_of(number))
    for host in fleet.hosts:
        host.wait_for_ssh()
        fleet.tell(f"{host.name}  {host.address}  {host.user:<5}  {host.kind.trait.told}")
    fleet.write_inventory(_SETTINGS)


def _tell_next(fleet: PracticeFleet) -> None:
    inventory = fleet.inventory
    asks = any(host.kind is Kind.PASSWORD for host in fleet.hosts)
    deploy = f"{VARIABLE}={PASSWORD} ./fleet" if asks else "./fleet"
    fleet.tell("")
    fleet.tell(inventory.read_text().rstrip())
    fleet.tell("")
    fleet.tell(f"inventory, keys and pins: {fleet.directory} (a mirror is not needed: all is in the cache)")
    fleet.tell("next:")
    fleet.tell(f"  {deploy} deploy --inventory {inventory}")
    fleet.tell(f"  an upgrade: ollama_version={NEXT_VERSION} in that file, then deploy again")
    for host in fleet.hosts[:1]:
        fleet.tell(f"  a shell: ssh -F {fleet.access.config} {host.name}")
    fleet.tell("  ./fleet testbed down")


@contextmanager
def _explained() -> Iterator[None]:
    """Failures of the testbed as designed errors."""
    directory = fleet_directory()
    try:
        yield
    except FleetThere as there:
        raise UsageError(
            sentence=f"a practice fleet is in `{directory}` already",
            cause=str(there),
            unchanged="everything",
            hint="./fleet testbed down, then up again",
        ) from there
    except FleetBusy as busy:
        raise HostLocked(
            sentence=f"another `testbed up` or `down` works in `{directory}`",
            unchanged="everything",
            hint="wait for it",
        ) from busy
    except NotInTime as late:
        raise CommandFailed(
            sentence="a practice host did not come up in `testbed up`", cause=str(late), hint="try it again"
        ) from late
    except MachineRefused as refused:
        raise CommandFailed(
            sentence=refused.sentence, cause=refused.cause, hint=refused.hint or "./fleet testbed down"
        ) from refused
