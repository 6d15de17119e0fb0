"""How the embedded mirror speaks: routes, ranges, errors, and misbehaviour on demand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from typing_extensions import override

from testbed.mirror_contents import Content, MirrorRepo, list_entries, read_span, revision_map, size_of

SERVER_NAME = "ollama-fleet-testbed"
CHUNK_BYTES = 64 * 1024

LOGIN_PAGE = (
    b"<!DOCTYPE html><html><head><title>Sign in to the network</title></head>"
    b"<body><form action='/login'>user <input name='user'></form></body></html>\n"
)


class Route(StrEnum):
    """What a request asks for."""

    INFO = "info"
    REVISIONS = "revisions"
    LISTING = "listing"
    FILE = "file"


class FaultKind(StrEnum):
    """How the mirror misbehaves."""

    CUT = "cut"
    """Send `after_bytes` of the body, then close the connection."""
    STALL = "stall"
    """Send `after_bytes` of the body, then nothing more until the mirror is closed."""
    SLOW = "slow"
    """Send at most `bytes_per_second`."""
    LOGIN_PAGE = "login page"
    """Status 200 and HTML, as a captive portal or a proxy does."""
    STATUS = "status"
    """Answer with `status` and an error in JSON."""
    WRONG_SIZE = "wrong size"
    """The listing names one byte more than the file has."""
    WRONG_SHA256 = "wrong sha256"
    """The listing names the sha256 of other bytes."""
    NO_SHA256 = "no sha256"
    """The listing names no sha256."""
    CORRUPT = "corrupt"
    """The right number of bytes, the last of them another one."""
    NO_RANGE = "no range"
    """Ignore `Range` and send the whole file with status 200, as the hub does for small files."""


@dataclass(slots=True, kw_only=True)
class Fault:
    """One misbehaviour of one route, `times` times (`None`: always)."""

    kind: FaultKind
    route: Route = Route.FILE
    after_bytes: int = 0
    bytes_per_second: int = 0
    status: int = 503
    times: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as it arrived; whether it carried a token, never the token."""

    method: str
    path: str
    query: Mapping[str, str]
    status: int
    range: str | None
    user_agent: str
    has_token: bool


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class MirrorState(Protocol):
    """What the handler needs of the mirror."""

    closing: threading.Event

    @property
    def repos(self) -> Mapping[str, MirrorRepo]:
        """By OWNER/NAME."""

    def log(self, text: str) -> None:
        """One line for whoever watches."""

    def record(self, request: RequestRecord) -> None:
        """Remember a request, before its body is sent."""

    def take_fault(self, route: Route, kinds: frozenset[FaultKind]) -> Fault | None:
        """A fault of these kinds that still applies to this route, counted as used."""

    def find_revision(self, repo: MirrorRepo, revision: str) -> str | None:
        """The name under which `repo` has a branch, a tag or a commit."""

    def sha256(self, content: Content) -> str:
        """64 hex digits, computed from the bytes."""


