"""What a verdict says beside the rules: severities, known faults, what was not judged, the reply."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest

from healthchecks.toolcalls import RULES, Exchange, Finding, Verdict, judge
from tests.unit.toolcalls_good_replies import CASES, GoodReply, faultless, recorded


def fired(verdict: Verdict) -> list[tuple[int, str, str | None]]:
    return [(finding.rule, finding.severity, finding.known) for finding in verdict.findings]


def only(reply: GoodReply) -> Finding:
    (finding,) = judge(reply.exchange()).findings
    return finding


def test_a_fault_known_for_the_stated_server_is_a_warning() -> None:
    exchange = recorded("plain_text", stream=True).exchange()
    assert fired(judge(exchange, server="ollama/0.17.5")) == [(36, "warn", "ollama#17485")]
    assert fired(judge(exchange, server="ollama/0.32.5")) == [(36, "warn", "ollama#17485")]


@pytest.mark.parametrize("server", [None, "ollama/0.32.6", "ollama/1.0.0", "ollama", "vllm/0.10.0", ""])
def test_without_a_server_known_to_have_it_the_fault_is_absolute(server: str | None) -> None:
    verdict = judge(recorded("plain_text", stream=True).exchange(), server=server)
    assert fired(verdict) == [(36, "interop", None)]
    assert not verdict.ok


def test_created_may_vary_where_that_is_known_but_must_be_an_integer() -> None:
    reply = faultless("plain_text", stream=True)
    reply.chunks[1]["created"] += 1
    assert fired(judge(reply.exchange(), server="ollama/0.17.5")) == [(35, "warn", "ollama#17485")]
    reply.chunks[1]["created"] = None
    assert fired(judge(reply.exchange(), server="ollama/0.17.5")) == [(35, "must", None)]


def test_integers_as_float64_are_known_of_ollama() -> None:
    reply = faultless("one_call", stream=False)
    reply.request["messages"][0]["content"] = f"Store {2**63 - 1}"
    reply.give("set_number", '{"n": 9223372036854776000}')
    (finding,) = judge(reply.exchange(), server="ollama/0.24.0").findings
    assert (finding.rule, finding.severity) == (27, "warn")
    assert only(reply).severity == "interop"


def test_stop_with_calls_is_a_warning_when_the_call_was_forced() -> None:
    for choice in ("required", {"type": "function", "function": {"name": "get_current_weather"}}):
        reply = faultless("one_call", stream=False)
        reply.ending["finish_reason"] = "stop"
        assert only(reply).severity == "interop"
        reply.request["tool_choice"] = choice
        assert (only(reply).rule, only(reply).severity) == (9, "warn")


def test_a_call_cut_by_max_tokens_is_a_warning() -> None:
    reply = faultless("one_call", stream=False)
    reply.give("get_current_weather", '{"location": "Par')
    reply.ending["finish_reason"] = "length"
    assert (only(reply).rule, only(reply).severity) == (19, "warn")
    reply.give("get_current_weather", "")
    assert (only(reply).rule, only(reply).severity) == (20, "warn")
    del reply.message["tool_calls"]
    assert (only(reply).rule, only(reply).severity) == (12, "warn")


def test_an_undeclared_argument_that_the_schema_allows_is_a_warning() -> None:
    reply = faultless("one_call", stream=False)
    reply.give("get_current_weather", {"location": "Paris", "unit": "celsius"})
    assert (only(reply).rule, only(reply).severity) == (24, "warn")


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "additionalProperties": {"type": "string"}, "properties": {}},
        {"type": "object", "patternProperties": {"": {}}, "properties": {}},
        {"type": "object"},
        {},
        True,
    ],
)
def test_a_tool_may_take_any_argument(parameters: Any) -> None:
    reply = faultless("one_call", stream=False)
    reply.request["tools"][0]["function"]["parameters"] = parameters
    assert judge(reply.exchange()).findings == ()


@pytest.mark.parametrize(
    "parameters",
    [
        7,
        [],
        "x",
        {"type": 7},
        {"$ref": "http://localhost:1/x"},
        {"properties": {"location": {"pattern": "("}}},
        {"properties": {"location": {"minimum": 0, "exclusiveMinimum": False}}},
        {"properties": {"days": {"minimum": 0, "exclusiveMinimum": True}}},
        {"properties": {"location": {"type": "string", "required": True}}},
        {"properties": {"location": {}}, "required": "location"},
        {"properties": {"location": {"type": "STRING"}}},
    ],
)
def test_a_tool_whose_schema_is_broken_is_not_judged_by_it(parameters: Any) -> None:
    reply = faultless("one_call", stream=False)
    reply.request["tools"][0]["function"]["parameters"] = parameters
    verdict = judge(reply.exchange())
    assert verdict.findings == ()
    assert {21, 22, 23, 24} <= set(verdict.not_judged)


@pytest.mark.parametrize(
    "more",
    [
        {"required": ["location", "unit"]},
        {"dependentRequired": {"location": ["unit"]}},
        {"dependentSchemas": {"location": {"properties": {"unit": {}}}}},
        {"if": {"required": ["location"]}, "then": {"properties": {"unit": {}}}},
        {"unevaluatedProperties": {"type": "string"}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_key_that_another_keyword_names_is_declared(more: dict[str, Any]) -> None:
    reply = faultless("one_call", stream=False)
    schema = {"type": "object", "properties": {"location": {"type": "string"}}, **more}
    reply.request["tools"][0]["function"]["parameters"] = schema
    reply.give("get_current_weather", {"location": "Paris", "unit": "celsius"})
    assert judge(reply.exchange()).findings == ()


def test_an_undeclared_key_inside_the_arguments_of_a_strict_tool_is_told_with_its_place() -> None:
    reply = faultless("one_call", stream=False)
    function = reply.request["tools"][0]["function"]
    place = {"type": "object", "properties": {"city": {"type": "string"}}}
    function["parameters"] = {"type": "object", "properties": {"places": {"type": "array", "items": place}}}
    reply.give("get_current_weather", {"places": [{"city": "Paris"}, {"city": "Rome", "unit": "celsius"}]})
    assert judge(reply.exchange()).findings == ()
    function["strict"] = True
    assert (only(reply).rule, only(reply).severity) == (24, "interop")
    assert only(reply).where.endswith("arguments.places[1]")


@pytest.mark.parametrize(
    ("schema", "value", "rules"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 40 + "!", set()),
        ({"pattern": "^(a+)+$"}, "a!", {23}),
        ({"pattern": "a*a*a*a*a*a*a*b"}, "a" * 5000, set()),
        ({"pattern": "^[a-z]+$"}, "a" * 1000 + "!", {23}),
        ({"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}, {"a" * 40 + "!": 1}, set()),
        ({"uniqueItems": True}, [{"a": number} for number in range(30_000)], set()),
        ({"uniqueItems": True}, [1, {"a": 1, "b": 2}, True, "1", {"b": 2.0, "a": 1}], {23}),
        ({"uniqueItems": True}, [1, True, "1", [1], [True], 0, False], set()),
    ],
)
def test_what_could_take_for_ever_is_judged_in_time_or_not_at_all(
    schema: dict[str, Any], value: Any, rules: set[int]
) -> None:
    reply = faultless("one_call", stream=False)
    properties = {"location": schema}
    reply.request["tools"][0]["function"]["parameters"] = {"type": "object", "properties": properties}
    reply.give("get_current_weather", {"location": value})
    started = time.process_time()
    assert {finding.rule for finding in judge(reply.exchange()).findings} == rules
    assert time.process_time() - started < 10


def test_a_failed_any_of_is_told_by_its_best_branch() -> None:
    reply = faultless("one_call", stream=False)
    optional = {"anyOf": [{"type": "string", "enum": ["celsius"]}, {"type": "null"}]}
    reply.request["tools"][0]["function"]["parameters"]["properties"]["format"] = optional
    reply.give("get_current_weather", {"location": "Paris", "format": 7})
    assert only(reply).rule == 22
    reply.give("get_current_weather", {"location": "Paris", "format": "kelvin"})
    assert only(reply).rule == 23


def test_a_finding_says_where() -> None:
    reply = faultless("two_calls_parallel", stream=False)
    reply.calls[1]["function"]["arguments"] = '{"location": "Paris", "format": "kelvin"}'
    assert only(reply).where == "choices[0].message.tool_calls[1].function.arguments.format"


@pytest.mark.parametrize(
    ("stream", "judged"),
    # 26 and 27 take a conversation that names the value: tests of their own below.
    [(False, {*range(1, 31)} - {26, 27}), (True, {*range(1, 51)} - {2, 7, 8, 18, 26, 27, 28, 49})],
    ids=["plain", "streamed"],
)
def test_a_shape_of_reply_has_its_rules_to_be_judged_by(stream: bool, judged: set[int]) -> None:
    verdicts = [judge(faultless(case, stream=stream).exchange()) for case in CASES]
    assert {rule for verdict in verdicts for rule in set(RULES) - set(verdict.not_judged)} == judged


def test_a_reply_without_calls_leaves_the_rules_of_calls_unjudged() -> None:
    verdict = judge(faultless("plain_text", stream=False).exchange())
    assert set(range(13, 30)) <= set(verdict.not_judged)


def test_what_is_not_known_is_not_judged() -> None:
    whole = faultless("one_call", stream=False).exchange()
    assert 1 in judge(dataclasses.replace(whole, status=None)).not_judged
    assert 1 in judge(dataclasses.replace(whole, headers=None)).not_judged
    assert {17, 21, 22, 23, 24} <= set(judge(dataclasses.replace(whole, request={})).not_judged)
    stream = faultless("one_call", stream=True).exchange()
    assert 31 in judge(dataclasses.replace(stream, headers=None)).not_judged
    unknown = judge(dataclasses.replace(stream, request={}))
    assert unknown.findings == ()
    assert {17, 46} <= set(unknown.not_judged)


def test_an_empty_stream_without_usage_may_have_swallowed_a_call_or_not() -> None:
    reply = faultless("plain_text", stream=True)
    for delta in reply.deltas:
        delta.pop("content", None)
    assert 12 in {finding.rule for finding in judge(reply.exchange()).findings}
    assert reply.events is not None
    reply.events.remove(reply.chunks[-1])
    del reply.request["stream_options"]
    assert 12 in judge(reply.exchange()).not_judged


def test_a_string_that_arrives_as_the_conversation_has_it_proves_rule_26() -> None:
    reply = faultless("one_call", stream=False)
    assert 26 in judge(reply.exchange()).not_judged
    reply.request["messages"][0]["content"] = 'Run: select "天"\nfrom t where a < 1 & b'
    reply.give("ask_database", {"query": 'select "天"\nfrom t where a < 1 & b'})
    verdict = judge(reply.exchange())
    assert verdict.findings == ()
    assert 26 not in verdict.not_judged


def test_an_integer_that_arrives_exactly_proves_rule_27() -> None:
    reply = faultless("one_call", stream=False)
    assert 27 in judge(reply.exchange()).not_judged
    reply.request["messages"][0]["content"] = f"Store {2**53 + 1}"
    reply.give("set_number", {"n": 2**53 + 1})
    verdict = judge(reply.exchange())
    assert verdict.findings == ()
    assert 27 not in verdict.not_judged


def test_a_body_above_the_limit_is_not_read() -> None:
    exchange = faultless("one_call", stream=False).exchange()
    size = len(exchange.body)
    assert judge(exchange, max_body_bytes=size).ok
    verdict = judge(exchange, max_body_bytes=size - 1)
    assert fired(verdict) == [(1, "must", None)]
    assert verdict.reply is None


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_the_reply_is_the_message_for_the_history(stream: bool) -> None:
    reply = judge(faultless("text_before_call", stream=stream).exchange()).reply
    assert reply is not None
    (call,) = reply.calls
    assert (call.name, call.index) == ("get_current_weather", 0)
    assert call.arguments == {"location": "Paris, France", "format": "celsius"}
    assert reply.finish_reason == "tool_calls"
    assert reply.usage is not None
    assert reply.usage["completion_tokens"] > 0
    assert reply.message == {
        "role": "assistant",
        "content": reply.content,
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": "get_current_weather", "arguments": call.raw_arguments},
            }
        ],
    }


def test_a_reply_without_calls_gives_a_message_without_calls() -> None:
    reply = judge(faultless("plain_text", stream=False).exchange()).reply
    assert reply is not None
    assert reply.message == {"role": "assistant", "content": reply.content}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_calls_need_no_content(stream: bool) -> None:
    reply = faultless("one_call", stream=stream)
    reply.message["content"] = None
    verdict = judge(reply.exchange())
    assert verdict.findings == ()
    assert {12, 30}.isdisjoint(verdict.not_judged)
    assert verdict.reply is not None
    assert verdict.reply.message["content"] is None


def test_an_error_gives_no_reply() -> None:
    assert judge(Exchange({}, 200, None, b'{"error": "no"}')).reply is None
    assert judge(Exchange({}, 500, None, b"")).reply is None
