"""A TCP proxy between a client and a host: what is on its way is delayed, stalled or cut as it is told."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Queue

_CHUNK_BYTES = 16 * 1024
_QUEUED_CHUNKS = 64
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What becomes of the bytes: delayed one way; cut off or held back for good after so many to the host."""

    delay_seconds: float = 0.0
    cut_after_bytes: int | None = None
    stall_after_bytes: int | None = None


class LinkProxy:
    """Listens on loopback and passes on to `target`. `link` may be changed at any time.

    `stalled_at` is when bytes were first held back, in seconds of `time.monotonic`.
    """

    def __init__(self, target: tuple[str, int], link: Link) -> None:
        self.link = link
        self.sent_bytes = 0
        self.connections = 0
        self.stalled_at: float | None = None
        self._target = target
        self._closing = threading.Event()
        self._open: deque[socket.socket] = deque()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_POLL_SECONDS)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="link proxy", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Both ends of every connection get a reset, as from a router that has forgotten them."""
        # No more than are there now: who has been cut comes again at once.
        for _ in range(len(self._open)):
            try:
                connection = self._open.popleft()
            except IndexError:
                return
            # Linger of no time: close(2) sends RST, see socket(7).
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RD)
            connection.close()

    def close(self) -> None:
        """Take no more connections, and cut those that are there."""
        self._closing.set()
        self._thread.join()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                continue
            try:
                host = socket.create_connection(self._target, timeout=10)
            except OSError:
                client.close()
                continue
            for connection in (client, host):
                connection.settimeout(None)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self._open.extend((client, host))
            self._pass_on(client, host, to_host=True)
            self._pass_on(host, client, to_host=False)

    def _pass_on(self, source: socket.socket, target: socket.socket, *, to_host: bool) -> None:
        """One direction: a thread reads and notes when each piece is due, another one sends it then."""
        pieces: Queue[tuple[float, bytes]] = Queue(maxsize=_QUEUED_CHUNKS)

        def read() -> None:
            data = b"-"
            while data:
                try:
                    data = source.recv(_CHUNK_BYTES)
                except OSError:
                    data = b""
                pieces.put((time.monotonic() + self.link.delay_seconds, data))

        def send() -> None:
            gone = False
            while True:
                due, data = pieces.get()
                if not data:
                    break
                if gone:
                    continue
                time.sleep(max(0.0, due - time.monotonic()))
                try:
                    target.sendall(data[: self._take(len(data)) if to_host else len(data)])
                except OSError:
                    gone = True
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)

        for work in (read, send):
            threading.Thread(target=work, daemon=True).start()

    def _take(self, size_bytes: int) -> int:
        """How many of these bytes still go to the host; waits where none does any more."""
        while not self._closing.is_set():
            cut, stall = self.link.cut_after_bytes, self.link.stall_after_bytes
            if cut is not None and self.sent_bytes + size_bytes > cut:
                self.link = Link(delay_seconds=self.link.delay_seconds)
                self.cut()
                return 0
            if stall is None or self.sent_bytes + size_bytes <= stall:
                break
            self.stalled_at = self.stalled_at or time.monotonic()
            time.sleep(_POLL_SECONDS)
        self.sent_bytes += size_bytes
        return size_bytes


@contextmanager
def start_link_proxy(target: tuple[str, int], link: Link | None = None) -> Iterator[LinkProxy]:
    """A proxy in front of an address and a port, as long as the context lasts."""
    proxy = LinkProxy(target, link or Link())
    try:
        yield proxy
    finally:
        proxy.close()
