"""The task `page`: what every host has kept of its own checks, as one page for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from console.changes import exit_code, outcome_of_error
from console.report_files import check_report_file, write_report_file
from console.run import Run
from console.selected import SelectedHost, selected_hosts
from deploy import commands
from deploy.desired import ServiceBackend
from deploy.errors import CommandFailed, ExitCode, FleetError, designed_error, errors_of
from deploy.fleet import each
from deploy.outcomes import HostOutcome, Outcome
from healthchecks.fleet_page import FleetHost, HostState, render_fleet_page
from healthchecks.kept_reports import KeptReports, parse_kept

# A day of runs five minutes apart.
RUNS = 288


def write_page(run: Run, output: Path) -> ExitCode:
    """Ask all hosts at once, once each, and write the page; a host that cannot be asked is on it too.

    No check runs for it: it shows what the hosts have found by themselves.
    """
    check_report_file("--output", output)
    found = each(selected_hosts(run), lambda host: _ask(run, host), run.forks)
    hosts = [host for _, host in found]
    page = render_fleet_page(hosts, datetime.now(UTC))
    try:
        write_report_file(output, page)
    except OSError as error:
        raise designed_error(error) from error
    for host in hosts:
        run.report("seen", host.name, **_seen(host))
    run.report.say(_told(output, hosts))
    outcomes = [outcome for outcome, _ in found]
    run.report("page", None, file=str(output), bytes=len(page))
    run.report.summary(outcomes)
    return exit_code(outcomes)


def _ask(run: Run, selected: SelectedHost) -> tuple[HostOutcome, FleetHost]:
    minutes = selected.settings.health_every_minutes
    period = None if minutes is None else minutes * 60.0
    try:
        with errors_of(selected.name):
            kept = _read(selected)
    except FleetError as error:
        run.report.error(error)
        outcome = HostOutcome(host=selected.name, outcome=outcome_of_error(error), error=error)
        why = f"{error.sentence}: {error.cause}" if error.cause else error.sentence
        return outcome, FleetHost(selected.name, None, period, why, error.hint)
    if not kept.scheduled and selected.settings.service is ServiceBackend.PROCESS:
        # Neither timer nor cron: nothing there would make another report.
        period = None
    hint = None if period is not None and kept.report is not None else _hint(selected)
    host = FleetHost(selected.name, kept, period, hint=hint)
    return HostOutcome(host=selected.name, outcome=Outcome.OK), host


def _read(selected: SelectedHost) -> KeptReports:
    done = selected.transport().run(commands.read_kept_reports(selected.paths.health, RUNS))
    try:
        if done.exit_code == 0:
            return parse_kept(done.stdout)
        cause = done.last_words
    except ValueError as problem:
        cause = str(problem)
    raise CommandFailed(
        sentence=f"what `{selected.paths.health}` has kept could not be read",
        host=selected.name,
        cause=cause,
        unchanged="everything",
        hint=f"./fleet health --limit {selected.name}",
    )


def _hint(selected: SelectedHost) -> str:
    """What has a host checked that does not check itself."""
    if selected.settings.health_every_minutes is None:
        return f"ollama_health_every=off: ./fleet health --limit {selected.name}"
    return f"./fleet schedule --limit {selected.name}"


def _seen(host: FleetHost) -> dict[str, object]:
    report = None if host.kept is None else host.kept.report
    return {
        "state": str(host.state),
        "reason": host.reason,
        "age_seconds": None if host.kept is None else host.kept.age_seconds,
        "started": None if report is None else report.started,
        "runs": 0 if host.kept is None else len(host.kept.runs),
    }


def _told(output: Path, hosts: Sequence[FleetHost]) -> str:
    states = [host.state for host in hosts]
    counts = [f"{states.count(state)} {state}" for state in HostState if state in states]
    return f"{output}: {', '.join(counts)}"
