"""Files that a run writes its report to, beside what it says."""

from __future__ import annotations

import os
from pathlib import Path

from deploy.errors import UsageError


def check_report_file(flag: str, path: Path | None) -> None:
    """Before anything is done whose report could then not be kept. Raises UsageError."""
    cause = None if path is None else _why_not(path)
    if cause is not None:
        raise UsageError(
            sentence=f"`{flag} {path}` cannot be written",
            cause=cause,
            unchanged="everything",
            hint="name a file in a directory that exists",
        )


def write_report_file(path: Path, data: bytes) -> None:
    """By rename: a report is whole or the one before. Raises OSError."""
    if _is_device(path):
        # `/dev/null` and a pipe are written to: a rename would put a file in their place.
        path.write_bytes(data)
        return
    temporary = _temporary(path)
    temporary.write_bytes(data)
    temporary.replace(_itself(path))


def _why_not(path: Path) -> str | None:
    """Tried out, not asked for: a file system that is read-only lets its owner's mode say yes."""
    if path.is_dir():
        return "it is a directory"
    if not _itself(path).parent.is_dir():
        return "its directory does not exist"
    if not _is_device(path):
        try:
            _temporary(path).touch()
            _temporary(path).unlink()
        except OSError as error:
            return error.strerror
    return None


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _itself(path: Path) -> Path:
    """The file, also where `path` is a link to it."""
    return Path(os.path.realpath(path))


def _temporary(path: Path) -> Path:
    return _itself(path).with_name(f".{_itself(path).name}.new")
