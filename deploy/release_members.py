"""The members of a release archive, each checked before anything is done with it: here or on a host.

Nothing on a disk is asked: what the archive said so far is all that counts, so that the same rules hold
where the members are only passed on.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from deploy.errors import ArchiveRefused, FleetError
from deploy.server_plan import render_mark

RECORD = "release.json"
MARK = "release.env"
STAMP = "release.stamp"
BINARY = PurePosixPath("bin/ollama")
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member with our modes (0755 or 0644) and root as its owner; a regular file's content in chunks.

    The content is to be read before the next member is asked for.
    """

    info: tarfile.TarInfo
    content: Iterator[bytes]


def checked_members(archive: Path) -> Iterator[Member]:
    """The members of a verified archive (`.tgz`, `.tar.zst`) in their order, without a record of its own.

    Raises ArchiveRefused, at the latest after the last member: for names that are absolute or contain `..`,
    devices, setuid and setgid, links that lead out or are written through, a damaged archive and a missing
    `bin/ollama`. Nothing that was made of the members may be used before the iteration has ended.
    """
    seen = _Seen(archive)
    with _damage_told(archive), _open_tar(archive) as tar:
        for info in tar:
            seen.check(info)
            if str(PurePosixPath(info.name)) not in (RECORD, MARK, STAMP):
                yield Member(info=_ours(info), content=_content(archive, tar, info))
    seen.check_all()


class Contents:
    """What has been unpacked of an archive so far: the bytes of its files, the sha256 of its program."""

    def __init__(self) -> None:
        self._sizes: dict[PurePosixPath, int] = {}
        self._program: Any = None

    def pass_on(self, member: Member) -> Iterator[bytes]:
        """The member's content; it is counted whether or not somebody reads it."""
        path = PurePosixPath(member.info.name)
        self._sizes.pop(path, None)
        if member.info.islnk():
            self._sizes[path] = self._sizes[PurePosixPath(member.info.linkname)]
        elif member.info.isreg():
            self._sizes[path] = member.info.size
        if path != BINARY:
            return member.content
        self._program = hashlib.sha256() if member.info.isreg() else None
        return self._hashed(member.content)

    def _hashed(self, content: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in content:
            if self._program is not None:
                self._program.update(chunk)
            yield chunk

    @property
    def size_bytes(self) -> int:
        return sum(self._sizes.values())

    @property
    def program_sha256(self) -> str | None:
        """None where the program is a link to another file."""
        return self._program.hexdigest() if self._program is not None else None


def render_records(version: str, sha256: str, contents: Contents) -> dict[str, bytes]:
    """What we add to a release, by name: the probe's record, last, and an environment file for its server.

    A server tells by that mark which release it was started from, whatever `current` links to by now.
    """
    record = {
        "version": version,
        "archive_sha256": sha256,
        "bytes": contents.size_bytes,
        "program_sha256": contents.program_sha256,
    }
    return {
        MARK: render_mark(sha256),
        RECORD: json.dumps(record).encode() + b"\n",
    }


def _content(archive: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    if not info.isreg():
        return
    source = tar.extractfile(info)
    assert source is not None
    with _damage_told(archive):
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk


class _Seen:
    """What the archive has said so far."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        # Names of files and the modes that the archive gives them.
        self._files: dict[PurePosixPath, int] = {}
        self._links: dict[PurePosixPath, str] = {}

    def check(self, info: tarfile.TarInfo) -> None:
        name = PurePosixPath(info.name)
        if name.is_absolute() or ".." in name.parts:
            raise self._refused(f"member `{info.name}` would be written outside the release directory")
        if not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
            raise self._refused(f"member `{info.name}` is a device, a pipe or of an unknown type")
        if info.mode & (stat.S_ISUID | stat.S_ISGID):
            raise self._refused(f"member `{info.name}` carries setuid or setgid")
        for place in (name, *name.parents):
            if place in self._links:
                raise self._refused(f"member `{info.name}` would be written through the link `{place}`")
        if info.issym():
            self._check_inside(info, name.parent / info.linkname)
            self._links[name] = info.linkname
            self._files.pop(name, None)
        elif info.islnk():
            target = PurePosixPath(info.linkname)
            self._check_inside(info, target)
            if target not in self._files:
                raise self._refused(
                    f"member `{info.name}` is a link to `{target}`, which is no file before it"
                )
            self._files[name] = self._files[target]
        elif info.isreg():
            self._files[name] = info.mode

    def check_all(self) -> None:
        """A link over a link can lead out although each alone seems to stay."""
        for name, target in self._links.items():
            place = PurePosixPath()
            passed_link = False
            for part in (name.parent / target).parts:
                if part == ".." and passed_link:
                    raise self._refused(f"link `{name}` leads outside the release, or might")
                place = place.parent if part == ".." else place / part
                passed_link = passed_link or place in self._links
        if not self._files.get(BINARY, 0) & 0o111:
            raise self._refused("`bin/ollama` is missing or not executable")

    def _check_inside(self, info: tarfile.TarInfo, path: PurePosixPath) -> None:
        depth = 0
        for part in path.parts:
            depth += -1 if part == ".." else 1
            if depth < 0 or path.is_absolute():
                raise self._refused(f"member `{info.name}` links to `{info.linkname}`, outside the release")

    def _refused(self, cause: str) -> FleetError:
        return refused(self._archive, cause)


def _ours(info: tarfile.TarInfo) -> tarfile.TarInfo:
    made = copy.copy(info)
    made.mode = 0o755 if info.isdir() or info.mode & 0o111 else 0o644
    made.uid = made.gid = 0
    made.uname = made.gname = ""
    made.pax_headers = {}
    if info.isreg():
        # A sparse file's holes are filled while it is read.
        made.type = tarfile.REGTYPE
    else:
        made.size = 0
    return made


@contextlib.contextmanager
def _open_tar(archive: Path) -> Iterator[tarfile.TarFile]:
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(archive.open("rb"))
        magic = raw.read(4)
        raw.seek(0)
        stream: IO[bytes]
        if magic == _ZSTD_MAGIC:
            import zstandard

            stream = stack.enter_context(zstandard.ZstdDecompressor().stream_reader(raw))
        elif magic[:2] == _GZIP_MAGIC:
            import gzip

            stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw)))
        else:
            raise refused(archive, "it is neither gzip nor zstd")
        yield stack.enter_context(tarfile.open(fileobj=stream, mode="r|"))


@contextlib.contextmanager
def _damage_told(archive: Path) -> Iterator[None]:
    import gzip
    import zlib

    import zstandard

    try:
        yield
    except (tarfile.TarError, zstandard.ZstdError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise refused(archive, f"it ends early or is damaged: {error}") from error


def refused(archive: Path, cause: str) -> FleetError:
    """The error for an archive that is no release, or a hostile one."""
    return ArchiveRefused(
        sentence=f"archive `{archive.name}` cannot be unpacked",
        cause=cause,
        unchanged="the installed releases; what was unpacked so far was removed",
        hint="compare its sha256 with the publisher's; the pin names an archive that is not a release",
    )
