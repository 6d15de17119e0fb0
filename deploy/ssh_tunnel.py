"""A port here that leads to a port there, over a connection that is open already."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paramiko

from deploy.errors import CommandFailed, HostUnreachable

_OPEN_SECONDS = 10
_PROHIBITED = 1  # SSH_OPEN_ADMINISTRATIVELY_PROHIBITED: RFC 4254, 5.1
_CHUNK_BYTES = 64 * 1024


@contextmanager
def open_tunnel(host: str, transport: Any, there: tuple[str, int]) -> Iterator[int]:
    """The number of a loopback port that is connected to `there`, as the host sees it, while it lasts.

    Raises CommandFailed where the SSH server forwards nothing, HostUnreachable where the connection is gone.
    Nobody needs to listen there yet: a connection is then closed at once, as one that is refused.
    """
    _check_allowed(host, transport, there)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            # Nobody listens, or the connection is gone: the client sees its own connection closed.
            with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
                channel = _open(transport, there)
                try:
                    _pump(self.request, channel)
                finally:
                    channel.close()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


def _open(transport: Any, there: tuple[str, int]) -> Any:
    return transport.open_channel("direct-tcpip", there, ("127.0.0.1", 0), timeout=_OPEN_SECONDS)


def _check_allowed(host: str, transport: Any, there: tuple[str, int]) -> None:
    try:
        _open(transport, there).close()
    except paramiko.ChannelException as error:
        if error.code == _PROHIBITED:
            raise CommandFailed(
                sentence=f"the SSH server of `{host}` forwards no connection to `{there[0]}:{there[1]}`",
                host=host,
                cause="`AllowTcpForwarding no`, `DisableForwarding yes` or `PermitOpen` in its sshd_config, "
                "or `restrict` in the key's line of authorized_keys",
                unchanged="the server that runs there, if one does",
                hint=f"have `AllowTcpForwarding local` and `PermitOpen {there[0]}:{there[1]}` set for this "
                "user: sshd -T | grep -i -e forward -e permitopen",
            ) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise HostUnreachable(
            sentence=f"no tunnel to `{there[0]}:{there[1]}` could be opened", host=host, cause=str(error)
        ) from error


def _pump(here: socket.socket, channel: Any) -> None:
    """Bytes both ways until both sides have said that no more come."""
    ways = {here: channel, channel: here}
    while ways:
        ready, _, _ = select.select(list(ways), [], [])
        for source in ready:
            piece = source.recv(_CHUNK_BYTES)
            if piece:
                ways[source].sendall(piece)
            else:
                _end_writing(ways.pop(source))


def _end_writing(side: Any) -> None:
    with contextlib.suppress(OSError, EOFError):
        if isinstance(side, socket.socket):
            side.shutdown(socket.SHUT_WR)
        else:
            side.shutdown_write()
