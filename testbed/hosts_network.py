"""The network of a practice fleet: a bridge; hosts reach this machine and each other, nothing else."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from testbed.hosts_machine import CACHE, MachineRefused, call, locked

FIRST_HOST, LAST_HOST = 11, 250
_CANDIDATES = tuple(IPv4Network(f"10.99.{number}.0/24") for number in range(256))


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """`prefix` begins the names of the hosts and is what makes them this fleet's on this machine."""

    prefix: str
    subnet: IPv4Network

    @property
    def bridge(self) -> str:
        return f"fb-{self.prefix}"

    @property
    def gateway(self) -> str:
        """This machine's address on the bridge."""
        return str(self.subnet[1])

    def address(self, number: int) -> str:
        """Of the host with this number, which counts from 1."""
        return str(self.subnet[FIRST_HOST + number - 1])


def claim_network(prefixes: Iterable[str], *, owner: Path, wanted: Callable[[Network], None]) -> Network:
    """Make a bridge with the first free prefix and a free subnet; `wanted` is told before it is made.

    `owner` is written on the bridge, so that only whose it is takes it away. Raises MachineRefused.
    """
    with locked(CACHE / "network.lock", waiting=lambda: None):
        names = _link_names()
        prefix = next((name for name in prefixes if f"fb-{name}" not in names), None)
        if prefix is None:
            raise MachineRefused(sentence="every name for a bridge is taken", hint="ip link show type bridge")
        network = Network(prefix=prefix, subnet=find_free_subnet(_routes()))
        wanted(network)
        call(["ip", "link", "add", network.bridge, "type", "bridge"])
        call(["ip", "link", "set", network.bridge, "alias", _alias(owner), "up"])
        call(["ip", "address", "add", f"{network.gateway}/{network.subnet.prefixlen}", "dev", network.bridge])
    return network


def release_network(network: Network, *, owner: Path) -> None:
    """Take the bridge away if it is there and the owner's; another one of that name stays."""
    for link in _links():
        # Without an alias: killed between making and naming it.
        if link["ifname"] == network.bridge and link.get("ifalias", _alias(owner)) == _alias(owner):
            call(["ip", "link", "delete", network.bridge])


def remove_link(name: str) -> None:
    """The link of a host that does not run any more may outlive it for a moment."""
    with suppress(MachineRefused):
        call(["ip", "link", "delete", name])


def set_link(name: str, state: str) -> None:
    """`up` or `down`. Raises MachineRefused."""
    call(["ip", "link", "set", name, state])


@contextmanager
def dropping(address: str, percent: int = 100) -> Iterator[None]:
    """Lose so many of a hundred packets to and from a host, and tell nobody: 100 is a black hole.

    In the kernel's own tables, of the family `inet`, under a name of this address.
    """
    table = f"fleet-drops-{address.replace('.', '-')}"
    which = "" if percent == 100 else f"numgen random mod 100 < {percent} "
    chains = "".join(
        f"chain {hook} {{ type filter hook {hook} priority 0; ip {end} {address} {which}drop; }}\n"
        for hook, end in (("output", "daddr"), ("input", "saddr"))
    )
    # Made first, so that one of a run that was killed can be deleted.
    call(["nft", "-f", "-"], stdin=f"table inet {table}\ndelete table inet {table}\n")
    call(["nft", "-f", "-"], stdin=f"table inet {table} {{\n{chains}}}\n")
    try:
        yield
    finally:
        call(["nft", "delete", "table", "inet", table])


@contextmanager
def shaping(link: str, kilobits_per_second: int) -> Iterator[None]:
    """Bytes go to the host of this link no faster than that: tc-tbf(8)."""
    rate = ["rate", f"{kilobits_per_second}kbit", "burst", "16kb", "latency", "500ms"]
    call(["tc", "qdisc", "replace", "dev", link, "root", "tbf", *rate])
    try:
        yield
    finally:
        # A host that was switched off meanwhile has taken its link along.
        with suppress(MachineRefused):
            call(["tc", "qdisc", "delete", "dev", link, "root"])


def find_free_subnet(routes: Iterable[str]) -> IPv4Network:
    """The first of the candidates that no route leads to; `default` leads everywhere and counts not."""
    taken = [ipaddress.ip_network(route, strict=False) for route in routes if route != "default"]
    known = [network for network in taken if isinstance(network, IPv4Network)]
    for candidate in _CANDIDATES:
        if not any(candidate.overlaps(network) for network in known if network.prefixlen > 0):
            return candidate
    raise MachineRefused(sentence="no part of 10.99.0.0/16 is free", hint="ip route show table all")


def _routes() -> Iterator[str]:
    for route in json.loads(call(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]"):
        yield route["dst"]


def _links() -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(call(["ip", "-json", "link", "show"]) or "[]")
    return found


def _link_names() -> set[str]:
    return {link["ifname"] for link in _links()}


def _alias(owner: Path) -> str:
    # IFALIASZ of linux/if.h is 256.
    return f"practice fleet {owner}"[-250:]
