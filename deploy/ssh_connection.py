"""An SSH connection as we trust it: host keys verified, deadlines set, every way to fail said in words.

Fabric reads `~/.ssh/config` and builds the jumps; it would also accept any host key (fabric 3.2.3,
`connection.py`), so every hop is given a policy that asks `host_keys`.
"""

from __future__ import annotations

import logging
import shlex
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import paramiko
from fabric import Config, Connection

from deploy.errors import FleetError, HostUnreachable
from deploy.host_keys import HostKey, KnownHosts

CONNECT_SECONDS = 10
AUTHENTICATION_SECONDS = 20
KEEPALIVE_SECONDS = 15
SILENCE_MILLISECONDS = 30_000
# Fastest first: 209 MiB/s were measured with it, about as much as scp does.
_FIRST_CIPHER = "aes128-gcm@openssh.com"
_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512")

# What it logs are the tracebacks of errors that are told in words here; without a handler they go to stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True, kw_only=True)
class SshTarget:
    """How a host is reached. `port` and `user` are None where `~/.ssh/config` decides.

    `key_file` is offered first, to the host and not to its jump hosts. `known_hosts` is the file beside the
    inventory, which need not exist.
    """

    host: str
    address: str
    port: int | None = None
    user: str | None = None
    key_file: str | None = None
    known_hosts: Path | None = None

    @property
    def known(self) -> KnownHosts:
        """The files that its host key is looked up in."""
        return KnownHosts(beside_inventory=self.known_hosts)


def open_connection(target: SshTarget) -> Any:
    """A connected and authenticated `fabric.Connection`, its jumps opened first.

    Raises HostUnreachable: unknown or changed host key, refused, timed out, no name, not authenticated.
    """
    hops = _hops(target)
    try:
        for hop in hops:
            _prepare(hop, target, _key_files(hop, target if hop is hops[-1] else None))
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


def _key_files(hop: Any, target: SshTarget | None) -> list[str]:
    """The files of private keys in the order in which they are offered; `target` is the last hop's."""
    own = [target.key_file] if target is not None and target.key_file is not None else []
    configured = hop.ssh_config.get("identityfile", [])
    return own + [path for path in configured if Path(path).expanduser().is_file()]


def _prepare(hop: Any, target: SshTarget, key_files: Sequence[str]) -> None:
    # Paramiko is given no table of keys, so that it asks about every one: a table holds one file's word only.
    hop.client.set_missing_host_key_policy(_Verify(target))
    known_kinds = [key.kind for key in target.known.keys(_name(hop))]
    only_given = hop.ssh_config.get("identitiesonly") == "yes"
    hop.connect_kwargs = {
        "key_filename": list(key_files),
        "allow_agent": not only_given,
        "look_for_keys": not only_given,
        "banner_timeout": CONNECT_SECONDS,
        "auth_timeout": AUTHENTICATION_SECONDS,
        "channel_timeout": CONNECT_SECONDS,
        "transport_factory": partial(_make_transport, _algorithms(known_kinds)),
    }
    if "connecttimeout" not in hop.ssh_config:
        hop.connect_timeout = CONNECT_SECONDS
    # Whoever is root on a host must not get at the keys of the controller.
    hop.forward_agent = False


def _algorithms(kinds: Sequence[str]) -> tuple[str, ...]:
    """The names under which kinds of host keys are asked for; RSA keys have one for each hash."""
    return tuple(dict.fromkeys("rsa-sha2-512" if kind == "ssh-rsa" else kind for kind in kinds))


def _make_transport(key_types: Sequence[str], sock: Any, **given: Any) -> Any:
    transport = paramiko.Transport(sock, **given)
    options = transport.get_security_options()
    options.ciphers = _first((_FIRST_CIPHER,), options.ciphers)
    # A server with several keys shows the one that we know.
    options.key_types = _first(key_types, options.key_types)
    return transport


def _first(wanted: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    chosen = tuple(name for name in wanted if name in names)
    return chosen + tuple(name for name in names if name not in chosen)


class _Verify(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Refuses a key that is not known, with words and the next command."""

    def __init__(self, target: SshTarget) -> None:
        self._target = target

    def missing_host_key(self, _client: Any, hostname: str, key: Any) -> None:
        offered = HostKey(name=hostname, kind=key.get_name(), data=key.get_base64())
        self._target.known.check(self._target.host, offered)


def _open(hop: Any, target: SshTarget) -> None:
    try:
        hop.open()
    except paramiko.AuthenticationException as error:
        raise _not_authenticated(hop, target, str(error)) from error
    except paramiko.ssh_exception.NoValidConnectionsError as error:
        # It is raised for refused and unreachable only; its own text names all addresses once more.
        first = next(iter(error.errors.values()))
        raise _unreachable(hop, target, first.strerror or str(first)) from error
    except socket.gaierror as error:
        raise _unreachable(hop, target, f"its name cannot be resolved: {error.strerror}") from error
    except UnicodeError as error:
        # Python's `idna` codec takes no empty part of a name (`a..b`), nor one of more than 63 characters.
        raise _unreachable(hop, target, f"its name cannot be resolved: {error}") from error
    except TimeoutError as error:
        raise _unreachable(hop, target, f"no answer within {hop.connect_timeout} s") from error
    except paramiko.ChannelException as error:
        raise _unreachable(hop, target, f"the jump host cannot reach it: {error.text}") from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        if _is_authenticating(hop):
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


def _is_authenticating(hop: Any) -> bool:
    """Whether the keys are exchanged, so that only logging in can have failed."""
    transport = hop.client.get_transport()
    return transport is not None and transport.initial_kex_done and transport.is_active()


def _not_authenticated(hop: Any, target: SshTarget, cause: str) -> FleetError:
    if cause.startswith("encountered "):
        # Paramiko reads every file as a key of each kind in turn; these are its words for a wrong guess.
        cause = "the server takes none of the keys"
    key_file = target.key_file if target.key_file in hop.connect_kwargs["key_filename"] else None
    named = f"{key_file} of the inventory, " if key_file else ""
    option = f"-i {shlex.quote(key_file)} " if key_file else ""
    return HostUnreachable(
        sentence=f"`{hop.user}@{hop.host}` was not let in",
        host=target.host,
        cause=f"{cause}; tried were {named}the agent's keys, IdentityFile of ~/.ssh/config and ~/.ssh/id_*",
        unchanged="everything",
        hint=f"ssh {option}-p {hop.port} {hop.user}@{hop.host} true; "
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


def untrusted_keys(target: SshTarget) -> tuple[HostKey, ...]:
    """The keys of the first hop towards a host that has none in known_hosts; empty when all have.

    Nothing is sent to it and nobody logs in. Raises HostUnreachable, for a changed key too.
    """
    hops = _hops(target)
    try:
        for hop in hops:
            known = target.known.keys(_name(hop))
            if not known:
                return tuple(_offered_keys(hop, target, _KEY_TYPES))
            if hop is not hops[-1]:
                _prepare(hop, target, _key_files(hop, None))
                _open(hop, target)
                continue
            kinds = _algorithms([key.kind for key in known])
            # One that offers none of the kinds that are known has changed, whatever it offers now.
            for key in list(_offered_keys(hop, target, kinds)) or _offered_keys(hop, target, _KEY_TYPES):
                target.known.check(target.host, key)
    finally:
        close_connection(hops[-1])
    return ()


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
