"""What only SSH has: host keys, ways to be let in or not, jumps, cuts, sudo, parts that are continued."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
import requests

from deploy import ssh_commands, ssh_connection
from deploy.errors import ArchiveRefused, CommandFailed, HostUnreachable
from deploy.host_keys import KnownHosts, fleet_known_hosts
from deploy.release_stream import stream_release
from deploy.ssh import Rights, SshTransport
from deploy.ssh_connection import SshTarget, untrusted_keys
from deploy.sudo import VARIABLE, SudoPassword
from testbed.archive import make_release_archive
from testbed.demo import free_port
from testbed.link_proxy import Link, start_link_proxy
from tests.contract.sshd import Sshd, make_sshd, running_sshd

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def server(shared: Sshd) -> Iterator[Sshd]:
    """The module's server with a client's home as it was made."""
    config = (shared.home / ".ssh/config").read_text()
    shared.trust()
    yield shared
    (shared.home / ".ssh/config").write_text(config)
    shutil.rmtree(shared.home / ".config", ignore_errors=True)
    shared.trust()


@contextlib.contextmanager
def using(transport: SshTransport) -> Iterator[SshTransport]:
    try:
        yield transport
    finally:
        transport.close()


def refusal(transport: SshTransport) -> HostUnreachable:
    with using(transport), pytest.raises(HostUnreachable) as raised:
        transport.run(["true"])
    return raised.value


def keygen(*arguments: object) -> str:
    command = ["ssh-keygen", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# Host keys.


def test_an_unknown_host_key_is_refused_and_its_fingerprint_told(server: Sshd) -> None:
    server.known_hosts.unlink()
    error = refusal(server.transport())
    fingerprint = keygen("-lf", server.directory / "host_ed25519.pub").split()[1]
    assert error.sentence == f"the host key of `{server.name}` is not known"
    assert fingerprint in str(error.cause)
    assert error.hint == "./fleet trust box"


@pytest.mark.fault(36)
@pytest.mark.parametrize("known", ["rsa", "another ed25519"])
def test_a_changed_host_key_is_refused_with_both_fingerprints(
    server: Sshd, tmp_path: Path, known: str
) -> None:
    other = server.directory / "host_rsa.pub"
    if known != "rsa":
        keygen("-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other")
        other = tmp_path / "other.pub"
    server.known_hosts.write_text(f"{server.name} {other.read_text()}")
    error = refusal(server.transport())
    assert error.sentence == f"the host key of `{server.name}` has changed"
    assert keygen("-lf", other).split()[1] in str(error.expected)
    assert keygen("-lf", server.directory / "host_ed25519.pub").split()[1] in str(error.actual)
    assert f"ssh-keygen -R '{server.name}' -f {server.known_hosts}" in str(error.hint)


def test_a_hashed_name_and_the_file_of_fleet_trust_are_read(server: Sshd) -> None:
    keygen("-H", "-f", server.known_hosts)
    assert server.name not in server.known_hosts.read_text()
    with using(server.transport()) as box:
        assert box.run(["true"]).exit_code == 0
    server.known_hosts.unlink()
    fleet_known_hosts().parent.mkdir(parents=True)
    fleet_known_hosts().write_text(f"{server.name} {server.public_key()}\n")
    with using(server.transport()) as box:
        assert box.run(["true"]).exit_code == 0


def test_an_rsa_key_that_is_known_is_accepted(tmp_path: Path) -> None:
    server = make_sshd(tmp_path / "sshd", HostKey=str(tmp_path / "sshd/host_rsa"))
    server.trust("rsa")
    with running(server), using(server.transport()) as box:
        assert box.run(["true"]).exit_code == 0


@contextlib.contextmanager
def running(server: Sshd) -> Iterator[Sshd]:
    server.start()
    before = os.environ["HOME"]
    os.environ["HOME"] = str(server.home)
    try:
        yield server
    finally:
        os.environ["HOME"] = before
        server.stop()


def test_trust_finds_what_is_offered_and_is_content_once_it_is_known(server: Sshd) -> None:
    server.known_hosts.unlink()
    keys = untrusted_keys(server.target)
    assert [f"{key.kind} {key.data}" for key in keys] == [server.public_key()]
    assert keys[0].fingerprint == keygen("-lf", server.directory / "host_ed25519.pub").split()[1]
    assert KnownHosts().add(keys) == fleet_known_hosts()
    assert untrusted_keys(server.target) == ()
    with using(server.transport()) as box:
        assert box.run(["true"]).exit_code == 0


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_trust_refuses_a_changed_key(server: Sshd, tmp_path: Path, kind: str) -> None:
    keygen("-q", "-t", kind, "-N", "", "-f", tmp_path / "other")
    server.known_hosts.write_text(f"{server.name} {(tmp_path / 'other.pub').read_text()}")
    with pytest.raises(HostUnreachable, match="has changed"):
        untrusted_keys(server.target)


# Being let in.


def test_a_stranger_is_not_let_in_and_told_what_was_tried(server: Sshd, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    shutil.copy(server.known_hosts, home / ".ssh/known_hosts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        error = refusal(server.transport())
    assert "was not let in" in error.sentence
    assert "ssh-add" in str(error.hint)


def test_a_key_with_a_passphrase_is_an_error_that_names_the_agent(server: Sshd, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    shutil.copy(server.known_hosts, home / ".ssh/known_hosts")
    keygen("-q", "-t", "ed25519", "-N", "secret", "-f", home / ".ssh/id_ed25519")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        assert "ssh-add" in str(refusal(server.transport()).hint)


def test_the_agents_keys_are_used(server: Sshd, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    shutil.copy(server.known_hosts, home / ".ssh/known_hosts")
    agent = subprocess.Popen(
        ["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(home))
            patch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
            while not (tmp_path / "agent").exists():
                assert agent.poll() is None
            subprocess.run(
                ["ssh-add", "-q", server.home / ".ssh/id_ed25519"], check=True, stderr=subprocess.DEVNULL
            )
            with using(server.transport()) as box:
                assert box.run(["true"]).exit_code == 0
    finally:
        agent.terminate()
        agent.wait(10)


def test_the_users_configuration_gives_name_port_and_key(server: Sshd, tmp_path: Path) -> None:
    shutil.move(server.home / ".ssh/id_ed25519", tmp_path / "key")
    try:
        with (server.home / ".ssh/config").open("a") as config:
            config.write(f"Host gpu01\n  HostName 127.0.0.1\n  Port {server.port}\n")
            config.write(f"  IdentityFile {tmp_path}/key\n  IdentityFile ~/.ssh/none\n  IdentitiesOnly yes\n")
        with using(transport_to("gpu01")) as box:
            assert box.run(["echo", "in"]).stdout == b"in\n"
    finally:
        shutil.move(tmp_path / "key", server.home / ".ssh/id_ed25519")


def transport_to(address: str, rights: Rights = Rights.LOGIN) -> SshTransport:
    return SshTransport(SshTarget(host="box", address=address), rights, SudoPassword())


# No way there.


def test_a_closed_port_a_silent_one_and_a_name_that_is_none_are_told_apart(
    server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(address: str, port: int) -> str:
        target = SshTarget(host="box", address=address, port=port)
        error = refusal(SshTransport(target, Rights.LOGIN, SudoPassword()))
        assert error.sentence == f"no SSH connection to `[{address}]:{port}`"
        return str(error.cause)

    monkeypatch.setattr(ssh_connection, "CONNECT_SECONDS", 1)
    assert "refused" in unreachable("127.0.0.1", free_port())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "does not speak SSH within 1 s" in unreachable("127.0.0.1", silent.getsockname()[1])
    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    assert "cannot be resolved" in unreachable("no-such-host.invalid", 22022)


def no_such_name(*_: object, **__: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.fault(5)
def test_a_connection_that_is_cut_while_a_command_runs_is_told_and_made_anew(
    server: Sshd, tmp_path: Path
) -> None:
    with using(server.transport()) as box:
        channel = box.open_channel(["cat"])
        cutter = CutWhenThere(server, tmp_path / "running")
        cutter.start()
        with pytest.raises(HostUnreachable, match="was cut"):
            box.run(["sh", "-c", 'touch "$0"; sleep 60', str(tmp_path / "running")])
        cutter.join(20)
        with pytest.raises(HostUnreachable, match="is gone"):
            channel.write_line("anybody?")
        channel.close()
        assert box.run(["echo", "again"]).stdout == b"again\n"


class CutWhenThere(threading.Thread):
    """Cuts every connection as soon as a file has appeared."""

    def __init__(self, server: Sshd, path: Path) -> None:
        super().__init__(daemon=True)
        self._server, self._path = server, path

    def run(self) -> None:
        while not self._path.exists():
            os.sched_yield()
        self._server.cut()


@pytest.mark.fault(48)
def test_a_login_shell_with_words_of_its_own_is_found_out(tmp_path: Path) -> None:
    with running_sshd(
        tmp_path / "sshd", ForceCommand='echo welcome; sh -c "$SSH_ORIGINAL_COMMAND"'
    ) as server:
        with using(server.transport()) as box, pytest.raises(CommandFailed, match="login shell") as raised:
            box.run(["true"])
        assert "welcome" in str(raised.value.cause)


# Jumps and tunnels.


def test_a_jump_host_is_passed_and_its_key_is_verified_too(server: Sshd, tmp_path: Path) -> None:
    inner = make_sshd(tmp_path / "inner")
    inner.start()
    try:
        shutil.copy(server.directory / "authorized_keys", inner.directory / "authorized_keys")
        with (server.home / ".ssh/config").open("a") as config:
            config.write(f"Host jump\n  HostName 127.0.0.1\n  Port {server.port}\n")
            config.write(f"Host gpu01\n  HostName 127.0.0.1\n  Port {inner.port}\n  ProxyJump jump\n")
        target = SshTarget(host="box", address="gpu01")
        server.known_hosts.unlink()
        assert f"`{server.name}` is not known" in refusal(transport_to("gpu01")).sentence
        # One after the other, as they are reached.
        assert [key.name for key in untrusted_keys(target)] == [server.name]
        KnownHosts().add(untrusted_keys(target))
        assert f"`{inner.name}` is not known" in refusal(transport_to("gpu01")).sentence
        assert [key.name for key in untrusted_keys(target)] == [inner.name]
        KnownHosts().add(untrusted_keys(target))
        assert untrusted_keys(target) == ()
        with using(transport_to("gpu01")) as box:
            assert box.run(["cat"], stdin=b"x" * 1_000_000).stdout == b"x" * 1_000_000
            assert len(inner.connections()) > 0
        inner.stop()
        error = refusal(transport_to("gpu01"))
        assert error.sentence == f"no SSH connection to `{inner.name}`"
        assert "jump host" in str(error.cause)
    finally:
        inner.stop()


@pytest.mark.parametrize("setting", ["AllowTcpForwarding", "PermitOpen"])
def test_a_server_that_forwards_nothing_is_named(tmp_path: Path, setting: str) -> None:
    value = {"AllowTcpForwarding": "no", "PermitOpen": "127.0.0.1:1"}[setting]
    with (
        running_sshd(tmp_path / "sshd", **{setting: value}) as server,
        using(server.transport()) as box,
        pytest.raises(CommandFailed, match="forwards no connection") as raised,
        box.http_url("http://127.0.0.1:11434"),
    ):
        pass
    assert "AllowTcpForwarding" in str(raised.value.cause)
    assert "PermitOpen 127.0.0.1:11434" in str(raised.value.hint)


def test_a_tunnel_over_a_connection_that_is_cut_ends_its_requests(server: Sshd) -> None:
    with using(server.transport()) as box, socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with box.http_url(f"http://127.0.0.1:{port}") as url:

            def cut() -> None:
                # The first connection is the question whether forwarding is allowed at all.
                kept.extend(silent.accept()[0] for _ in range(2))
                server.cut()

            kept: list[socket.socket] = []
            thread = threading.Thread(target=cut)
            thread.start()
            with pytest.raises(requests.ConnectionError):
                requests.get(url, timeout=20)
            thread.join(20)
            for accepted in kept:
                accepted.close()


# Root's rights.

SUDO = r"""#!/bin/sh
# Takes what we use of sudo(8): -k -n -S -p PROMPT --, and one password; writes down how it was called.
echo "$*" >>"$FAKE/calls"
asks=yes
while [ "$1" != -- ]; do
    case $1 in
        -n) asks=never ;;
        -p) shift ;;
    esac
    shift
