"""What a ModelScope mirror did wrong, in the words of our errors.

Knows the client's exceptions by their fields and names: `status_code`, `failed_files`, the chain of causes.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deploy.desired import Artefact
from deploy.errors import (
    ChecksumMismatch,
    DiskTooSmall,
    FleetError,
    MirrorError,
    NotAnArtefact,
    PinError,
    UsageError,
)

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
GGUF_MAGIC = b"GGUF"
_ARCHIVE_SUFFIXES = (".tgz", ".tar.gz", ".tar.zst")
_AGAIN = "run the same command again"
_CAUSE_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What was asked for, and where; `part` is the file in which a download of `size_bytes` collects."""

    repo: str
    endpoint: str
    revision: str | None = None
    file: str | None = None
    size_bytes: int = 0
    part: Path | None = None

    @property
    def subject(self) -> str:
        if self.file is not None:
            return f"`{PurePosixPath(self.file).name}` (`{self.repo}`, revision `{self.revision}`)"
        return f"`{self.repo}`" + (f" revision `{self.revision}`" if self.revision else "")

    @property
    def kept(self) -> str:
        """For "left unchanged:", true at the moment it is read."""
        if self.part is not None and self.part.is_file() and self.part.stat().st_size:
            return f"the {self.part.stat().st_size:,} bytes that arrived are kept in {self.part}"
        return "nothing was downloaded"


def checked_name(artefact: Artefact) -> str:
    """The last component of the artefact's file. Raises `PinError` for what could leave a directory."""
    path = PurePosixPath(artefact.file)
    is_inside = bool(path.name) and not path.is_absolute() and ".." not in path.parts
    if not is_inside or not re.fullmatch(r"[0-9a-f]{64}", artefact.sha256):
        raise PinError(
            sentence=f"the pin of `{artefact.file}` is no relative path with 64 lower-case hex digits",
            unchanged="nothing was downloaded",
            hint="correct it in `pins.toml`",
        )
    return path.name


def not_a_url(text: str) -> UsageError:
    """An address without a scheme, for which the client would take https."""
    host = text.partition("://")[2] or text
    is_local = re.match(r"(localhost|127\.|\[::1\])", host) is not None
    return UsageError(
        sentence=f"the mirror's address `{text}` has no `http://` or `https://`",
        cause="the modelscope client would take https for granted",
        unchanged="nothing was downloaded",
        hint=f"export MODELSCOPE_ENDPOINT={'http' if is_local else 'https'}://{host}",
    )


def no_archive(architecture: str, paths: Sequence[str]) -> MirrorError:
    """No server archive for this `uname -m` among `paths`."""
    return MirrorError(
        sentence=f"the mirror has no Ollama server archive for `{architecture}`",
        cause=f"amd64 alone is usual there; listed: {', '.join(sorted(paths)) or 'no file at all'}",
        unchanged="nothing was downloaded",
        hint="leave these hosts out with `--limit`, or pin an archive for them from another repository "
        "in `pins.toml`",
    )


def disk_too_small(file: str, cache_dir: Path, needed_bytes: int, free_bytes: int | None) -> DiskTooSmall:
    """Too few bytes free, before the download or (`free_bytes` is `None`) in the middle of it."""

    def amount(size_bytes: int) -> str:
        return f"{size_bytes:,} bytes ({size_bytes / 2**30:.2f} GiB)"

    name = PurePosixPath(file).name
    if free_bytes is None:
        cause = f"the disk filled up while the file came in; {amount(needed_bytes)} more are needed"
    else:
        missing_bytes = needed_bytes - free_bytes
        cause = f"needed {amount(needed_bytes)}, free {amount(free_bytes)}, missing {amount(missing_bytes)}"
    return DiskTooSmall(
        sentence=f"not enough free space for `{name}` in {cache_dir}",
        path=str(cache_dir),
        cause=cause,
        unchanged="what is already in the cache was not touched",
        hint=f"make room (`df -h {cache_dir}`), then {_AGAIN}",
    )


