"""Streams in every legal form: nothing fires, and the deltas become the message of the plain reply."""

from __future__ import annotations

import json
from typing import Any

import pytest

from healthchecks.toolcalls import Exchange, judge
from tests.unit.toolcalls_good_replies import CASES, GoodReply, faultless

ENCODINGS = {
    "CRLF": lambda body: body.replace(b"\n", b"\r\n"),
    "CR": lambda body: body.replace(b"\n", b"\r"),
    "a byte order mark": lambda body: b"\xef\xbb\xbf" + body,
    "comments between events": lambda body: b": hello\n\n" + body.replace(b"\n\n", b"\n\n: keep-alive\n\n"),
    "comments inside events": lambda body: body.replace(b"data: ", b": ping\ndata: "),
    "a comment at the end": lambda body: body + b": bye",
    "other fields": lambda body: body.replace(b"data: ", b"event: message\nid: 1\nretry: 10\ndata: "),
    "fields of other names": lambda body: body.replace(b"data: ", b"x-foo: bar\ndata: "),
    "names without a colon": lambda body: b"id\n\n" + body.replace(b"data: ", b"event\nid\ndata: "),
    "nothing but a field first": lambda body: b"retry\n\n" + body,
    "an unknown field first": lambda body: b"x-foo: bar\n\n" + body,
    "no space after the colon": lambda body: body.replace(b"data: ", b"data:"),
    "data over several lines": lambda body: body.replace(b', "choices"', b'\ndata: , "choices"'),
    "more blank lines": lambda body: body.replace(b"\n\n", b"\n\n\n\n"),
}


def split_arguments(reply: GoodReply) -> None:
    """Send each call as OpenAI does: its head first, then the arguments in pieces of three characters."""
    events: list[Any] = []
    for event in reply.events or []:
        calls = (
            event["choices"][0]["delta"].get("tool_calls", [])
            if "[" not in event and event["choices"]
            else []
        )
        events.append(event)
        for call in calls:
            text = call["function"]["arguments"]
            call["function"]["arguments"] = ""
            for start in range(0, len(text), 3):
                piece = {"index": call["index"], "function": {"arguments": text[start : start + 3]}}
                choice = {"index": 0, "delta": {"tool_calls": [piece]}, "finish_reason": None}
                events.append({**event, "choices": [choice]})
    reply.events = events


@pytest.mark.parametrize("form", ENCODINGS)
@pytest.mark.parametrize("case", CASES)
def test_a_legal_form_of_an_event_stream_is_legal(case: str, form: str) -> None:
    reply = faultless(case, stream=True)
    reply.raw = ENCODINGS[form](reply.body())
    assert judge(reply.exchange()).findings == ()


@pytest.mark.parametrize("case", CASES)
def test_arguments_in_pieces_are_put_together(case: str) -> None:
    reply = faultless(case, stream=True)
    whole = judge(reply.exchange())
    split_arguments(reply)
    verdict = judge(reply.exchange())
    assert verdict.findings == ()
    assert verdict.reply == whole.reply