done
shift
if [ -s "$FAKE/password" ]; then
    [ "$asks" = yes ] || { echo "sudo: a password is required" >&2; exit 1; }
    IFS= read -r given
    [ "$given" = "$(cat "$FAKE/password")" ] || { echo "Sorry, try again." >&2; exit 1; }
fi
ELEVATED=yes
export ELEVATED
exec "$@"
"""


@pytest.fixture
def sudoers(tmp_path: Path) -> Iterator[Sshd]:
    """A host where we are no root, and `sudo` is a script: `fake/password` is what it wants."""
    fake = tmp_path / "fake"
    fake.mkdir()
    for name, text in {"sudo": SUDO, "id": "#!/bin/sh\necho 1000\n"}.items():
        (fake / name).write_text(text)
        (fake / name).chmod(0o755)
    environment = f"PATH={fake}:{os.environ['PATH']} FAKE={fake}"
    with running_sshd(tmp_path / "sshd", SetEnv=environment) as server:
        yield server


def secret(server: Sshd, password: str) -> Path:
    path = server.directory.parent / "fake/password"
    path.write_text(password)
    return path


def calls(server: Sshd) -> str:
    return (server.directory.parent / "fake/calls").read_text()


def test_without_need_nobody_becomes_root(sudoers: Sshd) -> None:
    with using(sudoers.transport(Rights.LOGIN)) as box:
        assert box.run(["sh", "-c", "echo ${ELEVATED-no}"]).stdout == b"no\n"
    assert not (sudoers.directory.parent / "fake/calls").exists()


def test_root_needs_no_sudo(server: Sshd) -> None:
    if os.getuid() == 0:
        with using(server.transport(Rights.ROOT)) as box:
            assert box.run(["id", "-u"]).stdout == b"0\n"


def test_with_nopasswd_no_password_is_asked_for(sudoers: Sshd) -> None:
    with using(sudoers.transport(Rights.ROOT)) as box:
        assert box.run(["sh", "-c", "cat; echo $ELEVATED"], stdin=b"in ").stdout == b"in yes\n"
        channel = box.open_channel(["sh", "-c", "read -r line; echo $ELEVATED $line"])
        channel.write_line("one")
        assert channel.read_line(20) == "yes one"
        channel.close()


def test_the_password_goes_to_sudo_and_to_nothing_else(
    sudoers: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "pass'word $HOME")
    password = secret(sudoers, "pass'word $HOME")
    with using(sudoers.transport(Rights.ROOT)) as box:
        assert VARIABLE in os.environ
        data = os.urandom(300_000)
        assert box.run(["cat"], stdin=data).stdout == data
        assert VARIABLE not in os.environ
        assert box.run(["sh", "-c", "cat; echo $ELEVATED"]).stdout == b"yes\n"
        channel = box.open_channel(["sh", "-c", "read -r line; echo $ELEVATED $line"])
        channel.write_line("one")
        assert channel.read_line(20) == "yes one"
        channel.close()
        # A sudo that has stopped asking leaves the password in the stream: it must not reach the command.
        password.write_text("")
        assert box.run(["cat"], stdin=data).stdout == data
    assert "pass'word" not in calls(sudoers)


def test_a_wrong_password_is_an_error_before_anything_is_done(
    sudoers: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "wrong")
    secret(sudoers, "right")
    with (
        using(sudoers.transport(Rights.ROOT)) as box,
        pytest.raises(CommandFailed, match="refuses") as raised,
    ):
        box.run(["true"])
    assert "Sorry" in str(raised.value.cause)
    assert "wrong" not in str(raised.value)


def test_without_a_terminal_and_without_the_variable_the_way_out_is_named(
    sudoers: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: False)
    secret(sudoers, "right")
    with using(sudoers.transport(Rights.ROOT)) as box, pytest.raises(CommandFailed, match="wants") as raised:
        box.run(["true"])
    assert VARIABLE in str(raised.value.hint)


# Files in parts.


@pytest.mark.fault(4)
def test_a_stream_that_nobody_reads_is_given_up_and_its_host_named(server: Sshd) -> None:
    endless = itertools.repeat(bytes(100_000))
    with (
        using(server.transport()) as box,
        pytest.raises(HostUnreachable, match="`sleep 60` took no more bytes") as raised,
    ):
        box.send(["sleep", "60"], endless, stall_seconds=1)
    assert raised.value.host == box.host
    assert raised.value.cause == "nothing moved for 1 s"


@pytest.mark.fault(4)
def test_a_link_that_stalls_when_a_command_is_begun_is_given_up(
    server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a jump host TCP sees nothing of it: every byte was taken."""
    monkeypatch.setattr("deploy.ssh.CONNECT_SECONDS", 1)
    with start_link_proxy(("127.0.0.1", server.port)) as proxy:
        with server.known_hosts.open("a") as known:
            known.write(f"[127.0.0.1]:{proxy.port} {server.public_key()}\n")
        target = replace(server.target, port=proxy.port)
        with using(SshTransport(target, Rights.LOGIN, SudoPassword())) as box:
            assert box.run(["true"]).exit_code == 0
            # Enough for a channel to be opened, and not for what is to be run.
            proxy.link = Link(stall_after_bytes=proxy.sent_bytes + 1000)
            with pytest.raises(HostUnreachable, match="was cut"):
                box.run(["true", "x" * 20_000])


