"""The task `prune`: what nothing needs any more, shown, then removed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from console.changes import exit_code, failed_outcome, tell_outcome
from console.run import Run, may_change, transport_for
from deploy.converge import probe_host
from deploy.desired import Desired
from deploy.errors import ExitCode, FleetError, UsageError, errors_of
from deploy.fleet import each, interrupts
from deploy.outcomes import HostOutcome, Outcome
from deploy.prune import Previous, plan_prune, render_prune
from deploy.prune_host import Pruned, prune_host


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What is the same for every host."""

    keep: int
    previous: Previous


def prune_asking(run: Run, keep: int, *, models: bool, yes: bool) -> ExitCode:
    """`prune`: one host that cannot be looked at does not keep the others."""
    if keep < 0:
        raise UsageError(
            sentence=f"`--keep {keep}` keeps less than nothing",
            expected="at least 0",
            actual=str(keep),
            unchanged="everything",
            hint="leave it out to keep the 2 releases that were unpacked last",
        )
    wanted = _Wanted(keep=keep, previous=Previous.REMOVE if models else Previous.KEEP)
    hosts = run.hosts()
    found = each(hosts, lambda desired: _show(run, desired, wanted), run.forks)
    failed = [item for item in found if isinstance(item, HostOutcome)]
    planned = [
        desired for desired, item in zip(hosts, found, strict=True) if not isinstance(item, HostOutcome)
    ]
    if any(item is True for item in found) and not may_change(run.report, yes=yes):
        outcomes = [*(HostOutcome(host=item.host, outcome=Outcome.SKIPPED) for item in planned), *failed]
        run.report.summary(outcomes)
        return max(exit_code(outcomes), ExitCode.USAGE)
    with interrupts(run.stop_requested, run.report):
        pruned = each(planned, lambda desired: _prune(run, desired, wanted), run.forks)
    outcomes = [*(outcome for outcome, _ in pruned), *failed]
    run.report.summary(outcomes, freed_bytes=sum(found.freed_bytes for _, found in pruned))
    return exit_code(outcomes)


def _show(run: Run, desired: Desired, wanted: _Wanted) -> bool | HostOutcome:
    """Tell what would go; whether anything would."""
    try:
        with errors_of(desired.host):
            facts = probe_host(desired, transport_for(desired))
            todo = plan_prune(desired, facts, wanted.keep, wanted.previous)
    except FleetError as error:
        return tell_outcome(run, failed_outcome(desired, error))
    fields = render_prune(todo)
    run.report("plan", fields.pop("host"), **fields)
    return not todo.is_empty


def _prune(run: Run, desired: Desired, wanted: _Wanted) -> tuple[HostOutcome, Pruned]:
    started, pruned = time.monotonic(), Pruned()
    try:
        with errors_of(desired.host):
            transport = transport_for(desired)
            pruned = prune_host(
                desired,
                transport,
                lambda: probe_host(desired, transport),
                run.report,
                keep=wanted.keep,
                previous=wanted.previous,
                stop_requested=run.stop_requested,
            )
    except FleetError as error:
        return tell_outcome(run, failed_outcome(desired, error)), pruned
    outcome = Outcome.CHANGED if pruned.steps_done else Outcome.OK
    done = HostOutcome(
        host=desired.host,
        outcome=outcome,
        steps_done=pruned.steps_done,
        seconds=round(time.monotonic() - started, 3),
    )
    return tell_outcome(run, done), pruned
