"""Conversations: good ones fire nothing, and breaking one rule makes exactly that rule fire."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from healthchecks.toolcalls import RULES, WARN
from healthchecks.toolcalls.conversation import ConversationVerdict, judge_conversation
from tests.unit.toolcalls_conversations import (
    ASK_PARIS,
    CONVERSATIONS,
    PARIS,
    answer,
    call,
    history,
    refusal,
    request,
)
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


@pytest.mark.parametrize(
    "mistake",
    [
        {"content": None},
        {"content": {"t": 1}},
        {"content": "21", "tool_call_id": "call_other"},
        {"content": "21", "tool_call_id": None},
    ],
)
def test_a_refusal_of_what_the_client_did_wrong_is_laid_to_no_rule_of_histories(mistake: Any) -> None:
    asked = request(*history(ASK_PARIS, PARIS, "21 degrees"))
    asked["messages"][2].update(mistake)
    verdict = judged([refusal(asked, 400, "invalid message content type, or tool_call_id")])
    assert [finding.rule for finding in verdict.findings] == [1]
    assert {51, 52} <= set(verdict.not_judged)


def test_a_result_that_nobody_answered_for_is_a_mistake_too() -> None:
    asked = request(*history(ASK_PARIS, PARIS, "21 degrees")[:2], ASK_PARIS)
    verdict = judged([refusal(asked, 400, "content may not be null")])
    assert {51, 52} <= set(verdict.not_judged)


def test_a_known_fault_is_a_warning_in_conversations_too() -> None:
    for name, rule, known in (
        ("text_though_a_call_is_required", 59, "ollama#17921"),
        ("length_overwritten", 62, "ollama#17485"),
    ):
        (mutation,) = (m for m in MUTATIONS if m.break_it.__name__ == name)
        (finding,) = judged(mutation.broken(), "ollama/0.24.0").findings
        assert (finding.rule, finding.severity, finding.known) == (rule, WARN, known)
    (mutation,) = (m for m in MUTATIONS if m.break_it.__name__ == "length_overwritten")
    assert not judged(mutation.broken(), "ollama/0.32.6").ok


def test_half_a_call_is_excused_nowhere() -> None:
    (mutation,) = (m for m in MUTATIONS if m.break_it.__name__ == "half_a_call_that_claims_to_be_whole")
    assert {f.rule for f in judged(mutation.broken(), "ollama/0.24.0").findings if f.severity != WARN} == {
        19,
        62,
    }


@pytest.mark.parametrize("says", ["tool_choice is not supported", "unsupported: tool choice `required`"])
def test_a_tool_choice_may_be_refused(says: str) -> None:
    refused = refusal(request(ASK_PARIS, tool_choice="required"), 400, says)
    verdict = judged([refused])
    assert verdict.findings == ()
    assert {59, 60}.isdisjoint(verdict.not_judged)


def test_a_required_call_may_be_cut() -> None:
    reply = answer(request(ASK_PARIS, tool_choice="required"), "I will")
    reply.ending["finish_reason"] = "length"
    verdict = judged([reply])
    assert verdict.findings == ()
    assert 59 in verdict.not_judged


def test_plain_replies_that_differ_among_themselves_make_the_stream_a_warning() -> None:
    plain, streamed, *_ = CONVERSATIONS["with_a_result"]()
    other = copy.deepcopy(plain)
    other.give("get_time", {})
    streamed.give("ask_database", {"query": "select 1"})
    assert [(f.rule, f.severity) for f in judged([plain, other, streamed]).findings] == [(49, WARN)]
    assert not judged([plain, streamed]).ok
    streamed.give("get_time", {})
    assert judged([plain, other, streamed]).findings == ()


def test_without_temperature_0_or_a_seed_a_stream_may_differ() -> None:
    for change in ({"temperature": 1}, {"seed": None}):
        plain, streamed, *_ = CONVERSATIONS["with_a_result"]()
        streamed.give("get_time", {})
        plain.request.update(change)
        streamed.request.update(change)
        verdict = judged([plain, streamed])
        assert verdict.findings == ()
        assert 49 in verdict.not_judged


def test_ids_that_merely_count_may_be_equal_in_concurrent_replies() -> None:
    for id_ in ("0", "call_1", "functions.get_weather:0", "get_weather_12"):
        replies = CONVERSATIONS["at_once"]()
        for reply in replies:
            reply.calls[0]["id"] = id_
        assert judged(replies).findings == ()


def test_a_value_that_both_requests_may_mean_is_no_cross_talk() -> None:
    replies = CONVERSATIONS["at_once"]()
    replies[1].request["messages"][0]["content"] += " In celsius."
    replies[0].give("get_weather", {"location": "Paris", "format": "celsius"})
    assert judged(replies).findings == ()


def test_two_requests_that_mean_the_same_are_no_cross_talk_but_a_reply_sent_twice_is() -> None:
    replies = CONVERSATIONS["at_once"]()
    replies[0].request["messages"][0]["content"] = "How warm is it in the capital of Norway?"
    for reply in replies[:2]:
        reply.give("get_weather", {"location": "Oslo"})
    assert [(f.rule, f.severity) for f in judged(replies).findings] == [(63, WARN)]
    replies[0].calls[0]["id"] = replies[1].calls[0]["id"]
    assert not judged(replies).ok
    replies = CONVERSATIONS["at_once"]()
    replies[0].give("get_weather", {"location": "Oslo, Norway"})
    replies[1].give("get_weather", {"location": "Paris"})
    assert not judged(replies).ok


def test_without_overlapping_times_nothing_is_concurrent() -> None:
    replies = CONVERSATIONS["at_once"]()
    replies[1].started_seconds = 2.0
    replies[0].give("get_weather", {"location": "Oslo"})
    verdict = judged(replies[:2])
    assert verdict.findings == ()
    assert 63 in verdict.not_judged


def test_an_answer_that_is_not_whole_is_a_fault() -> None:
    reply = CONVERSATIONS["with_a_result"]()[0].exchange()
    cut = dataclasses.replace(reply, error="the answer did not end within 5 s")
    assert [(f.rule, f.where) for f in judge_conversation([cut]).findings] == [
        (47, "exchange 1: the whole answer")
    ]
    nothing = dataclasses.replace(reply, status=None, headers=None, body=b"", error="connection refused")
    assert [(f.rule, f.severity) for f in judge_conversation([nothing]).findings] == [(1, "must")]


def test_the_next_page_may_be_asked_for_with_the_same_call() -> None:
    made = call("call_next0001", "get_time", {})
    reply = answer(request(*history(ASK_PARIS, made, "page 1")), None, {**made, "id": "call_next0002"})
    assert [(f.rule, f.severity) for f in judged([reply]).findings] == [(53, WARN)]


def about_numbers(*values: Any) -> list[GoodReply]:
    """The two requests at once, each about a berth of its own; the arguments are these."""
    replies = CONVERSATIONS["at_once"]()[:2]
    for reply, berth, value in zip(replies, ("7741", "8852"), values, strict=True):
        reply.request["messages"][0]["content"] = f"Who lies in berth {berth}?"
        reply.request.pop("tools")
        reply.request["functions"] = [{"name": "get_weather"}]
        reply.give("get_weather", {"berth": value})
    return replies


def fired_apart(*values: Any) -> set[int]:
    return {finding.rule for finding in judged(about_numbers(*values)).findings}


def test_numbers_of_a_concurrent_request_are_cross_talk_as_texts_are() -> None:
    assert 63 in fired_apart(8852, 7741)
    assert 63 in fired_apart("8852", "7741")
    assert 63 in fired_apart(7741, 7741)
    assert 63 not in fired_apart(7741, 8852)
    assert 63 not in fired_apart(1, True)


def test_a_number_that_a_request_groups_is_its_own() -> None:
    replies = about_numbers(8852, 8852)
    replies[0].request["messages"][0]["content"] = "Who lies in berth 8,852?"
    assert 63 not in {finding.rule for finding in judged(replies).findings}


def test_a_stream_with_true_in_place_of_1_gives_another_call() -> None:
    plain, streamed, *_ = CONVERSATIONS["with_a_result"]()
    plain.give("get_time", {"zone": 1})
    streamed.give("get_time", {"zone": True})
    assert 49 in {f.rule for f in judged([plain, streamed]).findings if f.severity != WARN}
    streamed.give("get_time", '{"zone": 1.0}')
    assert 49 not in {f.rule for f in judged([plain, streamed]).findings}


def test_a_limit_that_is_null_leaves_the_other_one() -> None:
    (mutation,) = (m for m in MUTATIONS if m.break_it.__name__ == "half_a_call_that_claims_to_be_whole")
    replies = mutation.broken()
    for reply in replies:
        reply.request["max_completion_tokens"] = None
    assert {finding.rule for finding in judged(replies).findings} == {19, 62}


def test_what_an_exchange_says_of_its_failure_harms_no_terminal() -> None:
    whole = CONVERSATIONS["with_a_result"]()[0].exchange()
    for exchange in (whole, dataclasses.replace(whole, status=None, headers=None, body=b"")):
        failed = dataclasses.replace(exchange, error="x\x1b[31m red\x07\nrule 5 (must) faked")
        (finding,) = judge_conversation([failed]).findings
        assert finding.reason == "x\\x1b[31m red\\x07\\nrule 5 (must) faked"
