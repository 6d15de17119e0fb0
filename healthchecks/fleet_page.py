"""The health of a fleet as one page for people, from what its hosts have kept of their own checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from healthchecks.figure_texts import age_text
from healthchecks.fleet_figures import model_rows, version_rows
from healthchecks.health_report import State
from healthchecks.host_page import host_details
from healthchecks.html import render_html
from healthchecks.kept_reports import STALE_PERIODS, KeptReports

HOSTS_NAMED_AT_MOST = 8
"""In a line on many hosts; each has its own place below."""


class HostState(str, Enum):
    """What is known of a host, the worst first."""

    FAIL = "fail"
    UNREACHABLE = "unreachable"
    STALE = "stale"
    WARN = "warn"
    UNKNOWN = "unknown"
    NEVER = "never checked"
    PASS = "pass"  # noqa: S105 - a word, no password

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class FleetHost:
    """A host of the inventory and what it has kept; `kept` is None where it could not be asked.

    `period_seconds` is how often it is to check itself, None where it is not. `problem` is why it could not
    be asked, and `hint` what to do about that, or about a host that has never been checked.
    """

    name: str
    kept: KeptReports | None = None
    period_seconds: float | None = None
    problem: str | None = None
    hint: str | None = None

    @property
    def state(self) -> HostState:
        """That of its last report, unless it is one of a time that is over."""
        if self.kept is None:
            return HostState.UNREACHABLE
        if self.kept.report is None:
            return HostState.UNKNOWN if self.kept.scheduled or self.kept.problem else HostState.NEVER
        return HostState.STALE if self._is_stale else HostState(self.kept.report.state.value)

    @property
    def reason(self) -> str:
        """One sentence: the worst that is known."""
        if self.kept is None:
            return self.problem or "the host could not be asked"
        if self.kept.report is None:
            waits = "no check has ended yet" if self.kept.scheduled else "nothing checks this host"
            return self.kept.problem or waits
        if self._is_stale:
            return self._why_stale
        report = self.kept.report
        found = [result for result in report.checks if result.state is report.state is not State.PASS]
        if found:
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            return f"{found[0].check}: {found[0].reason}{more}"
        return f"{len(report.checks)} of {len(report.checks)} checks passed"

    @property
    def _is_stale(self) -> bool:
        age = None if self.kept is None else self.kept.age_seconds
        if self.period_seconds is None or age is None:
            return True
        # One that is dated ahead would count for as long as the clock was wrong.
        return not -self.period_seconds <= age <= STALE_PERIODS * self.period_seconds

    @property
    def _why_stale(self) -> str:
        assert self.kept is not None
        assert self.kept.report is not None
        age, state = self.kept.age_seconds, self.kept.report.state
        if age is None:
            old = "its last report has no date"
        elif age < 0:
            old = f"its last report is dated {age_text(-age)} ahead of the host's clock"
        else:
            old = f"its last report is {age_text(age)} old"
        if self.period_seconds is None:
            return f"nothing checks this host any more; {old}, and said {state}"
        return f"{old}, due every {age_text(self.period_seconds)}, and said {state}"


def render_fleet_page(hosts: Sequence[FleetHost], made_at: datetime) -> bytes:
    """The page, in UTF-8; the hosts that need somebody stand first.

    Args:
        made_at: with a time zone.
    """
    order = list(HostState)
    ranked = sorted(hosts, key=lambda host: order.index(host.state))
    places = {host.name: number for number, host in enumerate(ranked, 1)}
    return render_html(
        "fleet.html.j2",
        made_at=made_at.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        counts=[(state, sum(1 for host in hosts if host.state is state)) for state in order],
        findings=list(_findings(ranked, places)),
        hosts=[
            {
                "place": places[host.name],
                "name": host.name,
                "state": host.state,
                "reason": host.reason,
                "hint": host.hint,
                **host_details(host.kept, places[host.name]),
            }
            for host in ranked
        ],
        models=model_rows(_reports(ranked)),
        versions=version_rows(_reports(ranked)),
    )


def _reports(hosts: Sequence[FleetHost]) -> dict[str, Mapping[str, Any]]:
    """The facts by host, of hosts whose report still counts."""
    return {
        host.name: host.kept.report.facts
        for host in hosts
        if host.kept is not None and host.kept.report is not None and host.state is not HostState.STALE
    }


def _findings(hosts: Sequence[FleetHost], places: Mapping[str, int]) -> Iterator[Mapping[str, Any]]:
    """What is wrong, each with the hosts on which it is: twelve hosts with one trouble are one line.

    So are nine checks of one host that could not be made for one reason.
    """
    found: dict[tuple[HostState, str], list[tuple[str, str, str]]] = {}
    for host in hosts:
        for state, check, reason, hint in _told(host):
            found.setdefault((state, check), []).append((host.name, reason, hint))
    joined: dict[tuple[HostState, tuple[tuple[str, str, str], ...]], list[str]] = {}
    for (state, check), told in found.items():
        joined.setdefault((state, tuple(told)), []).append(check)
    order = list(HostState)
    ranked = sorted(joined.items(), key=lambda item: (order.index(item[0][0]), -len(item[0][1])))
    for (state, said), checks in ranked:
        reasons = {reason for _, reason, _ in said}
        _, reason, hint = said[0]
        yield {
            "state": state,
            "check": ", ".join(checks),
            "count": len(said),
            "hosts": [(places[name], name) for name, _, _ in said[:HOSTS_NAMED_AT_MOST]],
            "more": max(0, len(said) - HOSTS_NAMED_AT_MOST),
            "reason": reason if len(reasons) == 1 else f"{reason}; elsewhere otherwise",
            "hint": hint if len(said) == 1 else "",
        }


def _told(host: FleetHost) -> Iterator[tuple[HostState, str, str, str]]:
    """What of a host is no pass."""
    report = None if host.kept is None else host.kept.report
    if report is None or host.state is HostState.STALE:
        yield host.state, "", host.reason, host.hint or ""
        return
    for result in report.checks:
        if result.state is not State.PASS:
            yield HostState(result.state.value), result.check, result.reason, result.hint or ""
