"""The suite as one page for people: no script, no other file, readable on a phone and on paper.

What servers reply is hostile input: jinja2 escapes every value, characters that cannot be seen are shown as
their escapes, and the page's own policy allows nothing but its style.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2

from healthchecks.gate import render_rate
from healthchecks.runner import CaseResult
from healthchecks.suite_report import SuiteReport
from healthchecks.toolcalls import RULES, Exchange

SHOWN_CHARACTERS = 20_000
"""Of one body: the whole of it is in the exchange file."""


def render_page(reports: Sequence[SuiteReport]) -> bytes:
    """The page, in UTF-8."""
    source = importlib.resources.files("healthchecks").joinpath("templates/page.html.j2")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.finalize = lambda value: visible(value) if isinstance(value, str) else value
    template = environment.from_string(source.read_text(encoding="utf-8"))
    return template.render(suites=[_suite(told) for told in reports]).encode()


def visible(text: str) -> str:
    """Control characters, lone surrogates and marks that turn text around, as escapes; cut when long."""
    if getattr(text, "__html__", None):
        return text
    shown = text[:SHOWN_CHARACTERS]
    clean = "".join(c if c.isprintable() or c in "\n\t" else _escape(c) for c in shown)
    left = len(text) - len(shown)
    return f"{clean}\n... {left} characters more" if left else clean


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


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
