"""Any bytes in, a verdict out, never an exception."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthchecks.toolcalls import Exchange, Verdict, judge
from tests.unit.toolcalls_good_replies import CASES, faultless

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
