"""One host, the whole way: probe, plan, apply, verify, promote; and back to what served when a step fails."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from deploy import commands, nvml, services
from deploy.apply import Site, apply_step, prove, start
from deploy.desired import Desired, GpuKind
from deploy.errors import (
    ExitCode,
    FleetError,
    HostLocked,
    Interrupted,
    NotConverged,
    ProbeFailed,
    designed_error,
)
from deploy.facts import HostFacts
from deploy.host_lock import CheckHeld, host_lock
from deploy.ollama_api import OllamaApi
from deploy.outcomes import Events, HostOutcome, Outcome, Verify
from deploy.plan import Plan, Selection, everything, plan, render_plan
from deploy.probe import PROBE_SCRIPT, parse_reply
from deploy.steps import CreateModel, StartServer, Step, StopServer, SwitchRelease, phase_of, subject_of
from deploy.transport import Transport


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


def probe_host(desired: Desired, transport: Transport) -> HostFacts:
    """All facts of a host in one reply. Raises ProbeFailed or HostUnreachable."""
    local = desired.connection == "local"
    gpu = GpuKind.NONE if local else desired.gpu
    argv = commands.probe(desired.paths.root, desired.paths.models_dir, desired.port, gpu)
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
    site = Site(
        desired=desired,
        transport=transport,
        probe=lambda: probe_host(desired, transport),
        verify=options.verify,
        events=options.events,
        endpoint=options.endpoint,
        cache=options.cache,
        verdicts={},
    )
    done: list[Step] = []
    error: FleetError | None = None
    try:
        with host_lock(transport, desired.paths.lock, options.task) as check_held:
            _converge_locked(site, options, done, check_held)
    except Exception as failure:  # noqa: BLE001 - one host's failure must not hide the others' outcomes
        error = designed_error(failure)
        error.host = error.host or desired.host
    return HostOutcome(
        host=desired.host,
        outcome=_outcome(error, done),
        steps_done=len(done),
        seconds=round(time.monotonic() - started, 3),
        error=error,
        verdicts=site.verdicts,
        version=desired.server.version,
    )


def _outcome(error: FleetError | None, done: list[Step]) -> Outcome:
    if error is None:
        return Outcome.CHANGED if done else Outcome.OK
    return Outcome.UNREACHABLE if error.exit_code is ExitCode.UNREACHABLE else Outcome.FAILED


def _converge_locked(site: Site, options: Options, done: list[Step], check_held: CheckHeld) -> None:
    before = site.probe()
    todo = plan(site.desired, before, options.selection)
    site.emit("plan", **{key: value for key, value in render_plan(todo).items() if key != "host"})
    if todo.is_empty:
        _check_served(site, options)
        return
    try:
        for step in todo.steps:
            _stop_if_asked(options)
            check_held()
            _apply(step, site)
            done.append(step)
    except HostLocked:
        # Without the lock nothing may be touched, to go back neither.
        raise
    except Exception as failure:
        error = designed_error(failure)
        error.unchanged = _go_back(site, before, todo, error)
        if error is failure:
            raise
        raise error from failure
    left = plan(site.desired, site.probe(), options.selection)
    if not left.is_empty:
        raise NotConverged(
            sentence=f"`{site.host}` still differs after every step ended well",
            cause="\n".join(f"{subject_of(step)}: {step.reason}" for step in left.steps),
            hint=f"./fleet plan --limit {site.host}",
        )


def _stop_if_asked(options: Options) -> None:
    if options.stop_requested.is_set():
        raise Interrupted(
            sentence=f"`{options.task}` was interrupted",
            cause="Ctrl-C; the step that was running has been finished",
            hint=f"./fleet {options.task} goes on from here",
        )


def _apply(step: Step, site: Site) -> None:
    started = time.monotonic()
    told = {"phase": str(phase_of(step)), "step": type(step).__name__, "subject": subject_of(step)}
    site.emit("step_started", **told, reason=step.reason)
    apply_step(step, site)
    site.emit("step_done", **told, seconds=round(time.monotonic() - started, 3))


def _check_served(site: Site, options: Options) -> None:
    """Nothing to change: the checks say whether it also works."""
    if options.selection is everything:
        for model in site.desired.models:
            prove(site, model, "latest", options.check)


def _go_back(site: Site, before: HostFacts, todo: Plan, error: FleetError) -> str:
    """Bring back what served before a failed run; returns what was left unchanged, in words."""
    said = []
    try:
        now = site.probe()
        if any(isinstance(step, SwitchRelease | StopServer | StartServer) for step in todo.steps):
            said.append(_serve_as_before(site, before, now))
        if any(isinstance(step, CreateModel) for step in todo.steps):
            said.append(_drop_candidates(site, todo))
    except Exception as failure:  # noqa: BLE001 - the first error is the one to tell
        second = designed_error(failure)
        said.append(f"going back failed too: {second.sentence} ({second.cause})")
    kept = "; ".join(part for part in said if part)
    return "; ".join(part for part in (error.unchanged, kept) if part) or "what was served before"


def _serve_as_before(site: Site, before: HostFacts, now: HostFacts) -> str:
    paths = site.desired.paths
    if now.current != before.current:
        if before.current is None:
            site.transport.run(commands.remove([paths.current]))
        else:
            site.transport.run(commands.switch_current(paths.current, paths.release(before.current)))
    served = before.servers[0] if before.servers else None
    binary = services.binary_of(served) if served is not None else None
    version = binary.parent.parent.name if binary is not None else "of an unknown origin"
    if served is not None and any(item.process.same_as(served.process) for item in now.servers):
        return f"release {version} serves on (pid {served.process.pid})"
    for server in now.servers:
        services.stop_server(site.transport, server.process)
    if served is None or binary is None:
        return "no server ran before and none runs now"
    old = replace(site.desired.server, version=version, environment=served.environment)
    start(replace(site, desired=replace(site.desired, server=old)), version, served.environment)
    return f"release {version} serves again, as before"


def _drop_candidates(site: Site, todo: Plan) -> str:
    served = []
    with site.transport.http_url(site.desired.url) as url:
        api = OllamaApi(site.host, url)
        for step in todo.steps:
            if isinstance(step, CreateModel) and site.probe().servers:
                # Or the runner would go on under the deleted name for as long as it lives.
                api.unload(f"{step.model.name}:candidate")
                api.delete(f"{step.model.name}:candidate")
                if f"{step.model.name.lower()}:latest" in site.probe().models:
                    served.append(f"`{step.model.name}:latest` is the one that was there before")
    return "; ".join(served)
