"""Is this host what it should be: all health checks, in order, each with a deadline of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from healthchecks.health_config import (
    FileConfig,
    HealthConfig,
    ModelConfig,
    Thresholds,
    parse_config,
    render_config,
)
from healthchecks.health_facts import add_facts, empty_facts
from healthchecks.health_list import CHECKS
from healthchecks.health_report import CheckResult, HealthReport, State, parse_report, render_report, worst_of
from healthchecks.host_view import HostView, LocalHost
from healthchecks.judgement import Effort, HealthCheck, Judgement, Look

__all__ = [
    "CHECKS",
    "CheckResult",
    "Effort",
    "FileConfig",
    "HealthConfig",
    "HealthReport",
    "HostView",
    "LocalHost",
    "ModelConfig",
    "State",
    "Thresholds",
    "parse_config",
    "parse_report",
    "render_config",
    "render_report",
    "run_checks",
    "worst_of",
]

DEADLINE_SECONDS = 10.0


def run_checks(
    config: HealthConfig,
    host: HostView,
    now: datetime,
    *,
    deadline_seconds: float = DEADLINE_SECONDS,
    effort: Effort = Effort.GENERATE,
    previous: HealthReport | None = None,
    checks: Sequence[HealthCheck] = CHECKS,
) -> HealthReport:
    """Run every check that concerns this host; never raises, and always ends.

    A check that does not answer in time is `unknown` and left behind on a daemon thread; whoever calls this
    may exit. One that breaks is `unknown` too, with the exception's name.

    Args:
        now: the time of the report, with a time zone.
        deadline_seconds: for each check, but for those that let a model answer: theirs is in the thresholds.
        effort: `Effort.LOOK` leaves out the checks that let a model answer.
        previous: the report of the run before: what changed since then counts.
    """
    started = time.monotonic()
    look = Look(config, host, now, deadline_seconds, previous)
    facts = empty_facts(config)
    results = []
    for check in checks:
        if (check.effort is Effort.GENERATE and effort is Effort.LOOK) or not check.concerns(config):
            continue
        limit = check.deadline_seconds(config) or deadline_seconds
        asked = time.monotonic()
        judgement = _judge_in_time(check, look, limit)
        try:
            add_facts(facts, judgement.facts)
        except ValueError as problem:
            judgement = _broken(problem)
        results.append(
            CheckResult(
                check=check.name,
                state=judgement.state,
                reason=judgement.reason,
                hint=judgement.hint,
                evidence=judgement.evidence,
                seconds=round(time.monotonic() - asked, 3),
            )
        )
    return HealthReport(
        host=config.host,
        started=now.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=round(time.monotonic() - started, 3),
        checks=tuple(results),
        facts=facts,
    )


def _judge_in_time(check: HealthCheck, look: Look, deadline_seconds: float) -> Judgement:
    answers: list[Judgement] = []

    def judge() -> None:
        try:
            answers.append(check.judge(look))
        except Exception as problem:  # noqa: BLE001 - a check that breaks must not hide the others
            answers.append(_broken(problem))

    # One that hangs in a system call cannot be stopped, only left behind.
    thread = threading.Thread(target=judge, name=f"check {check.name}", daemon=True)
    thread.start()
    thread.join(deadline_seconds)
    if answers:
        return answers[0]
    return Judgement(
        State.UNKNOWN,
        f"`{check.name}` did not answer within {deadline_seconds:g} s",
        "look at the host itself: a disk, a driver or a network file system may hang",
    )


def _broken(problem: Exception) -> Judgement:
    kind = type(problem).__name__
    evidence: dict[str, Any] = {"exception": kind}
    said = str(problem).strip()
    return Judgement(
        State.UNKNOWN, f"could not be found out: {kind}{': ' if said else ''}{said[:300]}", None, evidence
    )
