"""The proxy that breaks links does to a connection what it says, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from testbed.link_proxy import Link, LinkProxy, start_link_proxy

BIG = bytes(range(256)) * 4096


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """Sends back what it gets until its client ends."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def ask(proxy: LinkProxy, data: bytes, timeout_seconds: float = 10) -> bytes:
    """What came back before the end or a reset; raises TimeoutError."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout_seconds) as connection:
        sender = threading.Thread(target=_send, args=(connection, data), daemon=True)
        sender.start()
        came = b""
        with contextlib.suppress(ConnectionResetError):
            while len(came) < len(data) and (piece := connection.recv(65536)):
                came += piece
        return came


def _send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(data)


def test_bytes_pass_both_ways_as_they_are(echo: tuple[str, int]) -> None:
    with start_link_proxy(echo) as proxy:
        assert ask(proxy, BIG) == BIG
        assert ask(proxy, b"again") == b"again"
        assert proxy.connections == 2


def test_a_delay_is_kept_in_both_directions(echo: tuple[str, int]) -> None:
    with start_link_proxy(echo, Link(delay_seconds=0.1)) as proxy:
        began = time.monotonic()
        assert ask(proxy, b"x") == b"x"
        assert 0.2 <= time.monotonic() - began < 2


def test_a_cut_comes_after_so_many_bytes_and_once(echo: tuple[str, int]) -> None:
    with start_link_proxy(echo, Link(cut_after_bytes=100_000)) as proxy:
        assert len(ask(proxy, BIG)) <= 100_000
        assert proxy.sent_bytes <= 100_000
        assert ask(proxy, BIG) == BIG


def test_a_stalled_link_stays_open_and_silent_until_it_is_mended(echo: tuple[str, int]) -> None:
    with start_link_proxy(echo, Link(stall_after_bytes=0)) as proxy:
        with pytest.raises(TimeoutError):
            ask(proxy, b"x", timeout_seconds=0.5)
        proxy.link = Link()
        assert ask(proxy, b"y") == b"y"


def test_nobody_behind_it_is_an_end_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        target = nobody.getsockname()
    with start_link_proxy(target) as proxy:
        assert ask(proxy, b"x") == b""
