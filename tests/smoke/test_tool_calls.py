"""The tool-call suite: each case in each mode is a test, and so is all that must be in order before it."""

from __future__ import annotations

import pytest

from healthchecks.case import Case
from healthchecks.exchange_file import render_exchange_file
from healthchecks.html import visible
from healthchecks.toolcalls import RULES, WARN
from tests.smoke.subjects import Stage, Subject


def test_the_model_is_served_and_is_shown_all_that_is_sent(stage: Stage, subject: Subject) -> None:
    _, told = stage.reach(subject)
    if told.reasons:
        pytest.fail("\n".join(told.reasons), pytrace=False)


def test_tool_calls(stage: Stage, subject: Subject, case: Case, mode: str) -> None:
    result = stage.play(subject, case, mode)
    faults = [finding for finding in result.findings if finding.severity != WARN]
    if not faults:
        return
    said = [
        f"rule {fault.rule} ({fault.severity}), {fault.where}: {fault.reason}\n    {RULES[fault.rule].title}"
        for fault in faults
    ]
    raw = render_exchange_file(result.exchanges).decode()
    pytest.fail("\n".join([case.about, *said, "", "the raw exchanges:", visible(raw)]), pytrace=False)
