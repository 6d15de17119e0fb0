"""Known faults: excused for the versions that have them, and only where the reply shows just that."""

from __future__ import annotations

from typing import Any

import pytest

from healthchecks.toolcalls import Exchange, judge
from healthchecks.toolcalls.known import INDEX_ALWAYS_0, KNOWN_FAULTS, NO_INDEX, KnownFault
from healthchecks.toolcalls.rules import RULES
from tests.unit.toolcalls_good_replies import GoodReply, faultless


def fired(reply: GoodReply, server: str | None) -> set[tuple[int, str | None]]:
    return {(f.rule, f.known) for f in judge(reply.exchange(), server=server).findings}


def test_every_known_fault_names_an_issue_and_rules() -> None:
    for fault in KNOWN_FAULTS:
        assert fault.label.startswith("ollama#")
        assert set(fault.rules) <= set(RULES)


@pytest.mark.parametrize(
    ("server", "concerned"),
    [
        ("ollama/0.20.1", False),
        ("ollama/0.20.2", True),
        ("Ollama/v0.20.4", True),
        ("ollama/0.20.4-rc1", True),
        ("ollama/0.20.5", False),
        ("ollama/0.20", False),
        ("vllm/0.20.4", False),
        ("ollama/99999999999999999999.0.0", False),
        (None, False),
    ],
)
def test_a_fault_concerns_its_versions_only(server: str | None, concerned: bool) -> None:
    assert INDEX_ALWAYS_0.concerns(server) is concerned


def test_an_open_fault_concerns_every_version_of_ollama() -> None:
    assert KnownFault("ollama#1", "", ()).concerns("ollama/9.9.9")


def test_a_missing_index_is_excused_before_0_4_7() -> None:
    reply = faultless("one_call", stream=True)
    for made in reply.calls:
        del made["index"]
    assert fired(reply, "ollama/0.4.6") == {(37, NO_INDEX.label)}
    assert fired(reply, "ollama/0.4.7") == {(37, None)}


def test_an_index_of_another_type_is_excused_nowhere() -> None:
    reply = faultless("one_call", stream=True)
    reply.calls[0]["index"] = "0"
    assert fired(reply, "ollama/0.4.6") == {(37, None)}


def test_an_index_that_is_always_0_is_excused_where_it_was_seen() -> None:
    reply = faultless("three_calls_mixed_tools", stream=True)
    for made in reply.calls:
        made["index"] = 0
    assert fired(reply, "ollama/0.20.4") == {(39, INDEX_ALWAYS_0.label)}
    assert fired(reply, "ollama/0.24.0") == {(39, None)}


def swallowed() -> GoodReply:
    reply = faultless("plain_text", stream=False)
    reply.message["content"] = ""
    return reply


def test_a_swallowed_call_is_excused_where_tools_were_sent() -> None:
    reply = swallowed()
    assert fired(reply, "ollama/0.32.15") == {(12, "ollama#17274")}
    reply.request["tools"] = []
    assert fired(reply, "ollama/0.32.15") == {(12, None)}
    body = reply.body()
    assert {
        (f.rule, f.known) for f in judge(Exchange({}, None, None, body), server="ollama/0.32.15").findings
    } == {(12, None)}


REPEATED = " ha" * 31


def endless(text: str = REPEATED) -> GoodReply:
    """A stream that stops after a text of three characters a delta."""
    reply = faultless("plain_text", stream=True)
    first = reply.chunks[0]
    reply.events = [
        {**first, "choices": [{"index": 0, "delta": {"content": text[at : at + 3]}, "finish_reason": None}]}
        for at in range(0, len(text), 3)
    ]
    reply.events[0]["choices"][0]["delta"]["role"] = "assistant"
    return reply


def test_a_stream_that_stops_in_a_repetition_is_excused_before_0_33_4() -> None:
    for text in (REPEATED, "The end:" + REPEATED, "\n" * 40, '"ha' + REPEATED[:-3] + "\nha"):
        reply = endless(text)
        assert fired(reply, "ollama/0.33.3") == {(rule, "ollama#17118") for rule in (32, 44, 47)}
        assert fired(reply, "ollama/0.33.4") == {(rule, None) for rule in (32, 44, 47)}


