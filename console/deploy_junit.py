"""A deploy as a JUnit report: a test suite for every batch, a test case for every host."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from deploy.errors import render_error
from deploy.outcomes import HostOutcome, Outcome, count_outcomes
from healthchecks.junit import add_element, render_xml, xml_text


def render_deploy_junit(task: str, outcomes: Sequence[HostOutcome]) -> bytes:
    """The XML: failed is a failure, unreachable an error, skipped is skipped with its reason."""
    root = ET.Element("testsuites")
    _count(root, task, outcomes)
    numbers = {outcome.batch for outcome in outcomes}
    for number in sorted(numbers, key=lambda batch: batch or 0):
        members = [outcome for outcome in outcomes if outcome.batch == number]
        suite = add_element(root, "testsuite")
        _count(suite, f"{task}: in no batch" if number is None else f"{task}: batch {number}", members)
        suite.set("skipped", str(count_outcomes(members)[Outcome.SKIPPED]))
        for outcome in members:
            _add_host(suite, task, outcome)
    return render_xml(root)


def _count(element: ET.Element, name: str, outcomes: Sequence[HostOutcome]) -> None:
    counts = count_outcomes(outcomes)
    element.set("name", xml_text(name))
    element.set("tests", str(len(outcomes)))
    element.set("failures", str(counts[Outcome.FAILED]))
    element.set("errors", str(counts[Outcome.UNREACHABLE]))
    element.set("time", f"{sum(outcome.seconds for outcome in outcomes):.3f}")


def _add_host(suite: ET.Element, task: str, outcome: HostOutcome) -> None:
    case = add_element(suite, "testcase", name=outcome.host, classname=task, time=f"{outcome.seconds:.3f}")
    kind = {Outcome.FAILED: "failure", Outcome.UNREACHABLE: "error"}.get(outcome.outcome)
    if outcome.outcome is Outcome.SKIPPED:
        add_element(case, "skipped", message=outcome.reason or "")
    elif kind is not None:
        error = outcome.error
        message, name = (error.sentence, type(error).__name__) if error is not None else ("", "")
        told = add_element(case, kind, message=message, type=name)
        told.text = xml_text(render_error(error)) if error is not None else None