class MirrorServer(ThreadingHTTPServer):
    """The listening socket, and every connection with its thread."""

    request_queue_size = 64

    def __init__(self, address: tuple[str, int], mirror: MirrorState) -> None:
        self.mirror = mirror
        self._open: dict[Any, threading.Thread] = {}
        self._open_lock = threading.Lock()
        super().__init__(address, Handler)

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        """A daemon thread for every connection, known by its socket."""
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        with self._open_lock:
            self._open[request] = thread
        thread.start()

    @override
    def shutdown_request(self, request: Any) -> None:
        """Forget the connection, then close it."""
        with self._open_lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        """Break every open connection and wait for its thread."""
        with self._open_lock:
            threads = list(self._open.values())
            for connection in self._open:
                with contextlib.suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no reason for a traceback; an error of ours is."""
        if isinstance(sys.exception(), ConnectionError):
            self.mirror.log(f"connection of {client_address} broke")
        else:
            super().handle_error(request, client_address)


_MODEL = r"/api/v1/models/(?P<repo>[^/]+/[^/]+)"
_ROUTES: tuple[tuple[re.Pattern[str], Route, frozenset[str]], ...] = (
    (re.compile(_MODEL), Route.INFO, frozenset({"Revision"})),
    (re.compile(_MODEL + "/revisions"), Route.REVISIONS, frozenset({"EndTime"})),
    (re.compile(_MODEL + "/repo/files"), Route.LISTING, frozenset({"Revision", "Recursive", "Root"})),
    (re.compile(_MODEL + "/repo"), Route.FILE, frozenset({"Revision", "FilePath"})),
)
_REPLACING = frozenset({FaultKind.LOGIN_PAGE, FaultKind.STATUS})
_LISTING_FAULTS = frozenset({FaultKind.WRONG_SIZE, FaultKind.WRONG_SHA256, FaultKind.NO_SHA256})
_BODY_FAULTS = frozenset({FaultKind.CUT, FaultKind.STALL, FaultKind.SLOW})


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: MirrorServer

    @override
    def version_string(self) -> str:
        """For `Server:`: nobody shall take this for the real hub."""
        return SERVER_NAME

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Requests are logged by the mirror, with their meaning."""

    @override
    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A method or request line that the real client never sends."""
        del explain
        self.close_connection = True
        self._send_refusal(_RefusedError(code, message or "not understood"))

    def do_GET(self) -> None:
        """Answer, refuse, or give up on a client that went away."""
        self._query: dict[str, str] = {}
        try:
            self._answer()
        except _RefusedError as refusal:
            self._send_refusal(refusal)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        self._query = {key: values[-1] for key, values in parse_qs(parts.query, strict_parsing=False).items()}
        for pattern, route, known in _ROUTES:
            match = pattern.fullmatch(parts.path)
            if match is None:
                continue
            unknown = sorted(set(self._query) - known)
            if unknown:
                raise _RefusedError(
                    400, f"the testbed does not know the parameter {unknown[0]} of {route.value}"
                )
            self._answer_route(route, match["repo"])
            return
        raise _RefusedError(404, f"the testbed does not know {parts.path}")

    def _answer_route(self, route: Route, repo_id: str) -> None:
        mirror = self.server.mirror
        fault = mirror.take_fault(route, _REPLACING)
        if fault is not None and fault.kind is FaultKind.STATUS:
            raise _RefusedError(fault.status, f"fault of the testbed: {fault.status}")
        if fault is not None:
            self._send(200, "text/html; charset=utf-8", LOGIN_PAGE)
            return
        repo = mirror.repos.get(repo_id)
        if repo is None:
            raise _RefusedError(404, f"model {repo_id} not found")
        match route:
            case Route.INFO:
                self._send_data({"Path": repo_id.partition("/")[0], "Name": repo_id.partition("/")[2]})
            case Route.REVISIONS:
                self._send_data({"RevisionMap": revision_map(repo)})
            case Route.LISTING:
                self._send_data({"Files": self._listing(repo)})
            case Route.FILE:
                self._send_file(repo)

    def _listing(self, repo: MirrorRepo) -> list[dict[str, Any]]:
        mirror = self.server.mirror
        revision = mirror.find_revision(repo, self._query.get("Revision", "master"))
        if revision is None:
            raise _RefusedError(404, f"revision {self._query.get('Revision')} not found in {repo.repo}")
        root = self._query.get("Root", "").strip("/")
        entries = list_entries(repo, revision, root, recursive=self._query.get("Recursive") == "True")
        if root and not entries:
            raise _RefusedError(404, f"directory {root} not found")
        fault = mirror.take_fault(Route.LISTING, _LISTING_FAULTS)
        for path, entry in entries.items():
            if entry["Type"] == "blob":
                entry.update(self._size_and_sha256(repo.revisions[revision][path], fault))
        return list(entries.values())

    def _size_and_sha256(self, content: Content, fault: Fault | None) -> dict[str, Any]:
        size_bytes, sha256 = size_of(content), self.server.mirror.sha256(content)
        kind = fault.kind if fault is not None else None
        if kind is FaultKind.WRONG_SIZE:
            size_bytes += 1
        if kind is FaultKind.WRONG_SHA256:
            sha256 = hashlib.sha256(sha256.encode()).hexdigest()
        if kind is FaultKind.NO_SHA256:
            sha256 = ""
        return {"Size": size_bytes, "Sha256": sha256}

    def _send_file(self, repo: MirrorRepo) -> None:
        revision = self.server.mirror.find_revision(repo, self._query.get("Revision", "master"))
        content = repo.revisions[revision].get(self._query.get("FilePath", "")) if revision else None
        if content is None:
            raise _RefusedError(404, "file not found")
        total_bytes = size_of(content)
        asked = self.headers.get("Range")
        if asked is not None and self.server.mirror.take_fault(Route.FILE, frozenset({FaultKind.NO_RANGE})):
            asked = None
        span = _parse_range(asked, total_bytes)
        if span is None:
            self._send(416, "application/octet-stream", b"", {"Content-Range": f"bytes */{total_bytes}"})
            return
        first, end = span
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - first),
            "Accept-Ranges": "bytes",
            "X-Testbed-Source": content.name if isinstance(content, Path) else "bytes in memory",
        }
        if asked is not None:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{total_bytes}"
        # Recorded before the body: a client that is killed in the middle must still be seen.
        self._start(206 if asked is not None else 200, headers)
        self._send_body(content, first, end)

    def _send_body(self, content: Content, first: int, end: int) -> None:
        mirror = self.server.mirror
        fault = mirror.take_fault(Route.FILE, _BODY_FAULTS)
        corrupt = mirror.take_fault(Route.FILE, frozenset({FaultKind.CORRUPT})) is not None
        stops_at = end
        if fault is not None and fault.kind is not FaultKind.SLOW:
            stops_at = min(end, first + fault.after_bytes)
        rate = fault.bytes_per_second if fault is not None and fault.kind is FaultKind.SLOW else None
        sent, started = first, time.monotonic()
        for chunk in read_span(content, first, stops_at, CHUNK_BYTES if rate is None else max(1, rate // 20)):
            sent += len(chunk)
            is_bent = corrupt and sent == end
            self.wfile.write(chunk[:-1] + bytes([chunk[-1] ^ 0xFF]) if is_bent else chunk)
            if rate is not None and mirror.closing.wait(
                max(0.0, (sent - first) / rate - (time.monotonic() - started))
            ):
                break
        if fault is not None and fault.kind is FaultKind.STALL:
            self.wfile.flush()
            mirror.closing.wait()
        if sent != end:
            self.close_connection = True

    def _send_data(self, data: Any) -> None:
        body = {"Code": 200, "Success": True, "Message": "success", "RequestId": "testbed", "Data": data}
        self._send(200, "application/json", json.dumps(body).encode())

    def _send_refusal(self, refusal: _RefusedError) -> None:
        # The code is the one the hub was seen to send with 404.
        body = {"Code": 10990101010, "Success": False, "Message": refusal.message, "RequestId": "testbed"}
        self._send(refusal.status, "application/json", json.dumps(body).encode())

    def _send(
        self, status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        fields = {"Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})}
        self._start(status, fields)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        given = getattr(self, "headers", None)
        self.server.mirror.record(
            RequestRecord(
                method=self.command or "?",
                path=urlsplit(self.path).path if hasattr(self, "path") else "?",
                query=getattr(self, "_query", {}),
                status=int(status),
                range=given.get("Range") if given else None,
                user_agent=given.get("User-Agent", "") if given else "",
                has_token=bool(given and (given.get("Authorization") or given.get("Cookie"))),
            )
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()


def _parse_range(text: str | None, total_bytes: int) -> tuple[int, int] | None:
    """`bytes=N-` or `bytes=N-M` as (first, end), end exclusive; the whole file without a range; None: 416."""
    if text is None:
        return 0, total_bytes
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", text)
    if match is None:
        raise _RefusedError(400, f"the testbed does not know the range {text}")
    first = int(match[1])
    end = min(total_bytes, int(match[2]) + 1) if match[2] else total_bytes
    return (first, end) if first < end else None
