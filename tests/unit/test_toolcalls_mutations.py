"""A judge is tested by mutation: break one rule of a good reply, and exactly that rule fires."""

from __future__ import annotations

import pytest

from bench.rules import PAGE, play_mutations, render_page
from healthchecks.toolcalls import RULES, WARN, Scope, judge
from tests.unit.toolcalls_good_replies import CASES, faultless, recorded
from tests.unit.toolcalls_mutation import Mutation
from tests.unit.toolcalls_mutations import MUTATIONS

LETTERS = {"M": "must", "I": "interop", "B": "behavioural"}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("case", CASES)
def test_recorded_good_replies_fire_nothing_above_warn_for_their_server(case: str, stream: bool) -> None:
    version = case.rpartition("/")[0] or "0.17.5"
    verdict = judge(recorded(case, stream=stream).exchange(), server=f"ollama/{version}")
    assert verdict.ok
    assert {finding.rule for finding in verdict.findings} <= {36, 48}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("case", CASES)
def test_faultless_replies_fire_nothing_at_all(case: str, stream: bool) -> None:
    assert judge(faultless(case, stream=stream).exchange()).findings == ()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_exactly_the_broken_rule_fires(mutation: Mutation) -> None:
    applications = mutation.applications()
    assert applications, "applies to no good reply"
    for reply, expected in applications:
        verdict = judge(reply.exchange())
        assert {finding.rule for finding in verdict.findings} == expected, (reply.case, reply.streamed)
        assert expected.isdisjoint(verdict.not_judged)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_finding_has_a_severity_of_its_rule_and_says_where_and_why(mutation: Mutation) -> None:
    for reply, _ in mutation.applications():
        for finding in judge(reply.exchange()).findings:
            allowed = {LETTERS[letter] for letter in RULES[finding.rule].severities} | {WARN}
            assert finding.severity in allowed
            assert finding.where
            assert finding.reason.isprintable()
            assert finding.known is None


def test_every_rule_that_one_exchange_can_break_has_a_mutation() -> None:
    in_scope = {rule.id for rule in RULES.values() if rule.scope is Scope.EXCHANGE}
    assert {mutation.rule for mutation in MUTATIONS} == in_scope
    assert in_scope == set(range(1, 51)) - {49}


def test_there_are_63_rules_in_order() -> None:
    assert list(RULES) == list(range(1, 64))
    assert all(rule.title and rule.source for rule in RULES.values())


def test_the_page_of_the_rules_is_the_one_that_is_generated() -> None:
    matrix = play_mutations()
    assert {rule: shown.failures for rule, shown in matrix.items() if shown.failures} == {}
    assert all(shown.mutations for shown in matrix.values())
    assert PAGE.read_text() == render_page(matrix)
