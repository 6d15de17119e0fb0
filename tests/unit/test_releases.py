"""Archives are unpacked by us, whole or not at all; hostile ones leave nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from deploy.errors import ArchiveRefused, CommandFailed
from deploy.releases import unpack_release

SHA = "e" * 64


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o755
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


BINARY = member("bin/ollama", b"#!/bin/sh\n")


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def unpack(tmp_path: Path, packed: bytes, name: str = "a.tgz") -> Path:
    archive = tmp_path / name
    archive.write_bytes(packed)
    release = tmp_path / "releases/0.17.5"
    release.parent.mkdir(exist_ok=True)
    unpack_release(archive, release, version="0.17.5", sha256=SHA, on_progress=lambda written: None)
    return release


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["tgz", "tar.zst"])
def test_both_kinds_of_archive_are_unpacked_whatever_their_name(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    library = member("lib/ollama/libggml.so.1", b"elf", mode=0o644)
    link = member("lib/ollama/libggml.so", type=tarfile.SYMTYPE, linkname="libggml.so.1")
    release = unpack(tmp_path, pack(tar_of(BINARY, library, link)))
    assert (release / "bin/ollama").stat().st_mode & 0o7777 == 0o755
    assert (release / "lib/ollama/libggml.so").read_bytes() == b"elf"
    assert (release / "lib/ollama/libggml.so.1").stat().st_mode & 0o7777 == 0o644
    assert json.loads((release / "release.json").read_text()) == {
        "version": "0.17.5",
        "archive_sha256": SHA,
        "bytes": sum(
            path.stat().st_size for path in (release / "bin/ollama", release / "lib/ollama/libggml.so.1")
        ),
        "program_sha256": hashlib.sha256((release / "bin/ollama").read_bytes()).hexdigest(),
    }


def test_a_mode_of_0777_in_the_archive_is_not_taken_over(tmp_path: Path) -> None:
    release = unpack(tmp_path, gzip.compress(tar_of(member("bin/ollama", b"x", mode=0o777))))
    assert (release / "bin/ollama").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    ("hostile", "cause"),
    [
        (member("/etc/cron.d/x", b"x"), "outside the release directory"),
        (member("lib/../../x", b"x"), "outside the release directory"),
        (
            member("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            "a device, a pipe or of an unknown type",
        ),
        (member("pipe", type=tarfile.FIFOTYPE), "a device, a pipe or of an unknown type"),
        (member("bin/su", b"x", mode=0o4755), "setuid or setgid"),
        (member("bin/sg", b"x", mode=0o2755), "setuid or setgid"),
        (member("lib/x", type=tarfile.SYMTYPE, linkname="../../outside"), "outside the release"),
        (member("lib/x", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "outside the release"),
        (member("lib/x", type=tarfile.LNKTYPE, linkname="../x"), "outside the release"),
    ],
)
def test_a_hostile_member_is_refused_and_nothing_is_left(
    tmp_path: Path, hostile: tuple[tarfile.TarInfo, bytes], cause: str
) -> None:
    with pytest.raises(ArchiveRefused) as refused:
        unpack(tmp_path, gzip.compress(tar_of(BINARY, hostile)))
    assert cause in str(refused.value.cause)
    assert list((tmp_path / "releases").iterdir()) == []


def test_a_write_through_a_link_of_the_archive_is_refused(tmp_path: Path) -> None:
    link = member("lib", type=tarfile.SYMTYPE, linkname="bin")
    with pytest.raises(ArchiveRefused, match="cannot be unpacked") as refused:
        unpack(tmp_path, gzip.compress(tar_of(BINARY, link, member("lib/ollama", b"evil"))))
    assert "through the link `lib`" in str(refused.value.cause)


@pytest.mark.parametrize(
    ("packed", "cause"),
    [
        (gzip.compress(tar_of(BINARY))[:-30], "ends early or is damaged"),
        (zstandard.ZstdCompressor().compress(tar_of(BINARY))[:-9], "ends early or is damaged"),
        (b"<html>log in</html>", "neither gzip nor zstd"),
        (gzip.compress(b"no tar at all" * 100), "ends early or is damaged"),
        (gzip.compress(tar_of(member("README", b"x"))), "`bin/ollama` is missing"),
        (gzip.compress(tar_of(member("bin/ollama", b"x", mode=0o644))), "not executable"),
    ],
    ids=["cut gzip", "cut zstd", "a page", "no tar", "no binary", "not executable"],
)
def test_a_damaged_or_foreign_archive_leaves_the_release_that_was_there(
    tmp_path: Path, packed: bytes, cause: str
) -> None:
    release = unpack(tmp_path, gzip.compress(tar_of(BINARY)))
    with pytest.raises(ArchiveRefused) as refused:
        unpack(tmp_path, packed)
    assert cause in str(refused.value.cause)
    assert (release / "bin/ollama").read_bytes() == b"#!/bin/sh\n"
    assert [path.name for path in release.parent.iterdir()] == ["0.17.5"]


def test_a_release_of_the_same_version_is_replaced_whole(tmp_path: Path) -> None:
    unpack(tmp_path, gzip.compress(tar_of(BINARY, member("lib/old", b"x"))))
    release = unpack(tmp_path, gzip.compress(tar_of(member("bin/ollama", b"new"))))
    assert (release / "bin/ollama").read_bytes() == b"new"
    assert not (release / "lib/old").exists()


SYM, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    "links",
    [
        # `a/b` is the release itself, so `c` is its parent, although each link alone stays inside.
        [("a/b", SYM, ".."), ("c", SYM, "a/b/..")],
        [("a/b", SYM, ".."), ("c", SYM, "a/b/.."), ("d", HARD, "c/secret")],
    ],
)
def test_a_link_over_a_link_does_not_lead_out(tmp_path: Path, links: list[tuple[str, bytes, str]]) -> None:
    (tmp_path / "releases").mkdir()
    secret = tmp_path / "releases/secret"
    secret.write_text("not theirs")
    members = [member(name, type=kind, linkname=target) for name, kind, target in links]
    with pytest.raises(ArchiveRefused):
        unpack(tmp_path, gzip.compress(tar_of(BINARY, *members)))
    assert secret.stat().st_nlink == 1
    assert [path.name for path in (tmp_path / "releases").iterdir()] == ["secret"]


def test_a_record_in_the_archive_is_not_written_through(tmp_path: Path) -> None:
    link = member("release.json", type=SYM, linkname="bin/ollama")
    release = unpack(tmp_path, gzip.compress(tar_of(BINARY, link)))
    assert (release / "bin/ollama").read_bytes() == b"#!/bin/sh\n"
    assert not (release / "release.json").is_symlink()


def test_a_directory_that_cannot_be_made_is_not_called_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "releases").write_text("a file")
    archive = tmp_path / "a.tgz"
    archive.write_bytes(gzip.compress(tar_of(BINARY)))
    with pytest.raises(CommandFailed, match="could not be written"):
        unpack_release(
            archive, tmp_path / "releases/0.17.5", version="0.17.5", sha256=SHA, on_progress=lambda _: None
        )
