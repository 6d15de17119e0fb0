"""Taking away what we made: the server, its releases, our state; the models only when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import PurePosixPath

from deploy import commands, services
from deploy.crontab import line_mark
from deploy.desired import Desired, HostPaths, ServiceBackend
from deploy.errors import CommandFailed
from deploy.facts import Account, HostFacts, ServerProcess
from deploy.health_config import metrics_file
from deploy.host_lock import host_lock
from deploy.journal import Journal
from deploy.outcomes import Events
from deploy.schedule import end_cron
from deploy.systemd_plan import main_server
from deploy.transport import Transport
from deploy.units import OUR_UNITS


class Models(Enum):
    """What becomes of the model store."""

    KEEP = "keep"
    REMOVE = "remove"


def doomed_things(
    desired: Desired, transport: Transport, facts: HostFacts, models: Models
) -> tuple[str, ...]:
    """What `remove_host` would take away, in words for people."""
    servers = [f"the running server, pid {item.process.pid}" for item in _processes(facts)]
    lines = [f"the line in the crontab of {cron.user}"] if (cron := facts.cron) and cron.lines else []
    doomed = (*_unit_files(desired, facts), *_doomed(desired, facts, models))
    return (*lines, *servers, *map(str, _existing(transport, doomed)))


def remove_host(
    desired: Desired, transport: Transport, probe: Callable[[], HostFacts], events: Events, models: Models
) -> int:
    """Stop our servers and remove our files; returns how many things were taken away.

    The model store goes only with `Models.REMOVE`, and only where it is ours: below our own root, or, on a
    host that systemd runs, the property of the account that we made. An adopted server is left running as it
    was before us. Raises CommandFailed with what is left.
    """
    paths = desired.paths
    facts = probe()
    is_kept = models is Models.REMOVE and paths.models_dir not in _doomed(desired, facts, models)
    if is_kept and transport.exists(paths.models_dir):
        events("note", desired.host, text=f"kept {paths.models_dir}: it may be somebody else's")
    # A deploy that was refused has made nothing but the lock.
    doomed = doomed_things(desired, transport, facts, models)
    if not doomed and not transport.exists(paths.lock):
        return 0
    taken = 0
    journal = Journal(transport=transport, path=paths.journal, what="remove", events=events)
    with host_lock(transport, paths.lock, "remove", journal), _last_words(journal, doomed, paths):
        if facts.cron is not None and facts.cron.lines:
            end_cron(transport, paths, line_mark(paths.root))
            events("note", desired.host, text=f"removed the line in the crontab of {facts.cron.user}")
            taken += 1
        files = _existing(transport, _unit_files(desired, facts))
        if files:
            taken += _remove_units(desired, transport, facts, files, events)
        for item in _processes(probe()):
            services.stop_server(transport, item.process)
            events("note", desired.host, text=f"stopped the server, pid {item.process.pid}")
            taken += 1
        for path in _existing(transport, _doomed(desired, facts, models)):
            _remove(desired, transport, path)
            events("note", desired.host, text=f"removed {path}")
            taken += 1
        taken += _remove_account(desired, transport, facts, models, events)
    transport.run(commands.remove_empty(_parents(paths)))
    return taken


def _remove_units(
    desired: Desired, transport: Transport, facts: HostFacts, files: Sequence[PurePosixPath], events: Events
) -> int:
    adopted = facts.systemd is not None and facts.systemd.foreign_program is not None
    done = transport.run(
        commands.remove_units(files, desired.paths.adopted_record, adopted=adopted), timeout_seconds=120
    )
    if done.exit_code != 0:
        raise CommandFailed(
            sentence="the units could not be removed",
            host=desired.host,
            cause=done.last_words,
            unchanged="releases, state and models; run the same command again to go on",
        )
    for path in files:
        events("note", desired.host, text=f"removed {path}")
    if adopted:
        events("note", desired.host, text="the adopted server is as it was before us")
    return len(files)


def _remove_account(
    desired: Desired, transport: Transport, facts: HostFacts, models: Models, events: Events
) -> int:
    """With the models only: what the account owns would belong to a number otherwise."""
    account = _our_account(facts)
    if account is None:
        return 0
    if models is Models.KEEP:
        events("note", desired.host, text=f"kept the account {account.name}: the models belong to it")
        return 0
    # Only while the account is there: a directory of its own that holds nothing was made with its store.
    transport.run(commands.remove_made(account.name, desired.paths.models_dir.parent))
    record = desired.paths.account_record
    done = transport.run(commands.remove_account(account.name, account.home, record))
    if done.exit_code != 0:
        raise CommandFailed(
            sentence=f"the account `{account.name}` could not be removed",
            host=desired.host,
            cause=done.last_words,
        )
    events("note", desired.host, text=f"removed the account {account.name}")
    return 1


def _our_account(facts: HostFacts) -> Account | None:
    """The account that we made, if it was us."""
    found = facts.systemd
    return found.account if found is not None and found.account_is_ours else None


def _unit_files(desired: Desired, facts: HostFacts) -> tuple[PurePosixPath, ...]:
    """What systemd reads of ours; another hand's unit is not among it."""
    if desired.server.backend is not ServiceBackend.SYSTEMD:
        return ()
    paths = desired.paths
    foreign = facts.systemd is not None and facts.systemd.foreign_program is not None
    unit = () if foreign else (paths.unit,)
    return (*unit, paths.drop_in, *(paths.units / name for name in OUR_UNITS), paths.modules_load)


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
    """A server first: its runners end with it. systemd's own is stopped with its unit."""
    supervised = main_server(facts)
    return tuple(item for item in (*facts.servers, *facts.orphans) if item is not supervised)


def _existing(transport: Transport, paths: Sequence[PurePosixPath]) -> tuple[PurePosixPath, ...]:
    """One command for all of them."""
    there = transport.run(commands.existing(paths)).stdout.decode(errors="surrogateescape").splitlines()
    return tuple(path for path in paths if str(path) in there)


def _remove(desired: Desired, transport: Transport, path: PurePosixPath) -> None:
    done = transport.run(commands.remove([path]), timeout_seconds=600)
    if done.exit_code != 0:
        raise CommandFailed(
            sentence=f"`{path}` could not be removed",
            host=desired.host,
            cause=done.last_words,
            unchanged="what comes after it; run the same command again to go on",
        )


def _doomed(desired: Desired, facts: HostFacts, models: Models) -> tuple[PurePosixPath, ...]:
    paths = desired.paths
    ours = (
        *(paths.current, paths.previous, paths.releases, paths.artefacts, paths.server_home),
        *(paths.log.parent, paths.programs, paths.backups, paths.state / "lease"),
        paths.health,
        paths.baselines,
        paths.adopted_record,
        metrics_file(desired, facts),
    )
    if desired.server.backend is ServiceBackend.SYSTEMD:
        account = _our_account(facts)
        is_ours = account is not None and facts.store_owner == account.name
    else:
        is_ours = paths.models_dir.is_relative_to(paths.root)
    return (*ours, paths.models_dir) if models is Models.REMOVE and is_ours else ours


def _parents(paths: HostPaths) -> list[PurePosixPath]:
    """The directories that only we had a reason to make, deepest first; those with other content stay."""
    root = paths.root
    chain = [paths.state, paths.models_dir, paths.models_dir.parent, root / "opt/ollama"]
    if root != PurePosixPath("/"):
        chain += [root / "usr/local/lib", root / "usr/local", root / "usr", root / "opt"]
        chain += [root / "var/lib", root / "var/log", root / "var", root]
    return [path for path in chain if path != root.parent]