def no_such_file(place: Place, paths: Sequence[str]) -> MirrorError:
    """The listing has `paths`, and not the file of `place`."""
    name = place.file or ""
    close = difflib.get_close_matches(name, paths, n=3, cutoff=0.5)
    return MirrorError(
        sentence=f"`{place.repo}` revision `{place.revision}` has no file `{name}`",
        cause=f"listed: {', '.join(sorted(paths)[:20]) or 'no file at all'}",
        unchanged=place.kept,
        hint=f"did you mean `{close[0]}`? correct the pin in `pins.toml`"
        if close
        else "correct the pin in `pins.toml`",
    )


def listing_differs(place: Place, pinned: str, listed: str) -> ChecksumMismatch:
    """The listing's size or sha256 is not the pinned one."""
    return ChecksumMismatch(
        sentence=f"the mirror lists other bytes than the pinned ones for {place.subject}",
        expected=pinned,
        actual=listed,
        cause="the pin is wrong, or the file was replaced under the same revision",
        unchanged="no byte of the file was asked for",
        hint="compare with the publisher's checksum; if these are meant, correct `pins.toml`",
    )


def wrong_bytes(place: Place, artefact: Artefact, sha256: str, size_bytes: int) -> ChecksumMismatch:
    """All bytes arrived and are not the pinned ones."""
    return ChecksumMismatch(
        sentence=f"checksum mismatch for {place.subject}",
        expected=artefact.digest,
        actual=f"sha256:{sha256} after {size_bytes:,} bytes",
        cause="the mirror, or something between it and this machine, sent other bytes than the pinned ones",
        unchanged="nothing was installed; the download was deleted",
        hint=f"{_AGAIN}; if it happens twice, compare the pin with the publisher's checksum",
    )


def check_magic(file: str, head: bytes, place: Place) -> None:
    """Whether the first bytes are of the kind that the name promises. Raises `NotAnArtefact`."""
    name = file.lower()
    if name.endswith(".gguf") and not head.startswith(GGUF_MAGIC):
        kind = "a GGUF: it does not begin with `GGUF`"
    elif name.endswith(_ARCHIVE_SUFFIXES) and not head.startswith((GZIP_MAGIC, ZSTD_MAGIC)):
        kind = "an archive: it is neither gzip nor zstd"
    else:
        return
    if _is_html(head):
        raise login_page(place, head.decode(errors="replace"))
    raise NotAnArtefact(
        sentence=f"{place.subject} is not {kind}",
        cause=f"its first bytes are {head[:16]!r}",
        unchanged="nothing was installed; the download was deleted",
        hint="look at the file in the repository, then correct the pin in `pins.toml`",
    )


def login_page(place: Place, text: str) -> NotAnArtefact:
    """HTML with status 200: `text` is its beginning."""
    title = re.search(r"<title[^>]*>\s*(.*?)\s*</title>", text, re.DOTALL | re.IGNORECASE)
    return NotAnArtefact(
        sentence=f"a web page came back instead of {place.subject}",
        cause=f"{place.endpoint} answered with HTML" + (f' titled "{title[1][:80]}"' if title else ""),
        unchanged=place.kept,
        hint=f"a proxy or login page is in the way: open {place.endpoint} in a browser on this machine, "
        f"or check http_proxy, https_proxy and no_proxy; then {_AGAIN}",
    )


@contextlib.contextmanager
def disk_explained(place: Place, cache_dir: Path) -> Iterator[None]:
    """Turn what the local disk refused into our errors."""
    try:
        yield
    except OSError as error:
        raise _disk_error(place, error, cache_dir) from error


@contextlib.contextmanager
def explained(
    place: Place,
    list_tags: Callable[[], Sequence[str]] | None,
    look: Callable[[], tuple[bytes, int]] | None = None,
) -> Iterator[None]:
    """Turn what the modelscope client raises into our errors.

    `list_tags` is asked when a revision may be the unknown thing, `look` (first bytes and announced length)
    when the mirror sent another size than the pinned one.
    """
    try:
        yield
    except FleetError:
        raise
    except Exception as raised:
        failed = getattr(raised, "failed_files", None)
        error: BaseException = next(iter(failed.values())) if failed else raised
        raise _explain(place, error, list_tags, look) from raised


