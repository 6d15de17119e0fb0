"""Files that a run writes its report to, beside what it says."""

from __future__ import annotations

from pathlib import Path

from deploy.errors import UsageError


def check_report_file(flag: str, path: Path | None) -> None:
    """Before anything is done whose report could then not be kept. Raises UsageError."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise UsageError(
            sentence=f"`{flag} {path}` cannot be written",
            cause="it is a directory" if path.is_dir() else "its directory does not exist",
            unchanged="everything",
            hint="name a file in a directory that exists",
        )


def write_report_file(path: Path, data: bytes) -> None:
    """By rename: a report is whole or the one before. Raises OSError."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    temporary.replace(path)
