"""The smoke suite's cases are data: what is packaged is complete, and what is wrong is said."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from healthchecks.case import (
    LEVELS,
    Expectation,
    InvalidCaseError,
    UnknownCaseError,
    load_cases,
    numbered_case,
    parse_case,
    render_expectation,
)
from healthchecks.decoys import MOST_DECOYS, make_decoys

TOOLS = {"look_up": {"description": "Look up", "parameters": {"type": "object", "properties": {}}}}
CALLING = {"user": "go", "expect": {"rule": 56, "calls": [{"name": "look_up", "arguments": {}}]}}
TELLING = {"user": "hi", "expect": {"rule": 57, "text": {}}}
RESULTS = {"results": {"look_up": {"text": "found"}}, "expect": {"rule": 53, "text": {"contains": "found"}}}


def document(**changes: object) -> str:
    stated = {"about": "A test.", "level": "core", "tools": ["look_up"], "turns": [TELLING], **changes}
    return json.dumps(stated)


def turn(**expect: object) -> str:
    return document(turns=[{"user": "hi", "expect": {"rule": 57, **expect}}])


def test_the_articles_five_conversations_are_the_core() -> None:
    assert [case.name for case in load_cases(level="core")] == [
        "ask_database",
        "no_tools",
        "weather_forecast",
        "weather_one_call",
        "weather_parallel",
    ]


def test_the_extended_cases_hold_the_core() -> None:
    every = [case.name for case in load_cases()]
    assert [case.name for case in load_cases(level="extended")] == every
    assert {case.name for case in load_cases(level="core")} < set(every)
    assert {case.level for case in load_cases()} == set(LEVELS)


def test_a_case_that_is_named_is_loaded_whatever_its_level() -> None:
    assert [case.name for case in load_cases(["calls_8"], "core")] == ["calls_8"]


def test_there_is_no_third_level() -> None:
    with pytest.raises(ValueError, match="one of core, extended, not 'all'"):
        load_cases(level="all")


def test_cases_come_in_the_order_asked_for() -> None:
    assert [case.name for case in load_cases(["no_tools", "ask_database"])] == ["no_tools", "ask_database"]


def test_an_unknown_case_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(
        UnknownCaseError, match=r"no case `nope`; the cases are arguments_arrays, .*, ask_database, "
    ) as caught:
        load_cases(["no_tools", "nope"])
    assert caught.value.unknown == ("nope",)


def test_every_case_sends_temperature_zero_a_seed_and_a_bound_on_tokens() -> None:
    for case in load_cases():
        assert case.sampling == {"temperature": 0, "top_p": 1, "seed": 1, "max_tokens": 512}


def test_every_argument_of_the_articles_tools_is_required() -> None:
    functions = [tool["function"] for case in load_cases(level="core") for tool in case.tools]
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


def functions() -> list[dict[str, Any]]:
    seen: dict[str, Any] = {}
    for case in load_cases():
        for tool in case.tools:
            seen.setdefault(tool["function"]["name"], tool["function"])
    return list(seen.values())


def keywords(schema: dict[str, Any]) -> Iterator[str]:
    for key, value in schema.items():
        yield key
        if key == "properties":
            for inner in value.values():
                yield from keywords(inner)
        elif key == "items":
            yield from keywords(value)


@pytest.mark.parametrize("function", functions(), ids=lambda function: str(function["name"]))
def test_the_schema_of_a_tool_is_one_that_ollama_shows_whole(function: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(function["parameters"])
    # api.ToolProperty of Ollama knows these and drops the others.
    assert set(keywords(function["parameters"])) <= {
        *("type", "description", "enum", "items", "properties", "required")
    }


@pytest.mark.parametrize("function", functions(), ids=lambda function: str(function["name"]))
def test_the_name_of_a_tool_is_no_common_word(function: dict[str, Any]) -> None:
    # The server's parser takes the first declared name anywhere in a text (measured on 0.17.5 and 0.24.0).
    assert re.fullmatch(r"[a-z]+(_[a-z]+)+", function["name"])


def test_what_a_case_expects_fits_the_schemas_of_its_tools() -> None:
    for case in load_cases():
        parameters = {tool["function"]["name"]: tool["function"]["parameters"] for tool in case.tools}
        for call in (call for turn in case.turns for call in turn.expect.calls or ()):
            given = {
                key: matcher["equals"] for key, matcher in call["arguments"].items() if "equals" in matcher
            }
            properties = parameters[call["name"]]["properties"]
            assert set(call["arguments"]) <= set(properties)
            for key, value in given.items():
                if value != "{n}":
                    jsonschema.validate(value, properties[key])


def test_the_name_of_a_case_fits_the_column_of_the_report() -> None:
    assert [case.name for case in load_cases() if len(case.name) > 18] == []


def test_every_rule_of_conversations_is_met_by_some_case() -> None:
    expected = {turn.expect.rule for case in load_cases() for turn in case.turns}
    assert expected >= {22, 23, 24, 26, *range(53, 64)}


def test_one_to_eight_calls_are_asked_for() -> None:
    counts = Counter(len(turn.expect.calls or ()) for case in load_cases() for turn in case.turns)
    assert {1, 2, 3, 5, 8} <= set(counts)


def test_long_lists_of_tools_are_sent() -> None:
    assert {20, 50} <= {len(case.tools) for case in load_cases()}


def test_decoys_are_the_same_every_time_and_all_different() -> None:
    decoys = make_decoys(MOST_DECOYS)
    assert len({tool["function"]["name"] for tool in decoys}) == MOST_DECOYS == 60
    assert make_decoys(5) == decoys[:5]


def test_a_number_stands_in_every_text_of_a_concurrent_conversation() -> None:
    calls = [{"name": "look_up", "arguments": {"a": {"equals": "{n}"}, "b": {"contains": "no. {n}"}}}]
    turns = [
        {"user": "look up {n}", "expect": {"rule": 63, "calls": calls}},
        {
            "results": {"look_up": {"parts": ["found {n}"]}},
            "expect": {"rule": 53, "text": {"contains": "{n}!"}},
        },
    ]
    case = numbered_case(parse_case("x", document(concurrent=3, turns=turns), TOOLS), 3)
    assert case.turns[0].user == "look up 3"
    assert case.turns[0].expect.calls == (
        {"name": "look_up", "arguments": {"a": {"equals": 3}, "b": {"contains": "no. 3"}}},
    )
    assert case.turns[1].results == {"look_up": {"parts": ["found 3"]}}
    assert case.turns[1].expect.text == {"contains": "3!"}


def test_a_history_and_what_a_request_says_besides_are_read() -> None:
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [{}]}]
    asked = {
        "user": "go",
        "request": {"tool_choice": "none"},
        "expect": {"rule": 59, "text": {}, "may_refuse": True},
    }
    case = parse_case("x", document(history=history, turns=[asked]), TOOLS)
    assert list(case.history) == history
    assert case.turns[0].request == {"tool_choice": "none"}
    assert case.turns[0].expect.may_refuse


@pytest.mark.parametrize(
    ("kind", "expectation"),
    [
        ({"call_of": ["look_up"]}, Expectation(57, None, {}, call_of=("look_up",))),
        ({"finish": "length"}, Expectation(57, None, {}, finish="length")),
        ({"prompt_grows": True}, Expectation(57, None, {}, prompt_grows=True)),
        ({"error": [400, 422]}, Expectation(57, None, {}, error=(400, 422))),
    ],
)
def test_each_kind_of_expectation_is_read(kind: dict[str, object], expectation: Expectation) -> None:
    assert parse_case("x", turn(**kind), TOOLS).turns[0].expect == expectation


def test_every_key_of_a_case_is_described_in_its_schema() -> None:
    path = Path(__file__).parents[2] / "healthchecks" / "case.schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    objects = [schema, *schema["$defs"].values()]
    assert all(entry["additionalProperties"] is False for entry in objects)


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ("{", "", "not JSON"),
        ("[]", "", "is not of type 'object'"),
        (document(turns=[]), "turns", "should be non-empty"),
        (document(colour="red"), "", "'colour' was unexpected"),
        (document(turns=[{"user": "hi"}]), "turns/0", "'expect' is a required property"),
        (document(turns=[{**TELLING, **RESULTS}]), "turns/0", "either `user` or `results` says what is sent"),
        (document(turns=[{"expect": TELLING["expect"]}]), "turns/0", "either `user` or `results`"),
        (document(level="all"), "level", "'all' is not one of ['core', 'extended']"),
        (document(decoys=61), "decoys", "61 is greater than the maximum of 60"),
        (document(concurrent=1), "concurrent", "1 is less than the minimum of 2"),
        (document(history=[{"role": "robot", "content": "x"}]), "history/0/role", "'robot' is not one of"),
        (
            turn(text={}, finish="length"),
            "turns/0/expect",
            "one of calls, call_of, text, finish, prompt_grows, error says what is due, not text and finish",
        ),
        (turn(), "turns/0/expect", "says what is due, not none"),
        (turn(call_of=["nope"]), "turns/0", "`nope` is not among the case's tools"),
        (turn(error=[500]), "turns/0/expect/error/0", "500 is greater than the maximum"),
        (
            document(turns=[{**TELLING, "request": {"model": "other"}}]),
            "turns/0/request",
            "`model` is only sent where `error` is due",
        ),
        (document(turns=[{**TELLING, "request": {"n": 2}}]), "turns/0/request", "'n' was unexpected"),
        (
            document(turns=[CALLING, {**RESULTS, "results": {"look_up": {"text": "a", "parts": ["b"]}}}]),
            "turns/1/results/look_up",
            "has too many properties",
        ),
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


def test_an_expectation_is_written_as_the_case_says_it() -> None:
    files = sorted((Path(__file__).parents[2] / "healthchecks/cases").glob("*.json"))
    for file in files:
        written = [turn["expect"] for turn in json.loads(file.read_text())["turns"]]
        (case,) = load_cases([file.stem])
        assert [render_expectation(turn.expect) for turn in case.turns] == written
