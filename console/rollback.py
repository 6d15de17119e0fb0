"""The task `rollback`: what served before the last change, by the same way as every deploy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from console.changes import (
    count_cases,
    deploy_hosts,
    exit_code,
    failed_outcome,
    make_plans,
    ollama_word,
    tell_outcome,
)
from console.run import Run, may_change, transport_for
from deploy import commands
from deploy.converge import probe_host
from deploy.desired import Desired
from deploy.errors import CommandFailed, ExitCode, FleetError, errors_of
from deploy.fleet import each
from deploy.journal import parse_entries
from deploy.models import parse_models
from deploy.outcomes import HostOutcome, Outcome
from deploy.plan import model_differences
from deploy.rollback import Asked, going_back, state_before
from deploy.transport import Transport

# A change is two of them, and each operation between two changes as many.
JOURNAL_LINES = 1000


def rollback_asking(run: Run, asked: Asked, *, yes: bool) -> ExitCode:
    """`rollback`: nothing is fetched, and the inventory stays as it is."""
    hosts = run.hosts()
    found = each(hosts, lambda desired: _state_before(run, desired, asked), run.forks)
    wanted = [item for item in found if isinstance(item, Desired)]
    failed = [item for item in found if isinstance(item, HostOutcome)]
    if not yes:
        planned = make_plans(run, wanted, going_back)
        # One host that cannot go back does not keep the others.
        failed += [item.outcome(Outcome.FAILED) for item in planned if item.error is not None]
        wanted = [desired for desired, item in zip(wanted, planned, strict=True) if item.error is None]
        if any(item.changes for item in planned) and not may_change(run.report, yes=yes):
            outcomes = [*(HostOutcome(host=item.host, outcome=Outcome.SKIPPED) for item in wanted), *failed]
            run.report.summary(outcomes)
            return max(exit_code(outcomes), ExitCode.USAGE)
    outcomes = [*deploy_hosts(run, wanted, "rollback", going_back), *failed]
    done = {outcome.host for outcome in outcomes if outcome.error is None}
    before = {desired.host: desired for desired in wanted if desired.host in done}
    files = {name: spec.modelfile for name, spec in parse_models(run.sources.modelfiles).items()}
    for desired in hosts:
        if desired.host in before:
            for text in _still_wanted(desired, before[desired.host], files):
                run.report("note", desired.host, text=text)
    run.report.summary(outcomes, **count_cases(outcomes), **ollama_word(outcomes))
    return exit_code(outcomes)


def _state_before(run: Run, desired: Desired, asked: Asked) -> Desired | HostOutcome:
    try:
        with errors_of(desired.host):
            transport = transport_for(desired)
            facts = probe_host(desired, transport)
            entries = _journal(desired, transport) if asked.says_nothing else ()
            return state_before(desired, facts, asked, entries)
    except FleetError as error:
        return tell_outcome(run, failed_outcome(desired, error))


def _journal(desired: Desired, transport: Transport) -> Sequence[Mapping[str, Any]]:
    done = transport.run(commands.read_entries(desired.paths.journal, JOURNAL_LINES))
    if done.exit_code != 0:
        raise CommandFailed(
            sentence=f"`{desired.paths.journal}` cannot be read: what the last change was is not known",
            host=desired.host,
            cause=done.last_words,
            unchanged="everything",
            hint="./fleet rollback --release --models takes back all that was replaced",
        )
    return parse_entries(done.stdout.decode(errors="replace"))


def _still_wanted(inventory: Desired, back: Desired, modelfiles: Mapping[str, str]) -> Iterator[str]:
    """What has to be changed, or the next deploy goes forward again. `modelfiles` are files by model."""
    again = "or the next deploy goes forward again"
    version = back.server.version
    if inventory.server.version != version:
        yield f"the inventory still wants another release: set ollama_version={version}, {again}"
    for model, served in zip(inventory.models, back.models, strict=True):
        differences = model_differences(served.stored, model) if served.stored is not None else ()
        if differences:
            told = "; ".join(map(str, differences))
            is_weights = [item.what == "weights" for item in differences]
            files = [f"modelfiles/{modelfiles[model.name]}"] if not all(is_weights) else []
            files += ["modelfiles/models.toml and its pin"] if any(is_weights) else []
            yield f"{model.name} is still wanted otherwise: {told}; change {', '.join(files)}, {again}"
