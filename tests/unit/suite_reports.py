"""Suite reports for the tests of what is made from them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from healthchecks.case import load_cases
from healthchecks.gate import judge_candidate, judge_strictly
from healthchecks.runner import CaseResult
from healthchecks.statistics import rates
from healthchecks.suite_report import SuiteReport
from healthchecks.toolcalls import Exchange, Finding

CASES = load_cases(["weather_parallel", "no_tools"])
FORM = Finding(30, "interop", "content", "the text holds `<tool_call>`")
BEHAVIOUR = Finding(55, "behavioural", "reply 1", "one call came")
WARNING = Finding(36, "warn", "events[1]", "the role comes again", "ollama <0.32.6")


def exchange(body: bytes = b'{"hello": "there"}') -> Exchange:
    request = {"model": "m", "messages": [{"role": "user", "content": "weather?"}]}
    return Exchange(request, 200, {"Content-Type": "application/json"}, body)


def good_call() -> Exchange:
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return Exchange({"model": "m", "tools": [tool]}, 200, None, json.dumps(body).encode())


def play(
    case: str,
    *findings: Finding,
    mode: str = "plain",
    run: int = 1,
    exchanges: Sequence[Exchange] | None = None,
    error: str | None = None,
) -> CaseResult:
    given = (good_call(),) if exchanges is None else tuple(exchanges)
    said = ({"role": "assistant", "content": "so"},)
    return CaseResult(case, mode, not findings, findings, 0.25, given, said, error, run=run)


def suite_report(
    *results: CaseResult, host: str = "box", model: str = "m:latest", strict: bool = True
) -> SuiteReport:
    counted = rates(results, CASES)
    decision = (
        judge_strictly(results, counted, CASES) if strict else judge_candidate(results, counted, CASES, None)
    )
    return SuiteReport(
        host,
        model,
        server="ollama/0.17.5",
        simulated=True,
        suite="0123456789abcdef",
        results=results,
        rates=counted,
        decision=decision,
    )
