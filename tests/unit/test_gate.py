"""What blocks a model: form always, what the model does only where it has become worse."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from console import proof
from deploy.report import Report
from healthchecks.case import Case, load_cases
from healthchecks.gate import (
    MOST_REPEATS,
    Baseline,
    find_doubtful,
    judge_candidate,
    judge_strictly,
    render_rate,
    suite_fingerprint,
)
from healthchecks.runner import CaseResult, Endpoint
from healthchecks.statistics import Rate, Rates
from healthchecks.toolcalls import Finding

CASES = load_cases(["weather_parallel", "no_tools"])
FORM = Finding(30, "interop", "content", "the text holds a call")
ARGUMENTS = Finding(21, "interop", "arguments", "'location' is a required property")
BEHAVIOUR = Finding(55, "behavioural", "reply 1", "one call came")
MIXED_UP = Finding(63, "behavioural", "conversation 2", "a call has the id of another conversation")
WARNING = Finding(48, "warn", "events[1]", "an empty text")
GOOD_CALLS = Rate(8, 8)


def play(*findings: Finding) -> CaseResult:
    return CaseResult("weather_parallel", "plain", not findings, findings, 0.1, (), (), None)


def counted(
    by_rule: Mapping[int, tuple[int, int]] | None = None,
    accuracy: Rate = GOOD_CALLS,
    with_arguments: int | None = None,
) -> Rates:
    """The successes are calls with arguments, where nothing else is said."""
    given = accuracy.successes if with_arguments is None else with_arguments
    return Rates({rule: Rate(*rate) for rule, rate in (by_rule or {}).items()}, accuracy, given)


def baseline(by_rule: Mapping[int, tuple[int, int]]) -> Baseline:
    return Baseline("promoted yesterday", {rule: Rate(*rate) for rule, rate in by_rule.items()})


@pytest.mark.parametrize("served", [None, baseline({}), baseline({30: (0, 50), 63: (0, 50)})])
@pytest.mark.parametrize("finding", [FORM, MIXED_UP])
def test_a_fault_of_form_always_blocks(finding: Finding, served: Baseline | None) -> None:
    decision = judge_candidate([play(finding)], counted(), CASES, served)
    assert decision.reasons == (
        f"weather_parallel (plain): rule {finding.rule}, {finding.where}: {finding.reason}",
    )
    assert decision.counted(play(finding, BEHAVIOUR)) == (finding,)


@pytest.mark.parametrize("finding", [ARGUMENTS, BEHAVIOUR])
def test_the_first_model_is_let_in_with_what_is_its_own_doing_as_notes(finding: Finding) -> None:
    decision = judge_candidate([play(finding)], counted({finding.rule: (0, 40)}), CASES, None)
    assert decision.passed
    assert len(decision.notes) == 1
    assert finding.reason in decision.notes[0]


def test_a_model_that_makes_no_good_call_is_never_let_in() -> None:
    rates = counted(accuracy=Rate(0, 12))
    first = judge_candidate([play()], rates, CASES, None)
    for decision in (first, judge_strictly([play()], rates, CASES)):
        assert decision.reasons == ("no reply held a call with arguments that its tool allows",)
        assert decision.beside_plays == decision.reasons


def test_one_good_call_is_enough_for_a_first_model() -> None:
    decision = judge_candidate([play(ARGUMENTS)], counted({21: (1, 20)}, Rate(1, 20)), CASES, None)
    assert decision.passed
    assert len(decision.notes) == 1


def test_calls_without_arguments_alone_are_not_enough_where_arguments_are_due() -> None:
    dropped = counted(accuracy=Rate(2, 76), with_arguments=0)
    for served in (None, baseline({})):
        assert not judge_candidate([play()], dropped, CASES, served).passed
    assert judge_candidate([play()], dropped, load_cases(["arguments_none"]), None).passed


def test_a_model_of_which_no_call_is_expected_needs_none() -> None:
    cases = load_cases(["no_tools"])
    assert judge_candidate([play()], counted(accuracy=Rate(0, 0)), cases, None).passed


@pytest.mark.parametrize(
    ("run", "served", "blocks"),
    [
        ((5, 12), (12, 12), True),  # at most 68 %
        ((11, 12), (12, 12), True),  # at most 98.5 %
        ((12, 12), (12, 12), False),
        ((9, 12), (10, 12), False),
        ((9, 12), (11, 12), True),  # at most 91.1 %, and 91.7 % were served
        ((0, 9), (12, 12), True),
        ((0, 12), (2, 2), True),
        ((1, 1), (12, 12), False),
        ((0, 0), (12, 12), True),  # earlier turns fail, so nobody knows
        ((0, 0), (0, 12), False),
        ((0, 10), (10, 10), True),
    ],
)
def test_a_rate_blocks_where_the_run_shows_that_it_has_fallen(
    run: tuple[int, int], served: tuple[int, int], blocks: bool
) -> None:
    decision = judge_candidate([play(BEHAVIOUR)], counted({55: run}), CASES, baseline({55: served}))
    assert decision.passed is not blocks
    assert (55 in (decision.blocked or ())) is blocks
    if blocks:
        told = f"{run[0]} of {run[1]}, " if run[1] else "no play came so far; "
        assert decision.reasons[0].startswith(f"rule 55: {told}")
        assert f"the served model had {served[0]} of {served[1]}, " in decision.reasons[0]
        assert decision.counted(play(BEHAVIOUR, ARGUMENTS)) == (BEHAVIOUR,)
    else:
        assert len(decision.notes) == 1


def test_rules_with_few_trials_are_not_told_where_something_else_blocks() -> None:
    rates = counted({55: (0, 12), 57: (0, 2)})
    decision = judge_candidate([play()], rates, CASES, baseline({55: (12, 12), 57: (2, 2), 58: (2, 2)}))
    assert decision.blocked == frozenset({55})
    assert len(decision.reasons) == 1
    dead = judge_candidate([play(FORM)], counted(), CASES, baseline({55: (12, 12), 57: (2, 2)}))
    assert dead.reasons == ("weather_parallel (plain): rule 30, content: the text holds a call",)


def test_a_rule_that_the_served_model_never_met_blocks_nothing() -> None:
    rates = counted({55: (0, 40), 56: (9, 12)})
    assert judge_candidate([play(BEHAVIOUR)], rates, CASES, baseline({56: (9, 12)})).passed


@pytest.mark.parametrize(
    ("run", "doubtful"),
    [
        ({55: (3, 9)}, {55}),
        ({}, {55}),
        ({55: (9, 9)}, set()),
        ({55: (9, 10)}, set()),  # enough: the interval decides
        ({55: (3, 9), 57: (0, 2)}, {55, 57}),
        ({55: (3, 9), 21: (0, 40)}, set()),  # blocked already
    ],
)
def test_what_looks_worse_in_a_few_trials_is_doubtful_unless_something_blocks_already(
    run: Mapping[int, tuple[int, int]], doubtful: set[int]
) -> None:
    served = baseline({55: (12, 12), 57: (2, 2), 21: (40, 40), 63: (2, 2)})
    rates = counted({57: (2, 2), 21: (40, 40), **run})
    assert find_doubtful([play()], rates, CASES, served) == doubtful
    assert find_doubtful([play(FORM)], rates, CASES, served) == set()
    assert find_doubtful([play()], rates, CASES, None) == set()


def test_without_a_model_to_compare_with_every_finding_counts_but_warnings() -> None:
    decision = judge_strictly([play(FORM, ARGUMENTS, BEHAVIOUR, WARNING)], counted(), CASES)
    assert decision.counted(play(FORM, ARGUMENTS, BEHAVIOUR, WARNING)) == (FORM, ARGUMENTS, BEHAVIOUR)
    assert judge_strictly([play(WARNING)], counted(), CASES).passed


def test_a_rate_is_told_with_its_interval() -> None:
    assert render_rate(Rate(9, 12)) == "9 of 12, 75 % (47 to 91 %)"
    assert render_rate(Rate(0, 0)) == "no play came so far"


def test_only_the_very_same_cases_have_the_same_fingerprint() -> None:
    def prints(*names: str) -> str:
        return suite_fingerprint(load_cases(names))

    assert prints("no_tools", "ask_database") == prints("ask_database", "no_tools")
    assert prints("no_tools") != prints("no_tools", "ask_database")
    assert len(prints("no_tools")) == 16


def test_every_run_is_told_by_its_number() -> None:
    again: Sequence[CaseResult] = [CaseResult("c", "stream", False, (FORM,), 0.1, (), (), None, run=3)]
    assert judge_strictly(again, counted(), CASES).reasons[0].startswith("c (stream, run 3): rule 30")


@pytest.mark.parametrize("told", [(0, 0), (0, 1)])
def test_a_doubtful_rule_is_played_again_until_it_has_ten_trials_or_ten_times(
    monkeypatch: pytest.MonkeyPatch, told: tuple[int, int]
) -> None:
    played: list[tuple[list[str], int, int]] = []
    finding = Finding(58, "behavioural", "reply 1", "a call came")
    one = CaseResult("no_tools", "plain", False, (finding,), 0.1, (), (), None)
    again = (one,) * (2 * told[1])

    def run_suite(_: Endpoint, cases: Sequence[Case], **given: Any) -> tuple[CaseResult, ...]:
        played.append(([case.name for case in cases], given["first_run"], given["runs"]))
        return again

    monkeypatch.setattr(proof, "run_suite", run_suite)
    suite = proof.Suite(database=Path("none"), report=Report(as_json=True, stdout=io.StringIO()))
    cases = load_cases(["no_tools", "irrelevant"])
    served = baseline({58: (2, 2)})
    results, rates = proof.play_doubtful(suite, "box", Endpoint("u", "m"), cases, again, served)
    repeats = 4 if told[1] else MOST_REPEATS
    assert played == [(["no_tools"], run, 1) for run in range(2, 2 + repeats)]
    assert rates.by_rule.get(58) == (Rate(0, 10) if told[1] else None)
    assert len(results) == len(again) * (1 + repeats)
    assert not judge_candidate(results, rates, cases, served).passed
