"""A server that plays whoever is notified: keeps what it gets, and answers as it is told, or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FLOOD_BYTES = 50 * 1024 * 1024


class Listener(ThreadingHTTPServer):
    """`answers` are used up one by one, then it is 200; "hang" says nothing until the end.

    "flood" sends `FLOOD_BYTES`, and `flooded_bytes` says how many it could. A redirect leads to `/moved`.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.got: list[tuple[str, str, bytes]] = []
        self.answers: list[int | str] = []
        self.ended = threading.Event()
        self.flooded_bytes = 0
        self.flood_ended = threading.Event()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, _, body in self.got]


class _Handler(BaseHTTPRequestHandler):
    server: Listener

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.server.answers.pop(0) if self.server.answers else 200
        if answer == "hang":
            self.server.ended.wait(60)
            return
        self.server.got.append((self.command, self.path, body))
        if answer == "flood":
            self._flood()
            return
        said = answer.encode() if isinstance(answer, str) else b"ok"
        self.send_response(answer if isinstance(answer, int) else 200)
        self.send_header("Content-Length", str(len(said)))
        if isinstance(answer, int) and 300 <= answer < 400:
            self.send_header("Location", "/moved")
        self.end_headers()
        self.wfile.write(said)

    def _flood(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(FLOOD_BYTES))
        self.end_headers()
        piece = b" " * 65536
        try:
            while self.server.flooded_bytes < FLOOD_BYTES:
                self.wfile.write(piece)
                self.server.flooded_bytes += len(piece)
        except OSError:
            self.close_connection = True
        finally:
            self.server.flood_ended.set()

    do_GET = do_POST = _answer  # noqa: N815 - the names that http.server looks for

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def listening(port: int = 0) -> Iterator[Listener]:
    """On this port, or on one that is free."""
    with Listener(port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()
