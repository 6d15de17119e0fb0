"""An OpenAI-compatible endpoint that is no Ollama: the simulated one behind a gateway that wants a key."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

from testbed.ollama import start_server

KEY = "sk-kept-secret-wombat-1"


@contextlib.contextmanager
def gateway(*, faults: list[str] | None = None, key: str = KEY) -> Iterator[str]:
    """Its base URL with `/v1`. It knows chat completions only, and quotes every key that it refuses."""
    with start_server(faults=faults or []) as upstream:

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(404, {"error": {"message": "unknown path", "type": "invalid_request_error"}})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                given = self.headers.get("Authorization", "")
                if self.path != "/v1/chat/completions":
                    self.answer(404, {"error": {"message": "unknown path", "type": "invalid_request_error"}})
                elif given != f"Bearer {key}":
                    said = f"incorrect API key provided: {given}"
                    self.answer(401, {"error": {"message": said, "type": "invalid_request_error"}})
                else:
                    reply = requests.post(upstream.url + self.path, data=body, timeout=20)
                    self.send(reply.status_code, reply.headers["Content-Type"], reply.content)

            def answer(self, status: int, document: object) -> None:
                self.send(status, "application/json", json.dumps(document).encode())

            def send(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Seen-Key", self.headers.get("Authorization", ""))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
