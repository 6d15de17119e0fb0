"""The smoke suite's cases are data: what is packaged is complete, and what is wrong is said."""

from __future__ import annotations

import json

import pytest

from healthchecks.case import InvalidCaseError, UnknownCaseError, load_cases, parse_case

TOOLS = {"look_up": {"description": "Look up", "parameters": {"type": "object", "properties": {}}}}
CALLING = {"user": "go", "expect": {"rule": 56, "calls": [{"name": "look_up", "arguments": {}}]}}
TELLING = {"user": "hi", "expect": {"rule": 57, "text": {}}}
RESULTS = {"results": {"look_up": {"text": "found"}}, "expect": {"rule": 53, "text": {"contains": "found"}}}


def document(**changes: object) -> str:
    return json.dumps({"about": "A test.", "tools": ["look_up"], "turns": [TELLING], **changes})


def test_the_five_conversations_are_packaged() -> None:
    assert [case.name for case in load_cases()] == [
        "ask_database",
        "no_tools",
        "weather_forecast",
        "weather_one_call",
        "weather_parallel",
    ]


def test_cases_come_in_the_order_asked_for() -> None:
    assert [case.name for case in load_cases(["no_tools", "ask_database"])] == ["no_tools", "ask_database"]


def test_an_unknown_case_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(
        UnknownCaseError, match=r"no case `nope`; the cases are ask_database, no_tools, "
    ) as caught:
        load_cases(["no_tools", "nope"])
    assert caught.value.unknown == ("nope",)


def test_every_case_sends_temperature_zero_a_seed_and_a_bound_on_tokens() -> None:
    for case in load_cases():
        assert case.sampling == {"temperature": 0, "top_p": 1, "seed": 1, "max_tokens": 512}


def test_every_argument_of_the_packaged_tools_is_required() -> None:
    functions = [tool["function"] for case in load_cases() for tool in case.tools]
    assert {function["name"] for function in functions} == {
        "get_current_weather",
        "get_n_day_weather_forecast",
        "ask_database",
    }
    for function in functions:
        assert sorted(function["parameters"]["required"]) == sorted(function["parameters"]["properties"])


def test_a_case_may_override_the_sampling() -> None:
    case = parse_case("x", document(sampling={"temperature": 0.7}), TOOLS)
    assert case.sampling == {"temperature": 0.7, "top_p": 1, "seed": 1, "max_tokens": 512}


def test_results_that_follow_calls_are_read() -> None:
    case = parse_case("x", document(turns=[CALLING, RESULTS]), TOOLS)
    assert case.turns[0].expect.calls == ({"name": "look_up", "arguments": {}},)
    assert case.turns[1].user is None
    assert case.turns[1].results == {"look_up": {"text": "found"}}


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ("{", "", "not JSON"),
        ("[]", "", "is not of type 'object'"),
        (document(turns=[]), "turns", "should be non-empty"),
        (document(colour="red"), "", "'colour' was unexpected"),
        (document(turns=[{"user": "hi"}]), "turns/0", "'expect' is a required property"),
        (document(turns=[{**TELLING, **RESULTS}]), "turns/0", "is valid under each of"),
        (
            document(turns=[{"user": "hi", "expect": {"rule": 18, "text": {}}}]),
            "turns/0/expect/rule",
            "18 is not one of",
        ),
        (document(tools=["nope"]), "tools", "no tool `nope` in tools.json"),
        (document(tools=[], turns=[CALLING, RESULTS]), "turns/0", "`look_up` is not among the case's tools"),
        (document(turns=[TELLING, RESULTS]), "turns/1", "results are sent after calls"),
        (document(turns=[CALLING, TELLING]), "turns/1", "results are sent after calls"),
    ],
)
def test_a_wrong_case_is_refused_with_the_place(text: str, where: str, reason: str) -> None:
    with pytest.raises(InvalidCaseError) as caught:
        parse_case("broken", text, TOOLS)
    assert caught.value.where == where
    assert reason in caught.value.reason
    assert "case `broken`" in str(caught.value)
