"""What the timer runs on a host: the health checks once, and where their results go.

    agent run DIRECTORY [--quick]       check, keep the results, tell the journal
    agent report DIRECTORY [--quick]    check, print the report as JSON, keep nothing
    agent version                       say which Python runs it

DIRECTORY holds `config.json`, which a deploy writes, and gets `last.json`, `history.jsonl`, `speeds.json` and
`ollama_fleet.prom`. Exit code 0 when nothing failed, 2 when a check did, 1 when it could not run, 75 while
another run is under way.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable

from healthchecks.baseline_speed import note_speeds, with_baselines
from healthchecks.health import (
    CheckResult,
    Effort,
    HealthConfig,
    HealthReport,
    LocalHost,
    State,
    parse_config,
    render_report,
    run_checks,
)
from healthchecks.health_facts import empty_facts
from healthchecks.notify import notify, ping_end, ping_start
from healthchecks.results import append_history, read_last, write_last
from healthchecks.textfile import write_metrics

DEADLINE_SECONDS = 600.0
"""Of a whole run. Each check has its own; systemd ends what outlives this one too."""

DONE, CANNOT_RUN, FAILED, UNDER_WAY = 0, 1, 2, 75
# The kernel's levels, which journald reads at the beginning of a line: sd-daemon(3).
_LEVELS = {State.FAIL: "<3>", State.WARN: "<4>", State.UNKNOWN: "<5>", State.PASS: "<6>"}


@dataclass(frozen=True)
class Finished:
    """A run whose results go out; `previous` is the report of the run before, None without one."""

    directory: Path
    config: HealthConfig
    report: HealthReport
    previous: HealthReport | None


Output = Callable[[Finished], None]


def _keep_last(run: Finished) -> None:
    write_last(run.directory / "last.json", run.report)


def _keep_speeds(run: Finished) -> None:
    note_speeds(run.directory / "speeds.json", run.config, run.report)


def _keep_history(run: Finished) -> None:
    append_history(run.directory / "history.jsonl", run.report)


OUTPUTS: tuple[Output, ...] = (_keep_last, _keep_history, _keep_speeds, write_metrics, ping_end, notify)
"""In this order; one that fails is told and keeps no other from its turn."""


def main(argv: Sequence[str] | None = None) -> int:
    """The one file's entry."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    quick = "--quick" in arguments
    words = [word for word in arguments if word != "--quick"]
    if words == ["version"]:
        print(f"the agent runs on Python {platform.python_version()}")
        return DONE
    if len(words) != 2 or words[0] not in ("run", "report"):
        print("usage: agent run|report DIRECTORY [--quick]", file=sys.stderr)
        return CANNOT_RUN
    directory, effort = Path(words[1]), Effort.LOOK if quick else Effort.GENERATE
    try:
        code = _report(directory, effort) if words[0] == "report" else _run(directory, effort)
    except (OSError, ValueError) as problem:
        print(f"the health checks cannot run: {problem}", file=sys.stderr)
        code = CANNOT_RUN
    return code


def check_host(directory: Path, effort: Effort) -> Finished:
    """All checks, within the deadline. Raises OSError or ValueError for a configuration that is none."""
    config = with_baselines(read_config(directory), directory / "speeds.json")
    previous = read_last(directory / "last.json")
    now = datetime.now(timezone.utc)
    reports: list[HealthReport] = []

    def check() -> None:
        reports.append(run_checks(config, LocalHost(), now, effort=effort, previous=previous))

    thread = threading.Thread(target=check, name="health checks", daemon=True)
    thread.start()
    thread.join(DEADLINE_SECONDS)
    report = reports[0] if reports else _too_late(config, now)
    return Finished(directory, config, report, previous)


def read_config(directory: Path) -> HealthConfig:
    """What the last deploy wrote, and when that was: the host's own journal knows."""
    config = parse_config(json.loads((directory / "config.json").read_text()))
    if config.deployed_at is not None:
        return config
    return replace(config, deployed_at=last_deploy(directory.parent / "journal.jsonl"))


def last_deploy(journal: Path) -> str | None:
    """When the last deploy that changed something ended well; None where the journal does not tell."""
    try:
        lines = journal.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("at"), str):
            continue
        if (entry.get("what"), entry.get("result")) == ("deploy", "done"):
            return str(entry["at"])
    return None


def _report(directory: Path, effort: Effort) -> int:
    report = check_host(directory, effort).report
    print(json.dumps(render_report(report)))
    return FAILED if report.state is State.FAIL else DONE


def _run(directory: Path, effort: Effort) -> int:
    with _alone(directory / "lock") as is_alone:
        if not is_alone:
            print("another run is under way")
            return UNDER_WAY
        ping_start(directory)
        finished = check_host(directory, effort)
        for output in OUTPUTS:
            _give(finished, output)
        for line in told_lines(finished.report):
            print(line)
    return FAILED if finished.report.state is State.FAIL else DONE


def _give(finished: Finished, output: Output) -> None:
    try:
        output(finished)
    except Exception as problem:  # noqa: BLE001 - a full disk must not keep an alert from going out
        name = output.__name__.strip("_")
        print(f"{_level(State.FAIL)}{name} failed: {type(problem).__name__}: {problem}")


@contextmanager
def _alone(lock: Path) -> Iterator[bool]:
    """Whether nobody else runs; the kernel frees the lock of whoever dies."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def told_lines(report: HealthReport) -> list[str]:
    """For the journal: one line in all, and one for each check that did not pass."""
    found = [result for result in report.checks if result.state is not State.PASS]
    lines = [f"{_level(result.state)}{_told(result)}" for result in found]
    passed = len(report.checks) - len(found)
    lines.append(
        f"{_level(report.state)}{report.state}: {passed} of {len(report.checks)} checks passed"
        f" in {report.seconds:.1f} s"
    )
    return lines


def _told(result: CheckResult) -> str:
    hint = f"; {result.hint}" if result.hint else ""
    return f"{result.state} {result.check}: {result.reason}{hint}".replace("\n", " ")


def _level(state: State) -> str:
    """Only journald reads it."""
    return _LEVELS[state] if "JOURNAL_STREAM" in os.environ else ""


def _too_late(config: HealthConfig, now: datetime) -> HealthReport:
    result = CheckResult(
        check="run",
        state=State.UNKNOWN,
        reason=f"the checks did not end within {DEADLINE_SECONDS:g} s",
        hint="a model that answers slowly is usual; the server's log tells more",
        seconds=DEADLINE_SECONDS,
    )
    return HealthReport(
        host=config.host,
        started=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=DEADLINE_SECONDS,
        checks=(result,),
        facts=empty_facts(config),
    )


if __name__ == "__main__":
    raise SystemExit(main())
