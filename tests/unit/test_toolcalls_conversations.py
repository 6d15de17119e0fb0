"""Conversations: good ones fire nothing, and breaking one rule makes exactly that rule fire."""

from __future__ import annotations

import pytest

from healthchecks.toolcalls import RULES, WARN
from healthchecks.toolcalls.conversation import ConversationVerdict, judge_conversation
from tests.unit.toolcalls_conversations import CONVERSATIONS
from tests.unit.toolcalls_good_replies import GoodReply
from tests.unit.toolcalls_mutations_of_conversations import MUTATIONS, ConversationMutation

LETTERS = {"M": "must", "I": "interop", "B": "behavioural"}


def judged(replies: list[GoodReply], server: str | None = None) -> ConversationVerdict:
    return judge_conversation([reply.exchange() for reply in replies], server=server)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_good_conversations_fire_nothing_at_all(name: str) -> None:
    assert judged(CONVERSATIONS[name]()).findings == ()


def test_the_good_conversations_hold_enough_for_every_rule_of_conversations() -> None:
    not_judged = [set(judged(make()).not_judged) for make in CONVERSATIONS.values()]
    assert set.intersection(*not_judged).isdisjoint({14, 49, *range(51, 64)})


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_exactly_the_broken_rule_fires(mutation: ConversationMutation) -> None:
    verdict = judged(mutation.broken())
    assert {finding.rule for finding in verdict.findings} == {mutation.rule} | mutation.implies
    assert any(finding.rule == mutation.rule and finding.severity != WARN for finding in verdict.findings)
    for finding in verdict.findings:
        assert finding.severity in {LETTERS[letter] for letter in RULES[finding.rule].severities} | {WARN}
        assert finding.where.startswith("exchange ")
        assert finding.reason.isprintable()


def test_every_rule_of_conversations_has_a_mutation() -> None:
    assert {mutation.rule for mutation in MUTATIONS} == {14, 49, *range(51, 64)}