@pytest.mark.parametrize("text", ["The weather in Oslo is", " ha" * 20, REPEATED + " the"])
def test_a_stream_that_stops_anywhere_else_is_cut(text: str) -> None:
    assert fired(endless(text), "ollama/0.17.5") == {(rule, None) for rule in (32, 44, 47)}


def test_a_stream_that_stops_after_a_call_is_cut() -> None:
    reply = faultless("one_call", stream=True)
    assert reply.events is not None
    reply.events = [chunk for chunk in reply.chunks[:-1] if not chunk["choices"][0]["finish_reason"]]
    assert fired(reply, "ollama/0.17.5") == {(rule, None) for rule in (32, 44, 47)}


def test_a_stream_that_was_cut_failed_or_brought_nothing_is_excused_nowhere() -> None:
    inside = endless()
    inside.raw = inside.body()[:-30]
    assert all(known is None for _, known in fired(inside, "ollama/0.17.5"))
    failed = endless()
    assert failed.events is not None
    failed.events.append({**failed.events[1], "model": ""})
    assert all(known is None for _, known in fired(failed, "ollama/0.17.5"))
    assert all(known is None for _, known in fired(endless(" "), "ollama/0.17.5"))


def test_an_empty_stream_is_excused_where_a_call_may_have_been_held_back() -> None:
    reply = faultless("one_call", stream=True)
    reply.raw = b""
    assert fired(reply, "ollama/0.32.15") == {(31, "ollama#17118")}
    assert fired(reply, "ollama/0.33.4") == {(31, None)}
    reply.status = None
    assert fired(reply, "ollama/0.32.15") == {(31, None)}
    reply.status, reply.request["tools"] = 200, []
    assert fired(reply, "ollama/0.32.15") == {(31, None)}


def unfinished(text: str) -> GoodReply:
    reply = faultless("plain_text", stream=False)
    reply.message["content"] = text
    reply.ending["finish_reason"] = None
    for count in reply.usage:
        reply.usage[count] = 0
    return reply


def test_a_null_finish_reason_is_excused_after_a_repetition_of_which_nothing_was_counted() -> None:
    assert fired(unfinished(REPEATED), "ollama/0.17.5") == {(5, "ollama#7547"), (11, "ollama#7547")}
    assert fired(unfinished(REPEATED), "ollama/0.33.4") == {(5, None), (11, None)}
    cut = unfinished("I am a simulated model and")
    assert fired(cut, "ollama/0.17.5") == {(5, None), (11, None)}
    counted = unfinished(REPEATED)
    counted.usage.update(prompt_tokens=10, completion_tokens=33, total_tokens=43)
    assert fired(counted, "ollama/0.17.5") == {(5, None)}
    other = unfinished(REPEATED)
    other.message["role"] = ""
    assert fired(other, "ollama/0.17.5") == {(5, None), (6, None), (11, None)}


def test_calls_without_any_usage_are_excused_nowhere() -> None:
    reply = faultless("one_call", stream=False)
    for count in reply.usage:
        reply.usage[count] = 0
    assert fired(reply, "ollama/0.17.5") == {(11, None)}


def test_a_reply_of_nothing_is_excused_where_a_call_may_have_been_held_back() -> None:
    def nothing(**more: Any) -> GoodReply:
        reply = unfinished("")
        reply.message["role"] = ""
        reply.plain = {**(reply.plain or {}), "created": -62135596800, "model": "", **more}
        return reply

    rules = (3, 5, 6, 11)
    for version in ("0.17.5", "0.24.0", "0.32.15"):
        assert fired(nothing(), f"ollama/{version}") == {(rule, "ollama#7547") for rule in rules}
    assert fired(nothing(), "ollama/0.33.4") == {(rule, None) for rule in rules}
    assert fired(nothing(created=1), "ollama/0.17.5") == {(rule, None) for rule in rules}
    without_tools = nothing()
    without_tools.request["tools"] = []
    assert fired(without_tools, "ollama/0.17.5") == {(rule, None) for rule in rules}
