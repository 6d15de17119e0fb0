"""The end of a deploy as Ansible tells it: one line a host, those to look at last."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.outcomes import HostOutcome, Outcome

_ORDER = (Outcome.OK, Outcome.CHANGED, Outcome.SKIPPED, Outcome.UNREACHABLE, Outcome.FAILED)


def render_recap(outcomes: Sequence[HostOutcome]) -> tuple[list[str], list[list[str]]]:
    """The columns and the rows; the batch is left out where there was only one."""
    ordered = sorted(outcomes, key=lambda outcome: _ORDER.index(outcome.outcome))
    rows = [_row(outcome) for outcome in ordered]
    columns = ["host", "outcome", "release", "steps", "seconds", "batch", "reason"]
    if len({outcome.batch for outcome in outcomes if outcome.batch is not None}) < 2:
        column = columns.index("batch")
        columns.pop(column)
        for row in rows:
            row.pop(column)
    return columns, rows


def _row(outcome: HostOutcome) -> list[str]:
    return [
        outcome.host,
        str(outcome.outcome),
        # Which release a host that failed serves is in its reason.
        (outcome.version or "-") if outcome.is_proven else "-",
        str(outcome.steps_done),
        f"{outcome.seconds:.1f}",
        "-" if outcome.batch is None else str(outcome.batch),
        _reason(outcome),
    ]


def _reason(outcome: HostOutcome) -> str:
    error = outcome.error
    if error is None:
        return outcome.reason or ""
    kept = f"; left unchanged: {error.unchanged}" if error.unchanged else ""
    return " ".join(f"{error.sentence}{kept}".split())
