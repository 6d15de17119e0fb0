"""A release archive of the simulated Ollama, in the layout of the real ones: `bin/ollama` and `lib/ollama/`.

The same input gives the same bytes, so that a pin made from one archive fits the next.
"""

from __future__ import annotations

import gzip
import io
import re
import stat
import tarfile
from pathlib import Path
from typing import Literal

import zstandard

Compression = Literal["tgz", "tar.zst"]
"""How real releases are packed: `.tgz` from 0.3.7 to 0.13.5, `.tar.zst` from 0.14.0 on."""

MARKER = b"This is the simulated Ollama of ollama-fleet's testbed: no GPU libraries, no inference.\n"
_VERSION_LINE = re.compile(rb'^VERSION = "[^"\n]*".*$', re.MULTILINE)
_PYTHON_LINE = re.compile(rb"^python=$", re.MULTILINE)


def make_release_archive(
    target: Path,
    *,
    version: str,
    compression: Compression,
    binary: Path,
    libraries: Path | None = None,
    python: str | None = None,
) -> Path:
    """Write the archive to `target` and return it.

    `binary` is the simulated Ollama: its one line `VERSION = "..."` gets `version`; `python`, where given, is
    the first interpreter it tries. `libraries` becomes `lib/ollama`; without it a README stands there.
    Raises `ValueError` where `binary` has not exactly one such line, or `libraries` holds something other
    than files and directories.
    """
    members = {"bin/ollama": (_prepare(binary.read_bytes(), version, python), 0o755)}
    if libraries is None:
        members["lib/ollama/README"] = (MARKER, 0o644)
    else:
        members |= {f"lib/ollama/{name}": member for name, member in _read_tree(libraries).items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".new")
    partial.write_bytes(_compress(_pack(members), compression))
    return partial.replace(target)


def pack_real_release(target: Path, binary: Path) -> Path:
    """Write an archive of a real Ollama to `target` and return it: the binary, and `lib/ollama` beside it.

    Packed member by member, for the GPU libraries take gigabytes; links stay links. Deterministic as well.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".new")
    libraries = binary.parent.parent / "lib/ollama"
    with (
        partial.open("wb") as file,
        zstandard.ZstdCompressor(level=1).stream_writer(file) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        tar.add(binary, "bin/ollama", filter=_anonymous)
        if libraries.is_dir():
            tar.add(libraries, "lib/ollama", filter=_anonymous)
    return partial.replace(target)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def _prepare(text: bytes, version: str, python: str | None) -> bytes:
    if not re.fullmatch(r"[0-9A-Za-z.+-]+", version):
        raise ValueError(f"`{version}` is no version")
    text = _replace_line(text, _VERSION_LINE, f'VERSION = "{version}"')
    if python is None:
        return text
    if re.search(r"""['"\\\n]""", python):
        # The line is read by sh, and lies in a string literal of Python.
        raise ValueError(f"`{python}` has a quote, a backslash or a line end in its path")
    return _replace_line(text, _PYTHON_LINE, f"python='{python}'")


def _replace_line(text: bytes, pattern: re.Pattern[bytes], line: str) -> bytes:
    changed, count = pattern.subn(line.encode(), text)
    if count != 1:
        raise ValueError(f"the simulated Ollama has {count} lines like `{line}`, exactly one is needed")
    return changed


def _read_tree(root: Path) -> dict[str, tuple[bytes, int]]:
    members: dict[str, tuple[bytes, int]] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            members[path.relative_to(root).as_posix()] = (path.read_bytes(), 0o755 if mode & 0o111 else 0o644)
        elif not stat.S_ISDIR(mode):
            raise ValueError(f"{path} is neither a file nor a directory")
    return members


def _pack(members: dict[str, tuple[bytes, int]]) -> bytes:
    """A tar of these files and the directories above them: sorted, owned by root, of the epoch."""
    folders = {
        "/".join(name.split("/")[:depth]) for name in members for depth in range(1, name.count("/") + 1)
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(folders | set(members)):
            entry = tarfile.TarInfo(name)
            if name in folders:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
                continue
            content, entry.mode = members[name]
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _compress(data: bytes, compression: Compression) -> bytes:
    if compression == "tar.zst":
        return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)
    return gzip.compress(data, compresslevel=6, mtime=0)
