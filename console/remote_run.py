"""The task `run`: one shell line on every selected host, with what each said and how it ended."""

from __future__ import annotations

import time

from console.changes import exit_code, outcome_of_error
from console.run import Run, may_change
from console.selected import SelectedHost, selected_hosts
from deploy import commands
from deploy.errors import ExitCode, FleetError, UsageError, errors_of
from deploy.fleet import each
from deploy.outcomes import HostOutcome, Outcome


def run_asking(run: Run, line: str, *, yes: bool, timeout_seconds: int) -> ExitCode:
    """Run it where that is agreed to: what a command changes nobody can know before.

    A command that ends with another code than 0 is a failed host.
    """
    if not line.strip() or timeout_seconds < 1:
        raise UsageError(
            sentence="`run` takes a command and a time of at least one second",
            unchanged="everything",
            hint="./fleet run --timeout 60 'nvidia-smi -L'",
        )
    hosts = selected_hosts(run)
    if not yes:
        run.report("note", None, text=f"would run `{line}` on {', '.join(host.name for host in hosts)}")
    if not may_change(run.report, yes=yes):
        run.report.summary([HostOutcome(host=host.name, outcome=Outcome.SKIPPED) for host in hosts])
        return ExitCode.USAGE
    outcomes = each(hosts, lambda host: _run_on(host, run, line, timeout_seconds), run.forks)
    run.report.summary(outcomes)
    return exit_code(outcomes)


def _run_on(host: SelectedHost, run: Run, line: str, timeout_seconds: int) -> HostOutcome:
    started = time.monotonic()
    try:
        with errors_of(host.name):
            done = host.transport().run(commands.run_line(line), timeout_seconds=timeout_seconds)
    except FleetError as error:
        run.report.error(error)
        return HostOutcome(host=host.name, outcome=outcome_of_error(error), error=error)
    run.report(
        "command",
        host.name,
        stdout=done.stdout.decode(errors="replace"),
        stderr=done.stderr.decode(errors="replace"),
        exit_code=done.exit_code,
        seconds=round(time.monotonic() - started, 3),
    )
    return HostOutcome(host=host.name, outcome=Outcome.FAILED if done.exit_code else Outcome.OK)
