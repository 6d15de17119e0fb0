"""SSH on real hosts: a server with PAM, the real `sudo`, a second host to jump over, a cable to pull."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from deploy import ssh
from deploy.errors import CommandFailed, HostUnreachable
from deploy.ssh import Rights, SshTransport
from deploy.ssh_connection import SshTarget
from deploy.sudo import VARIABLE, SudoPassword
from testbed.hosts import PracticeFleet
from testbed.hosts_host import Host
from testbed.hosts_kinds import Kind
from testbed.hosts_tree import PASSWORD

WITH_SUDO = pytest.mark.parametrize("host", [Kind.RICH, Kind.OLD], ids=lambda kind: kind.name, indirect=True)
ASKS = pytest.mark.parametrize("host", [Kind.PASSWORD], ids=["PASSWORD"], indirect=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client without keys or configuration of its own."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv(VARIABLE, raising=False)
    return home


@contextlib.contextmanager
def reaching(
    host: Host, rights: Rights = Rights.ROOT, *, user: str | None = None, address: str | None = None
) -> Iterator[SshTransport]:
    """A transport as the inventory of the fleet describes it."""
    target = SshTarget(
        host=host.name,
        address=address or host.address,
        user=user or host.user,
        key_file=str(host.key),
        known_hosts=host.access.known_hosts,
    )
    transport = SshTransport(target, rights, SudoPassword())
    try:
        yield transport
    finally:
        transport.close()


# sudo.


@WITH_SUDO
def test_sudo_without_a_password_makes_root_of_the_user(host: Host) -> None:
    with reaching(host) as box:
        assert box.run(["id", "-u"]).stdout == b"0\n"
        data = os.urandom(100_000)
        assert box.run(["cat"], stdin=data).stdout == data
    with reaching(host, Rights.LOGIN) as box:
        assert box.run(["id", "-un"]).stdout == b"admin\n"


@pytest.mark.parametrize("host", [Kind.POOR], ids=["POOR"], indirect=True)
def test_root_needs_no_sudo_and_no_bash(host: Host) -> None:
    with reaching(host) as box:
        assert box.run(["id", "-u"]).stdout == b"0\n"
        assert box.run(["sh", "-c", "command -v sudo curl zstd python3"]).stdout == b""


@ASKS
def test_the_password_of_the_real_sudo_is_in_no_command_line_and_no_environment(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not the fleet's usual one, which is a word of the hosts' logs. It comes by standard input here too.
    secret = "sesame $HOME 'quoted'"
    assert host.shell("chpasswd", stdin=f"admin:{secret}\n").returncode == 0
    monkeypatch.setenv(VARIABLE, secret)
    with reaching(host) as box:
        assert box.run(["id", "-u"]).stdout == b"0\n"
        data = os.urandom(300_000)
        assert box.run(["cat"], stdin=data).stdout == data
        channel = box.open_channel(["sh", "-c", "echo here; read -r line; echo $line"])
        assert channel.read_line(20) == "here"
        # While sudo and what it started run; `/proc` has the words of every process.
        seen = host.shell("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'").stdout
        assert "echo here" in seen
        assert "sudo" in seen
        assert "sesame" not in seen
        channel.write_line("one")
        assert channel.read_line(20) == "one"
        channel.close()
    logged = host.shell("journalctl --no-pager; cat /var/log/* 2>/dev/null").stdout
    assert "COMMAND=" in logged
    assert "sesame" not in logged


@pytest.mark.fault(34)
@ASKS
@pytest.mark.parametrize("given", ["wrong", ""])
def test_a_wrong_password_is_refused_before_anything_is_done(
    host: Host, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv(VARIABLE, given)
    with reaching(host) as box, pytest.raises(CommandFailed, match="refuses this user or password") as raised:
        box.run(["touch", "/done"])
    assert "incorrect password" in str(raised.value.cause) or "try again" in str(raised.value.cause)
    assert not (host.root / "done").exists()


@ASKS
def test_without_a_terminal_the_variable_is_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: False)
    with reaching(host) as box, pytest.raises(CommandFailed, match="wants a password") as raised:
        box.run(["touch", "/done"])
    assert VARIABLE in str(raised.value.hint)
    assert not (host.root / "done").exists()


@pytest.mark.fault(34)
def test_a_user_whom_sudo_does_not_know_is_told_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    made = host.shell(f"useradd --create-home --shell /bin/bash guest && echo guest:{PASSWORD} | chpasswd")
    assert made.returncode == 0, made.stderr
    monkeypatch.setenv(VARIABLE, PASSWORD)
    with (
        reaching(host, user="guest") as box,
        pytest.raises(CommandFailed, match="refuses this user or password") as raised,
    ):
        box.run(["touch", "/done"])
    assert "guest is not in the sudoers file" in str(raised.value.cause)
    assert not (host.root / "done").exists()


@pytest.mark.fault(34)
def test_a_sudo_that_wants_a_terminal_is_told_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """`requiretty` was the default of Red Hat's sudoers until 2016."""
    assert host.shell("echo 'Defaults requiretty' >/etc/sudoers.d/tty").returncode == 0
    monkeypatch.setenv(VARIABLE, PASSWORD)
    with reaching(host) as box, pytest.raises(CommandFailed, match="refuses") as raised:
        box.run(["true"])
    assert "you must have a tty" in str(raised.value.cause)


