"""The task `health`: every host's checks now, in parallel, told as one table."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from console.changes import exit_code, failed_outcome
from console.run import Run, transport_for
from deploy import commands
from deploy.converge import probe_host
from deploy.desired import Desired
from deploy.errors import CommandFailed, ExitCode, FleetError, UsageError, errors_of
from deploy.fleet import each, interrupts
from deploy.health_config import render_health_config
from deploy.outcomes import HostOutcome, Outcome
from deploy.server_plan import choose_release
from deploy.settings import read_period
from deploy.units import health_arguments, health_program
from healthchecks.health import (
    Effort,
    HealthReport,
    LocalHost,
    State,
    parse_config,
    parse_report,
    render_report,
    run_checks,
)

# Twelve minutes is what the host's own unit has.
REPORT_SECONDS = 720.0
_ALL = "all"


def show_health(run: Run, every: str | None, *, quick: bool) -> ExitCode:
    """Check the hosts once, or again and again until Ctrl-C; a check that failed is exit code 2."""
    minutes = _period(every)
    hosts = run.hosts()
    if minutes is None:
        return _check_all(run, hosts, quick=quick)
    with interrupts(run.stop_requested, run.report):
        while True:
            started = time.monotonic()
            code = _check_all(run, hosts, quick=quick)
            if _wait(run.stop_requested, started + minutes * 60):
                return code


def _period(every: str | None) -> int | None:
    if every is None:
        return None
    try:
        minutes = read_period(every)
    except ValueError:
        minutes = None
    if minutes is None:
        raise UsageError(
            sentence=f"`--every {every}` is no period",
            expected="a period that divides an hour or a day, such as 5m, 30m, 6h or 1d",
            actual=every,
            unchanged="everything",
            hint="./fleet health --every 5m",
        )
    return minutes


def _wait(stop: threading.Event, until: float) -> bool:
    """Whether somebody asked for the end meanwhile."""
    return stop.wait(max(0.0, until - time.monotonic()))


def _check_all(run: Run, hosts: Sequence[Desired], *, quick: bool) -> ExitCode:
    found = each(hosts, lambda desired: _check_host(run, desired, quick=quick), run.forks)
    rows = [row for _, host_rows in found for row in host_rows]
    run.report.table("health", ["host", "check", "state", "reason"], rows)
    outcomes = [outcome for outcome, _ in found]
    counts = {
        f"checks_{state}": sum(1 for row in rows if row[1] != _ALL and row[2] == str(state))
        for state in (State.WARN, State.FAIL, State.UNKNOWN)
    }
    run.report.summary(outcomes, **counts)
    return exit_code(outcomes)


def _check_host(run: Run, desired: Desired, *, quick: bool) -> tuple[HostOutcome, list[list[str]]]:
    """One host's outcome and what of it did not pass."""
    try:
        with errors_of(desired.host):
            report = examine(desired, quick=quick)
    except FleetError as error:
        failed = failed_outcome(desired, error)
        run.report.error(error)
        return failed, [[desired.host, "-", str(failed.outcome), error.sentence]]
    run.report("health", desired.host, **_fields(report))
    outcome = Outcome.FAILED if report.state is State.FAIL else Outcome.OK
    return HostOutcome(host=desired.host, outcome=outcome, seconds=report.seconds), _rows(desired, report)


def examine(desired: Desired, *, quick: bool) -> HealthReport:
    """One host's report: in this process where the host is this machine, else by the host itself.

    Raises FleetError.
    """
    if desired.login is None:
        return _examine_here(desired, quick=quick)
    action = "report-quick" if quick else "report"
    argv = commands.shell_from_input(action, *health_arguments(desired))
    done = transport_for(desired).run(
        argv, stdin=health_program(desired).text.encode(), timeout_seconds=REPORT_SECONDS
    )
    try:
        # Whatever a library says goes before it.
        return parse_report(json.loads(done.stdout.decode(errors="replace").strip().rpartition("\n")[2]))
    except ValueError as problem:
        raise CommandFailed(
            sentence="the health checks gave no `report`",
            host=desired.host,
            cause=done.last_words or str(problem),
            unchanged="everything: the checks change nothing",
            hint=f"./fleet schedule --limit {desired.host} writes the agent anew",
        ) from problem


def _examine_here(desired: Desired, *, quick: bool) -> HealthReport:
    facts = probe_host(desired, transport_for(desired))
    text = render_health_config(desired, facts, choose_release(desired, facts))
    effort = Effort.LOOK if quick else Effort.GENERATE
    return run_checks(parse_config(json.loads(text)), LocalHost(), datetime.now(UTC), effort=effort)


def _fields(report: HealthReport) -> dict[str, Any]:
    return {name: value for name, value in render_report(report).items() if name != "host"}


def _rows(desired: Desired, report: HealthReport) -> list[list[str]]:
    """Every check that did not pass; one line for a host on which all did."""
    found = [result for result in report.checks if result.state is not State.PASS]
    passed = len(report.checks) - len(found)
    rows = [[desired.host, _ALL, str(report.state), f"{passed} of {len(report.checks)} checks passed"]]
    for result in found:
        hint = f"; {result.hint}" if result.hint else ""
        rows.append([desired.host, result.check, str(result.state), f"{result.reason}{hint}"])
    return rows
