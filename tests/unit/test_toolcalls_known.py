"""Known faults: excused for the versions that have them, and only where the reply shows just that."""

from __future__ import annotations

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


def endless() -> GoodReply:
    """A stream that stops after its text."""
    reply = faultless("plain_text", stream=True)
    assert reply.events is not None
    reply.events = [
        event for event in reply.events[:-1] if event["choices"] and not event["choices"][0]["finish_reason"]
    ]
    return reply


def test_a_stream_that_just_stops_is_excused_before_0_33_4() -> None:
    reply = endless()
    assert fired(reply, "ollama/0.33.3") == {(rule, "ollama#17118") for rule in (32, 44, 47)}
    assert fired(reply, "ollama/0.33.4") == {(rule, None) for rule in (32, 44, 47)}


def test_a_stream_that_was_cut_failed_or_brought_nothing_is_excused_nowhere() -> None:
    inside = endless()
    inside.raw = inside.body()[:-30]
    assert all(known is None for _, known in fired(inside, "ollama/0.17.5"))
    failed = endless()
    assert failed.events is not None
    failed.events.append({**failed.events[1], "model": ""})
    assert all(known is None for _, known in fired(failed, "ollama/0.17.5"))
    nothing = endless()
    assert nothing.events is not None
    nothing.events = [
        {**nothing.events[0], "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    ]
    assert all(known is None for _, known in fired(nothing, "ollama/0.17.5"))


def test_a_null_finish_reason_with_counted_tokens_is_excused_nowhere() -> None:
    reply = faultless("plain_text", stream=False)
    reply.ending["finish_reason"] = None
    assert fired(reply, "ollama/0.17.5") == {(5, None)}
    for count in reply.usage:
        reply.usage[count] = 0
    assert fired(reply, "ollama/0.17.5") == {(5, "ollama#7547"), (11, "ollama#7547")}
    reply.message["role"] = ""
    assert fired(reply, "ollama/0.17.5") == {(5, None), (6, None), (11, None)}
