"""Changing `pins.toml`: what differs from the pins in it, the edited text, and the rename.

Only lines of pins that change are touched; comments, other pins and their order stay.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.desired import Artefact
from deploy.errors import FleetError, PinError, UsageError
from deploy.pins import PinnedServer, Pins, parse_pins
from deploy.toml_file import find_line

HEADER = """\
# What the artefacts must be: these bytes or none. Written by `./fleet pin`.
# [[server]]   version, repo, revision, file, architecture ("amd64" or "arm64"), size_bytes, sha256
# [[weights]]  repo, revision, file, size_bytes, sha256
"""

Fields = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the file shall say: these pins; others in it are left alone."""

    servers: tuple[PinnedServer, ...]
    weights: tuple[Artefact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PinChange:
    """One pin that is new (`old` and `index` are None) or differs; `index` counts the tables of its kind."""

    table: str
    subject: str
    artefact: Artefact
    new: Fields
    old: Fields | None = None
    index: int | None = None

    @property
    def differences(self) -> tuple[tuple[str, str | int | None, str | int], ...]:
        """(key, old value or None, new value), in the order of the file."""
        old = self.old or {}
        return tuple((key, old.get(key), value) for key, value in self.new.items() if old.get(key) != value)


def read_pins_file(path: Path, modelfiles: Path) -> tuple[str, Pins]:
    """Text and pins; the header alone where there is no file. Raises PinError, UsageError, InputErrors."""
    if not path.parent.is_dir():
        raise UsageError(
            sentence=f"there is no directory `{path.parent}` for `{path.name}`",
            unchanged="everything",
            hint=f"mkdir -p {path.parent}",
        )
    if not path.exists():
        return HEADER, Pins(path=str(path), directory=modelfiles, servers=(), artefacts=())
    pins = parse_pins(path, modelfiles)
    # Not by read_text: line ends stay as they are.
    return path.read_bytes().decode("utf-8-sig"), pins


def compare_pins(old: Pins, wanted: Wanted) -> tuple[PinChange, ...]:
    """What has to be written.

    A pin that has the wanted bytes stays, unless a commit replaces a name that can be moved.
    """
    changes: list[PinChange] = []
    for server in wanted.servers:
        key = (server.version, server.architecture)
        index = next(
            (i for i, known in enumerate(old.servers) if (known.version, known.architecture) == key), None
        )
        before = old.servers[index] if index is not None else None
        if before is None or _differs(before.archive, server.archive):
            changes.append(
                PinChange(
                    table="server",
                    subject=f"ollama {server.version} ({server.architecture})",
                    artefact=server.archive,
                    new=server_fields(server),
                    old=server_fields(before) if before is not None else None,
                    index=index,
                )
            )
    for weights in wanted.weights:
        place = (weights.repo, weights.file)
        index = next((i for i, known in enumerate(old.artefacts) if (known.repo, known.file) == place), None)
        known = old.artefacts[index] if index is not None else None
        if known is None or _differs(known, weights):
            changes.append(
                PinChange(
                    table="weights",
                    subject=weights.file,
                    artefact=weights,
                    new=artefact_fields(weights),
                    old=artefact_fields(known) if known is not None else None,
                    index=index,
                )
            )
    return tuple(changes)


def _differs(old: Artefact, new: Artefact) -> bool:
    def bytes_of(artefact: Artefact) -> tuple[str, str, int, str]:
        return artefact.repo, artefact.file, artefact.size_bytes, artefact.sha256

    if bytes_of(old) != bytes_of(new):
        return True
    return is_commit(new.revision) and not is_commit(old.revision)


def is_commit(revision: str) -> bool:
    """Whether a revision names one git commit for good: a tag or a branch can be moved."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def server_fields(server: PinnedServer) -> Fields:
    """The keys of a `[[server]]` table."""
    return {
        "version": server.version,
        "architecture": server.architecture,
        **artefact_fields(server.archive),
    }


def artefact_fields(artefact: Artefact) -> Fields:
    """The keys of a `[[weights]]` table."""
    return {
        "repo": artefact.repo,
        "revision": artefact.revision,
        "file": artefact.file,
        "size_bytes": artefact.size_bytes,
        "sha256": artefact.sha256,
    }


def render_pins(text: str, changes: Sequence[PinChange]) -> str:
    """The text with these changes made: values replaced in their lines, new tables at the end."""
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith(newline):
        lines[-1] += newline
    for change in changes:
        if change.index is None:
            continue
        for key, _, value in change.differences:
            number = find_line(text, (change.table, change.index, key))
            if number is not None:
                lines[number - 1] = _assignment(key, value) + newline
    for change in changes:
        if change.index is None:
            table = ["", f"[[{change.table}]]", *(_assignment(*item) for item in change.new.items())]
            lines += [line + newline for line in table]
    return "".join(lines)


def _assignment(key: str, value: str | int) -> str:
    # A JSON string of printable characters is a TOML one too.
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"


def write_pins(path: Path, text: str, changes: Sequence[PinChange], modelfiles: Path) -> None:
    """Make `changes` to the file whose content was `text`; it is the old one or the new one at any moment.

    What is going to be renamed is read back first: it must hold exactly the old pins with the changes.
    Raises PinError: the file is no longer `text`, its form cannot be edited, or it cannot be written.
    """
    path = path.resolve()
    before, old = read_pins_file(path, modelfiles)
    if before != text:
        raise _refused(path, "it was changed by somebody else meanwhile", "./fleet pin")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _refused(path, error.strerror or str(error), f"ls -ld {path.parent}") from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(render_pins(text, changes).encode())
            os.fchmod(file.fileno(), path.stat().st_mode & 0o7777 if path.exists() else 0o644)
            file.flush()
            os.fsync(file.fileno())
        _check_written(temporary, path, old, changes, modelfiles)
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise _refused(path, error.strerror or str(error), f"ls -l {path}; df -h {path.parent}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _check_written(
    temporary: Path, path: Path, old: Pins, changes: Sequence[PinChange], modelfiles: Path
) -> None:
    servers = [server_fields(server) for server in old.servers]
    weights = [artefact_fields(artefact) for artefact in old.artefacts]
    for change in changes:
        rows = servers if change.table == "server" else weights
        if change.index is None:
            rows.append(change.new)
        else:
            rows[change.index] = change.new
    try:
        new = parse_pins(temporary, modelfiles)
    except FleetError as error:
        raise _not_editable(path) from error
    if [server_fields(server) for server in new.servers] != servers:
        raise _not_editable(path)
    if [artefact_fields(artefact) for artefact in new.artefacts] != weights:
        raise _not_editable(path)


def _not_editable(path: Path) -> PinError:
    return _refused(
        path,
        "its tables are written in a form that is read but not edited",
        "write each pin as a `[[server]]` or `[[weights]]` table, one key a line",
    )


def _refused(path: Path, cause: str, hint: str) -> PinError:
    return PinError(
        sentence=f"`{path.name}` was not written",
        path=str(path),
        cause=cause,
        unchanged="every pin; what was downloaded stays in the cache",
        hint=hint,
    )


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
