"""One host, the whole way: probe, plan, apply, verify, promote; and back to what served when a step fails."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path

from deploy import commands, nvml, services, systemd
from deploy.apply import Site, apply_round, in_rounds, prove
from deploy.desired import Desired, GpuKind, ServiceBackend
from deploy.errors import (
    EditedByHand,
    ExitCode,
    FleetError,
    HostLocked,
    HostUnreachable,
    Interrupted,
    NotConverged,
    ProbeFailed,
    designed_error,
)
from deploy.facts import HostFacts
from deploy.go_back import go_back
from deploy.host_lock import host_lock, retaken_lock
from deploy.journal import Journal
from deploy.outcomes import Events, HostOutcome, Outcome, Verify
from deploy.plan import Plan, Selection, everything, plan, render_plan
from deploy.probe import PROBE_SCRIPT, parse_reply
from deploy.rollback import served_before
from deploy.soak import Watched, confirmed_at, soak, watch
from deploy.steps import (
    EndLease,
    Phase,
    StartServer,
    Step,
    TakeLease,
    overwrites,
    phase_of,
    subject_of,
)
from deploy.transport import Transport

PROBES_AT_MOST = 3


class Edits(Enum):
    """What becomes of files of ours that another hand has edited."""

    KEEP = "keep"
    OVERWRITE = "overwrite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is the same for every host of a run."""

    task: str
    verify: Verify
    check: Verify
    events: Events
    stop_requested: threading.Event
    selection: Selection = everything
    endpoint: str | None = None
    cache: Path
    edits: Edits = Edits.KEEP
    soak_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """How far the changes of a host have come."""

    begun: list[Step] = field(default_factory=list)
    done: list[Step] = field(default_factory=list)

    @property
    def touches_service(self) -> bool:
        """What was served may be served no more: until then only files were fetched and unpacked."""
        return any(phase_of(step) not in (Phase.FETCH, Phase.INSTALL) for step in self.begun)


def probe_host(desired: Desired, transport: Transport) -> HostFacts:
    """All facts of a host in one reply. Raises ProbeFailed or HostUnreachable.

    A server that starts or ends changes what is being looked at: blobs go, and who listens is no server any
    more, or not yet. What makes no sense, and a stranger on the port, is asked for anew.
    """
    for _ in range(PROBES_AT_MOST - 1):
        with contextlib.suppress(ProbeFailed):
            facts = _probe_once(desired, transport)
            if facts.listener is None or facts.listener.pid in {item.process.pid for item in facts.servers}:
                return facts
    return _probe_once(desired, transport)


def _probe_once(desired: Desired, transport: Transport) -> HostFacts:
    local = desired.connection == "local"
    gpu = GpuKind.NONE if local else desired.gpu
    service = desired.server.backend
    argv = commands.probe(desired.paths.root, desired.paths.models_dir, desired.port, gpu, service)
    done = transport.run(argv, stdin=PROBE_SCRIPT.read_bytes())
    try:
        facts = parse_reply(done.stdout, desired.paths.root)
    except ProbeFailed as error:
        error.host = transport.host
        if done.stderr:
            error.cause = f"{error.cause}; it said: {done.last_words}"
        raise
    if local and desired.gpu is GpuKind.NVIDIA:
        return replace(facts, gpus=nvml.read_gpus())
    return facts


def converge(desired: Desired, transport: Transport, options: Options) -> HostOutcome:
    """Make a host as desired and prove it. Never raises: what went wrong is the outcome's `error`."""
    started = time.monotonic()
    site = _site(desired, transport, options)
    course = _Course()
    error: FleetError | None = None
    try:
        todo = plan(desired, site.probe(), options.selection)
        if todo.is_empty:
            # Nothing is touched, so nobody needs to be kept out.
            _tell_plan(site, todo)
            _check_served(site, options)
        else:
            with host_lock(transport, desired.paths.lock, options.task, _journal(site, options)) as held:
                _converge_locked(replace(site, check_held=held), options, course)
    except Exception as failure:  # noqa: BLE001 - one host's failure must not hide the others' outcomes
        error = designed_error(failure)
        if isinstance(error, HostLocked) and course.begun:
            error.unchanged = _left_to_itself(course)
    return _ended(site, course, error, started)


