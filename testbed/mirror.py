"""An embedded ModelScope mirror: the part of the hub's HTTP interface that its own client uses.

It serves exact bytes under the names it is told, counts every request, and can misbehave on demand.
It is no ModelScope: every reply carries `Server: ollama-fleet-testbed`, the log says which file really
stands behind a name, and whatever the real client does not ask for is refused with 404 or 400.

Routes and reply shapes are those that modelscope_hub 0.5.1 was seen to use: `GET /api/v1/models/OWNER/NAME`,
`.../revisions`, `.../repo/files` (listing) and `.../repo` (one file, with `Range`).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.mirror_contents import Content, MirrorRepo, commit_of, read_repos
from testbed.mirror_http import Fault, FaultKind, MirrorServer, RequestRecord, Route

__all__ = [
    "Content",
    "Fault",
    "FaultKind",
    "Mirror",
    "MirrorRepo",
    "RequestRecord",
    "Route",
    "read_repos",
    "serve_mirror",
    "start_mirror",
]


class Mirror:
    """A running mirror. `requests` grows while it runs; `faults` may be changed at any time."""

    def __init__(self, repos: Sequence[MirrorRepo], port: int, log: Callable[[str], None] | None) -> None:
        self.repos = {repo.repo: repo for repo in repos}
        self.requests: list[RequestRecord] = []
        self.faults: list[Fault] = []
        self.closing = threading.Event()
        self._log = log
        self._lock = threading.Lock()
        self._digests: dict[Path, tuple[tuple[int, int], str]] = {}
        self._server = MirrorServer(("127.0.0.1", port), self)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="mirror", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut every connection, then end all threads. May be called twice."""
        if self.closing.is_set():
            return
        self.closing.set()
        self._server.shutdown()
        self._server.cut_connections()
        self._server.server_close()
        self._thread.join()

    def log(self, text: str) -> None:
        """One line for whoever watches."""
        if self._log is not None:
            self._log(text)

    def record(self, request: RequestRecord) -> None:
        """Remember a request, before its body is sent."""
        with self._lock:
            self.requests.append(request)
        self.log(f"{request.method} {request.path} {dict(request.query)} -> {request.status}")

    def take_fault(self, route: Route, kinds: frozenset[FaultKind]) -> Fault | None:
        """The first fault of these kinds that still applies to this route; counts it as used."""
        with self._lock:
            for fault in self.faults:
                if fault.route is route and fault.kind in kinds and fault.times != 0:
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def find_revision(self, repo: MirrorRepo, revision: str) -> str | None:
        """The name under which `repo` has a branch, a tag or a commit."""
        for name in repo.revisions:
            if revision in (name, commit_of(repo, name)):
                return name
        return None

    def sha256(self, content: Content) -> str:
        """Read from the bytes; remembered for a file as long as its size and mtime stay."""
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        stat = content.stat()
        key = (stat.st_size, stat.st_mtime_ns)
        known = self._digests.get(content)
        if known is None or known[0] != key:
            with content.open("rb") as stream:
                known = (key, hashlib.file_digest(stream, "sha256").hexdigest())
            self._digests[content] = known
        return known[1]


def start_mirror(
    repos: Sequence[MirrorRepo], port: int = 0, log: Callable[[str], None] | None = None
) -> Mirror:
    """Serve `repos` on loopback from a thread; port 0 takes a free one.

    `log` gets one line for every name whose bytes come from a file of another name, and one per request.
    Raises `OSError` when the port is taken.
    """
    mirror = Mirror(repos, port, log)
    for repo in repos:
        for revision, files in repo.revisions.items():
            for name, content in files.items():
                if isinstance(content, Path) and content.name != name.rpartition("/")[2]:
                    mirror.log(f"{repo.repo} {revision}: `{name}` is really the bytes of `{content.name}`")
    return mirror


def serve_mirror(
    *,
    port: int,
    directory: Path | None,
    default_repos: Callable[[], Sequence[MirrorRepo]],
    log: Callable[[str], None] = print,
) -> None:
    """`testbed mirror`: serve `directory`, or the default set, until Ctrl-C or a signal's exception."""
    repos = read_repos(directory) if directory is not None else default_repos()
    with start_mirror(repos, port, log) as mirror:
        try:
            log(f"testbed mirror (no ModelScope, simulated) on {mirror.url}")
            for repo in repos:
                log(f"  {repo.repo}: {', '.join(repo.revisions)}")
            log(f"use it with: export MODELSCOPE_ENDPOINT={mirror.url}")
            threading.Event().wait()
        except KeyboardInterrupt:
            log("stopped")
