"""A server that knows how to spell our key has it in nothing that we keep."""

from __future__ import annotations

import json
from typing import Any

import pytest

from healthchecks import endpoint as endpoint_module
from healthchecks.endpoint import Endpoint, ask
from healthchecks.toolcalls import Call, Finding, Reply, Verdict
from healthchecks.wire import Answer
from healthchecks.withheld import WHY_WITHHELD, WITHHELD, tells_key, without_key, without_key_bytes

KEY = "sk-secret/abcdef-123456"
ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in KEY)


def events(*deltas: dict[str, Any]) -> bytes:
    documents = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    return "".join(f"data: {json.dumps(one)}\n\n" for one in documents).encode()


def call(index: int, arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


@pytest.mark.parametrize(
    "body",
    [
        f'{{"content": "it is {ESCAPED}"}}',
        f'{{"content": "it is {ESCAPED}',  # cut: no JSON at all
        f'{{"content": "it is {ESCAPED.upper().replace("U", "u")}"}}',
        '{"content": "sk-secret\\/abcdef-123456"}',
        json.dumps({"arguments": f'{{"a": "{ESCAPED}"}}'}),
        json.dumps({"content": [{"type": "text", "text": KEY[:5]}, {"type": "text", "text": KEY[5:]}]}),
    ],
)
def test_a_body_from_which_the_key_can_be_read_is_given_up(body: str) -> None:
    assert KEY not in body
    assert without_key_bytes(KEY, body.encode()) == WITHHELD


@pytest.mark.parametrize(
    "body",
    [
        events({"content": KEY[:4]}, {"content": KEY[4:9]}, {"content": KEY[9:]}),
        events(call(0, KEY[:4]), call(1, "{}"), call(0, KEY[4:])),
        events({"reasoning": KEY[:4]}, {"reasoning": KEY[4:]}),
        b"data: {\r\n\r\n" + events({"content": KEY[:4]}, {"content": KEY[4:]}),
    ],
)
def test_a_key_in_pieces_is_put_together_as_clients_do(body: bytes) -> None:
    assert without_key_bytes(KEY, body) == WITHHELD


def test_what_holds_no_key_is_kept_to_the_byte() -> None:
    for body in (b"", b"[" * 5000, b"\xff\xfe", events({"content": "sk-"}, {"content": "else"}), b"\\u00"):
        assert without_key_bytes(KEY, body) == body
    assert without_key_bytes(KEY, f"Bearer {KEY}!".encode()) == b"Bearer ***!"
    assert without_key(KEY, f"Bearer {KEY}!") == "Bearer ***!"


def test_a_key_is_found_in_whatever_a_verdict_says() -> None:
    quiet = Verdict((Finding(1, "must", "body", "HTTP 500"),), (), None)
    loud = Verdict((Finding(1, "must", "body", f"HTTP 500: {KEY}"),), (), None)
    reply = Reply(None, (Call("c", "add", "{}", {"n": [KEY]}, 0),), "tool_calls", None, {})
    assert not tells_key(KEY, quiet)
    assert tells_key(KEY, loud)
    assert tells_key(KEY, Verdict((), (), reply))
    deep: Any = KEY
    for _ in range(5000):
        deep = [deep]
    assert tells_key(KEY, deep)


def test_a_reply_that_the_judge_puts_together_to_the_key_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if `send` had been deceived: what is shown is looked at once more.
    message = {"role": "assistant", "content": KEY}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = json.dumps({"object": "chat.completion", "choices": [choice]}).encode()
    monkeypatch.setattr(endpoint_module, "send", lambda *_, **__: Answer(200, {}, body))
    answered = ask(Endpoint("http://server", "m", KEY), {"model": "m", "messages": []}, 5)
    assert answered.reply is None
    assert answered.error == WHY_WITHHELD == answered.exchange.error
    assert answered.exchange.body == WITHHELD
    assert KEY not in repr(answered)