def survey(desired: Desired, transport: Transport, options: Options) -> HostOutcome | None:
    """Look at a host that others come before: None where it has changes, and nothing is touched.

    One that is as desired is checked, as `converge` would, and is done. Never raises.
    """
    started = time.monotonic()
    site = _site(desired, transport, options)
    error: FleetError | None = None
    try:
        todo = plan(desired, site.probe(), options.selection)
        site.emit("surveyed", steps=len(todo.steps))
        if not todo.is_empty:
            return None
        _check_served(site, options)
    except Exception as failure:  # noqa: BLE001 - as in `converge`
        error = designed_error(failure)
    return _ended(site, _Course(), error, started)


def _site(desired: Desired, transport: Transport, options: Options) -> Site:
    return Site(
        desired=desired,
        transport=transport,
        probe=lambda: probe_host(desired, transport),
        verify=options.verify,
        events=options.events,
        endpoint=options.endpoint,
        cache=options.cache,
        verdicts={},
        verified=[],
    )


def _ended(site: Site, course: _Course, error: FleetError | None, started: float) -> HostOutcome:
    if error is not None:
        error.host = error.host or site.host
        if not course.begun:
            error.unchanged = error.unchanged or "everything"
    outcome = _outcome(error, course.done)
    return HostOutcome(
        host=site.host,
        outcome=outcome,
        steps_done=len(course.done),
        seconds=round(time.monotonic() - started, 3),
        error=error,
        verdicts=site.verdicts,
        version=site.desired.server.version,
        in_doubt=outcome is Outcome.UNREACHABLE and course.touches_service,
    )


def _outcome(error: FleetError | None, done: list[Step]) -> Outcome:
    if error is None:
        return Outcome.CHANGED if done else Outcome.OK
    return Outcome.UNREACHABLE if error.exit_code is ExitCode.UNREACHABLE else Outcome.FAILED


def _converge_locked(site: Site, options: Options, course: _Course) -> None:
    # Looked at once more: somebody else may have had the lock until now.
    before = site.probe()
    todo = plan(site.desired, before, options.selection)
    _tell_plan(site, todo)
    if todo.is_empty:
        _check_served(site, options)
        return
    _check_edits(site, options, todo)
    changes = tuple(dict.fromkeys(subject_of(step) for step in todo.steps))
    replaced = served_before(before, todo.steps)
    with _journal(site, options).changing(changes, release=site.desired.server.version, before=replaced):
        _make_changes(site, options, course, before, todo)


def _tell_plan(site: Site, todo: Plan) -> None:
    site.emit("plan", **{key: value for key, value in render_plan(todo).items() if key != "host"})


def _check_edits(site: Site, options: Options, todo: Plan) -> None:
    edited = [step for step in todo.steps if overwrites(step)]
    if edited and options.edits is Edits.KEEP:
        raise EditedByHand(
            sentence="; ".join(f"`{subject_of(step)}` was edited by hand" for step in edited),
            host=site.host,
            cause="\n".join(str(difference) for step in edited for difference in step.differences),
            unchanged="everything",
            hint=f"./fleet {options.task} --overwrite --limit {site.host} keeps a copy and writes it anew; "
            "or say the same in the inventory",
        )


def _journal(site: Site, options: Options) -> Journal:
    paths = site.desired.paths
    return Journal(transport=site.transport, path=paths.journal, what=options.task, events=options.events)


def _make_changes(site: Site, options: Options, course: _Course, before: HostFacts, todo: Plan) -> None:
    soaks_at = confirmed_at(todo.steps) if options.soak_seconds > 0 else None
    watched = watch(site, before) if soaks_at is not None else None
    try:
        for steps in in_rounds(todo.steps):
            if len(course.done) == soaks_at:
                _soak(site, watched, options)
            _stop_if_asked(site, options)
            site.check_held()
            course.begun.extend(steps)
            _apply(steps, site)
            course.done.extend(steps)
            if soaks_at is not None and any(isinstance(step, StartServer) for step in steps):
                watched = watch(site, site.probe())
        if soaks_at == len(todo.steps):
            _soak(site, watched, options)
    except HostLocked:
        # Without the lock nothing may be touched, to go back neither.
        raise
    except Exception as failure:
        error = designed_error(failure)
        if not isinstance(error, HostUnreachable):
            # Once the lock is lost the lease runs out: the host goes back under a running check, which fails.
            site.check_held()
            error = _name_cause(site, error)
            error.unchanged = go_back(site, before, todo, error, done=course.done)
        else:
            with _locked_again(site, options) as again:
                error.unchanged = go_back(again, before, todo, error, done=course.done)
        if error is failure:
            raise
        raise error from failure
    if _confirms(site, options, before, todo):
        services.confirm_server(site.transport, site.desired.paths)
    left = plan(site.desired, site.probe(), options.selection)
    if not left.is_empty:
        raise NotConverged(
            sentence=f"`{site.host}` still differs after every step ended well",
            cause="\n".join(f"{subject_of(step)}: {step.reason}" for step in left.steps),
            hint=f"./fleet plan --limit {site.host}",
        )