def test_a_file_is_continued_where_it_was_cut(server: Sshd, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(2_000_000))
    (tmp_path / ".target.part").write_bytes(source.read_bytes()[:1_500_000])
    told: list[int] = []
    with using(server.transport()) as box:
        box.put(source, PurePosixPath(target), on_progress=told.append)
    assert target.read_bytes() == source.read_bytes()
    assert min(told) > 1_500_000


@pytest.mark.parametrize("size_bytes", [1_000, 5_000])
def test_a_part_of_another_file_is_not_continued(server: Sshd, tmp_path: Path, size_bytes: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"right" * 800)
    (tmp_path / ".target.part").write_bytes(b"w" * size_bytes)
    with using(server.transport()) as box:
        box.put(source, PurePosixPath(target), on_progress=lambda _: None)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if "target" in path.name) == ["target"]


def test_a_cut_put_leaves_the_old_file_and_a_part(server: Sshd, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(30_000_000))
    target.write_bytes(b"old")

    def cut(done_bytes: int) -> None:
        if done_bytes > 10_000_000:
            server.cut()

    with using(server.transport()) as box:
        with pytest.raises(HostUnreachable, match="was cut"):
            box.put(source, PurePosixPath(target), on_progress=cut)
        assert target.read_bytes() == b"old"
        assert 0 < (tmp_path / ".target.part").stat().st_size < 30_000_000
        box.put(source, PurePosixPath(target), on_progress=lambda _: None)
    assert target.read_bytes() == source.read_bytes()


