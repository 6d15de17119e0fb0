"""A release is an immutable directory: unpacked by us beside the others, named only when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from deploy.errors import designed_error
from deploy.release_members import Contents, Member, checked_members, render_records
from deploy.transport import Progress


def unpack_release(archive: Path, release: Path, *, version: str, sha256: str, on_progress: Progress) -> None:
    """Unpack a verified archive (`.tgz`, `.tar.zst`) into `release`, which appears whole or not at all.

    `on_progress` gets the bytes written so far. Members that are absolute, contain `..`, are devices, carry
    setuid or setgid, or lead through a link out of the directory are refused before anything is kept.
    Raises ArchiveRefused, DiskTooSmall or CommandFailed. A release of this name is replaced by rename.
    """
    temporary = release.with_name(f".unpack-{version}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        contents = _extract(archive, temporary, on_progress)
        for name, content in render_records(version, sha256, contents).items():
            _write_file(temporary / name, content)
        _sync_tree(temporary)
        _take_place(temporary, release)
    except OSError as error:
        failure = designed_error(error)
        failure.sentence = f"release `{version}` could not be written below `{release.parent}`"
        failure.unchanged = "the releases that were there; what was unpacked so far was removed"
        raise failure from error
    finally:
        _remove_tree(temporary)


def _extract(archive: Path, target: Path, on_progress: Progress) -> Contents:
    contents = Contents()
    written = 0
    for member in checked_members(archive):
        _write_member(member, contents.pass_on(member), target)
        written += member.info.size
        on_progress(written)
    return contents


def _write_member(member: Member, content: Iterable[bytes], target: Path) -> None:
    path = target / member.info.name
    if member.info.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    if member.info.issym():
        path.symlink_to(member.info.linkname)
    elif member.info.islnk():
        os.link(target / member.info.linkname, path, follow_symlinks=False)
    else:
        with path.open("wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        path.chmod(member.info.mode)


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
