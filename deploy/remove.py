"""Taking away what we made: the server, its releases, our state; the models only when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import PurePosixPath

from deploy import commands, services
from deploy.desired import Desired, HostPaths
from deploy.errors import CommandFailed
from deploy.facts import HostFacts, ServerProcess
from deploy.host_lock import host_lock
from deploy.journal import Journal
from deploy.outcomes import Events
from deploy.transport import Transport


class Models(Enum):
    """What becomes of the model store."""

    KEEP = "keep"
    REMOVE = "remove"


def doomed_things(
    desired: Desired, transport: Transport, facts: HostFacts, models: Models
) -> tuple[str, ...]:
    """What `remove_host` would take away, in words for people."""
    servers = [f"the running server, pid {item.process.pid}" for item in _processes(facts)]
    return (*servers, *(str(path) for path in _doomed(desired.paths, models) if _is_there(transport, path)))


def remove_host(
    desired: Desired, transport: Transport, probe: Callable[[], HostFacts], events: Events, models: Models
) -> int:
    """Stop our servers and remove our files; returns how many things were taken away.

    The model store goes only with `Models.REMOVE`, and only where it lies below our own root: a store
    elsewhere may be somebody else's. Raises CommandFailed with what is left.
    """
    paths = desired.paths
    if models is Models.REMOVE and paths.models_dir not in _doomed(paths, models):
        text = f"kept {paths.models_dir}: it lies outside {paths.root} and may be somebody else's"
        events("note", desired.host, text=text)
    # A deploy that was refused has made nothing but the lock.
    doomed = doomed_things(desired, transport, probe(), models)
    if not doomed and not _is_there(transport, paths.lock):
        return 0
    taken = 0
    journal = Journal(transport=transport, path=paths.journal, what="remove", events=events)
    with host_lock(transport, paths.lock, "remove", journal), _last_words(journal, doomed, paths):
        for item in _processes(probe()):
            services.stop_server(transport, item.process)
            events("note", desired.host, text=f"stopped the server, pid {item.process.pid}")
            taken += 1
        for path in _doomed(paths, models):
            if _is_there(transport, path):
                _remove(desired, transport, path)
                events("note", desired.host, text=f"removed {path}")
                taken += 1
    transport.run(commands.remove_empty(_parents(paths)))
    return taken


@contextmanager
def _last_words(journal: Journal, doomed: tuple[str, ...], paths: HostPaths) -> Iterator[None]:
    """A removal that fails leaves its story; one that succeeds takes the journal too, and the lock last.

    While the lock is held: whoever waits for it then takes another file for it, and never one without a name.
    """
    with journal.changing(doomed):
        yield
    rotated = journal.path.with_name(f"{journal.path.name}.1")
    journal.transport.run(commands.remove([journal.path, rotated, paths.lock]))


def _processes(facts: HostFacts) -> tuple[ServerProcess, ...]:
    """A server first: its runners end with it."""
    return (*facts.servers, *facts.orphans)


def _is_there(transport: Transport, path: PurePosixPath) -> bool:
    return transport.exists(path)


def _remove(desired: Desired, transport: Transport, path: PurePosixPath) -> None:
    done = transport.run(commands.remove([path]), timeout_seconds=600)
    if done.exit_code != 0:
        raise CommandFailed(
            sentence=f"`{path}` could not be removed",
            host=desired.host,
            cause=done.last_words,
            unchanged="what comes after it; run the same command again to go on",
        )


def _doomed(paths: HostPaths, models: Models) -> tuple[PurePosixPath, ...]:
    ours = (paths.current, paths.releases, paths.artefacts, paths.server_home, paths.log.parent)
    if models is Models.REMOVE and paths.models_dir.is_relative_to(paths.root):
        return (*ours, paths.models_dir)
    return ours


def _parents(paths: HostPaths) -> list[PurePosixPath]:
    """The directories that only we had a reason to make, deepest first; those with other content stay."""
    root = paths.root
    chain = [paths.state, paths.models_dir, paths.models_dir.parent, root / "opt/ollama"]
    if root != PurePosixPath("/"):
        chain += [root / "opt", root / "var/lib", root / "var/log", root / "var", root]
    return [path for path in chain if path != root.parent]
