"""Files from a ModelScope mirror: what is there, and one pinned file on this disk, verified.

The only module that knows the modelscope client. It calls the method behind the client's `snapshot_download`
(`HubApi.download_repo`) and hands it the one file of the pin, for the wrapper reads the process-wide
configuration and the home directory. What the client would leave behind stays in a staging directory
that is removed. The token comes from MODELSCOPE_API_TOKEN alone and is never printed.

A cache directory holds `sha256-<hex>/<file>` for verified files, `sha256-<hex>.part/` for those on their way.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import urlsplit

from deploy import mirror_errors as errors
from deploy.desired import Artefact
from deploy.errors import ChecksumMismatch, NotAnArtefact

DEFAULT_ENDPOINT = "https://modelscope.cn"
RESERVE_BYTES = 64 * 2**20
"""Left free on the disk of the cache: a full disk breaks more than a download."""

_CLIENT_DEFAULTS = {
    # The client's own budget of 3600 s per file would need 1.5 MB/s for the weights. Its stall detection
    # (60 s without a byte, or below 1 KiB/s) stays.
    "MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT": str(7 * 24 * 3600),
    # Seconds, not a quarter of a minute, until a wrong address is told.
    "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "2",
    "MODELSCOPE_API_MAX_RETRIES": "2",
}
"""Where the user's environment says nothing else."""

_CLIENT_LIMITS = {
    # Parallel ranges need twice the file's size on disk and leave parts that are not resumed one by one.
    "MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "1",
}

_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_HASH_CHUNK_BYTES = 2**20
_EMIT_SECONDS = 0.1
_RATE_WINDOW_SECONDS = 10.0
_RATE_NEEDS_SECONDS = 0.3
_import_lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorFile:
    """A file (never a directory) in a repository's listing. `size_bytes` is 0 where the mirror names none.

    `commit` is one that has these bytes under this path: the client calls it the commit id of the file
    (modelscope 1.40, `hub/utils/caching.py`).
    """

    path: str
    size_bytes: int
    sha256: str | None
    commit: str | None = field(default=None, compare=False)


class Phase(StrEnum):
    """What a fetch is doing."""

    WAITING = "waiting"
    """Another process fetches the same artefact."""
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    DONE = "done"


