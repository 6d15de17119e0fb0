"""`pin`: resolve, show what changes, ask, prove it by downloading, write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from console.paths import MODELFILES
from console.run import may_change
from deploy.errors import ExitCode, Interrupted, PinError
from deploy.mirror import Progress
from deploy.models import find_model, parse_models
from deploy.pin import Release, find_release, find_weights, prove
from deploy.pins import CONTAINED_REPO, Pins, check_deployable, parse_version, version_warning
from deploy.pins_file import PinChange, Wanted, compare_pins, read_pins_file, write_pins
from deploy.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class PinTask:
    """One `./fleet pin`: no `models` means all that are not contained; given alone, no release is pinned."""

    report: Report
    pins: Path
    cache: Path
    version: str | None = None
    models: Sequence[str] = ()
    endpoint: str | None = None
    modelfiles: Path = MODELFILES


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/ollama-fleet`, `~/.cache` where it is not set (XDG base directories)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".cache") / "ollama-fleet"


def pin_asking(task: PinTask, *, yes: bool) -> ExitCode:
    """Bring the pins to what the mirror has; on any error every pin is what it was."""
    report = task.report
    text, old = read_pins_file(task.pins, task.modelfiles)
    release, wanted = _resolve(task)
    changes = compare_pins(old, wanted)
    _show(report, changes, release, old)
    totals = {"pins": len(wanted.servers) + len(wanted.weights), "path": str(task.pins)}
    if not changes:
        report.say(f"nothing to change: {task.pins} has what the mirror lists")
    elif not may_change(report, yes=yes):
        report.summary((), **totals, pinned=0, to_pin=len(changes))
        return ExitCode.USAGE
    else:
        _prove(task, changes)
        write_pins(task.pins, text, changes, task.modelfiles)
        report.say(f"{task.pins} written")
    report.summary((), **totals, pinned=len(changes))
    return ExitCode.DONE


def _resolve(task: PinTask) -> tuple[Release | None, Wanted]:
    """What the files and the mirror say; nothing is downloaded."""
    known = parse_models(task.modelfiles)
    if task.models:
        specs = [find_model(name, known) for name in task.models]
    else:
        specs = [spec for spec in known.values() if spec.repo != CONTAINED_REPO]
    # A model is added without an upgrade of the hosts that follow the newest pinned release.
    wants_release = task.version is not None or not task.models
    release = find_release(task.version, endpoint=task.endpoint) if wants_release else None
    # Two models may share their weights.
    by_file = {(spec.repo, spec.file): spec for spec in specs}
    weights = [find_weights(spec, task.modelfiles, endpoint=task.endpoint) for spec in by_file.values()]
    servers = release.servers if release is not None else ()
    return release, Wanted(servers=servers, weights=tuple(weights))


def _show(report: Report, changes: Sequence[PinChange], release: Release | None, old: Pins) -> None:
    for change in changes:
        rows = [{"key": key, "old": before, "new": now} for key, before, now in change.differences]
        report("pin", None, subject=change.subject, is_new=change.old is None, changes=rows)
        report.say(f"{change.subject}: {'new' if change.old is None else 'changed'}")
        for key, before, now in change.differences:
            shown = f"{now:,}" if isinstance(now, int) else now
            shown_before = f"{before:,}" if isinstance(before, int) else before
            report.say(f"  {key:<12} {shown if before is None else f'{shown_before} -> {shown}'}")
    notes = _notes_of_release(release, changes, old) if release is not None else []
    for text in [*notes, *_notes_of_bytes(changes)]:
        report("note", None, text=text)


def _notes_of_release(release: Release, changes: Sequence[PinChange], old: Pins) -> list[str]:
    notes = [
        f"note: {release.tag} has no archive for {architecture} on the mirror (amd64 alone is usual): "
        "hosts of that kind get no pin"
        for architecture in release.missing
    ]
    try:
        check_deployable(release.version)
    except PinError as error:
        notes.append(f"warning: {error.sentence}: {error.cause}; {error.hint}")
    if (warning := version_warning(release.version)) is not None:
        notes.append(f"warning: {warning}")
    newest = max((server.version for server in old.servers), key=parse_version, default=release.version)
    if any(change.table == "server" and change.index is None for change in changes) and old.servers:
        after = max(newest, release.version, key=parse_version)
        moved = f"{newest} -> {after}" if after != newest else f"{newest}, as before"
        notes.append(f"note: hosts without `ollama_version` get the newest pinned release: {moved}")
    return notes


def _notes_of_bytes(changes: Sequence[PinChange]) -> list[str]:
    notes = [
        f"warning: {change.subject}: the mirror lists other bytes under the same name than the pinned ones"
        for change in changes
        if change.old is not None and change.old["sha256"] != change.new["sha256"]
    ]
    size_bytes = sum(change.artefact.size_bytes for change in changes if change.artefact.local_path is None)
    if size_bytes:
        notes.append(
            f"note: before anything is written, {size_bytes:,} bytes are downloaded and hashed; "
            "what is in the cache already is only hashed"
        )
    return notes


def _prove(task: PinTask, changes: Sequence[PinChange]) -> None:
    def tell(progress: Progress) -> None:
        task.report(
            "progress",
            None,
            file=progress.file,
            doing=str(progress.phase),
            bytes=progress.done_bytes,
            total_bytes=progress.total_bytes,
            bytes_per_second=progress.bytes_per_second,
            eta_seconds=progress.eta_seconds,
        )

    def proven(change: PinChange) -> None:
        task.report("note", None, text=f"{change.subject}: size and sha256 computed from the bytes agree")

    task.cache.mkdir(parents=True, exist_ok=True)
    try:
        prove(changes, task.cache, on_progress=tell, on_proven=proven, endpoint=task.endpoint)
    except KeyboardInterrupt:
        raise Interrupted(
            sentence=f"interrupted before `{task.pins.name}` was written",
            cause="Ctrl-C",
            unchanged=f"every pin; what arrived is kept in {task.cache}",
            hint="run the same command again: it goes on from there",
        ) from None
