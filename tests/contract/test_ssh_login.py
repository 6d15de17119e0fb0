"""The key file that the inventory names, and the known_hosts beside it."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from ansible import constants  # type: ignore[import-untyped]
from ansible.plugins.loader import connection_loader  # type: ignore[import-untyped]

from console.run import _TRANSPORTS, transport_to
from console.trust import trust_asking
from deploy.compose import login_of
from deploy.desired import Login
from deploy.errors import ExitCode, HostUnreachable, InventoryError
from deploy.host_keys import KnownHosts, fleet_known_hosts
from deploy.report import Report
from deploy.settings import load_settings
from deploy.ssh_connection import untrusted_keys
from deploy.transport import Transport
from tests.contract.sshd import Sshd, make_sshd, running_sshd
from tests.contract.test_ssh import keygen

PROJECT = Path(__file__).resolve().parents[2]
ROOT = PurePosixPath("/srv/elsewhere")
KEY_FILES = ("ansible_private_key_file", "ansible_ssh_private_key_file")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    for transport in _TRANSPORTS.values():
        transport.close()
    _TRANSPORTS.clear()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    # One wrong key more and the server hangs up: what is let in was offered first.
    with running_sshd(tmp_path_factory.mktemp("sshd"), MaxAuthTries="1") as server:
        yield server


@pytest.fixture
def server(shared: Sshd) -> Iterator[Sshd]:
    yield shared
    shutil.rmtree(shared.home / ".config", ignore_errors=True)
    shared.trust()


@pytest.fixture
def key(server: Sshd) -> Iterator[Path]:
    """The key that the server takes, lying where nobody looks; a wrong one lies in its place."""
    usual = server.home / ".ssh/id_ed25519"
    key = server.home / "the key"
    shutil.move(usual, key)
    keygen("-q", "-t", "ed25519", "-N", "", "-f", usual)
    yield key
    shutil.move(key, usual)


def login(server: Sshd, inventory: Path, variables: str = "") -> Login:
    """What the inventory says of a host that is the server."""
    inventory.write_text(f"box ansible_host=127.0.0.1 ansible_port={server.port} {variables}\n")
    _, settings = load_settings(inventory, data_home=PurePosixPath("/data"))
    found = login_of(settings["box"])
    assert found is not None
    return found


def box(server: Sshd, inventory: Path, variables: str = "") -> Transport:
    return transport_to("box", login(server, inventory, variables), ROOT)


def refusal(transport: Transport) -> HostUnreachable:
    with pytest.raises(HostUnreachable) as raised:
        transport.run(["true"])
    return raised.value


# The key file.


@pytest.mark.parametrize("given", [KEY_FILES[:1], KEY_FILES[1:], KEY_FILES, KEY_FILES[::-1]])
def test_of_both_names_for_the_key_file_the_one_that_ansible_takes_wins(
    server: Sshd, tmp_path: Path, given: tuple[str, ...]
) -> None:
    for name in given:
        (tmp_path / name).touch()
    variables = {name: str(tmp_path / name) for name in given}
    line = " ".join(f"{name}={path}" for name, path in variables.items())
    found = login(server, tmp_path / "inventory.ini", line)
    connection_loader.get("ssh", class_only=True)
    assert found.key_file == constants.config.get_config_value(
        "private_key_file", plugin_type="connection", plugin_name="ssh", variables=variables
    )


@pytest.mark.parametrize("name", KEY_FILES)
def test_the_key_file_is_offered_before_any_other_key(
    server: Sshd, key: Path, tmp_path: Path, name: str
) -> None:
    inventory = tmp_path / "inventory.ini"
    assert refusal(box(server, inventory)).sentence.endswith("was not let in")
    assert key.parent == server.home
    done = box(server, inventory, f"{name}='~/{key.name}'").run(["echo", "in"])
    assert done.stdout == b"in\n"


def test_the_key_file_comes_before_the_agents_and_the_configurations_keys(
    server: Sshd, key: Path, tmp_path: Path
) -> None:
    config = server.home / ".ssh/config"
    before = config.read_text()
    config.write_text(f"{before}  IdentityFile ~/.ssh/id_ed25519\n  IdentitiesOnly yes\n")
    try:
        assert "was not let in" in refusal(box(server, tmp_path / "inventory.ini")).sentence
        done = box(server, tmp_path / "inventory.ini", f"ansible_private_key_file='{key}'").run(["true"])
        assert done.exit_code == 0
    finally:
        config.write_text(before)


def test_the_key_file_is_not_shown_to_a_jump_host(server: Sshd, tmp_path: Path) -> None:
    inner = make_sshd(tmp_path / "inner")
    inner.start()
    config = server.home / ".ssh/config"
    before = config.read_text()
    config.write_text(
        f"{before}Host jump\n  HostName 127.0.0.1\n  Port {server.port}\n"
        f"Host inner\n  HostName 127.0.0.1\n  Port {inner.port}\n  ProxyJump jump\n"
    )
    try:
        server.known_hosts.write_text(server.known_hosts.read_text() + inner.known_hosts.read_text())
        inventory = tmp_path / "inventory.ini"
        # The jump host hangs up at the first wrong key; it must be asked with the usual one.
        inventory.write_text(
            f"box ansible_host=inner ansible_private_key_file={inner.home}/.ssh/id_ed25519\n"
        )
        _, settings = load_settings(inventory, data_home=PurePosixPath("/data"))
        done = transport_to("box", login_of(settings["box"]), ROOT).run(["echo", "in"])
        assert done.stdout == b"in\n"
    finally:
        config.write_text(before)
        inner.stop()


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_a_key_file_that_the_server_does_not_take_is_named_with_the_command_to_try(
    tmp_path: Path, kind: str
) -> None:
    wrong = tmp_path / "a wrong key"
    keygen("-q", "-t", kind, "-N", "", "-f", wrong)
    user = getpass.getuser()
    with running_sshd(tmp_path / "sshd") as server:
        (server.home / ".ssh/id_ed25519").unlink()
        found = box(server, tmp_path / "inventory.ini", f"ansible_private_key_file='{wrong}'")
        error = refusal(found)
    assert error.sentence == f"`{user}@127.0.0.1` was not let in"
    assert f"tried were {wrong} of the inventory" in str(error.cause)
    assert "encountered" not in str(error.cause)
    assert f"ssh -i '{wrong}' -p {server.port} {user}@127.0.0.1 true" in str(error.hint)


@pytest.mark.parametrize("written", ["~/.ssh/no such key", "/no/such/key", "~nobody-of-that-name/key", "/"])
def test_a_key_file_that_is_not_there_is_an_error_that_names_the_line(
    server: Sshd, tmp_path: Path, written: str
) -> None:
    inventory = tmp_path / "inventory.ini"
    text = f"# ours\nbox\n[gpu]\nbox\n[gpu:vars]\nansible_user=ops\nansible_ssh_private_key_file={written}\n"
    inventory.write_text(text)
    _, settings = load_settings(inventory, data_home=PurePosixPath("/data"))
    with pytest.raises(InventoryError) as raised:
        login_of(settings["box"])
    assert raised.value.sentence == f"the key file `{written}` cannot be read"
    assert (raised.value.path, raised.value.line) == (str(inventory), 7)


def test_hosts_with_different_key_files_do_not_share_a_connection(server: Sshd, tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.ini"
    for name in ("one", "two"):
        (tmp_path / name).touch()
    one = box(server, inventory, f"ansible_private_key_file={tmp_path}/one")
    assert box(server, inventory, f"ansible_private_key_file={tmp_path}/one") is one
    assert box(server, inventory, f"ansible_private_key_file={tmp_path}/two") is not one


# known_hosts beside the inventory.


def test_a_key_beside_the_inventory_counts(server: Sshd, tmp_path: Path) -> None:
    server.known_hosts.unlink()
    inventory = tmp_path / "inventory.ini"
    error = refusal(box(server, inventory))
    assert "is not known" in error.sentence
    assert str(tmp_path / "known_hosts") in str(error.cause)
    (tmp_path / "known_hosts").write_text(f"{server.name} {server.public_key()}\n")
    assert box(server, inventory).run(["true"]).exit_code == 0
    with contextlib.chdir(tmp_path):
        assert box(server, Path("inventory.ini")).run(["true"]).exit_code == 0


@pytest.mark.parametrize("liar", ["user", "fleet", "inventory"])
def test_a_file_with_another_key_refuses_the_host_whatever_the_others_say(
    server: Sshd, tmp_path: Path, liar: str
) -> None:
    files = {
        "user": server.known_hosts,
        "fleet": fleet_known_hosts(),
        "inventory": tmp_path / "known_hosts",
    }
    keygen("-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other")
    other = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    for name, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{server.name} {other if name == liar else server.public_key()}\n")
    error = refusal(box(server, tmp_path / "inventory.ini"))
    assert error.sentence == f"the host key of `{server.name}` has changed"
    assert str(error.expected).endswith(f" of {files[liar]}")
    assert [str(path) in str(error.hint) for path in files.values()] == [name == liar for name in files]
    target = server.target.__class__(
        host="box", address="127.0.0.1", port=server.port, known_hosts=tmp_path / "known_hosts"
    )
    with pytest.raises(HostUnreachable, match="has changed"):
        untrusted_keys(target)


@pytest.mark.parametrize("known", [["rsa"], ["rsa", "ed25519"]])
def test_a_server_with_keys_of_two_kinds_shows_one_that_is_known(tmp_path: Path, known: list[str]) -> None:
    more = tmp_path / "more"
    more.write_text(f"HostKey {tmp_path}/sshd/host_rsa\n")
    with running_sshd(tmp_path / "sshd", Include=str(more)) as server:
        server.known_hosts.unlink()
        for kind, path in zip(known, [server.known_hosts, tmp_path / "known_hosts"], strict=False):
            path.write_text(f"{server.name} {server.public_key(kind)}\n")
        assert box(server, tmp_path / "inventory.ini").run(["true"]).exit_code == 0


def trust(inventory: Path, *, yes: bool = True) -> tuple[ExitCode, list[dict[str, object]]]:
    out = io.StringIO()
    report = Report(as_json=True, inventory=str(inventory), stdout=out, stderr=io.StringIO())
    code = trust_asking(report, str(inventory), "box", yes=yes)
    return code, [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("lines", ["", "# ours\n", "# without an end of line"])
def test_trust_adds_beside_the_inventory_where_the_file_is_there(
    server: Sshd, tmp_path: Path, lines: str
) -> None:
    inventory, beside = tmp_path / "inventory.ini", tmp_path / "known_hosts"
    found = box(server, inventory)
    server.known_hosts.unlink()
    beside.write_text(lines)
    code, events = trust(inventory)
    assert (code, events[-1]["known_hosts"]) == (ExitCode.DONE, str(beside))
    assert f"{server.name} {server.public_key()}" in beside.read_text().splitlines()
    assert not fleet_known_hosts().exists()
    assert found.run(["true"]).exit_code == 0
    assert trust(inventory)[1][-1]["changed"] == 0


def test_trust_adds_to_the_fleets_own_file_where_none_is_beside_the_inventory(
    server: Sshd, tmp_path: Path
) -> None:
    inventory = tmp_path / "inventory.ini"
    login(server, inventory)
    server.known_hosts.unlink()
    code, events = trust(inventory)
    assert (code, events[-1]["known_hosts"]) == (ExitCode.DONE, str(fleet_known_hosts()))
    assert not (tmp_path / "known_hosts").exists()
    assert KnownHosts().keys(server.name)[0].file == fleet_known_hosts()


# The next command.


def fleet(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def test_the_hint_of_an_unknown_key_is_the_exact_next_command(server: Sshd, tmp_path: Path) -> None:
    directory = tmp_path / "a team"
    directory.mkdir()
    inventory = directory / "hosts.ini"
    login(server, inventory, "ollama_service=process ollama_root=/srv/x ollama_gpu=none")
    server.known_hosts.unlink()
    told = fleet("gpu", "--inventory", inventory).stderr
    hint = f"./fleet trust --inventory '{inventory}' box"
    assert f"hint: {hint}\n" in told
    assert server.name in fleet(*shlex.split(hint)[1:], "--yes").stdout
    assert "is not known" not in fleet("gpu", "--inventory", inventory).stderr


def test_no_hosts_at_once_is_a_usage_error(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.ini"
    inventory.write_text("box ansible_connection=local ollama_service=process ollama_gpu=none\n")
    for number in ("0", "-3"):
        done = fleet("gpu", "--inventory", inventory, f"--forks={number}")
        assert done.returncode == ExitCode.USAGE
        assert f"`--forks {number}`" in done.stderr
