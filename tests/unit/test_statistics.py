"""Rates of what the model does, and how sure a few plays make us of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import comb, isclose
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthchecks.case import Case, load_cases
from healthchecks.runner import CaseResult
from healthchecks.statistics import Rate, is_models_doing, rates, wilson_interval
from healthchecks.toolcalls import Exchange, Finding

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    },
}

NIL = {"type": "function", "function": {"name": "nil", "parameters": {"type": "object", "properties": {}}}}


def exchange(*calls: tuple[str, str], finish: str = "tool_calls") -> Exchange:
    entries = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": None, **({"tool_calls": entries} if entries else {})}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return Exchange({"model": "m", "tools": [TOOL, NIL]}, 200, None, json.dumps(body).encode())


def played(
    case: str,
    *exchanges: Exchange,
    findings: Sequence[Finding] = (),
    last: Mapping[str, Any] | None = None,
) -> CaseResult:
    conversation = ({"role": "assistant", "content": "so"},) if last is None else (last,)
    return CaseResult(case, "plain", not findings, tuple(findings), 0.1, exchanges, conversation, None)


def cases(*names: str) -> tuple[Case, ...]:
    return load_cases(names)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 1 - 0.1170, 1.0),
    ],
)
def test_the_interval_is_the_one_that_is_published(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_nothing_is_known_of_no_trials() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert Rate(0, 0).share == 0.0


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_interval_holds_the_rate_and_turns_around_with_it(successes: int, failures: int) -> None:
    trials = successes + failures
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= (successes / trials if trials else 0) <= high <= 1
    mirrored = wilson_interval(failures, trials)
    assert isclose(low, 1 - mirrored[1], abs_tol=1e-12)
    assert isclose(high, 1 - mirrored[0], abs_tol=1e-12)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    trials, truth = 60, 0.8
    intervals = [wilson_interval(successes, trials) for successes in range(trials + 1)]
    covered = sum(
        comb(trials, k) * truth**k * (1 - truth) ** (trials - k)
        for k, (low, high) in enumerate(intervals)
        if low <= truth <= high
    )
    assert 0.93 < covered < 0.97


@pytest.mark.parametrize("wrong", [(-1, 3, 0.95), (4, 3, 0.95), (1, 3, 0.0), (1, 3, 1.0)])
def test_what_is_no_rate_is_refused(wrong: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="successes of"):
        wilson_interval(*wrong)


def test_every_judgeable_call_is_a_trial_of_the_rules_about_arguments() -> None:
    result = played(
        "no_tools",
        exchange(("add", '{"n": 1}'), ("add", "{}")),
        exchange(("add", '{"n": "one"}')),
        # Neither can be held against a declared tool.
        exchange(("nope", '{"n": 1}'), ("add", "not json")),
    )
    counted = rates([result], cases("no_tools")).by_rule
    assert {rule: (counted[rule].successes, counted[rule].trials) for rule in (21, 22, 23, 24)} == {
        21: (2, 3),
        22: (2, 3),
        23: (3, 3),
        24: (3, 3),
    }


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (exchange(("add", '{"n": 1}')), (1, 1)),
        (exchange(("add", '{"n": 1}'), ("add", '{"n": 2}')), (1, 1)),
        (exchange(("add", '{"n": 1}'), ("add", "{}")), (0, 1)),
        (exchange(("nope", "{}")), (0, 1)),
        (exchange(("add", "not json")), (0, 1)),
        (exchange(), (0, 1)),
        # What does not say that it calls is not counted, as in the K2 Vendor Verifier.
        (exchange(("add", '{"n": 1}'), finish="stop"), (0, 0)),
        (exchange(finish="stop"), (0, 0)),
    ],
)
def test_schema_accuracy_is_of_replies_that_end_with_calls(
    reply: Exchange, expected: tuple[int, int]
) -> None:
    accuracy = rates([played("no_tools", reply)], cases("no_tools")).schema_accuracy
    assert (accuracy.successes, accuracy.trials) == expected


def test_good_calls_with_arguments_are_counted_apart() -> None:
    both = exchange(("nil", "{}"), ("add", '{"n": 1}'))
    replies = [exchange(("nil", "{}")), both, exchange(("add", "{}"))]
    counted = rates([played("no_tools", *replies)], cases("no_tools"))
    assert (counted.schema_accuracy.successes, counted.with_arguments) == (2, 1)


def test_conversations_that_are_mixed_up_tell_nothing_of_the_model() -> None:
    mixed_up = Finding(63, "behavioural", "conversation 2", "a call has the id of another conversation")
    result = played("concurrent_calls", findings=[mixed_up])
    assert not is_models_doing(mixed_up)
    assert rates([result], cases("concurrent_calls")).by_rule == {}


@pytest.mark.parametrize("failed", [False, True])
def test_concurrent_calls_are_trials_of_rule_55(failed: bool) -> None:
    findings = [Finding(55, "behavioural", "conversation 1, reply 1", "no call")] if failed else []
    counted = rates([played("concurrent_calls", findings=findings)], cases("concurrent_calls")).by_rule
    assert counted == {55: Rate(int(not failed), 1)}


@pytest.mark.parametrize(
    ("findings", "last", "expected"),
    [
        # ask_database expects by rule 54 first, then by rule 53.
        ((), None, {54: (1, 1), 53: (1, 1)}),
        ((Finding(53, "behavioural", "reply 2", "no"),), None, {54: (1, 1), 53: (0, 1)}),
        ((Finding(54, "behavioural", "reply 1", "no"),), None, {54: (0, 1)}),
        # The server's form ended it: nothing is known of the model.
        ((Finding(1, "must", "reply 1", "HTTP 500"),), {"role": "user", "content": "?"}, {}),
        # A fault of form that the conversation went on from.
        ((Finding(36, "interop", "reply 1", "the role again"),), None, {54: (1, 1), 53: (1, 1)}),
    ],
)
def test_a_play_is_a_trial_of_the_behavioural_rules_it_came_to(
    findings: Sequence[Finding], last: Mapping[str, Any] | None, expected: Mapping[int, tuple[int, int]]
) -> None:
    result = played("ask_database", findings=findings, last=last)
    counted = rates([result], cases("ask_database")).by_rule
    assert {rule: (rate.successes, rate.trials) for rule, rate in counted.items()} == expected
