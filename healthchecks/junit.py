"""The suite as a JUnit report, which every CI server reads.

A test suite for every model of every host, a test case for every play. The elements and attributes are those
of the schema of Apache Ant's `junitreport` as Jenkins publishes it (jenkinsci/xunit-plugin, junit-10.xsd).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence

from healthchecks.gate import render_rate
from healthchecks.runner import CaseResult
from healthchecks.suite_report import SuiteReport
from healthchecks.toolcalls import RULES, WARN, Finding

# Everything else is no character of XML 1.0, not even as a reference (XML 1.0, 2.2).
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(reports: Sequence[SuiteReport]) -> bytes:
    """The XML, with its declaration, in UTF-8."""
    root = ET.Element("testsuites", name="tool calls")
    totals = [_add_suite(root, told) for told in reports]
    _count(root, *(sum(column) for column in zip(*totals)) if totals else (0, 0, 0.0))
    return render_xml(root)


def render_xml(root: ET.Element) -> bytes:
    """Indented, with its declaration, in UTF-8."""
    ET.indent(root)
    xml: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml + b"\n"


def _add_suite(root: ET.Element, told: SuiteReport) -> tuple[int, int, float]:
    """How many test cases and failures there are in it, and its seconds."""
    suite = add_element(root, "testsuite", name=f"{told.host} {told.model}", hostname=told.host)
    properties = add_element(suite, "properties")
    for name, value in _properties(told):
        add_element(properties, "property", name=name, value=value)
    failures = 0
    beside = told.beside_plays
    whole = _case(suite, told, "the model as a whole", 0.0)
    if beside:
        failures += 1
        add_element(whole, "failure", message=beside[0], type="verdict").text = xml_text("\n".join(beside))
    for result in told.results:
        failures += _add_play(suite, told, result)
    seconds = sum(result.seconds for result in told.results)
    cases = len(told.results) + 1
    _count(suite, cases, failures, seconds)
    return cases, failures, seconds


def _add_play(suite: ET.Element, told: SuiteReport, result: CaseResult) -> int:
    """1 for a play that failed."""
    run = f"({result.run})" if any(other.run > 1 for other in told.results) else ""
    case = _case(suite, told, f"{result.case}[{result.mode}]{run}", result.seconds)
    faults = told.counted(result)
    rest = [finding for finding in result.findings if finding not in faults]
    if faults:
        message = f"rule {faults[0].rule}: {faults[0].reason}"
        text = "\n".join([*_lines(faults), *([result.error] if result.error else [])])
        add_element(case, "failure", message=message, type=faults[0].severity).text = xml_text(text)
    if rest:
        add_element(case, "system-out").text = xml_text("\n".join(_lines(rest)))
    return 1 if faults else 0


def _lines(findings: Iterable[Finding]) -> list[str]:
    return [
        f"rule {found.rule} ({found.severity}), {found.where}: {found.reason}\n  {RULES[found.rule].title}"
        + (f"\n  known: {found.known}" if found.known else "")
        + ("" if found.severity == WARN else f"\n  demanded by: {RULES[found.rule].source}")
        for found in findings
    ]


def _properties(told: SuiteReport) -> Iterable[tuple[str, str]]:
    yield "model", told.model
    yield "server", told.server or "unknown"
    yield "ollama", told.kind or "unknown"
    if told.suite is not None:
        yield "suite", told.suite
    if told.decision is not None:
        yield "judged", told.decision.basis
    if told.rates is not None:
        yield "schema_accuracy", render_rate(told.rates.schema_accuracy)
        for rule, rate in told.rates.by_rule.items():
            yield f"rule {rule}", render_rate(rate)


def _case(suite: ET.Element, told: SuiteReport, name: str, seconds: float) -> ET.Element:
    # A dot would be read as a package's: `127.0.0.1:8080` is one host.
    classname = f"{told.host}.{told.model}".replace(" ", "_")
    return add_element(suite, "testcase", name=name, classname=classname, time=f"{seconds:.3f}")


def _count(element: ET.Element, tests: int, failures: int, seconds: float) -> None:
    element.set("tests", str(tests))
    element.set("failures", str(failures))
    element.set("errors", "0")
    element.set("time", f"{seconds:.3f}")


def add_element(parent: ET.Element, tag: str, **attributes: str) -> ET.Element:
    """A child with these attributes, whatever they hold."""
    clean = {name: xml_text(value) for name, value in attributes.items()}
    return ET.SubElement(parent, tag, clean)


def xml_text(text: str) -> str:
    """Replies are hostile: what XML cannot hold is shown as its escape."""
    return _NOT_XML.sub(
        lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text
    )
