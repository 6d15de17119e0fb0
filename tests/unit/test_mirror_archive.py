"""The archive of the simulated Ollama: layout, determinism, and a version line that must be there."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard

from testbed.archive import Compression, make_release_archive, pack_real_release

SIMULATED = Path(__file__).resolve().parents[2] / "testbed/ollama.py"
SMALL = b"#!/bin/sh\n''':'\npython=\nexit 1\n'''\nVERSION = \"0.17.5\"  # a comment\n"


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "ollama.py"
    path.write_bytes(SMALL)
    path.chmod(0o600)
    return path


def members(archive: Path) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    data = archive.read_bytes()
    if archive.name.endswith(".zst"):
        with tarfile.open(fileobj=io.BytesIO(zstandard.decompress(data))) as tar:
            return read(tar)
    with tarfile.open(archive, "r:gz") as tar:
        return read(tar)


def read(tar: tarfile.TarFile) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    found = {}
    for entry in tar.getmembers():
        stream = tar.extractfile(entry)
        found[entry.name] = (entry, stream.read() if stream is not None else b"")
    return found


@pytest.mark.parametrize("compression", ["tgz", "tar.zst"])
def test_both_packings_have_the_layout_of_a_release(
    tmp_path: Path, binary: Path, compression: Compression
) -> None:
    archive = make_release_archive(
        tmp_path / f"a.{compression}", version="0.14.1", compression=compression, binary=binary
    )
    found = members(archive)
    assert list(found) == ["bin", "bin/ollama", "lib", "lib/ollama", "lib/ollama/README"]
    assert b'\nVERSION = "0.14.1"\n' in found["bin/ollama"][1]
    assert {
        (entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname) for entry, _data in found.values()
    } == {(0, 0, 0, "", "")}
    assert {name: entry.mode for name, (entry, _data) in found.items()} == {
        "bin": 0o755,
        "bin/ollama": 0o755,
        "lib": 0o755,
        "lib/ollama": 0o755,
        "lib/ollama/README": 0o644,
    }


@pytest.mark.parametrize("compression", ["tgz", "tar.zst"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, binary: Path, compression: Compression) -> None:
    first = make_release_archive(tmp_path / "one", version="1.0.0", compression=compression, binary=binary)
    os.utime(binary, (1, 1))
    binary.chmod(0o755)
    second = make_release_archive(tmp_path / "two", version="1.0.0", compression=compression, binary=binary)
    assert first.read_bytes() == second.read_bytes()
    if compression == "tgz":
        assert first.read_bytes()[4:8] == bytes(4)  # gzip's own time, RFC 1952
    other = make_release_archive(tmp_path / "two", version="1.0.1", compression=compression, binary=binary)
    assert first.read_bytes() != other.read_bytes()


def test_given_libraries_replace_the_marker(tmp_path: Path, binary: Path) -> None:
    libraries = tmp_path / "libraries"
    (libraries / "cuda_v12").mkdir(parents=True)
    (libraries / "cuda_v12/libggml.so").write_bytes(b"so")
    (libraries / "llama-server").write_bytes(b"#!/bin/sh\n")
    (libraries / "llama-server").chmod(0o700)
    archive = make_release_archive(
        tmp_path / "a.tgz", version="0.30.0", compression="tgz", binary=binary, libraries=libraries
    )
    found = members(archive)
    assert "lib/ollama/README" not in found
    assert found["lib/ollama/cuda_v12/libggml.so"][1] == b"so"
    assert found["lib/ollama/llama-server"][0].mode == 0o755


def test_a_link_among_the_libraries_is_refused(tmp_path: Path, binary: Path) -> None:
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    (libraries / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="neither a file nor a directory"):
        make_release_archive(
            tmp_path / "a.tgz", version="1.0.0", compression="tgz", binary=binary, libraries=libraries
        )


@pytest.mark.parametrize("text", [b"no version", SMALL + b'VERSION = "2"\n'])
def test_a_binary_without_exactly_one_version_line_is_refused(tmp_path: Path, text: bytes) -> None:
    binary = tmp_path / "ollama.py"
    binary.write_bytes(text)
    with pytest.raises(ValueError, match="exactly one is needed"):
        make_release_archive(tmp_path / "a.tgz", version="1.0.0", compression="tgz", binary=binary)
    assert not (tmp_path / "a.tgz").exists()


@pytest.mark.parametrize("version", ["", '1"', "1.0\n", "a b"])
def test_a_version_that_would_break_the_line_is_refused(tmp_path: Path, binary: Path, version: str) -> None:
    with pytest.raises(ValueError, match="is no version"):
        make_release_archive(tmp_path / "a.tgz", version=version, compression="tgz", binary=binary)


@pytest.mark.parametrize("python", ["/it's/python", "/a\\b", "/a\nb"])
def test_an_interpreter_that_would_break_the_line_is_refused(
    tmp_path: Path, binary: Path, python: str
) -> None:
    with pytest.raises(ValueError, match="has a quote"):
        make_release_archive(
            tmp_path / "a.tgz", version="1.0.0", compression="tgz", binary=binary, python=python
        )


def test_the_packed_simulated_ollama_runs_with_the_given_interpreter(tmp_path: Path) -> None:
    archive = make_release_archive(
        tmp_path / "a.tgz", version="0.99.1", compression="tgz", binary=SIMULATED, python=sys.executable
    )
    program = tmp_path / "ollama"
    program.write_bytes(members(archive)["bin/ollama"][1])
    program.chmod(0o755)
    done = subprocess.run(
        [program, "--version"],
        env={"HOME": str(tmp_path), "PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "0.99.1" in done.stdout + done.stderr


def test_a_real_release_is_packed_with_its_libraries_and_links(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib/ollama").mkdir(parents=True)
    binary = tmp_path / "bin/ollama"
    binary.write_bytes(b"ELF")
    binary.chmod(0o755)
    (tmp_path / "lib/ollama/libggml.so.1").write_bytes(b"library")
    (tmp_path / "lib/ollama/libggml.so").symlink_to("libggml.so.1")
    first = pack_real_release(tmp_path / "out/a.tar.zst", binary).read_bytes()
    os.utime(binary, (1, 1))
    assert pack_real_release(tmp_path / "out/a.tar.zst", binary).read_bytes() == first
    with tarfile.open(
        fileobj=io.BytesIO(zstandard.ZstdDecompressor().decompressobj().decompress(first))
    ) as tar:
        found = {member.name: (member.mode & 0o777, member.linkname) for member in tar if not member.isdir()}
    assert found["bin/ollama"] == (0o755, "")
    assert found["lib/ollama/libggml.so"][1] == "libggml.so.1"