def _confirms(site: Site, options: Options, before: HostFacts, todo: Plan) -> bool:
    """Whether a server that we start ourselves, and that has no lease, is proven now.

    As with a lease, a single phase confirms what it has started, and nothing that another run has left.
    """
    if site.desired.server.backend is not ServiceBackend.PROCESS:
        return False
    starts = any(isinstance(step, StartServer) for step in todo.steps)
    if options.selection is everything:
        return starts or before.is_unproven
    return starts and not before.is_unproven


def _left_to_itself(course: _Course) -> str:
    """What becomes of a host that may not be touched any more."""
    if any(isinstance(step, EndLease) for step in course.done):
        return "what was verified and confirmed serves on"
    if any(isinstance(step, TakeLease) for step in course.done):
        return "the host goes back by itself, when its lease runs out or at its next start"
    if course.touches_service:
        return "nothing was taken back: what the steps so far have made stays as it is"
    return "what serves; what was fetched and unpacked stays for the next run"


def _soak(site: Site, watched: Watched | None, options: Options) -> None:
    def stop_if_told() -> None:
        _stop_if_asked(site, options)
        # The window may be longer than the lease, which nobody renews without the lock.
        site.check_held()

    soak(site, watched, options.soak_seconds, options.stop_requested, stop_if_told)


@contextlib.contextmanager
def _locked_again(site: Site, options: Options) -> Iterator[Site]:
    """The lock may have gone with the connection: it is taken anew, or the host cannot be looked at.

    Never raises. Without the lock it is another deploy's host.
    """
    with contextlib.ExitStack() as stack:
        try:
            site.check_held()
        except HostLocked:
            try:
                held = retaken_lock(site.transport, site.desired.paths.lock, options.task)
                site = replace(site, check_held=stack.enter_context(held))
            except FleetError as refused:
                site = replace(site, probe=partial(_refuse, refused))
        yield site


def _refuse(error: FleetError) -> HostFacts:
    raise error


def _name_cause(site: Site, error: FleetError) -> FleetError:
    """What a unit knows of the end of its server, before going back starts another one."""
    # A host that cannot be reached is not asked, nor is one where somebody pressed Ctrl-C.
    if site.desired.server.backend is ServiceBackend.SYSTEMD and error.exit_code is ExitCode.FAILED:
        return systemd.name_memory_kill(site.transport, site.desired.server.version, error)
    return error


def _stop_if_asked(site: Site, options: Options) -> None:
    if options.stop_requested.is_set():
        raise Interrupted(
            sentence=f"`{options.task}` was interrupted",
            cause="Ctrl-C; the step that was running has been finished",
            hint=f"./fleet {options.task} --limit {site.host} goes on from here",
        )


def _apply(steps: Sequence[Step], site: Site) -> None:
    started = time.monotonic()
    told = [
        {"phase": str(phase_of(step)), "step": type(step).__name__, "subject": subject_of(step)}
        for step in steps
    ]
    for step, fields in zip(steps, told, strict=True):
        site.emit("step_started", **fields, reason=step.reason)
    apply_round(steps, site)
    seconds = round(time.monotonic() - started, 3)
    for fields in told:
        site.emit("step_done", **fields, seconds=seconds)


def _check_served(site: Site, options: Options) -> None:
    """Nothing to change: the checks say whether it also works."""
    if options.selection is everything:
        for model in site.desired.models:
            prove(site, model, "latest", options.check)
