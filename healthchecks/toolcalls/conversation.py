"""Several exchanges judged together: each by the rules of one exchange, then by what only several show.

Not imported by the package itself: it builds on `healthchecks.expectations`, which builds on the package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from healthchecks.toolcalls.asked import parse_request
from healthchecks.toolcalls.compared import check_compared
from healthchecks.toolcalls.exchange import INTEROP, MUST, WARN, Exchange, Finding, Verdict
from healthchecks.toolcalls.expected import check_expected
from healthchecks.toolcalls.findings import Findings, printable
from healthchecks.toolcalls.history import check_history
from healthchecks.toolcalls.judge import MAX_BODY_BYTES, judge
from healthchecks.toolcalls.obeyed import check_obeyed, is_rightly_refused
from healthchecks.toolcalls.rules import RULES
from healthchecks.toolcalls.turns import Turn


@dataclass(frozen=True)
class ConversationVerdict:
    """All that was found; `where` of each finding begins with `exchange N: `, counted from 1.

    `not_judged` lists the rules for which no exchange held enough: they did not pass. `turns` are the
    exchanges, read, with their replies.
    """

    findings: tuple[Finding, ...]
    not_judged: tuple[int, ...]
    turns: tuple[Turn, ...]

    @property
    def ok(self) -> bool:
        """True when nothing above "warn" was found."""
        return all(finding.severity == WARN for finding in self.findings)


def judge_conversation(
    exchanges: Sequence[Exchange],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    server: str | None = None,
    facts: Mapping[str, Sequence[str]] | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> ConversationVerdict:
    """Judge exchanges by all 63 rules; raises nothing, whatever they hold.

    Args:
        exchanges: in the order in which they began; they may belong to several conversations.
        tools: those of all requests, where not one of them says itself which tools it has.
        server: as for `judge`.
        facts: what a database says, for expectations that ask for it; without it they are not judged.
    """
    if any("tools" in exchange.request for exchange in exchanges):
        tools = None
    findings: list[Finding] = []
    judged: set[int] = set()
    turns = []
    for number, exchange in enumerate(exchanges, 1):
        turn, verdict = _judge_one(number, exchange, tools, server, max_body_bytes)
        turns.append(turn)
        findings += [
            dataclasses.replace(finding, where=turn.place(finding.where)) for finding in verdict.findings
        ]
        judged.update(set(RULES) - set(verdict.not_judged))
    found = Findings(server)
    checks: tuple[Callable[[Sequence[Turn], Findings], None], ...] = (
        check_obeyed,
        check_history,
        check_compared,
        lambda all_turns, to: check_expected(all_turns, facts or {}, to),
    )
    for check in checks:
        # A request nested so deeply that it cannot be compared is not judged by what needs that.
        with suppress(RecursionError):
            check(turns, found)
    findings += found.all()
    judged.update(set(RULES) - set(found.not_judged()), (finding.rule for finding in findings))
    return ConversationVerdict(
        findings=tuple(sorted(findings, key=lambda finding: finding.rule)),
        not_judged=tuple(rule for rule in RULES if rule not in judged),
        turns=tuple(turns),
    )


def _judge_one(
    number: int,
    exchange: Exchange,
    tools: Sequence[Mapping[str, Any]] | None,
    server: str | None,
    max_body_bytes: int,
) -> tuple[Turn, Verdict]:
    """The verdict on one exchange, with what is known beyond its bytes.

    That is an answer that is not whole, and a request that had to be refused.
    """
    verdict = judge(exchange, server=server, tools=tools, max_body_bytes=max_body_bytes)
    if exchange.error is not None:
        nothing_came = exchange.status is None and not exchange.body
        rule, severity = (1, MUST) if nothing_came else (47, INTEROP)
        reason = printable(exchange.error) or "the answer is not whole"
        findings = () if nothing_came else verdict.findings
        findings = (*findings, Finding(rule, severity, "the whole answer", reason))
        left = tuple(number for number in verdict.not_judged if number != rule)
        verdict = Verdict(findings, left, None)
    turn = Turn(number, exchange, parse_request(exchange.request, tools), verdict.reply)
    if is_rightly_refused(turn):
        # Rule 60 judges how: that it was refused is right.
        kept = tuple(finding for finding in verdict.findings if finding.where != "status")
        verdict = Verdict(kept, (*verdict.not_judged, 1), None)
    return turn, verdict
