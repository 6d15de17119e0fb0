"""A release is an immutable directory: unpacked by us beside the others, named only when it is whole."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from deploy.errors import ArchiveRefused, FleetError, designed_error

RECORD = "release.json"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_MAGIC = b"\x1f\x8b"

Progress = Callable[[int], None]


def unpack_release(archive: Path, release: Path, *, version: str, sha256: str, on_progress: Progress) -> None:
    """Unpack a verified archive (`.tgz`, `.tar.zst`) into `release`, which appears whole or not at all.

    `on_progress` gets the bytes written so far. Members that are absolute, contain `..`, are devices, carry
    setuid or setgid, or lead through a link out of the directory are refused before anything is kept.
    Raises ArchiveRefused, DiskTooSmall or CommandFailed. A release of this name is replaced by rename.
    """
    temporary = release.with_name(f".unpack-{version}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        _extract(archive, temporary, on_progress)
        _check_links(archive, temporary)
        (temporary / RECORD).unlink(missing_ok=True)
        binary = temporary / "bin/ollama"
        if not (binary.is_file() and os.access(binary, os.X_OK)):
            raise _refused(archive, "`bin/ollama` is missing or not executable")
        # What the probe counts to see whether somebody has been at it.
        sizes = [path.lstat() for path in temporary.rglob("*")]
        size_bytes = sum(found.st_size for found in sizes if stat.S_ISREG(found.st_mode))
        record = {"version": version, "archive_sha256": sha256, "bytes": size_bytes}
        _write_file(temporary / RECORD, json.dumps(record).encode() + b"\n")
        _sync_tree(temporary)
        _take_place(temporary, release)
    except OSError as error:
        failure = designed_error(error)
        failure.sentence = f"release `{version}` could not be written below `{release.parent}`"
        failure.unchanged = "the releases that were there; what was unpacked so far was removed"
        raise failure from error
    finally:
        _remove_tree(temporary)


def _extract(archive: Path, target: Path, on_progress: Progress) -> None:
    written = 0
    with _open_tar(archive) as tar:
        try:
            for member in tar:
                _check_member(archive, target, member)
                written += _extract_member(tar, member, target)
                on_progress(written)
        except (tarfile.TarError, EOFError) as error:
            raise _refused(archive, f"it ends early or is damaged: {error}") from error


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
            errors: tuple[type[Exception], ...] = (tarfile.TarError, zstandard.ZstdError)
        elif magic[:2] == _GZIP_MAGIC:
            import gzip
            import zlib

            stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw)))
            errors = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)
        else:
            raise _refused(archive, "it is neither gzip nor zstd")
        try:
            yield stack.enter_context(tarfile.open(fileobj=stream, mode="r|"))
        except errors as error:
            raise _refused(archive, f"it ends early or is damaged: {error}") from error


def _check_member(archive: Path, target: Path, member: tarfile.TarInfo) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise _refused(archive, f"member `{member.name}` would be written outside the release directory")
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise _refused(archive, f"member `{member.name}` is a device, a pipe or of an unknown type")
    if member.mode & (stat.S_ISUID | stat.S_ISGID):
        raise _refused(archive, f"member `{member.name}` carries setuid or setgid")
    if member.issym() or member.islnk():
        base = name.parent if member.issym() else PurePosixPath()
        leads_out = member.islnk() and not (target / member.linkname).parent.resolve().is_relative_to(
            target.resolve()
        )
        if leads_out or _leaves(base / member.linkname):
            raise _refused(
                archive, f"member `{member.name}` links to `{member.linkname}`, outside the release"
            )
    # A directory that an earlier member made a link would lead the write elsewhere.
    for parent in name.parents:
        if (target / parent).is_symlink():
            raise _refused(archive, f"member `{member.name}` would be written through the link `{parent}`")


def _check_links(archive: Path, root: Path) -> None:
    """A link over a link can lead out although each alone seems to stay: where they end is what counts."""
    inside = root.resolve()
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(directory, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise _refused(archive, f"link `{path.relative_to(root)}` leads outside the release")


def _leaves(path: PurePosixPath) -> bool:
    depth = 0
    if path.is_absolute():
        return True
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


def _extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> int:
    """Write one member; returns its bytes. Modes are ours: 0755 or 0644, never more."""
    path = target / member.name
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    if member.issym():
        path.symlink_to(member.linkname)
        return 0
    if member.islnk():
        os.link(target / member.linkname, path, follow_symlinks=False)
        return 0
    source = tar.extractfile(member)
    assert source is not None
    with path.open("wb") as file:
        shutil.copyfileobj(source, file, 1024 * 1024)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o755 if member.mode & 0o111 else 0o644)
    return member.size


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o644)


def _sync_tree(root: Path) -> None:
    for directory, _, _ in os.walk(root):
        path = Path(directory)
        path.chmod(0o755)
        sync_directory(path)


def sync_directory(directory: Path) -> None:
    """Sync a directory: a rename in it is durable only then (rename(2), fsync(2))."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_place(temporary: Path, release: Path) -> None:
    if release.exists():
        # rename(2) does not replace a directory that is not empty. A running server keeps its open files.
        old = release.with_name(f".unpack-old-{release.name}-{os.getpid()}")
        release.rename(old)
        temporary.rename(release)
        _remove_tree(old)
    else:
        temporary.rename(release)
    sync_directory(release.parent)


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _refused(archive: Path, cause: str) -> FleetError:
    return ArchiveRefused(
        sentence=f"archive `{archive.name}` cannot be unpacked",
        cause=cause,
        unchanged="the installed releases; what was unpacked so far was removed",
        hint="compare its sha256 with the publisher's; the pin names an archive that is not a release",
    )
