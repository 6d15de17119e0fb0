"""Taking away from one host what nothing needs any more, under its lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import assert_never

from deploy import commands
from deploy.desired import Desired
from deploy.errors import CommandFailed, Interrupted, NotConverged
from deploy.facts import HostFacts
from deploy.host_lock import host_lock
from deploy.journal import Journal
from deploy.ollama_api import OllamaApi
from deploy.outcomes import Events
from deploy.prune import PHASE, Kind, Previous, PrunePlan, Removal, plan_prune
from deploy.transport import Transport

# Deleting a release of gigabytes on a slow disk takes its time.
REMOVE_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """How many things are gone, and the bytes on disk of the files that had no other name."""

    steps_done: int = 0
    freed_bytes: int = 0


def prune_host(
    desired: Desired,
    transport: Transport,
    probe: Callable[[], HostFacts],
    events: Events,
    *,
    keep: int,
    previous: Previous,
    stop_requested: threading.Event,
) -> Pruned:
    """Remove what `plan_prune` names. What is served is not touched.

    Raises CommandFailed, Interrupted, HostLocked or NotConverged: the same command again goes on.
    """
    if plan_prune(desired, probe(), keep, previous).is_empty:
        return Pruned()
    journal = Journal(transport=transport, path=desired.paths.journal, what="prune", events=events)
    with host_lock(transport, desired.paths.lock, "prune", journal) as check_held:
        # Looked at once more: somebody else may have had the lock until now.
        before = probe()
        todo = plan_prune(desired, before, keep, previous)
        if todo.is_empty:
            return Pruned()
        freed_bytes = 0
        with journal.changing([removal.subject for removal in todo.removals]):
            for removal in todo.removals:
                _stop_if_asked(stop_requested)
                check_held()
                freed_bytes += _tell_removal(desired, transport, removal, before, events)
            _check_gone(desired.host, plan_prune(desired, probe(), keep, previous))
    events("pruned", desired.host, freed_bytes=freed_bytes)
    return Pruned(steps_done=len(todo.removals), freed_bytes=freed_bytes)


def _stop_if_asked(stop_requested: threading.Event) -> None:
    if stop_requested.is_set():
        raise Interrupted(
            sentence="`prune` was interrupted",
            cause="Ctrl-C; what was being removed is gone",
            unchanged="what is served, and what comes after it",
            hint="the same command goes on from here",
        )


def _tell_removal(
    desired: Desired, transport: Transport, removal: Removal, facts: HostFacts, events: Events
) -> int:
    """Remove one thing; returns the bytes that it has freed."""
    started = time.monotonic()
    told = {"phase": PHASE, "step": str(removal.kind), "subject": removal.subject}
    events("step_started", desired.host, **told, reason=removal.reason)
    freed_bytes = _remove(desired, transport, removal, facts)
    seconds = round(time.monotonic() - started, 3)
    events("step_done", desired.host, **told, seconds=seconds, freed_bytes=freed_bytes)
    return freed_bytes


def _remove(desired: Desired, transport: Transport, removal: Removal, facts: HostFacts) -> int:
    path = PurePosixPath(removal.target)
    match removal.kind:
        case Kind.MODEL:
            return _remove_model(desired, transport, removal.target, facts)
        case Kind.RELEASE:
            return _remove_path(desired, transport, path, commands.remove_release(path))
        case Kind.ARTEFACT:
            # With the directory that is named after its sha256.
            return _remove_path(desired, transport, path.parent, commands.remove([path.parent]))
        case Kind.LEFTOVER | Kind.PART:
            return _remove_path(desired, transport, path, commands.remove([path]))
        case _:
            assert_never(removal.kind)


def _remove_path(desired: Desired, transport: Transport, path: PurePosixPath, argv: commands.Argv) -> int:
    freed_bytes = _size_of(transport, path)
    done = transport.run(argv, timeout_seconds=REMOVE_SECONDS)
    if done.exit_code != 0:
        raise CommandFailed(
            sentence=f"`{path}` could not be removed",
            host=desired.host,
            cause=done.last_words,
            unchanged="what is served, and what comes after it; run the same command again to go on",
        )
    return freed_bytes


def _remove_model(desired: Desired, transport: Transport, name: str, facts: HostFacts) -> int:
    """The server removes the weights with the last model that is made from them."""
    blob = desired.paths.models_dir / "blobs" / f"sha256-{facts.models[name].model_sha256}"
    freed_bytes = _size_of(transport, blob)
    served = f"{name.rpartition(':')[0]}:latest"
    with transport.http_url(desired.url) as url:
        api = OllamaApi(desired.host, url)
        is_loaded = name in api.loaded_names()
        if is_loaded:
            # Its runner would live on under a name that is gone; it may be the one that `latest` shares.
            api.unload(name)
        api.delete(name)
        if is_loaded and served in facts.models:
            api.load(served)
    return 0 if transport.exists(blob) else freed_bytes


def _size_of(transport: Transport, path: PurePosixPath) -> int:
    return int(transport.run(commands.last_names([path])).stdout or 0)


def _check_gone(host: str, left: PrunePlan) -> None:
    if not left.is_empty:
        raise NotConverged(
            sentence=f"`{host}` still has what was removed",
            cause="\n".join(f"{removal.subject}: {removal.reason}" for removal in left.removals),
            hint=f"./fleet status --limit {host}",
        )