def test_pieces_of_two_calls_may_alternate() -> None:
    reply = faultless("two_calls_parallel", stream=True)
    split_arguments(reply)
    assert reply.events is not None
    by_call: dict[int, list[Any]] = {0: [], 1: []}
    rest: list[Any] = []
    for event in reply.events:
        delta = event["choices"][0]["delta"] if isinstance(event, dict) and event["choices"] else {}
        target = by_call[delta["tool_calls"][0]["index"]] if "tool_calls" in delta else rest
        target.append(event)
    first, second = by_call[0], by_call[1]
    together = [event for pair in zip(first, second, strict=False) for event in pair]
    longer = max(first, second, key=len)
    reply.events = together + longer[len(together) // 2 :] + rest
    verdict = judge(reply.exchange())
    assert verdict.findings == ()
    assert verdict.reply is not None
    assert [call.arguments for call in verdict.reply.calls] == [
        {"location": "Paris, France", "format": "celsius"},
        {"location": "Tokyo, Japan"},
    ]


@pytest.mark.parametrize("absent", [None, ""], ids=["null", "empty"])
def test_later_pieces_may_say_nothing_of_id_type_and_name(absent: str | None) -> None:
    reply = faultless("one_call", stream=True)
    split_arguments(reply)
    for call in reply.calls[1:]:
        call.update(id=absent, type=absent)
        call["function"]["name"] = absent
    assert judge(reply.exchange()).findings == ()


def test_usage_may_be_null_in_the_other_chunks() -> None:
    reply = faultless("one_call", stream=True)
    for chunk in reply.chunks[:-1]:
        chunk["usage"] = None
    assert judge(reply.exchange()).findings == ()


def test_the_finish_reason_may_ride_on_the_last_delta() -> None:
    reply = faultless("plain_text", stream=True)
    ending = reply.ending["finish_reason"]
    assert reply.events is not None
    reply.events.remove(next(c for c in reply.chunks if c["choices"] and c["choices"][0]["finish_reason"]))
    last = [chunk for chunk in reply.chunks if chunk["choices"]][-1]
    last["choices"][0]["finish_reason"] = ending
    assert judge(reply.exchange()).findings == ()


def test_a_stream_may_be_refused_with_a_json_error() -> None:
    request = faultless("one_call", stream=True).request
    body = json.dumps({"error": {"message": "model 'nope' not found", "type": "api_error"}}).encode()
    verdict = judge(Exchange(request, 404, {"Content-Type": "application/json"}, body))
    assert [(finding.rule, finding.severity) for finding in verdict.findings] == [(1, "must")]
    assert "model 'nope' not found" in verdict.findings[0].reason


def test_a_whole_json_reply_to_a_stream_request_is_judged_as_a_plain_one() -> None:
    reply = faultless("one_call", stream=False)
    reply.request["stream"] = True
    verdict = judge(reply.exchange())
    assert [finding.rule for finding in verdict.findings] == [31]
    assert verdict.reply is not None
    assert verdict.reply.calls[0].name == "get_current_weather"


def test_the_same_fault_in_many_chunks_is_one_finding() -> None:
    reply = faultless("plain_text", stream=True)
    for delta in reply.deltas:
        delta["role"] = "assistant"
    (finding,) = judge(reply.exchange()).findings
    assert finding.where == "events[1].choices[0].delta.role"
    assert finding.reason.endswith(f"({len(reply.deltas) - 1} times)")


def test_distinct_faults_of_one_rule_are_kept_within_bounds() -> None:
    reply = faultless("plain_text", stream=True)
    assert reply.events is not None
    reply.events[1:1] = [f"{{{number}}}" for number in range(1000)]
    assert len(judge(reply.exchange()).findings) < 20


def fired(body: bytes) -> list[tuple[int, str]]:
    findings = judge(Exchange({}, None, None, body)).findings
    return [(finding.rule, finding.severity) for finding in findings]


def test_an_event_of_another_type_is_no_chunk_and_a_warning() -> None:
    body = faultless("one_call", stream=True).body()
    assert fired(b"event: ping\ndata: {}\n\n" + body) == [(31, "warn")]
    assert fired(b"event: ping\ndata: soon\n\n" + body) == [(31, "warn")]
    # Clients that do not look at the type read this one.
    assert fired(body.replace(b"data: {", b"event: chunk\ndata: {")) == [(31, "warn")]


@pytest.mark.parametrize(
    "data", [b'{"message": "x"}', b'{"error": {"message": "x"}}', b"x"], ids=["message", "error", "text"]
)
def test_an_event_of_the_type_error_is_an_error_and_the_end(data: bytes) -> None:
    reply = faultless("plain_text", stream=True)
    assert reply.events is not None
    del reply.events[3:]
    body = reply.body() + b"event: error\ndata: " + data + b"\n\n"
    assert fired(body) == [(47, "interop")]


def test_events_that_one_line_end_parts_are_read_and_told() -> None:
    body = faultless("one_call", stream=True).body()
    assert fired(body.replace(b"\n\n", b"\n") + b"\n") == [(31, "interop")]
    assert {rule for rule, _ in fired(body.replace(b"\n\n", b"\n"))} == {31}


@pytest.mark.parametrize(
    "body",
    [
        b'{"object": "error", "message": "x", "code": 400}',
        b'{"detail": "Not found"}',
        b'{"detail": [{"loc": ["body"], "msg": "field required"}]}',
        b'{"message": "no"}',
        b'data: {"object": "error", "message": "x"}\n\n',
        b'data: {"detail": "Not found"}\n\n',
    ],
)
def test_an_error_in_another_form_than_openai_s_is_an_error_alone(body: bytes) -> None:
    assert fired(body) == [(47, "interop")]


def test_a_stream_cut_inside_an_event_is_told_of_once() -> None:
    reply = faultless("one_call", stream=True)
    body = reply.body()
    cut = body[: body.index(b'"finish_reason": "tool_calls"')]
    assert sorted(rule for rule, _ in fired(cut)) == [32, 44, 47]
