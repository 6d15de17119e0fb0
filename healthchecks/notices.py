"""What of a run is worth a message: a check that fails now and did not, and one that does no more.

What could not be found out neither begins nor ends a problem, and a warning is none: a message goes out when
something changes, never again because it has not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from healthchecks.health_list import CHECKS
from healthchecks.health_report import CheckResult, HealthReport, State

TITLE_BYTES = 160
BODY_BYTES = 1_800
"""Together below the 2,048 bytes of WeCom, the shortest of the services:
https://developer.work.weixin.qq.com/document/path/91770."""

_REASON_BYTES, _EVIDENCE_BYTES, _EVIDENCE_VALUES = 300, 160, 4
# A reason may quote a model, and `<!channel>` or `<at user_id="all">` would call people.
_HARMLESS = str.maketrans("<>", "‹›")


@dataclass(frozen=True)
class Notice:
    """A message as it is sent; `failing` are the checks that fail once it is known."""

    title: str
    body: str
    at: str
    has_problem: bool
    failing: tuple[str, ...]


def make_notice(known: Collection[str], report: HealthReport, concerned: Collection[str]) -> Notice | None:
    """What has changed since `known` were the failing checks, None where nothing has.

    `concerned` are the checks that this host has: a problem of another one ends, since nobody looks any more.
    """
    by_name = {result.check: result for result in report.checks}
    begun = [one for one in report.checks if one.state is State.FAIL and one.check not in known]
    ended = [one for one in report.checks if one.state in (State.PASS, State.WARN) and one.check in known]
    ended += [_unwatched(name) for name in sorted(known) if name not in concerned and name not in by_name]
    if not begun and not ended:
        return None
    failing = ({*known} | {one.check for one in begun}) - {one.check for one in ended}
    return Notice(
        title=clip(_title(report.host, begun, ended), TITLE_BYTES),
        body=_body(report, begun, ended, sorted(failing)),
        at=report.started,
        has_problem=bool(begun),
        failing=tuple(sorted(failing)),
    )


def checks_of(config: Any) -> frozenset[str]:
    """The names of the checks that a host with this configuration has."""
    return frozenset(check.name for check in CHECKS if check.concerns(config))


def clip(text: str, limit_bytes: int) -> str:
    """At most so many bytes of UTF-8, on one line; what is missing is marked."""
    line = " ".join(text.split()).translate(_HARMLESS).encode(errors="replace")
    if len(line) <= limit_bytes:
        return line.decode()
    return line[: limit_bytes - 3].decode(errors="ignore") + "..."


def _unwatched(name: str) -> CheckResult:
    return CheckResult(name, State.PASS, "no longer checked on this host")


def _title(host: str, begun: list[CheckResult], ended: list[CheckResult]) -> str:
    said = [
        f"{_names(results)} {verb}" for results, verb in ((begun, "failed"), (ended, "recovered")) if results
    ]
    return f"ollama-fleet {host}: {'; '.join(said)}"


def _names(results: list[CheckResult]) -> str:
    names = [result.check for result in results]
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _body(
    report: HealthReport, begun: list[CheckResult], ended: list[CheckResult], failing: list[str]
) -> str:
    """As many whole entries as there is room for; the last two lines are always there."""
    told = f"failing now: {', '.join(failing)}" if failing else "nothing fails now"
    last = [clip(told, _REASON_BYTES), clip(f"{report.host}, {report.started}", _REASON_BYTES)]
    room = BODY_BYTES - len("\n".join(last).encode()) - len("\n... and 99 more")
    entries = [_entry("FAIL", one) for one in begun] + [_entry("OK", one) for one in ended]
    lines: list[str] = []
    for number, entry in enumerate(entries):
        room -= len(entry.encode()) + 1
        if room < 0:
            lines.append(f"... and {len(entries) - number} more")
            break
        lines.append(entry)
    return "\n".join([*lines, *last])


def _entry(word: str, result: CheckResult) -> str:
    lines = [clip(f"{word} {result.check}: {result.reason}", _REASON_BYTES)]
    if word == "FAIL":
        if result.hint:
            lines.append(f"  hint: {clip(result.hint, _REASON_BYTES)}")
        seen = _seen(result.evidence)
        if seen:
            lines.append(f"  seen: {seen}")
    return "\n".join(lines)


def _seen(evidence: Mapping[str, Any]) -> str:
    """The first plain values; the report on the host has all of them."""
    plain = [f"{name}={value}" for name, value in evidence.items() if isinstance(value, (str, int, float))]
    return clip(", ".join(plain[:_EVIDENCE_VALUES]), _EVIDENCE_BYTES)
