"""An SSH connection as we trust it: host keys verified, deadlines set, every way to fail said in words.

Fabric reads `~/.ssh/config` and builds the jumps; it would also accept any host key (fabric 3.2.3,
`connection.py`), so every hop is given the known_hosts files and a policy that refuses.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko
from fabric import Config, Connection

from deploy.errors import CommandFailed, FleetError, HostUnreachable

CONNECT_SECONDS = 10
AUTHENTICATION_SECONDS = 20
KEEPALIVE_SECONDS = 15
SILENCE_MILLISECONDS = 45_000
# Fastest first: 209 MiB/s were measured with it, about as much as scp does.
_FIRST_CIPHER = "aes128-gcm@openssh.com"
_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512")

# What it logs are the tracebacks of errors that are told in words here; without a handler they go to stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True, kw_only=True)
class SshTarget:
    """How a host is reached. `port` and `user` are None where `~/.ssh/config` decides."""

    host: str
    address: str
    port: int | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """A key that a server offers; `name` is the server's in known_hosts, `data` the key in base64."""

    name: str
    kind: str
    data: str

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -lf` writes it."""
        return _fingerprint(base64.b64decode(self.data))


def known_hosts_paths() -> tuple[Path, ...]:
    """Where keys are looked up: the system's, the user's, and the file that `./fleet trust` adds to."""
    return (Path("/etc/ssh/ssh_known_hosts"), Path.home() / ".ssh/known_hosts", fleet_known_hosts())


def fleet_known_hosts() -> Path:
    """`$XDG_CONFIG_HOME/ollama-fleet/known_hosts`, `~/.config` where it is not set."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".config") / "ollama-fleet/known_hosts"


def open_connection(target: SshTarget) -> Any:
    """A connected and authenticated `fabric.Connection`, its jumps opened first.

    Raises HostUnreachable: unknown or changed host key, refused, timed out, no name, not authenticated.
    """
    hops = _hops(target)
    try:
        for hop in hops:
            _prepare(hop, target)
            _open(hop, target)
    except BaseException:
        close_connection(hops[-1])
        raise
    return hops[-1]


def close_connection(connection: Any) -> None:
    """Close it and its jumps."""
    while isinstance(connection, Connection):
        # Also one that was never authenticated, which Fabric takes for not open.
        connection.client.close()
        connection = connection.gateway


def _hops(target: SshTarget) -> list[Any]:
    """The connections in the order in which they are opened; the last is the host itself."""
    # Lazy: no fabric.yml of the user's changes what happens here; of ~/.ssh/config all that Fabric knows.
    config = Config(lazy=True)
    try:
        config.load_ssh_config()
        connection = Connection(target.address, user=target.user, port=target.port, config=config)
    except (ValueError, paramiko.SSHException) as error:
        raise HostUnreachable(
            sentence=f"the SSH configuration for `{target.address}` cannot be used",
            host=target.host,
            cause=str(error),
            unchanged="everything",
            hint=f"ssh -G {target.address}",
        ) from error
    hops = [connection]
    while isinstance(hops[0].gateway, Connection):
        hops.insert(0, hops[0].gateway)
    return hops


def _prepare(hop: Any, target: SshTarget) -> None:
    hop.client.set_missing_host_key_policy(_Refuse(target))
    for path in known_hosts_paths():
        if path.is_file():
            # All into one table: a key in any of the files counts.
            hop.client.load_system_host_keys(str(path))
    only_given = hop.ssh_config.get("identitiesonly") == "yes"
    keys = [path for path in hop.ssh_config.get("identityfile", []) if Path(path).expanduser().is_file()]
    hop.connect_kwargs = {
        "key_filename": keys,
        "allow_agent": not only_given,
        "look_for_keys": not only_given,
        "banner_timeout": CONNECT_SECONDS,
        "auth_timeout": AUTHENTICATION_SECONDS,
        "channel_timeout": CONNECT_SECONDS,
        "transport_factory": _make_transport,
    }
    if "connecttimeout" not in hop.ssh_config:
        hop.connect_timeout = CONNECT_SECONDS
    # Whoever is root on a host must not get at the keys of the controller.
    hop.forward_agent = False


def _make_transport(sock: Any, **given: Any) -> Any:
    transport = paramiko.Transport(sock, **given)
    options = transport.get_security_options()
    options.ciphers = (_FIRST_CIPHER, *(name for name in options.ciphers if name != _FIRST_CIPHER))
    return transport


def _open(hop: Any, target: SshTarget) -> None:
    try:
        hop.open()
    except paramiko.BadHostKeyException as error:
        raise _changed_key(target, _name(hop), error) from error
    except paramiko.AuthenticationException as error:
        raise _not_authenticated(hop, target, str(error)) from error
    except paramiko.ssh_exception.NoValidConnectionsError as error:
        # It is raised for refused and unreachable only; its own text names all addresses once more.
        first = next(iter(error.errors.values()))
        raise _unreachable(hop, target, first.strerror or str(first)) from error
    except socket.gaierror as error:
        raise _unreachable(hop, target, f"its name cannot be resolved: {error.strerror}") from error
    except TimeoutError as error:
        raise _unreachable(hop, target, f"no answer within {hop.connect_timeout} s") from error
    except paramiko.ChannelException as error:
        raise _unreachable(hop, target, f"the jump host cannot reach it: {error.text}") from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        if "authentication methods" in str(error) or "encrypted" in str(error):
            raise _not_authenticated(hop, target, str(error)) from error
        raise _unreachable(hop, target, _cause(error)) from error
    hop.transport.set_keepalive(KEEPALIVE_SECONDS)
    if not isinstance(hop.transport.sock, socket.socket):
        return
    # Every command begins with three small packets; waiting to fill one up would double its time (measured).
    hop.transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Nobody waits for the answers to the keepalives; the kernel waits for their acknowledgement: tcp(7).
        hop.transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MILLISECONDS)


class _Refuse(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Paramiko's RejectPolicy with the fingerprint and the next command."""

    def __init__(self, target: SshTarget) -> None:
        self._target = target

    def missing_host_key(self, _client: Any, hostname: str, key: Any) -> None:
        raise HostUnreachable(
            sentence=f"the host key of `{hostname}` is not known",
            host=self._target.host,
            cause=f"it offers {key.get_name()} {_fingerprint(key.asbytes())}, which none of these files has: "
            + ", ".join(map(str, known_hosts_paths())),
            unchanged="everything: nothing was sent",
            hint=f"./fleet trust {self._target.host}",
        )


def _changed_key(target: SshTarget, name: str, error: Any) -> FleetError:
    return changed_key(
        target.host,
        name,
        expected=f"{error.expected_key.get_name()} {_fingerprint(error.expected_key.asbytes())}",
        actual=f"{error.key.get_name()} {_fingerprint(error.key.asbytes())}",
    )


def changed_key(host: str, name: str, *, expected: str, actual: str) -> FleetError:
    """The error that is never talked away: a known host answers with another key."""
    files = [str(path) for path in known_hosts_paths() if _is_in(name, path)]
    return HostUnreachable(
        sentence=f"the host key of `{name}` has changed",
        host=host,
        expected=expected,
        actual=actual,
        cause="the host was made anew, or somebody answers in its place",
        unchanged="everything: nothing was sent",
        hint="ask who runs it; only if the new key is right: "
        + "; ".join(f"ssh-keygen -R '{name}' -f {path}" for path in files)
        + f"; ./fleet trust {host}",
    )


def _is_in(name: str, path: Path) -> bool:
    return path.is_file() and paramiko.HostKeys(str(path)).lookup(name) is not None


def _not_authenticated(hop: Any, target: SshTarget, cause: str) -> FleetError:
    return HostUnreachable(
        sentence=f"`{hop.user}@{hop.host}` was not let in",
        host=target.host,
        cause=f"{cause}; tried were the agent's keys, IdentityFile of ~/.ssh/config and ~/.ssh/id_*",
        unchanged="everything",
        hint=f"ssh -p {hop.port} {hop.user}@{hop.host} true; "
        "a key with a passphrase must be in the agent: ssh-add",
    )


def _unreachable(hop: Any, target: SshTarget, cause: str) -> FleetError:
    return HostUnreachable(
        sentence=f"no SSH connection to `{_name(hop)}`",
        host=target.host,
        cause=cause,
        unchanged="everything",
        hint=f"ssh -p {hop.port} {hop.user}@{hop.host} true",
    )


def _cause(error: Exception) -> str:
    text = str(error)
    if "banner" in text or text == "No existing session":
        # Paramiko's words for a deadline that passed before the first byte, or before the first key.
        return f"it takes connections but does not speak SSH within {CONNECT_SECONDS} s"
    return text or "the connection was closed"


def _name(hop: Any) -> str:
    """As known_hosts writes it: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT."""
    return str(hop.host) if hop.port == 22 else f"[{hop.host}]:{hop.port}"


def _fingerprint(key: bytes) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def untrusted_keys(target: SshTarget) -> tuple[HostKey, ...]:
    """The keys of the first hop towards a host that has none in known_hosts; empty when all have.

    Nothing is sent to it and nobody logs in. Raises HostUnreachable, for a changed key too.
    """
    hops = _hops(target)
    try:
        for hop in hops:
            _prepare(hop, target)
            known = _known_keys(hop)
            if not known:
                return tuple(_offered_keys(hop, target, _KEY_TYPES))
            if hop is hops[-1]:
                _check_offered(hop, target, known)
            else:
                _open(hop, target)
    finally:
        close_connection(hops[-1])
    return ()


def _known_keys(hop: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in known_hosts_paths():
        if path.is_file() and (keys := paramiko.HostKeys(str(path)).lookup(_name(hop))) is not None:
            found |= {kind: key.get_base64() for kind, key in keys.items()}
    return found


def _check_offered(hop: Any, target: SshTarget, known: dict[str, str]) -> None:
    # The kinds that are known; a server that offers none of them any more has changed too.
    wanted = tuple("rsa-sha2-512" if kind == "ssh-rsa" else kind for kind in known)
    offered = list(_offered_keys(hop, target, wanted)) or list(_offered_keys(hop, target, _KEY_TYPES))
    for key in offered:
        if known.get(key.kind) != key.data:
            kind, data = next(iter(known.items())) if key.kind not in known else (key.kind, known[key.kind])
            expected = HostKey(name=key.name, kind=kind, data=data)
            raise changed_key(
                target.host,
                key.name,
                expected=f"{expected.kind} {expected.fingerprint}",
                actual=f"{key.kind} {key.fingerprint}",
            )


def _offered_keys(hop: Any, target: SshTarget, kinds: Sequence[str]) -> Iterator[HostKey]:
    """One handshake for each kind of key, as `ssh-keyscan` does it."""
    for kind in kinds:
        key = _offered_key(hop, target, kind)
        if key is not None:
            yield HostKey(name=_name(hop), kind=key.get_name(), data=key.get_base64())


def _offered_key(hop: Any, target: SshTarget, kind: str) -> Any:
    try:
        if hop.gateway:
            sock = hop.open_gateway()
        else:
            sock = socket.create_connection((hop.host, hop.port), timeout=CONNECT_SECONDS)
        transport = paramiko.Transport(sock)
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise _unreachable(hop, target, _cause(error)) from error
    try:
        transport.banner_timeout = CONNECT_SECONDS
        transport.get_security_options().key_types = (kind,)
        transport.start_client(timeout=CONNECT_SECONDS)
        return transport.get_remote_server_key()
    except paramiko.ssh_exception.IncompatiblePeer:
        return None
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise _unreachable(hop, target, _cause(error)) from error
    finally:
        transport.close()


def add_known_hosts(keys: Sequence[HostKey]) -> Path:
    """Add keys to the fleet's known_hosts; returns the file. Raises CommandFailed."""
    path = fleet_known_hosts()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("a") as file:
            file.writelines(f"{key.name} {key.kind} {key.data}\n" for key in keys)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CommandFailed(
            sentence=f"`{path}` could not be written",
            cause=error.strerror,
            unchanged="the keys that were known",
            hint=f"ls -ld {path.parent}",
        ) from error
    return path
