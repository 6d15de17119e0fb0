"""The JUnit report, as CI servers read it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from healthchecks.junit import render_junit
from healthchecks.suite_report import SuiteReport
from healthchecks.toolcalls import Finding
from tests.unit.suite_reports import BEHAVIOUR, FORM, WARNING, play, suite_report

# junit-10.xsd of the xunit plugin of Jenkins: each element's attributes (True: required) and its children in
# the order in which they must come, `*` for any number.
SCHEMA = {
    "testsuites": (
        {"name": False, "time": False, "tests": False, "failures": False, "errors": False},
        "testsuite*",
    ),
    "testsuite": (
        {"name": True, "tests": True, "failures": False, "errors": False, "time": False, "hostname": False},
        "properties? testcase*",
    ),
    "properties": ({}, "property*"),
    "property": ({"name": True, "value": True}, ""),
    "testcase": ({"name": True, "classname": True, "time": False}, "failure? system-out?"),
    "failure": ({"message": False, "type": False}, ""),
    "system-out": ({}, ""),
}


def check_schema(element: ET.Element) -> None:
    attributes, order = SCHEMA[element.tag]
    assert set(element.attrib) <= set(attributes), element.tag
    assert {name for name, required in attributes.items() if required} <= set(element.attrib)
    pattern = "".join(f"(?:<{name}>){many}" for name, many in re.findall(r"([\w-]+)([*?])", order))
    assert re.fullmatch(pattern, "".join(f"<{child.tag}>" for child in element))
    for child in element:
        check_schema(child)


def parsed(*reports: SuiteReport) -> ET.Element:
    root = ET.fromstring(render_junit(reports))
    check_schema(root)
    for suite in [root, *root]:
        assert int(suite.get("tests", "")) == len(list(suite.iter("testcase")))
        assert int(suite.get("failures", "")) == len(list(suite.iter("failure")))
    return root


def test_every_play_is_a_test_case_and_every_model_of_a_host_a_suite() -> None:
    root = parsed(
        suite_report(play("no_tools"), play("weather_parallel", FORM, WARNING, mode="stream")),
        suite_report(play("no_tools"), host="other"),
    )
    assert [suite.get("name") for suite in root] == ["box m:latest", "other m:latest"]
    names = [case.get("name") for case in root[0].iter("testcase")]
    assert names == ["the model as a whole", "no_tools[plain]", "weather_parallel[stream]"]
    failed = root[0].findall("testcase")[2]
    failure = failed.find("failure")
    assert failure is not None
    assert failure.get("message") == "rule 30: the text holds `<tool_call>`"
    assert str(failure.text).startswith("rule 30 (interop), content: the text holds `<tool_call>`")
    assert "known: ollama <0.32.6" in str(failed.findtext("system-out"))
    assert root.get("time") == "0.750"


def test_the_version_the_kind_and_the_rates_are_properties() -> None:
    root = parsed(suite_report(play("weather_parallel")))
    properties = {entry.get("name"): entry.get("value") for entry in root.iter("property")}
    assert properties["server"] == "ollama/0.17.5"
    assert properties["ollama"] == "simulated"
    assert properties["schema_accuracy"] == "1 of 1, 100 % (21 to 100 %)"
    assert properties["rule 55"] == "1 of 1, 100 % (21 to 100 %)"


def test_a_finding_that_does_not_count_is_told_and_is_no_failure() -> None:
    root = parsed(suite_report(play("weather_parallel", BEHAVIOUR), strict=False))
    assert root.get("failures") == "0"
    assert "rule 55 (behavioural), reply 1: one call came" in str(root.findtext(".//system-out"))


def test_a_host_whose_suite_was_not_played_has_one_failure() -> None:
    root = parsed(SuiteReport("box", "m:latest", obstacles=("no Ollama answers",)))
    (failure,) = root.iter("failure")
    assert failure.text == "no Ollama answers"


def test_several_runs_are_told_apart() -> None:
    root = parsed(suite_report(play("no_tools"), play("no_tools", run=2)))
    names = [case.get("name") for case in root.iter("testcase")]
    assert names[1:] == ["no_tools[plain](1)", "no_tools[plain](2)"]


def test_the_error_of_a_cut_answer_is_in_the_failure() -> None:
    root = parsed(suite_report(play("no_tools", FORM, error="no answer within 120 s")))
    assert str(root.findtext(".//failure")).endswith("no answer within 120 s")


def test_no_hosts_are_a_report_too() -> None:
    assert parsed().get("tests") == "0"


@given(st.text(st.characters(exclude_categories=())))
def test_any_reply_gives_a_report_that_can_be_parsed(text: str) -> None:
    hostile = Finding(30, "interop", text, text)
    parsed(suite_report(play("no_tools", hostile), host=text, model=text))


def test_a_control_character_is_shown_as_its_escape() -> None:
    hostile = Finding(30, "interop", "content", "a\x00b\x1b[31mc\ud800d\ufffee]]>")
    failure = parsed(suite_report(play("no_tools", hostile))).find(".//failure")
    assert failure is not None
    assert failure.get("message") == r"rule 30: a\x00b\x1b[31mc\ud800d\ufffee]]>"