def _explain(
    place: Place,
    error: BaseException,
    list_tags: Callable[[], Sequence[str]] | None,
    look: Callable[[], tuple[bytes, int]] | None,
) -> FleetError:
    status = getattr(error, "status_code", None)
    if isinstance(error, json.JSONDecodeError):
        if _is_html(error.doc.encode(errors="replace")):
            return login_page(place, error.doc)
        return _no_modelscope(place, f"its answer is no JSON: {error.doc[:60]!r}")
    if _is_a(error, "FileSizeMismatchError"):
        return _wrong_size(place, look)
    if status == 404:
        return _not_found(place, list_tags)
    if status is not None:
        return _refused(place, int(status), error)
    if _is_a(error, "NetworkError", "HubError"):
        return _broken(place, error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return _disk_error(place, error, place.part.parent if place.part is not None else Path.cwd())
    if isinstance(error, (AttributeError, KeyError, TypeError, ValueError)):
        return _no_modelscope(place, "its answer has another shape than ModelScope's")
    return _broken(place, error)


def _wrong_size(place: Place, look: Callable[[], tuple[bytes, int]] | None) -> FleetError:
    head, announced_bytes = b"", -1
    if look is not None:
        with contextlib.suppress(Exception):  # it only helps to say what is wrong
            head, announced_bytes = look()
    if _is_html(head):
        return login_page(place, head.decode(errors="replace"))
    return ChecksumMismatch(
        sentence=f"the mirror sends another size than the pinned one for {place.subject}",
        expected="the pinned size",
        actual=f"{announced_bytes:,} bytes" if announced_bytes >= 0 else "another one",
        cause="the file is truncated or replaced on the mirror, or a proxy rewrites it",
        unchanged="nothing was installed; the download was deleted",
        hint=f"{_AGAIN}; if it happens twice, compare the pin with the repository",
    )


def _not_found(place: Place, list_tags: Callable[[], Sequence[str]] | None) -> MirrorError:
    tags: Sequence[str] | None = None
    if place.revision is not None and list_tags is not None:
        with contextlib.suppress(FleetError):  # the repository is the unknown thing
            tags = list_tags()
    if tags is not None:
        close = difflib.get_close_matches(place.revision or "", tags, n=1, cutoff=0.5) or list(tags[:1])
        return MirrorError(
            sentence=f"`{place.repo}` has no revision `{place.revision}`",
            cause=f"its tags, newest first: {', '.join(tags[:10]) or 'none'}",
            unchanged=place.kept,
            hint=(f"did you mean `{close[0]}`? " if close else "") + "correct the pin in `pins.toml`",
        )
    if place.file is not None:
        return MirrorError(
            sentence=f"the mirror lists {place.subject} and then does not find it",
            cause=f"{place.endpoint} answered 404 for the file",
            unchanged=place.kept,
            hint=f"{_AGAIN}; if it happens twice, pin another revision in `pins.toml`",
        )
    return MirrorError(
        sentence=f"the mirror has no repository `{place.repo}`",
        cause=f"{place.endpoint} answered 404; a private repository looks the same without a token",
        unchanged=place.kept,
        hint=f"check OWNER/NAME at {place.endpoint}/models/{place.repo}; "
        "for a private one: `export MODELSCOPE_API_TOKEN=...`",
    )


def _refused(place: Place, status: int, error: BaseException) -> MirrorError:
    if status in (401, 403):
        hint = "`export MODELSCOPE_API_TOKEN=...` with a token that may read it, then " + _AGAIN
    elif status == 429:
        hint = f"the mirror limits requests: wait a minute, then {_AGAIN}"
    else:
        hint = f"the mirror has trouble of its own: {_AGAIN} later"
    return MirrorError(
        sentence=f"the mirror refused {place.subject} with HTTP {status}",
        cause=_first_line(str(getattr(error, "message", error))),
        unchanged=place.kept,
        hint=hint,
    )


def _broken(place: Place, error: BaseException) -> MirrorError:
    """The connection could not be made, or did not last."""
    chain = list(_chain(error))
    names = {name for link in chain for name in (kind.__name__ for kind in type(link).__mro__)}
    check = f"check with `curl -sS {place.endpoint}/api/v1/models/{place.repo}/revisions`, then {_AGAIN}"
    sentence = f"the mirror `{place.endpoint}` cannot be reached for {place.subject}"
    if any(isinstance(link, ssl.SSLError) for link in chain) or "SSLError" in names:
        detail = next((str(link) for link in chain if isinstance(link, ssl.SSLError)), "TLS failed")
        if "WRONG_VERSION_NUMBER" in detail:
            check = (
                f"it speaks no TLS: export MODELSCOPE_ENDPOINT={place.endpoint.replace('https:', 'http:', 1)}"
            )
        elif "has expired" in detail or "not yet valid" in detail:
            check = f"this machine's clock may be wrong (date -u), or the mirror's certificate; {_AGAIN}"
        else:
            check = "name the certificate of its authority: `export REQUESTS_CA_BUNDLE=/path/ca.pem`"
        cause = f"TLS: {detail}"
    elif "ProxyError" in names:
        cause = "the proxy between this machine and the mirror cannot be reached or refuses"
        check = f"check http_proxy, https_proxy and no_proxy, then {_AGAIN}"
    elif any(isinstance(link, ConnectionRefusedError) for link in chain):
        cause = "connection refused: nothing listens there"
    elif any(isinstance(link, socket.gaierror) for link in chain) or "NameResolutionError" in names:
        cause = "its name cannot be resolved"
    elif "_DownloadTooSlowError" in names:
        sentence, cause = f"the download of {place.subject} is too slow", "fewer than 1 KiB/s for a minute"
    elif names & {"_IncompleteBodyError", "IncompleteRead", "ProtocolError", "ConnectionResetError"}:
        sentence = f"the download of {place.subject} broke off"
        cause = "the mirror closed the connection again and again before the file was complete"
    elif any(isinstance(link, TimeoutError) for link in chain) or names & {"Timeout", "TimeoutError"}:
        sentence, cause = f"the mirror went silent during {place.subject}", "no byte arrived in time"
    else:
        cause = f"{type(error).__name__}: {_first_line(str(error))}"
    hint = f"{_AGAIN}: it goes on from there" if place.kept != "nothing was downloaded" else check
    return MirrorError(sentence=sentence, cause=_without_token(cause), unchanged=place.kept, hint=hint)


def _no_modelscope(place: Place, cause: str) -> MirrorError:
    return MirrorError(
        sentence=f"`{place.endpoint}` does not answer like a ModelScope mirror",
        cause=_without_token(cause),
        unchanged=place.kept,
        hint=f"check MODELSCOPE_ENDPOINT: `curl -sS {place.endpoint}/api/v1/models/{place.repo}/revisions`",
    )


def _disk_error(place: Place, error: OSError, cache_dir: Path) -> FleetError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        kept_bytes = place.part.stat().st_size if place.part is not None and place.part.is_file() else 0
        return disk_too_small(place.file or place.repo, cache_dir, place.size_bytes - kept_bytes, None)
    return MirrorError(
        sentence=f"`{cache_dir}` cannot be used for downloads",
        path=error.filename if isinstance(error.filename, str) else None,
        cause=error.strerror or str(error),
        unchanged="nothing was installed",
        hint=f"make it writable: `ls -ld {cache_dir}`",
    )


def _is_a(error: BaseException, *names: str) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)


_HTML = re.compile(rb"\s*(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|\?xml|!--)", re.IGNORECASE)


def _is_html(head: bytes) -> bool:
    return _HTML.match(head) is not None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and all it came from: causes, contexts, `reason`s and exceptions among the arguments."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:
        link = waiting.pop(0)
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        waiting += [link.__cause__, link.__context__, getattr(link, "reason", None), *link.args]


def _first_line(text: str) -> str:
    return _without_token((text.splitlines() or [""])[0][:_CAUSE_CHARACTERS])


def _without_token(text: str) -> str:
    token = os.environ.get("MODELSCOPE_API_TOKEN", "").strip()
    return text.replace(token, "***") if token else text
