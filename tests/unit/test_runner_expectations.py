"""What a case expects of a reply, and the sentence for each way of not meeting it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from healthchecks.case import Expectation
from healthchecks.expectations import unmet
from healthchecks.toolcalls import Call, Reply

FACTS = {"most_tracks_album": ("Silver River", "Green Garden")}


def reply(text: str | None = None, *calls: tuple[str, Mapping[str, Any] | None]) -> Reply:
    made = tuple(
        Call(f"id{number}", name, json.dumps(arguments), arguments, number)
        for number, (name, arguments) in enumerate(calls)
    )
    return Reply(text, made, "tool_calls" if made else "stop", None, {})


def why(
    expected: Sequence[tuple[str, Mapping[str, Any]]], *calls: tuple[str, Mapping[str, Any] | None]
) -> str:
    wanted = tuple({"name": name, "arguments": arguments} for name, arguments in expected)
    return unmet(Expectation(55, wanted, {}), reply(None, *calls), FACTS) or "met"


def why_text(text: Mapping[str, Any], answer: Reply) -> str:
    return unmet(Expectation(53, None, text), answer, FACTS) or "met"


def test_calls_match_in_any_order() -> None:
    expected = [("f", {"x": {"equals": 1}}), ("f", {"x": {"equals": 2}})]
    assert why(expected, ("f", {"x": 1}), ("f", {"x": 2})) == "met"
    assert why(expected, ("f", {"x": 2}), ("f", {"x": 1})) == "met"


def test_a_loose_expectation_leaves_the_only_fitting_call_to_a_strict_one() -> None:
    expected = [("f", {}), ("f", {"x": {"equals": 1}})]
    assert why(expected, ("f", {"x": 1}), ("f", {"x": 2})) == "met"


@pytest.mark.parametrize(
    ("sent", "came", "fits"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, True),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, False),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, False),
        ({"a": {"b": 1}}, {"a": {"b": "1"}}, False),
        ([1, 2], [1, 2, 3], False),
        ([True], [1], False),
        ([{"x": 0}], [{"x": False}], False),
    ],
)
def test_objects_and_arrays_are_the_same_all_the_way_down(sent: object, came: object, fits: bool) -> None:
    assert (why([("f", {"x": {"equals": sent}})], ("f", {"x": came})) == "met") is fits


def test_no_other_tool_may_be_called_beside_the_named_one() -> None:
    named = Expectation(59, None, {}, call_of=("f", "g"))
    assert unmet(named, reply(None, ("f", {}), ("g", {})), FACTS) is None
    said = unmet(named, reply(None, ("f", {}), ("h", {})), FACTS)
    assert said == "a call of `f` or `g` expected, 2 calls (`f({})`, `h({})`) came"


def test_one_call_does_not_stand_for_two() -> None:
    expected = [("f", {"x": {"equals": 1}}), ("f", {"x": {"equals": 1}})]
    assert why(expected, ("f", {"x": 1}), ("f", {"x": 2})) == "`f` came with `x` = 2, expected 1"


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([], "1 call expected (`f`), nothing came"),
        ([("f", {"x": 1}), ("f", {"x": 1})], "1 call expected (`f`), 2 calls"),
        ([("g", {"x": 1})], "a call of `f` expected, one of `g` came"),
        ([("f", {})], "`f` came without `x`"),
        ([("f", None)], "`f` came without `x`"),
        ([("f", {"x": 2})], "`f` came with `x` = 2, expected 1"),
    ],
)
def test_calls_that_are_not_the_expected_ones_are_told_apart(
    calls: list[tuple[str, Mapping[str, Any] | None]], reason: str
) -> None:
    assert why([("f", {"x": {"equals": 1}})], *calls).startswith(reason)


@pytest.mark.parametrize(
    ("matcher", "value", "fits"),
    [
        ({"equals": 5}, 5, True),
        ({"equals": 5}, "5", False),
        ({"equals": 1}, True, False),
        ({"equals": {"a": [1]}}, {"a": [1]}, True),
        ({"contains": "glasgow"}, "Glasgow, Scotland", True),
        ({"contains": "glasgow"}, "Paris", False),
        ({"contains": "5"}, 5, False),
        ({"any_of": ["celsius", "fahrenheit"]}, "celsius", True),
        ({"any_of": ["celsius", "fahrenheit"]}, "kelvin", False),
        ({"any_of": [1, 2]}, True, False),
    ],
)
def test_matchers_compare_value_and_type(matcher: Mapping[str, Any], value: object, fits: bool) -> None:
    assert (why([("f", {"x": matcher})], ("f", {"x": value})) == "met") is fits


@pytest.mark.parametrize(
    ("text", "answer", "reason"),
    [
        ({}, reply("Hello"), "met"),
        ({}, reply("  "), "text expected, nothing came"),
        ({}, reply(None), "text expected, nothing came"),
        ({}, reply("Hello", ("f", {})), "text and no call expected, 1 call (`f({})`) came"),
        ({"contains": "GLASGOW"}, reply("In Glasgow"), "met"),
        (
            {"contains": "Paris"},
            reply("In Glasgow"),
            'text with "Paris" expected, the text "In Glasgow" came',
        ),
        ({"any_of": ["city", "place"]}, reply("Which place?"), "met"),
        (
            {"any_of": ["city", "place"]},
            reply("Why?"),
            'text with "city" or "place" expected, the text "Why?" came',
        ),
        ({"database_says": "most_tracks_album"}, reply("It is Green Garden."), "met"),
        (
            {"database_says": "most_tracks_album"},
            reply("It is Blue."),
            'text with "Silver River" or "Green Garden" expected, the text "It is Blue." came',
        ),
        ({"contains": "a", "any_of": ["b"]}, reply("a"), 'text with "b" expected, the text "a" came'),
    ],
)
def test_text_is_compared_without_regard_to_case(text: Mapping[str, Any], answer: Reply, reason: str) -> None:
    assert why_text(text, answer) == reason


def test_what_came_instead_is_told_on_one_line_and_harms_no_terminal() -> None:
    expected = Expectation(55, ({"name": "f", "arguments": {}},), {})
    reason = unmet(expected, reply("one\n\x1b[2Jtwo"), FACTS)
    assert reason is not None
    assert r'the text "one\n\x1b[2Jtwo" came' in reason


def test_many_calls_are_paired_without_trying_every_order() -> None:
    expected = [("f", {"x": {"contains": "c"}})] * 11 + [("f", {"x": {"equals": "zzz"}})]
    made = [("f", {"x": f"c{number}"}) for number in range(12)]
    assert why(expected, *made) == "`f` came with `x` = 'c0', expected 'zzz'"


def test_calls_change_partners_where_that_lets_all_have_one() -> None:
    # Each fits two of the calls that came; only the last says which of the two is left.
    expected: list[tuple[str, Any]] = [
        ("f", {"x": {"any_of": [number, number + 1]}}) for number in range(300)
    ]
    expected.append(("f", {"x": {"equals": 0}}))
    assert why(expected, *(("f", {"x": number}) for number in range(301))) == "met"
    assert why(expected[:40], *(("f", {"x": number}) for number in range(2, 42))) != "met"
