"""Where the checks put what they find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from healthchecks.toolcalls.exchange import WARN, Finding
from healthchecks.toolcalls.known import KnownFault
from healthchecks.toolcalls.rules import RULES

__all__ = ["Findings", "KnownFault", "error_text", "names", "printable", "show"]

_FINDINGS_PER_RULE = 8
_SHOWN_CHARACTERS = 120


class Findings:
    """Collects the findings of one exchange and which rules there was something to look at for.

    The same fault in many places is one finding, at the first of them, and no rule has more than a few of
    a severity: a stream of 50,000 chunks makes no 50,000 findings.
    """

    def __init__(self, server: str | None, *, excuses_losses: bool = True) -> None:
        self._server = server
        self._excuses_losses = excuses_losses
        self._first: dict[tuple[int, str, str], Finding] = {}
        self._count: dict[tuple[int, str, str], int] = {}
        self._kinds: dict[tuple[int, str], int] = {}
        self._looked_at: set[int] = set()

    def looked_at(self, *rules: int) -> None:
        """There was enough to judge these rules by."""
        self._looked_at.update(rules)

    def add(self, rule: int, severity: str, where: str, reason: str, known: KnownFault | None = None) -> None:
        """`rule` is broken at `where`; `reason` says how in one sentence."""
        key = (rule, severity, reason)
        if key in self._count:
            self._count[key] += 1
            return
        finding = Finding(rule, severity, where, reason)
        if known is not None and self._excuses(known):
            finding = Finding(rule, WARN, where, reason, known.label)
        # Each severity has its own share: warnings must not crowd out a fault.
        kind = (rule, finding.severity)
        if self._kinds.get(kind, 0) == _FINDINGS_PER_RULE:
            return
        self._kinds[kind] = self._kinds.get(kind, 0) + 1
        self._count[key] = 1
        self._first[key] = finding

    def _excuses(self, known: KnownFault) -> bool:
        return known.concerns(self._server) and (self._excuses_losses or not known.loses)

    def all(self) -> tuple[Finding, ...]:
        """In the order of the rules; a fault met several times says so."""
        found = [_with_count(finding, self._count[key]) for key, finding in self._first.items()]
        return tuple(sorted(found, key=lambda finding: finding.rule))

    def not_judged(self) -> tuple[int, ...]:
        """The rules that nobody looked at and that were not found broken either."""
        fired = {rule for rule, _, _ in self._first}
        return tuple(rule for rule in RULES if rule not in self._looked_at and rule not in fired)


def _with_count(finding: Finding, count: int) -> Finding:
    if count == 1:
        return finding
    reason = f"{finding.reason} ({count} times)"
    return Finding(finding.rule, finding.severity, finding.where, reason, finding.known)


def show(value: Any) -> str:
    """A JSON value for a reason: short, on one line, printable whatever is in it."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and len(value) > _SHOWN_CHARACTERS:
        return f"`{printable(value[:_SHOWN_CHARACTERS])}...`"
    return f"`{printable(str(value))}`"


def printable(text: str) -> str:
    """`text` with line breaks, control characters and lone surrogates as escapes, cut when long."""
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:300])
    return clean if len(text) <= 300 else clean + "..."


def error_text(error: Any) -> str:
    """What an error object says."""
    return show(error.get("message") if isinstance(error, dict) else error)


def names(values: Sequence[str]) -> str:
    """A few names for a reason: "`a`, `b` and 3 more"."""
    shown = ", ".join(show(value) for value in values[:5])
    return shown if len(values) <= 5 else f"{shown} and {len(values) - 5} more"
