"""Replies in the forms of other servers and proxies: good ones fire nothing above "warn".

The forms are those of OpenAI and Azure, vLLM, llama.cpp and LiteLLM, as their documentation and clients show
them; what each does against a rule is below, by that rule.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from healthchecks.toolcalls import WARN, Exchange, judge
from tests.unit.toolcalls_conversations import TOOLS

DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
USAGE = {"prompt_tokens": 82, "completion_tokens": 17, "total_tokens": 99}
CALL = {
    "id": "call_DdmO9pD3xa9XTPNJ32zg2hcA",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{\n"location": "Boston, MA"\n}'},
}
HEAD = {
    "id": "chatcmpl-AbC",
    "created": 1723000000,
    "model": "gpt-4o-2024-08-06",
    "system_fingerprint": "fp_1",
}
SAYS_HI = {"role": "assistant", "content": "Hi"}


def plain(message: dict[str, Any], finish: str = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return json.dumps(
        {**HEAD, "object": "chat.completion", "choices": [choice], "usage": {**USAGE, **DETAILS}, **more}
    ).encode()


def chunk(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**HEAD, "object": "chat.completion.chunk", "choices": list(choices), **more}


def delta(value: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": value, "logprobs": None, "finish_reason": finish, **more}


def piece(index: int = 0, arguments: str = "", **head: Any) -> dict[str, Any]:
    """A tool delta; `head` is id and name where it is the first of its call."""
    function = {"name": head.pop("name"), "arguments": arguments} if head else {"arguments": arguments}
    first = {"type": "function", **head} if head else {}
    return {"tool_calls": [{"index": index, **first, "function": function}]}


def stream(*chunks: dict[str, Any], before: bytes = b"") -> bytes:
    return before + "".join(f"data: {json.dumps(one)}\n\n" for one in chunks).encode() + b"data: [DONE]\n\n"


OPENING, ENDING = chunk(delta({"role": "assistant", "content": ""})), chunk(delta({}, "stop"))
TEXT = chunk(delta({"content": "Hi"}))
LITELLM_ENDING = {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
FILTERED: dict[str, Any] = {"content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}
AZURE_FIRST = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": []}
AZURE_LATER = {
    "id": "",
    "object": "",
    "created": 0,
    "model": "",
    "choices": [
        {"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 1}, **FILTERED}
    ],
}

AZURE_OFFSETS = {"index": 0, "finish_reason": "content_filter", "content_filter_offsets": {"check_offset": 1}}
AZURE_END = {**AZURE_LATER, "choices": [{**AZURE_OFFSETS, **FILTERED}]}

GOOD = {
    "a call": plain(
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None}, "tool_calls"
    ),
    "text": plain({**SAYS_HI, "refusal": None, "annotations": []}),
    "a refusal": plain({"role": "assistant", "content": None, "refusal": "I cannot help with that."}),
    "speech": plain(
        {"role": "assistant", "content": None, "audio": {"id": "a", "data": "", "transcript": "Hi"}}
    ),
    "text that a filter took away": plain({"role": "assistant", "content": ""}, "content_filter"),
    "Azure's annotations": plain(SAYS_HI, prompt_filter_results=[{"prompt_index": 0, **FILTERED}]),
    "null calls": plain({**SAYS_HI, "tool_calls": None, "function_call": None, "reasoning_content": None}),
    "thoughts beside the text": plain({**SAYS_HI, "reasoning_content": "The user greets me."}),
    "thoughts in the text": plain({"role": "assistant", "content": "<think>A greeting.</think>Hi"}),
    "thoughts without end": plain({"role": "assistant", "content": "", "reasoning": "Well"}, "length"),
    "LiteLLM's order of keys": plain(
        {"content": None, "role": "assistant", "tool_calls": [{"index": 0, **CALL}], "function_call": None},
        "tool_calls",
        provider_specific_fields={},
    ),
    "OpenAI's stream": stream(
        chunk(
            delta({"role": "assistant", "content": None, **piece(id="c1", name="get_weather")}), usage=None
        ),
        chunk(delta(piece(arguments='{"')), usage=None),
        chunk(delta(piece(arguments='location":"Paris"}')), usage=None),
        chunk(delta({}, "tool_calls"), usage=None),
        chunk(usage={**USAGE, **DETAILS}),
    ),
    "two calls one after the other": stream(
        OPENING,
        *(
            chunk(delta(part))
            for index in (0, 1)
            for part in (piece(index, id=f"c{index}", name="get_time"), piece(index, "{}"))
        ),
        chunk(delta({}, "tool_calls")),
    ),
    "vLLM's last delta": stream(
        OPENING,
        chunk(delta(piece(id="chatcmpl-tool-1", name="get_time"))),
        chunk(delta(piece(arguments="{}"))),
        chunk(delta({"content": ""}, "tool_calls", stop_reason=None)),
    ),
    "llama.cpp's timings": stream(OPENING, TEXT, ENDING, chunk(usage=USAGE, timings={"prompt_n": 1})),
    "LiteLLM's choices without null": stream(
        chunk(
            {"index": 0, "delta": {"role": "assistant", **piece(id="c1", name="get_time", arguments="{}")}}
        ),
        chunk(LITELLM_ENDING),
    ),
    "streamed thoughts": stream(OPENING, chunk(delta({"reasoning_content": "Well"})), TEXT, ENDING),
    "a streamed refusal": stream(OPENING, chunk(delta({"refusal": "No."})), ENDING, chunk(usage=USAGE)),
    "a stream that Azure's filter ended": stream(OPENING, TEXT, AZURE_END),
    "an empty error beside the choices": plain(SAYS_HI, error=""),
    "an error that is an empty object": plain(SAYS_HI, error={}),
    "no error, as false": plain(SAYS_HI, error=False),
    "no error in each chunk": stream(*({**one, "error": {}} for one in (OPENING, TEXT, ENDING))),
    "padding": stream(*({**one, "obfuscation": "a1b2"} for one in (OPENING, TEXT, ENDING))),
    "Azure's stream": stream(AZURE_FIRST, OPENING, chunk(delta({"content": "Hi"}, **FILTERED)), ENDING),
    "Azure's filter behind the text": stream(OPENING, TEXT, AZURE_LATER, ENDING),
    "comments of a proxy": stream(OPENING, TEXT, ENDING, before=b": PROCESSING\n\n: PROCESSING\n\n"),
    "another choice": plain(SAYS_HI).replace(
        b'"choices": [', b'"choices": [{"index": 1, "message": {}, "finish_reason": "stop"}, '
    ),
    "another choice in the stream": stream(
        OPENING, chunk(delta({"role": "assistant"}, index=1)), TEXT, ENDING, chunk(delta({}, "stop", 1))
    ),
    "a person as JSON": plain(
        {"role": "assistant", "content": 'Here:\n```json\n{"name": "Ann", "age": 3}\n```'}
    ),
    "a manifest as JSON": plain({"role": "assistant", "content": '{"name": "app", "type": "module"}'}),
    "the tools that there are": plain(
        {"role": "assistant", "content": '[{"name": "get_weather", "description": "The weather"}]'}
    ),
    "a tool as JSON": plain(
        {"role": "assistant", "content": '{"name": "f", "parameters": {"type": "object", "properties": {}}}'}
    ),
    "how to call": plain(
        {
            "role": "assistant",
            "content": 'Send `{"name": "get_weather", "arguments": {"location": "Paris"}}` to the server,'
            " and it will answer with degrees.",
        }
    ),
    "a function by its key": plain(
        {"role": "assistant", "content": '{"function": "sin", "arguments": {"x": 1}} is how a plot begins.'}
    ),
    "how thoughts look": plain({"role": "assistant", "content": "Thoughts end with `</think>`."}),
    "how ChatML looks": plain({"role": "assistant", "content": "A turn begins with `<|im_start|>`."}),
}

FAULTY = {
    "the legacy call": (
        {10},
        plain({"role": "assistant", "content": None, "function_call": {"name": "get_time"}}, "function_call"),
    ),
    "an empty list of calls": ({8}, plain({**SAYS_HI, "tool_calls": []})),
    "content in parts": ({7}, plain({"role": "assistant", "content": [{"type": "text", "text": "Hi"}]})),
    "an empty finish reason": (
        {5},
        stream(chunk(delta({"role": "assistant", "content": "Hi"}, "")), ENDING),
    ),
    "usage beside the last choice": ({46}, stream(OPENING, TEXT, {**ENDING, "usage": USAGE})),
    "a call without type": (
        {15},
        plain({"role": "assistant", "content": "", "tool_calls": [{**CALL, "type": None}]}, "tool_calls"),
    ),
    "no content": ({7}, plain({"role": "assistant", "tool_calls": [CALL]}, "tool_calls")),
    "the native API of Ollama": (
        {1},
        b'{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n{"done":true}\n',
    ),
    "an error beside the choices": ({47}, plain(SAYS_HI, error={"message": "overloaded"})),
    "an empty error in place of a reply": ({47}, b'{"error": {}}'),
    "a bare call": ({30}, plain({"role": "assistant", "content": '{"name": "get_time", "arguments": {}}'})),
}


def above_warn(body: bytes, request: dict[str, Any] | None = None) -> set[int]:
    verdict = judge(Exchange(request or {}, None, None, body), tools=TOOLS)
    return {finding.rule for finding in verdict.findings if finding.severity != WARN}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_reply_in_another_form_is_good(name: str) -> None:
    assert above_warn(GOOD[name]) == set()


@pytest.mark.parametrize("name", FAULTY)
def test_what_another_server_does_against_a_rule_is_that_rule(name: str) -> None:
    expected, body = FAULTY[name]
    assert above_warn(body) == expected


def test_choices_that_were_asked_for_are_no_warning() -> None:
    request = {"model": "gpt-4o", "messages": [], "n": 2, "tools": TOOLS}
    body = GOOD["another choice"]
    verdict = judge(Exchange(request, None, None, body))
    # The dated name of the model is one.
    assert [(finding.rule, finding.severity) for finding in verdict.findings] == [(3, WARN)]


def test_a_lone_choice_of_another_index_is_judged_all_the_same() -> None:
    body = json.loads(plain({"role": "tool", "content": 5}))
    body["choices"][0]["index"] = 1
    for request in ({}, {"model": "gpt-4o", "messages": [], "n": 2}):
        assert above_warn(json.dumps(body).encode(), request) >= {4, 6, 7}


def test_functions_in_the_old_way_are_called_in_the_old_way() -> None:
    request = {"model": "gpt-4o", "messages": [], "functions": [{"name": "get_time"}]}
    assert above_warn(FAULTY["the legacy call"][1], request) == set()


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("What does <|im_start|> mean?", "<|im_start|> begins a turn."),
        ("Explain <think>.", "Models write <think> first."),
        ("Give me the JSON of a tool call.", '{"name": "get_time", "arguments": {}}'),
    ],
)
def test_what_was_asked_for_is_no_leak(asked: str, text: str) -> None:
    request = {"model": "gpt-4o", "messages": [{"role": "user", "content": asked}], "tools": TOOLS}
    assert above_warn(plain({"role": "assistant", "content": text}), request) == set()


@pytest.mark.parametrize(
    ("asked", "query"),
    [
        ("Escape this for HTML: a < b and c", "a &lt; b and c"),
        ("Split at\na line", "\\n"),
        ("Find C:\\new", "C:\\\\new"),
    ],
)
def test_an_argument_may_be_escaped_on_purpose_or_short(asked: str, query: str) -> None:
    arguments = json.dumps({"query": query})
    made = {**CALL, "function": {"name": "ask_database", "arguments": arguments}}
    request = {"model": "gpt-4o", "messages": [{"role": "user", "content": asked}], "tools": TOOLS}
    body = plain({"role": "assistant", "content": None, "tool_calls": [made]}, "tool_calls")
    found = above_warn(body, request)
    assert found == ({26} if "C:" in asked else set())


@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_string_that_the_conversation_spells_in_json_arrived_as_it_should(ascii_only: bool) -> None:
    query = "SELECT \"a\" &amp; 'b' <\n台风"
    asked = f"Call `ask_database` with {json.dumps({'query': query}, ensure_ascii=ascii_only)}."
    made = {**CALL, "function": {"name": "ask_database", "arguments": json.dumps({"query": query})}}
    request = {"model": "gpt-4o", "messages": [{"role": "user", "content": asked}], "tools": TOOLS}
    body = plain({"role": "assistant", "content": None, "tool_calls": [made]}, "tool_calls")
    verdict = judge(Exchange(request, None, None, body))
    assert (verdict.ok, 26 in verdict.not_judged) == (True, False)


def test_a_tool_named_as_no_tool_may_be_called_as_it_is_declared() -> None:
    tool = {"type": "function", "function": {"name": "server.get time", "parameters": {}}}
    made = {**CALL, "function": {"name": "server.get time", "arguments": "{}"}}
    body = plain({"role": "assistant", "content": None, "tool_calls": [made]}, "tool_calls")
    request = {"model": "gpt-4o", "messages": [], "tools": [tool]}
    assert above_warn(body, request) == set()


def test_warnings_do_not_crowd_out_a_fault() -> None:
    calls = [
        {**CALL, "id": f"c{n}", "function": {"name": "get_weather", "arguments": arguments}}
        for n, arguments in enumerate(
            [json.dumps({"location": "P", f"more{n}": 1}) for n in range(20)] + ['{"other": 1}']
        )
    ]
    body = plain({"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls")
    assert above_warn(body) == {21, 24}


@pytest.mark.parametrize(
    "token",
    [
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[INST]",
        "[/INST]",
        "[TOOL_RESULTS]",
        "<start_of_turn>",
        "<end_of_turn>",
        "<function_call>",
        "</think>",
    ],
)
def test_a_mark_of_a_template_in_the_text_is_a_leak(token: str) -> None:
    said = plain({"role": "assistant", "content": f"Well.{token} Hi"})
    assert above_warn(said) == {30}
    asked = {"model": "gpt-4o", "messages": [{"role": "user", "content": f"What is {token}?"}]}
    assert above_warn(said, asked) == set()
