"""Any bytes in, a verdict out, never an exception, and soon."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from console.judge import describe_verdict, render_verdict
from healthchecks.exchange_file import InvalidExchangeFileError, parse_saved, render_exchange_file
from healthchecks.toolcalls import MAX_BODY_BYTES, RULES, Exchange, Verdict, judge
from healthchecks.toolcalls.conversation import judge_conversation
from healthchecks.toolcalls.stream import MOST_EVENTS
from tests.unit.toolcalls_conversations import ASK_PARIS, CONVERSATIONS, PARIS, answer, request
from tests.unit.toolcalls_good_replies import CASES, GoodReply, faultless

KEYS = st.sampled_from(
    (
        "id object created model choices usage error index message delta finish_reason role content "
        "tool_calls type function name arguments function_call prompt_tokens completion_tokens total_tokens "
        "tools messages parameters properties required enum strict text stream stream_options tool_choice n"
    ).split()
)
WORDS = "chat.completion chat.completion.chunk assistant stop length tool_calls function get_time [DONE]"
TEXTS = ("", "[]", '{"a": 1}', '{"a":', '{"name": "f", "arguments": {}}', "<tool_call>", "<think>", "1e999")
VALUES = st.sampled_from([*WORDS.split(), *TEXTS, "\ud800", "\ufffd", "9" * 400])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | VALUES
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=6)
    ),
    max_leaves=30,
)
REQUESTS = st.dictionaries(KEYS, ANYTHING, max_size=5)
HEADERS = st.none() | st.dictionaries(
    st.sampled_from(["Content-Type", "x"]), st.text(max_size=20), max_size=2
)


def judged(request: dict[str, Any], body: bytes, headers: dict[str, str] | None = None) -> Verdict:
    status = 200 if len(body) % 5 else None
    verdict = judge(Exchange(request, status, headers, body), server="ollama/0.17.5")
    assert {finding.rule for finding in verdict.findings}.isdisjoint(verdict.not_judged)
    assert all(finding.reason.isprintable() and len(finding.reason) < 1000 for finding in verdict.findings)
    if verdict.reply is not None:
        json.dumps(verdict.reply.message)
    return verdict


@given(REQUESTS, HEADERS, st.binary(max_size=300))
def test_any_bytes(request: dict[str, Any], headers: dict[str, str] | None, body: bytes) -> None:
    judged(request, body, headers)


@given(REQUESTS, HEADERS, ANYTHING)
def test_any_json(request: dict[str, Any], headers: dict[str, str] | None, value: Any) -> None:
    judged(request, json.dumps(value).encode(), headers)


@given(REQUESTS, st.lists(ANYTHING, max_size=5), st.booleans())
def test_any_events(request: dict[str, Any], values: list[Any], done: bool) -> None:
    texts = [json.dumps(value) for value in values] + ["[DONE]"] * done
    judged({**request, "stream": True}, "".join(f"data: {text}\n\n" for text in texts).encode())


@given(st.sampled_from(CASES), st.booleans(), st.data())
def test_a_good_reply_with_one_value_replaced_by_anything(
    case: str, stream: bool, data: st.DataObject
) -> None:
    reply = faultless(case, stream=stream)
    whole: Any = reply.events if stream else reply.plain
    holder = whole
    while True:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not holder[key] or not isinstance(holder[key], (dict, list)) or data.draw(st.booleans()):
            break
        holder = holder[key]
    holder[key] = data.draw(ANYTHING)
    reply.events = [event if event == "[DONE]" else json.dumps(event) for event in reply.events or []] or None
    judged(reply.request, reply.body(), reply.headers)


@given(st.sampled_from(CASES), st.booleans(), st.data())
def test_a_good_reply_cut_anywhere(case: str, stream: bool, data: st.DataObject) -> None:
    reply = faultless(case, stream=stream)
    body = reply.body()
    kept = data.draw(st.integers(0, len(body) - 3))
    verdict = judge(Exchange(reply.request, 200, reply.headers, body[:kept]))
    assert not verdict.ok


# Around Python's recursion limit, where reading may succeed and comparing may not, and far beyond it.
DEPTHS = (10, *range(700, 1000, 9), 100_000)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("key", ["id", "finish_reason", "choices", "usage", "model"])
def test_deep_nesting(key: str, stream: bool) -> None:
    reasons: set[str] = set()
    for depth in DEPTHS:
        nested = '{"a":' * depth + "1" + "}" * depth
        body = f'{{"{key}": {nested}, "choices": [{{"delta": {{}}, "message": {{}}, "{key}": {nested}}}]}}'
        events = f"data: {body}\n\n" * 2
        verdict = judged({"stream": stream, "messages": []}, (events if stream else body).encode())
        reasons.update(finding.reason for finding in verdict.findings)
    assert "the reply is nested too deeply to be read" in reasons


@pytest.mark.parametrize("as_text", [True, False])
def test_deeply_nested_arguments(as_text: bool) -> None:
    for depth in DEPTHS:
        reply = faultless("one_call", stream=False)
        nested = '{"location":' + "[" * depth + "]" * depth + "}"
        reply.give("get_current_weather", "MARK")
        mark = json.dumps(nested) if as_text else nested
        assert not judged(reply.request, reply.body().replace(b'"MARK"', mark.encode())).ok


SECONDS = st.none() | st.floats(0, 10)
EXPECTED = st.none() | st.dictionaries(
    st.sampled_from("rule calls text error may_refuse finish".split()),
    ANYTHING | st.sampled_from([53, 55, 60]),
    max_size=3,
)
EXCHANGES = st.builds(
    Exchange,
    REQUESTS,
    st.none() | st.sampled_from([200, 400, 404, 500]),
    HEADERS,
    ANYTHING.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=50),
    SECONDS,
    SECONDS,
    st.none() | st.just("no answer"),
    EXPECTED,
)


@example([Exchange({}, 200, None, b"", expect={"error": ["\x1f"]})], None)
@example([Exchange({"messages": 7}, 400, None, b"", error="cut")], None)
@given(st.lists(EXCHANGES, max_size=4), st.none() | st.lists(ANYTHING, max_size=2))
def test_any_exchanges(exchanges: list[Exchange], tools: Any) -> None:
    verdict = judge_conversation(exchanges, tools=tools, server="ollama/0.17.5")
    assert {finding.rule for finding in verdict.findings}.isdisjoint(verdict.not_judged)
    assert set(verdict.not_judged) <= set(RULES)
    assert all(finding.reason.isprintable() for finding in verdict.findings)
    json.dumps(render_verdict(verdict))
    assert describe_verdict(verdict)


@given(st.sampled_from(sorted(CONVERSATIONS)), st.data())
def test_a_good_conversation_with_one_value_replaced_by_anything(name: str, data: st.DataObject) -> None:
    replies = CONVERSATIONS[name]()
    reply = data.draw(st.sampled_from(replies))
    holder: Any = {"request": reply.request, "reply": reply.plain or reply.events, "expect": reply.expect}
    whole = holder
    while True:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not holder[key] or not isinstance(holder[key], (dict, list)) or data.draw(st.booleans()):
            break
        holder = holder[key]
    holder[key] = data.draw(ANYTHING)
    request = whole["request"] if isinstance(whole["request"], dict) else {}
    body = json.dumps(whole["reply"]).encode()
    expect = whole["expect"] if isinstance(whole["expect"], dict) else None
    broken = dataclasses.replace(reply.exchange(), request=request, expect=expect)
    if reply.events is None:
        broken = dataclasses.replace(broken, body=body)
    judge_conversation([one.exchange() if one is not reply else broken for one in replies])


@given(st.sampled_from(sorted(CONVERSATIONS)), st.data())
def test_a_saved_conversation_with_a_few_bytes_changed(name: str, data: st.DataObject) -> None:
    saved = bytearray(render_exchange_file([reply.exchange() for reply in CONVERSATIONS[name]()]))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(saved) - 1))
        saved[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=4))
    try:
        exchanges = parse_saved(bytes(saved)).exchanges
    except InvalidExchangeFileError:
        return
    judge_conversation(exchanges)


def said(text: str, asked: str = "Hello") -> Exchange:
    return answer(request({"role": "user", "content": asked}), text).exchange()


def called(arguments: str, asked: str = "Hello") -> Exchange:
    reply: GoodReply = answer(request({"role": "user", "content": asked}), None, PARIS)
    reply.give("ask_database", arguments)
    return reply.exchange()


TOKENS = "".join(f"<|a{number}|>" for number in range(50_000))
INTEGERS = [2**60 + 7 * number for number in range(50_000)]
EVENT = b'data: {"id": "a", "choices": [{"index": 0, "delta": %b}]}\n\n'
TOOL_DELTA = EVENT % b'{"tool_calls": [{"id": "c%d", "function": {"name": "f", "arguments": "{"}}]}'
# Each would take minutes if one of its steps were taken for every other one.
TRAPS: dict[str, Callable[[], Exchange]] = {
    "a hundred megabytes": lambda: Exchange({}, None, None, b"x" * (100 * 2**20)),
    "blank lines": lambda: Exchange({}, None, None, b":" + b"\n" * (MAX_BODY_BYTES - 1)),
    "more events than are read": lambda: Exchange({}, None, None, b"data:\n\n" * (MOST_EVENTS + 1)),
    "tiny events": lambda: Exchange({}, None, None, b"data:{}\n\n" * 200_000),
    "lines of one event": lambda: Exchange({}, None, None, b"data:a\n" * 500_000),
    "stray lines": lambda: Exchange({}, None, None, b"data:a\n" + b"x\n" * 1_000_000),
    "calls without index": lambda: Exchange(
        {}, None, None, b"".join(TOOL_DELTA % number for number in range(20_000))
    ),
    "names without end": lambda: said('"name"' + " " * 1_000_000 + '"name": "x" ' * 100_000),
    "thoughts": lambda: said("<think>" * 200_000),
    "braces": lambda: said('{"name": "get_time", "arguments": {}}' + "}" * 1_000_000),
    "tokens that were asked for": lambda: said(TOKENS, TOKENS),
    "backticks": lambda: said("`" * 300_000 + "<|a|>" + "`" * 300_000),
    "the same key": lambda: called("{" + ",".join(['"query": "a"'] * 100_000) + "}"),
    "other keys": lambda: called("{" + ",".join(f'"q{number}": 1' for number in range(100_000)) + "}"),
    "a long number": lambda: called('{"query": ' + "9" * 3_000_000 + "}"),
    "strings and a long conversation": lambda: called(
        json.dumps({"query": [f'"{number}' for number in range(50_000)]}), "lorem ipsum " * 100_000
    ),
    "integers and a conversation of integers": lambda: called(
        json.dumps({"query": INTEGERS}), " ".join(map(str, INTEGERS))
    ),
    "digits in the conversation": lambda: called('{"query": 1e18}', "9" * 1_000_000),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_reply_made_to_take_long_does_not(trap: str) -> None:
    exchange = TRAPS[trap]()
    began = time.process_time()
    judge(exchange, server="ollama/0.17.5")
    assert time.process_time() - began < 15


def test_many_exchanges_that_could_all_be_compared_take_no_time_either() -> None:
    replies = [answer(request(ASK_PARIS), None, {**PARIS, "id": f"call_{n:08}"}) for n in range(400)]
    for reply in replies:
        reply.started_seconds, reply.seconds = 0.0, 9.0
    began = time.process_time()
    assert judge_conversation([reply.exchange() for reply in replies]).findings == ()
    assert time.process_time() - began < 15
