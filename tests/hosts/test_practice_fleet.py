"""The practice hosts: what other tests take for granted."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.hosts import PracticeFleet
from testbed.hosts_cgroup import processes_in_cgroup
from testbed.hosts_host import Host, NotInTime
from testbed.hosts_kinds import Kind
from testbed.hosts_tree import PASSWORD, PYTHON

ALL_KINDS = pytest.mark.parametrize("host", list(Kind), ids=lambda kind: kind.name, indirect=True)
POOR = pytest.mark.parametrize("host", [Kind.POOR], ids=["POOR"], indirect=True)
ASKS = pytest.mark.parametrize("host", [Kind.PASSWORD], ids=["PASSWORD"], indirect=True)
OLD = pytest.mark.parametrize("host", [Kind.OLD], ids=["OLD"], indirect=True)


@ALL_KINDS
def test_a_host_comes_up_whole_with_a_python_for_the_simulated_server(host: Host) -> None:
    assert host.wait_for_system() == "running"
    assert host.ssh(PYTHON, "-I", "-S", "-c", "'import json, hashlib, ssl; print(6 * 7)'").stdout == "42\n"
    assert host.ssh("hostname").stdout.strip() == host.name
    assert host.ssh("id", "-un").stdout.strip() == host.user
    assert host.ssh("id", "-un", user="root").stdout.strip() == "root"
    assert host.shell('echo "$1"; id -un; cat', "an argument", stdin="in").stdout == "an argument\nroot\nin"


def test_a_rich_host_gives_root_without_a_question(host: Host) -> None:
    assert host.ssh("sudo", "-n", "id", "-un").stdout.strip() == "root"


@POOR
def test_a_poor_host_has_neither_sudo_nor_curl_nor_zstd_nor_python_and_a_busybox_shell(host: Host) -> None:
    found = host.ssh("for name in sudo curl zstd unzstd python3 python strace; do command -v $name; done")
    assert found.stdout == ""
    assert host.ssh("readlink -f /bin/sh").stdout.strip().endswith("busybox")
    assert "BusyBox" in host.ssh("/bin/sh --help; :").stderr


@ASKS
def test_sudo_asks_for_the_password_where_it_is_meant_to(host: Host) -> None:
    assert "password is required" in host.ssh("sudo -n id").stderr
    assert host.ssh(f"echo {PASSWORD} | sudo -S -p '' id -un").stdout.strip() == "root"


@OLD
def test_an_old_host_is_a_debian_11(host: Host) -> None:
    assert host.ssh("cat", "/etc/debian_version").stdout.startswith("11.")


@ALL_KINDS
def test_the_power_button_ends_everything_and_what_was_on_the_disk_stays(host: Host) -> None:
    assert host.shell("echo kept >/root/kept; sync").returncode == 0
    host.kill9()
    assert not host.is_running
    assert processes_in_cgroup(host.name) == []
    assert host.ssh("true").returncode == 255
    with pytest.raises(NotInTime, match="is off"):
        host.shell("true")
    host.start()
    host.wait_for_ssh()
    assert host.shell("cat /root/kept").stdout == "kept\n"


@ALL_KINDS
def test_a_host_that_reboots_comes_back_by_itself(host: Host) -> None:
    before = host.init_pid()
    assert host.shell("echo kept >/root/kept").returncode == 0
    host.reboot()
    assert host.init_pid() != before
    assert host.shell("cat /root/kept").stdout == "kept\n"
    assert host.wait_for_system() == "running"


def test_a_host_whose_cable_is_pulled_runs_on_and_is_back_with_it(host: Host) -> None:
    before = host.init_pid()
    host.cut_link()
    assert host.ssh("true").returncode == 255
    assert host.shell("hostname").stdout.strip() == host.name
    host.mend_link()
    host.wait_for_ssh()
    assert host.init_pid() == before


def test_a_host_that_switches_itself_off_stays_off(host: Host) -> None:
    host.shell("systemctl poweroff --force --force")
    with pytest.raises(NotInTime, match="ended"):
        host.wait_for_ssh()
    assert not host.is_running


def test_no_host_has_processes_in_the_cgroups_of_another(host: Host, fleet: PracticeFleet) -> None:
    other = fleet.add(Kind.RICH)
    try:
        other.wait_for_ssh()
        hosts = (host, other)
        cgroups = [Path(f"/proc/{each.init_pid()}/cgroup").read_text() for each in hosts]
        assert cgroups[0] != cgroups[1]
        here, there = (set(processes_in_cgroup(each.name)) for each in hosts)
        assert host.init_pid() in here
        assert other.init_pid() in there
        assert not here & there
        assert host.shell("systemctl kill --signal=KILL ssh.service").returncode == 0
        other.wait_for_ssh()
    finally:
        fleet.remove(other)
