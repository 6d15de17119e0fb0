"""Who can reach the server: it asks nobody for a key."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Union
from urllib.parse import urlsplit

from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENING = "0A"
_Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


def check_exposure(look: Look) -> Judgement:
    """The addresses on which the server's port is open: proc_net_tcp(5)."""
    url = urlsplit(look.config.url)
    port = url.port or 11434
    tables = [look.host.read_text(path) for path in _TABLES]
    if all(table is None for table in tables):
        return Judgement(State.UNKNOWN, "the kernel's list of listeners cannot be read")
    addresses = [found for table in tables for found in parse_listeners(table or "", port)]
    exposed = [address for address in addresses if not _is_loopback(address)]
    listeners = [_text(address, port) for address in addresses]
    evidence = {"port": port, "listeners": listeners, "exposed": [_text(one, port) for one in exposed]}
    facts = {"listeners": listeners}
    if not addresses:
        return Judgement(State.UNKNOWN, f"nobody listens on port {port}", None, evidence, facts)
    if not exposed:
        return Judgement(State.PASS, f"port {port} is open on loopback only", None, evidence, facts)
    reason = f"port {port} is open on {_text(exposed[0], port)}: whoever reaches it may use and change models"
    if _is_meant(url.hostname):
        hint = "put a gateway with keys in front of it, and the server back on 127.0.0.1"
        return Judgement(State.WARN, f"{reason}; the inventory says so", hint, evidence, facts)
    hint = "look for OLLAMA_HOST: systemctl show --property=Environment; ./fleet deploy sets it back"
    return Judgement(State.FAIL, reason, hint, evidence, facts)


def parse_listeners(table: str, port: int) -> Iterator[_Address]:
    """The local addresses in a table of /proc/net on which `port` is open."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 4 or fields[3] != _LISTENING:
            continue
        address, _, number = fields[1].partition(":")
        if int(number, 16) == port:
            yield _parse_address(address)


def _parse_address(hex_words: str) -> _Address:
    """Words of 32 bits, each in the byte order of the machine; all that we serve are little-endian."""
    raw = bytes.fromhex(hex_words)
    data = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    if len(data) == 4:
        return ipaddress.IPv4Address(data)
    found = ipaddress.IPv6Address(data)
    return found.ipv4_mapped or found


def _is_loopback(address: _Address) -> bool:
    return address.is_loopback


def _is_meant(host: str | None) -> bool:
    """Whether the deployed address is no loopback address itself."""
    try:
        return not ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host != "localhost"


def _text(address: _Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