# Releases.


def release_of(tmp_path: Path) -> Path:
    return make_release_archive(
        tmp_path / "ollama-linux-amd64.tar.zst",
        version="0.17.5",
        compression="tar.zst",
        binary=PROJECT / "testbed/ollama.py",
    )


def test_a_release_is_unpacked_on_the_host_and_replaces_one_of_its_name(server: Sshd, tmp_path: Path) -> None:
    archive, release = release_of(tmp_path), tmp_path / "host/releases/0.17.5"
    told: list[int] = []
    with using(server.transport()) as box:
        for _ in range(2):
            stream_release(
                box,
                archive,
                PurePosixPath(release),
                version="0.17.5",
                sha256="e" * 64,
                on_progress=told.append,
            )
            (release / "lib/more").mkdir(parents=True, exist_ok=True)
            assert (release / "bin/ollama").stat().st_mode & 0o7777 == 0o755
            (release / "lib/more").rmdir()
    sizes = [path.stat().st_size for path in release.rglob("*") if path.is_file() and not path.is_symlink()]
    record = json.loads((release / "release.json").read_text())
    ours = [(release / name).stat().st_size for name in ("release.json", "release.env")]
    assert record.pop("bytes") == sum(sizes) - sum(ours)
    program = hashlib.sha256((release / "bin/ollama").read_bytes()).hexdigest()
    assert record == {"version": "0.17.5", "archive_sha256": "e" * 64, "program_sha256": program}
    assert max(told) >= sum(sizes) - 1000
    assert [path.name for path in release.parent.iterdir()] == ["0.17.5"]