class _Part(Enum):
    """What the bytes in a staging directory are good for."""

    RESUMABLE = "resumable"
    USELESS = "useless"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a fetch is; `bytes_per_second` and `eta_seconds` are `None` until they are known.

    `resumed_bytes` were already here when the download began and do not count in the rate.
    """

    file: str
    phase: Phase
    done_bytes: int
    total_bytes: int
    resumed_bytes: int = 0
    bytes_per_second: float | None = None
    eta_seconds: float | None = None


OnProgress = Callable[[Progress], None]


def list_files(repo: str, revision: str, *, endpoint: str | None = None) -> tuple[MirrorFile, ...]:
    """Every file of a revision (a tag, a branch or a commit).

    Raises `MirrorError`, or `NotAnArtefact` for a login page.
    """
    place = errors.Place(repo=repo, revision=revision, endpoint=_endpoint(endpoint))
    with errors.explained(place, lambda: list_tags(repo, endpoint=endpoint)):
        # Below the client's own `list_repo_files`, which drops the commits.
        found = _client(place.endpoint).legacy.list_repo_files(repo, "model", revision=revision)
        return tuple(
            MirrorFile(
                path=file["Path"],
                size_bytes=int(file.get("Size") or 0),
                sha256=(file.get("Sha256") or "").lower() or None,
                commit=file.get("Revision") or None,
            )
            for file in found
            if file.get("Type") != "tree" and file["Path"]
        )


def list_tags(repo: str, *, endpoint: str | None = None) -> tuple[str, ...]:
    """The tags of a repository, newest first; branches are no tags.

    Raises `MirrorError`, or `NotAnArtefact` for a login page.
    """
    place = errors.Place(repo=repo, endpoint=_endpoint(endpoint))
    with errors.explained(place, None):
        _branches, tags = _client(place.endpoint).legacy.list_revisions_detail(repo, "model")
        newest_first = sorted(tags, key=lambda tag: int(tag.get("CreatedAt") or 0), reverse=True)
        return tuple(str(tag["Revision"]) for tag in newest_first)


def choose_archive(files: Iterable[MirrorFile], architecture: str) -> MirrorFile:
    """The archive of the server for a machine (`uname -m`); `.tar.zst` before `.tgz`.

    `-rocm`, `-jetpack` and `-mlx` archives hold libraries alone and are never chosen. Raises `MirrorError`
    where the repository has none: the usual mirror has amd64 only.
    """
    listed = tuple(files)
    name = _ARCHITECTURES.get(architecture)
    for suffix in ("tar.zst", "tgz"):
        for file in listed:
            if name is not None and file.path == f"ollama-linux-{name}.{suffix}":
                return file
    raise errors.no_archive(architecture, [file.path for file in listed])


def fetch(
    artefact: Artefact, cache_dir: Path, *, on_progress: OnProgress, endpoint: str | None = None
) -> Path:
    """The pinned file below `cache_dir`, downloaded and verified if it is not there yet.

    A file at its final place was verified before it got there and is trusted by its name and size. An
    interrupted download is resumed; a second process waits for the first. `on_progress` is called about ten
    times a second, also from another thread, and must not raise.

    Raises `MirrorError`, `ChecksumMismatch`, `NotAnArtefact`, `DiskTooSmall`, or `UsageError` for an endpoint
    that is no URL.
    """
    name = errors.checked_name(artefact)
    final = cache_dir / f"sha256-{artefact.sha256}" / name
    place = errors.Place(
        repo=artefact.repo,
        revision=artefact.revision,
        file=artefact.file,
        endpoint=_endpoint(endpoint),
        size_bytes=artefact.size_bytes,
        part=_part_of(_staging(final) / "files" / artefact.file),
    )
    # A staging directory beside the final file was left by a process that was killed while it tidied up.
    if not _is_at_its_place(final, artefact) or _staging(final).exists():
        with (
            errors.disk_explained(place, cache_dir),
            _locked_staging(final, artefact, on_progress) as staging,
        ):
            if not _is_at_its_place(final, artefact):
                _fetch_into(final, staging, artefact, place, on_progress)
    on_progress(_progress(artefact, Phase.DONE, artefact.size_bytes))
    return final


def _fetch_into(
    final: Path, staging: Path, artefact: Artefact, place: errors.Place, on_progress: OnProgress
) -> None:
    """One attempt, under the lock; a second one from zero if a part from before led to wrong bytes."""
    target = staging / "files" / artefact.file
    part = _part_of(target)
    _check_disk(artefact, target, final.parent.parent)
    _check_listing(artefact, place)
    resumed_bytes = _size(part) or _size(target)
    _download(artefact, staging, place, on_progress)
    try:
        _check_file(target, artefact, place, on_progress)
    except (ChecksumMismatch, NotAnArtefact):
        if not resumed_bytes:
            raise
        # The part may have come from other bytes under the same name.
        _download(artefact, staging, place, on_progress)
        _check_file(target, artefact, place, on_progress)
    final.parent.mkdir(exist_ok=True)
    _sync(target)
    target.replace(final)
    _sync(final.parent)
    _sync(final.parent.parent)


def _check_disk(artefact: Artefact, target: Path, cache_dir: Path) -> None:
    missing_bytes = max(0, artefact.size_bytes - (_size(_part_of(target)) or _size(target)))
    free_bytes = shutil.disk_usage(cache_dir).free
    if missing_bytes and missing_bytes + RESERVE_BYTES > free_bytes:
        raise errors.disk_too_small(artefact.file, cache_dir, missing_bytes + RESERVE_BYTES, free_bytes)


def _check_listing(artefact: Artefact, place: errors.Place) -> None:
    """Refuse before a byte of the file is asked for."""
    files = list_files(artefact.repo, artefact.revision, endpoint=place.endpoint)
    listed = next((file for file in files if file.path == artefact.file), None)
    if listed is None:
        raise errors.no_such_file(place, [file.path for file in files])
    if listed.size_bytes and listed.size_bytes != artefact.size_bytes:
        raise errors.listing_differs(place, f"{artefact.size_bytes:,} bytes", f"{listed.size_bytes:,} bytes")
    if listed.sha256 and listed.sha256 != artefact.sha256:
        raise errors.listing_differs(place, artefact.digest, f"sha256:{listed.sha256}")


def _download(artefact: Artefact, staging: Path, place: errors.Place, on_progress: OnProgress) -> None:
    """Have the client bring the whole file to `staging/files/<file>`, resuming its `.incomplete`.

    The client is told the size, which it holds every answer against. The sha256 is ours alone to check:
    given one, the client would download a wrong file three times and not tell which sha256 it had.
    """
    files = staging / "files"
    resumed_bytes = _size(_part_of(files / artefact.file))
    client = _client(place.endpoint, staging / "client")
    with errors.explained(place, None, look=lambda: _first_bytes(client, artefact)):
        client.download_repo(
            artefact.repo,
            "model",
            revision=artefact.revision,
            local_dir=files,
            file_list=[{"Path": artefact.file, "Size": artefact.size_bytes}],
            max_workers=1,
            progress_callbacks=[_meter_class(artefact, resumed_bytes, on_progress)],
        )


def _check_file(target: Path, artefact: Artefact, place: errors.Place, on_progress: OnProgress) -> None:
    """Size, magic and sha256; a file that fails is deleted."""
    try:
        with target.open("rb") as stream:
            errors.check_magic(artefact.file, stream.read(512), place)
            stream.seek(0)
            actual, done_bytes = _sha256(stream, artefact, on_progress)
        if (done_bytes, actual) != (artefact.size_bytes, artefact.sha256):
            raise errors.wrong_bytes(place, artefact, actual, done_bytes)
    except (ChecksumMismatch, NotAnArtefact):
        target.unlink()
        raise


def _sha256(stream: Any, artefact: Artefact, on_progress: OnProgress) -> tuple[str, int]:
    digest, done_bytes, next_at = hashlib.sha256(), 0, 0.0
    while chunk := stream.read(_HASH_CHUNK_BYTES):
        digest.update(chunk)
        done_bytes += len(chunk)
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + _EMIT_SECONDS
            on_progress(_progress(artefact, Phase.VERIFYING, done_bytes))
    return digest.hexdigest(), done_bytes


def _first_bytes(client: Any, artefact: Artefact) -> tuple[bytes, int]:
    """What the mirror sends for the file now: first bytes and announced length (-1: none)."""
    with client.legacy.download_stream(artefact.repo, "model", artefact.file, artefact.revision) as reply:
        announced = reply.headers.get("Content-Length", "")
        return next(reply.iter_content(512), b""), int(announced) if announced.isdigit() else -1


@contextlib.contextmanager
def _locked_staging(final: Path, artefact: Artefact, on_progress: OnProgress) -> Iterator[Path]:
    """The staging directory, for us alone; afterwards nothing of it is left but a resumable part.

    The lock file is removed by its holder; whoever waited for it looks whether it is still the one on disk.
    """
    staging = _staging(final)
    lock = staging / "lock"
    staging.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            staging.mkdir(exist_ok=True)
        except FileExistsError:
            # There when mkdir(2) was called and gone when pathlib looked what it is: another fetch has ended.
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(staging.lstat().st_mode):
                    raise
            continue
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_progress(_progress(artefact, Phase.WAITING))
                fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_same_file(handle, lock):
                continue
            try:
                yield staging
            finally:
                _tidy(staging, lock, _Part.USELESS if _is_at_its_place(final, artefact) else _Part.RESUMABLE)
            return
        finally:
            os.close(handle)


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _tidy(staging: Path, lock: Path, part: _Part) -> None:
    shutil.rmtree(staging / "client", ignore_errors=True)
    files = staging / "files"
    if part is _Part.USELESS or not any(_size(path) for path in files.rglob("*")):
        shutil.rmtree(files, ignore_errors=True)
    lock.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # holds a part, or another process has just come in
        staging.rmdir()


def _staging(final: Path) -> Path:
    return final.parent.with_name(final.parent.name + ".part")


def _part_of(target: Path) -> Path:
    """Where the client collects a file before it has all of it."""
    return target.with_name(target.name + ".incomplete")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_at_its_place(final: Path, artefact: Artefact) -> bool:
    return final.is_file() and final.stat().st_size == artefact.size_bytes


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _progress(artefact: Artefact, phase: Phase, done_bytes: int = 0) -> Progress:
    return Progress(
        file=PurePosixPath(artefact.file).name,
        phase=phase,
        done_bytes=done_bytes,
        total_bytes=artefact.size_bytes,
    )


def _meter_class(artefact: Artefact, resumed_bytes: int, on_progress: OnProgress) -> type:
    """A class, since the client makes the instances: one per attempt, `update` for every chunk."""

    class Meter:
        def __init__(self, _filename: str, _file_size: int) -> None:
            self.done_bytes = 0
            self.samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
            self.next_at = 0.0

        def update(self, size_bytes: int) -> None:
            was_resumed = self.done_bytes == 0 and size_bytes == resumed_bytes
            self.done_bytes += size_bytes
            now = time.monotonic()
            if size_bytes < 0 or was_resumed:
                self.samples.clear()
            if now >= self.next_at or not self.samples:
                self.next_at = now + _EMIT_SECONDS
                self.samples.append((now, self.done_bytes))
                while now - self.samples[0][0] > _RATE_WINDOW_SECONDS and len(self.samples) > 2:
                    self.samples.popleft()
                self.emit()

        def emit(self) -> None:
            (then, bytes_then), (now, bytes_now) = self.samples[0], self.samples[-1]
            span_seconds = now - then
            rate = (bytes_now - bytes_then) / span_seconds if span_seconds >= _RATE_NEEDS_SECONDS else 0.0
            on_progress(
                Progress(
                    file=PurePosixPath(artefact.file).name,
                    phase=Phase.DOWNLOADING,
                    done_bytes=self.done_bytes,
                    total_bytes=artefact.size_bytes,
                    resumed_bytes=resumed_bytes,
                    bytes_per_second=rate or None,
                    eta_seconds=(artefact.size_bytes - self.done_bytes) / rate if rate else None,
                )
            )

        def end(self) -> None:
            """Called by the client after success and failure alike; the caller knows which."""

    return Meter


def _endpoint(given: str | None) -> str:
    """The mirror's URL: given, or MODELSCOPE_ENDPOINT, or the public one.

    Raises `UsageError` without a scheme.
    """
    text = (given or os.environ.get("MODELSCOPE_ENDPOINT", "")).strip() or DEFAULT_ENDPOINT
    parts = urlsplit(text)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise errors.not_a_url(text)
    return text.rstrip("/")


def _client(endpoint: str, scratch: Path | None = None) -> Any:
    """A `modelscope_hub.HubApi` that reads no configuration and writes below `scratch` alone.

    Its telemetry id is kept in the configuration directory; below `/dev/null` there is none, and the client
    then makes one up for the process (modelscope_hub 0.5.1, `build_user_agent`).
    """
    hub = _import_client()
    nowhere = Path(os.devnull) / "modelscope"
    config = hub.HubConfig(endpoint=endpoint, cache_dir=scratch or nowhere, config_dir=nowhere)
    client = hub.HubApi(config=config)
    if re.match(r"http://(localhost|127\.|\[::1\])", endpoint):
        # No proxy leads to this machine, whatever http_proxy says.
        client.legacy._session.trust_env = False  # noqa: SLF001 - the client offers no other way
        client.legacy._read_session.trust_env = False  # noqa: SLF001
    return client


def _import_client() -> Any:
    """`modelscope_hub`, imported on first use: it reads its limits from the environment then."""
    with _import_lock:
        # The client logs to stderr and draws bars there; a handler of ours keeps it from adding its own.
        logger = logging.getLogger("modelscope_hub")
        if not any(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            logger.addHandler(logging.NullHandler())
            logger.propagate = False
        with _environment():
            import modelscope_hub
            import modelscope_hub._download

        modelscope_hub._download.tqdm = _NoBar  # noqa: SLF001 - TQDM_DISABLE works for the first importer alone
        return modelscope_hub


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """The client's limits as we want them, for as long as it reads them."""
    unset = {key: value for key, value in _CLIENT_DEFAULTS.items() if key not in os.environ}
    wanted = unset | _CLIENT_LIMITS
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


class _NoBar:
    """Stands in for tqdm, as far as the client uses it."""

    def __init__(self, *_args: object, **_settings: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_reason: object) -> None:
        pass

    def update(self, amount: float = 1) -> None:
        """Nothing to draw."""
