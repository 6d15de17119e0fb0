"""The practice fleet's decisions: which mirror, which network, which kind, what is missing."""

from __future__ import annotations

import os
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from testbed import hosts_machine
from testbed.hosts_kinds import Kind, kind_of
from testbed.hosts_machine import MachineRefused, check_machine, missing_parts
from testbed.hosts_network import Network, find_free_subnet
from testbed.hosts_state import HostRecord, ProcessId, State, identify, is_alive, read_state, write_state
from testbed.hosts_tree import OFFICIAL_MIRROR, Suite, debian_mirror, parse_list, parse_sources

LIST = """# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://mirror.example/debian/ bookworm main contrib # near
deb-src http://source.example/debian bookworm main
deb http://extra.example/packages bookworm stable
deb http://security.example/debian-security bookworm-security main
"""
SOURCES = """Types: deb deb-src
# a comment in between
URIs: http://one.example/debian http://two.example/debian
Suites: bookworm
 bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main
"""


def test_the_one_line_style_gives_its_binary_sources() -> None:
    assert list(parse_list(LIST)) == [
        ("https://mirror.example/debian/", "bookworm"),
        ("http://security.example/debian-security", "bookworm-security"),
    ]


def test_the_deb822_style_gives_every_address_with_every_suite() -> None:
    assert list(parse_sources(SOURCES)) == [
        ("http://one.example/debian", "bookworm"),
        ("http://one.example/debian", "bookworm-updates"),
        ("http://two.example/debian", "bookworm"),
        ("http://two.example/debian", "bookworm-updates"),
    ]


def test_the_mirror_is_the_machines_own() -> None:
    assert debian_mirror(parse_list(LIST), Suite.BOOKWORM) == "https://mirror.example/debian"


def test_a_mirror_of_another_release_has_this_one_too() -> None:
    assert debian_mirror(parse_list(LIST), Suite.BULLSEYE) == "https://mirror.example/debian"
    sources = [("http://new.example/debian", "trixie"), ("http://old.example/debian", "bullseye")]
    assert debian_mirror(sources, Suite.BULLSEYE) == "http://old.example/debian"


def test_a_machine_that_is_no_debian_takes_the_official_mirror() -> None:
    ubuntu = [("http://archive.ubuntu.com/ubuntu", "noble")]
    assert debian_mirror(ubuntu, Suite.BOOKWORM) == OFFICIAL_MIRROR


def test_the_network_is_one_that_no_route_leads_to() -> None:
    assert find_free_subnet(["default", "192.0.2.0/24"]) == IPv4Network("10.99.0.0/24")
    assert find_free_subnet(["10.99.0.0/24", "10.99.1.77", "10.98.0.0/16"]) == IPv4Network("10.99.2.0/24")
    assert find_free_subnet(["0.0.0.0/0", "10.99.0.0/17"]) == IPv4Network("10.99.128.0/24")
    with pytest.raises(MachineRefused, match="free"):
        find_free_subnet(["10.0.0.0/8"])


def test_a_host_has_the_address_and_the_names_of_its_network() -> None:
    network = Network(prefix="practice", subnet=IPv4Network("10.99.3.0/24"))
    assert (network.bridge, network.gateway, network.address(1)) == ("fb-practice", "10.99.3.1", "10.99.3.11")


def test_the_kinds_come_in_turn() -> None:
    assert [kind_of(number) for number in range(1, 7)] == [*Kind, Kind.RICH]
    assert [kind.name for kind in Kind] == ["RICH", "POOR", "PASSWORD", "OLD", "NEW"]


def test_the_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    leader = ProcessId(pid=7, start_ticks=11, boot_id="boot")
    state = State(
        network=Network(prefix="practice", subnet=IPv4Network("10.99.3.0/24")),
        hosts=(
            HostRecord(name="practice1", number=1, kind="RICH", leader=leader),
            HostRecord(name="practice2", number=2, kind="POOR"),
        ),
        cached=("/cache/file",),
    )
    for written in (state, State()):
        write_state(tmp_path, written)
        assert read_state(tmp_path) == written


def test_a_process_is_known_by_more_than_its_number() -> None:
    this = identify(os.getpid())
    assert this is not None
    assert is_alive(this)
    assert not is_alive(ProcessId(pid=this.pid, start_ticks=this.start_ticks + 1, boot_id=this.boot_id))
    assert not is_alive(ProcessId(pid=this.pid, start_ticks=this.start_ticks, boot_id="another"))
    assert not is_alive(None)


def test_a_machine_without_the_tools_is_refused_with_the_packages_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hosts_machine, "_TOOLS_PATH", str(tmp_path))
    monkeypatch.setattr(hosts_machine, "KEYRING", tmp_path / "none")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(MachineRefused) as refused:
        check_machine()
    assert refused.value.hint is not None
    assert refused.value.hint.startswith("apt install debian-archive-keyring debootstrap iproute2")
    assert "rights" not in str(refused.value)


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts_machine, "find_tool", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(hosts_machine, "KEYRING", Path(__file__))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert len(missing_parts()) == 1
    with pytest.raises(MachineRefused, match="rights of root") as refused:
        check_machine()
    assert refused.value.hint is not None
    assert "--privileged" in refused.value.hint