def test_a_hostile_archive_leaves_nothing_on_the_host(server: Sshd, tmp_path: Path) -> None:
    import gzip
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        binary = tarfile.TarInfo("bin/ollama")
        binary.size, binary.mode = 3_000_000, 0o755
        tar.addfile(binary, io.BytesIO(bytes(3_000_000)))
        tar.addfile(tarfile.TarInfo("../outside"))
    archive = tmp_path / "hostile.tgz"
    archive.write_bytes(gzip.compress(buffer.getvalue()))
    releases = tmp_path / "host/releases"
    with using(server.transport()) as box:
        with pytest.raises(ArchiveRefused, match="outside the release directory"):
            stream_release(
                box,
                archive,
                PurePosixPath(releases / "0.17.5"),
                version="0.17.5",
                sha256="e" * 64,
                on_progress=lambda _: None,
            )
        assert list(releases.iterdir()) == []
    assert not (tmp_path / "host/outside").exists()


def test_a_stream_that_ends_between_two_members_makes_no_release(server: Sshd, tmp_path: Path) -> None:
    import tarfile

    info = tarfile.TarInfo("bin/ollama")
    with using(server.transport()) as box:
        done = box.send(
            ssh_commands.receive_release(PurePosixPath(tmp_path / "releases/1")),
            [info.tobuf(tarfile.GNU_FORMAT), bytes(10240)],
        )
    assert (done.exit_code, done.last_words) == (65, ssh_commands.CUT_STREAM)
    assert list((tmp_path / "releases").iterdir()) == []
