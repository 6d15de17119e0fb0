"""The suite as one page for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from healthchecks.gate import render_rate
from healthchecks.html import render_html
from healthchecks.runner import CaseResult
from healthchecks.suite_report import SuiteReport
from healthchecks.toolcalls import RULES, Exchange


def render_page(reports: Sequence[SuiteReport]) -> bytes:
    """The page, in UTF-8."""
    return render_html("page.html.j2", suites=[_suite(told) for told in reports])


def _suite(told: SuiteReport) -> Mapping[str, Any]:
    decision = told.decision
    return {
        "host": told.host,
        "model": told.model,
        "server": told.server or "unknown server",
        "simulated": told.simulated,
        "passed": told.passed,
        "basis": "" if decision is None else decision.basis,
        "reasons": told.beside_plays,
        "plays": len(told.results),
        "failed": len(told.failed_plays()),
        "seconds": sum(result.seconds for result in told.results),
        "rates": list(_rates(told)),
        "results": [_play(told, result) for result in told.results],
    }


def _rates(told: SuiteReport) -> Iterator[Mapping[str, str]]:
    if told.rates is None:
        return
    title = "replies with calls whose arguments their tools allow"
    yield {"rule": "", "title": title, "rate": render_rate(told.rates.schema_accuracy)}
    for rule, rate in told.rates.by_rule.items():
        yield {"rule": f"rule {rule}", "title": RULES[rule].title, "rate": render_rate(rate)}


def _play(told: SuiteReport, result: CaseResult) -> Mapping[str, Any]:
    faults = told.counted(result)
    run = f", run {result.run}" if result.run > 1 else ""
    return {
        "name": f"{result.case} ({result.mode}{run})",
        "passed": not faults,
        "seconds": result.seconds,
        "error": result.error or "",
        "findings": [
            {
                "rule": found.rule,
                "title": RULES[found.rule].title,
                "severity": found.severity,
                "where": found.where,
                "reason": found.reason,
                "known": found.known or "",
                "counts": found in faults,
            }
            for found in result.findings
        ],
        # The raw exchanges of what is in order are in the exchange files.
        "exchanges": [_exchange(exchange) for exchange in result.exchanges] if faults else [],
    }


def _exchange(exchange: Exchange) -> Mapping[str, Any]:
    return {
        "request": json.dumps(exchange.request, indent=1, ensure_ascii=False),
        "status": "no status" if exchange.status is None else f"status {exchange.status}",
        "headers": "\n".join(f"{name}: {value}" for name, value in (exchange.headers or {}).items()),
        "body": exchange.body.decode("utf-8", "replace"),
    }