# Keys and jumps.


@pytest.mark.fault(36)
def test_a_host_with_another_key_than_before_is_refused(host: Host) -> None:
    with reaching(host) as box:
        assert box.run(["true"]).exit_code == 0
    changed = host.shell(
        "rm /etc/ssh/ssh_host_ed25519_key*; "
        "ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; systemctl restart ssh"
    )
    assert changed.returncode == 0, changed.stderr
    with reaching(host) as box, pytest.raises(HostUnreachable, match="has changed") as raised:
        box.run(["touch", "/done"])
    assert f"ssh-keygen -R '{host.address}' -f {host.access.known_hosts}" in str(raised.value.hint)
    assert not (host.root / "done").exists()


def test_a_host_is_reached_over_another_that_alone_can_reach_it(
    host: Host, fleet: PracticeFleet, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = fleet.add(Kind.RICH)
    try:
        inner.wait_for_ssh()
        # From here on only its neighbour gets through to it.
        kept_out = inner.shell(f"ip route add blackhole {fleet.network.gateway}/32")
        assert kept_out.returncode == 0, kept_out.stderr
        monkeypatch.setattr("deploy.ssh_connection.CONNECT_SECONDS", 1)
        with reaching(inner) as box, pytest.raises(HostUnreachable, match="no SSH connection"):
            box.run(["true"])
        shutil.copy(host.key, home / ".ssh/id_ed25519")
        jump = f"Host jump\n  HostName {host.address}\n  User {host.user}\n"
        (home / ".ssh/config").write_text(f"{jump}Host {inner.address}\n  ProxyJump jump\n")
        # The jump host is none of the inventory's variables; its key is among the known ones all the same.
        with reaching(inner) as box:
            assert box.run(["hostname"]).stdout.decode().strip() == inner.name
            came_from = box.run(["sh", "-c", "ss -Htn state established '( sport = :22 )'"]).stdout.decode()
            assert host.address in came_from
            data = os.urandom(1_000_000)
            assert box.run(["cat"], stdin=data).stdout == data
    finally:
        fleet.remove(inner)


# A cable that is pulled.


@pytest.mark.fault(1)
def test_a_stream_that_was_cut_goes_on_where_it_ended(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "weights", PurePosixPath("/srv/weights")
    with source.open("wb") as file:
        file.writelines(os.urandom(1_000_000) for _ in range(300))
    part = host.root / "srv/.weights.part"
    # The kernel is patient for 30 s in earnest.
    monkeypatch.setattr("deploy.ssh_connection.SILENCE_MILLISECONDS", 3_000)
    pulled = threading.Event()

    def pull(done_bytes: int) -> None:
        if done_bytes > 100_000_000 and not pulled.is_set():
            pulled.set()
            host.cut_link()

    with reaching(host) as box:
        with pytest.raises(HostUnreachable):
            box.put(source, target, on_progress=pull)
        assert pulled.is_set()
        assert not (host.root / "srv/weights").exists()
        host.mend_link()
        host.wait_for_ssh()
        there = part.stat().st_size
        assert there > 50_000_000
        told: list[int] = []
        box.put(source, target, on_progress=told.append)
    assert min(told) > there
    assert host.shell("sha256sum /srv/weights").stdout.split()[0] == ssh._sha256(source)
    assert not part.exists()
