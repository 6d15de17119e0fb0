"""What a run of the health checks says of a host: values, and their JSON form.

A `healthchecks.check.Check` answers one yes-or-no question of a deploy. A health check has two answers more:
what it could not find out is `unknown`, never a pass, and what will break soon is a `warn`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from healthchecks.json_fields import Fields, parse_fields

FORMAT = 1


class State(str, Enum):
    """What a check found."""

    PASS = "pass"  # noqa: S105 - a word, no password
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return self.value


_RANK = (State.PASS, State.UNKNOWN, State.WARN, State.FAIL)
"""The worst stands last."""


@dataclass(frozen=True)
class CheckResult:
    """One check's result.

    `reason` is one sentence for a person, `hint` what to do next where something is to be done. `evidence` is
    what was observed, as JSON.
    """

    check: str
    state: State
    reason: str
    hint: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class HealthReport:
    """All checks of one run, in their order; `started` is UTC as in `2026-11-26T21:36:45Z`.

    `facts` is what was measured along the way, for metrics and pages: `health_facts.py` has the keys.
    """

    host: str
    started: str
    seconds: float
    checks: tuple[CheckResult, ...]
    facts: Mapping[str, Any]
    format: int = FORMAT

    @property
    def state(self) -> State:
        return worst_of(result.state for result in self.checks)


def worst_of(states: Iterable[State]) -> State:
    """Nothing known ranks between pass and warn; of no checks at all nothing is known."""
    return max(states, key=_RANK.index, default=State.UNKNOWN)


def render_report(report: HealthReport) -> dict[str, Any]:
    """The stable JSON form: see `docs/health-checks.md`."""
    return {
        "format": report.format,
        "host": report.host,
        "started": report.started,
        "seconds": report.seconds,
        "state": report.state.value,
        "checks": [
            {
                "check": result.check,
                "state": result.state.value,
                "reason": result.reason,
                "hint": result.hint,
                "evidence": dict(result.evidence),
                "seconds": result.seconds,
            }
            for result in report.checks
        ],
        "facts": dict(report.facts),
    }


def parse_report(document: Any) -> HealthReport:
    """What `render_report` wrote, by this version or by one with more keys.

    Raises:
        ValueError: a field is missing or of another type, or the format is another one; the text names it.
    """
    fields = parse_fields(document, "the report")
    found = fields.whole("format")
    if found != FORMAT:
        raise ValueError(f"`format` is {found}, and this version reads {FORMAT}")
    return HealthReport(
        host=fields.text("host"),
        started=fields.text("started"),
        seconds=fields.number("seconds"),
        checks=tuple(map(_parse_result, fields.objects("checks"))),
        facts=fields.mapping("facts"),
    )


def _parse_result(fields: Fields) -> CheckResult:
    return CheckResult(
        check=fields.text("check"),
        state=State(fields.one_of("state", [state.value for state in State])),
        reason=fields.text("reason"),
        hint=fields.text_or_none("hint"),
        evidence=fields.mapping("evidence"),
        seconds=fields.number("seconds"),
    )
