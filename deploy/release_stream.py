"""A release sent to a host: decompressed and checked here, passed on as plain tar, named there when whole."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from deploy import ssh_commands
from deploy.errors import command_failed
from deploy.release_members import Contents, checked_members, render_records
from deploy.transport import Completed, Progress, Transport

_TELL_BYTES = 4 * 1024 * 1024


def stream_release(
    transport: Transport,
    archive: Path,
    release: PurePosixPath,
    *,
    version: str,
    sha256: str,
    on_progress: Progress,
) -> None:
    """Unpack a verified archive of this machine into `release` on the host; it appears whole or not at all.

    `on_progress` gets the bytes sent so far. The host needs no more than `tar`. Raises ArchiveRefused,
    DiskTooSmall, CommandFailed or HostUnreachable; a release of this name is replaced by rename.
    """
    chunks = _tar_chunks(archive, version, sha256, on_progress)
    done: Completed = transport.send(ssh_commands.receive_release(release), chunks)
    if done.exit_code != 0:
        raise command_failed(
            sentence=f"release `{version}` could not be written below `{release.parent}`",
            host=transport.host,
            cause=done.last_words,
            unchanged="the releases that were there; what was unpacked so far was removed",
            hint=f"df -h {release.parent}; ls -ld {release.parent}",
        )


def _tar_chunks(archive: Path, version: str, sha256: str, on_progress: Progress) -> Iterator[bytes]:
    """Plain GNU tar, which every tar reads; our record last, as the sign that nothing is missing."""
    contents = Contents()
    sent_bytes = told_bytes = 0
    for member in checked_members(archive):
        for chunk in _member_chunks(member.info, contents.pass_on(member)):
            yield chunk
            sent_bytes += len(chunk)
            if sent_bytes - told_bytes >= _TELL_BYTES:
                on_progress(sent_bytes)
                told_bytes = sent_bytes
    on_progress(sent_bytes)
    for name, content in render_records(version, sha256, contents).items():
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o644
        yield from _member_chunks(info, [content])
    # The end of the archive is two empty blocks; tar(1) reads whole records of 20.
    yield bytes(tarfile.RECORDSIZE)


def _member_chunks(info: tarfile.TarInfo, content: Iterable[bytes]) -> Iterator[bytes]:
    yield info.tobuf(tarfile.GNU_FORMAT)
    yield from content
    yield bytes(-info.size % tarfile.BLOCKSIZE)
