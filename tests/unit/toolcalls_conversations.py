"""Good conversations, of many exchanges, that a test can break: nothing fires on any of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.unit.toolcalls_good_replies import DONE, GoodReply

WEATHER = {
    "type": "object",
    "properties": {
        "location": {"type": "string"},
        "format": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["location"],
}
QUERY = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": parameters}}
    for name, parameters in (
        ("get_weather", WEATHER),
        ("get_time", {"type": "object", "properties": {}}),
        ("ask_database", QUERY),
    )
]
JSON = {"Content-Type": "application/json"}
ASK_PARIS = {"role": "user", "content": "How warm is it in Paris?"}
ASK_OSLO = {"role": "user", "content": "How warm is it in Oslo?"}
ASK_ROME = {"role": "user", "content": "How warm is it in Rome?"}


def request(*messages: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    given = {
        "model": "m",
        "messages": copy.deepcopy(list(messages)),
        "tools": copy.deepcopy(TOOLS),
        "temperature": 0,
        "seed": 1,
        "max_tokens": 200,
        "stream": False,
        **more,
    }
    return {key: value for key, value in given.items() if value is not None}


def call(id_: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def message(text: str | None, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": text}
    return {**said, "tool_calls": copy.deepcopy(list(calls))} if calls else said


def answer(
    asked: dict[str, Any], text: str | None = None, *calls: Mapping[str, Any], prompt_tokens: int = 300
) -> GoodReply:
    """The reply to a request, streamed if it says so."""
    finish = "tool_calls" if calls else "stop"
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 20, "total_tokens": prompt_tokens + 20}
    head = {"id": "chatcmpl-7", "created": 1795375448, "model": "m"}
    if not asked["stream"]:
        choice = {"index": 0, "message": message(text, calls), "finish_reason": finish}
        plain = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        return GoodReply("conversation", asked, plain, None, headers=dict(JSON))
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": text}]
    for index, one in enumerate(copy.deepcopy(list(calls))):
        deltas.append({"tool_calls": [{"index": index, **one}]})
    choices: list[Any] = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    choices.append([{"index": 0, "delta": {}, "finish_reason": finish}])
    events: list[Any] = [{**head, "object": "chat.completion.chunk", "choices": one} for one in choices]
    events.append({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    return GoodReply(
        "conversation", asked, None, [*events, DONE], headers={"Content-Type": "text/event-stream"}
    )


def refusal(asked: dict[str, Any], status: int, says: str) -> GoodReply:
    error = {"error": {"message": says, "type": "invalid_request_error", "param": None, "code": None}}
    return GoodReply("conversation", asked, error, None, status=status, headers=dict(JSON))


def history(first: Mapping[str, Any], made: Mapping[str, Any], result: Any) -> list[dict[str, Any]]:
    """What was asked, the call that was made, and its result."""
    answered = {"role": "tool", "tool_call_id": made["id"], "content": result}
    return [dict(first), message(None, [made]), answered]


PARIS = call("call_paris001", "get_weather", {"location": "Paris"})
BAD_SQL = call("call_sql00001", "ask_database", {"query": "select nmae from t"})
BETTER_SQL = call("call_sql00002", "ask_database", {"query": "select name from t"})


def with_a_result() -> list[GoodReply]:
    """A call, plain and streamed; its result as a string and as parts; a shorter prompt without tools."""
    plain = answer(request(ASK_PARIS), None, PARIS)
    streaming = request(ASK_PARIS, stream=True, stream_options={"include_usage": True})
    streamed = answer(streaming, None, {**PARIS, "id": "call_paris002"})
    answered = answer(request(*history(ASK_PARIS, PARIS, "21 degrees")), "It is 21 degrees in Paris.")
    answered.expect = {"rule": 53, "text": {"contains": "21"}}
    parts = [{"type": "text", "text": "21 degrees"}]
    in_parts = answer(request(*history(ASK_PARIS, PARIS, parts)), "It is 21 degrees in Paris.")
    alone = answer(request(ASK_PARIS, tools=None), "I cannot know.", prompt_tokens=20)
    return [plain, streamed, answered, in_parts, alone]


def with_an_error() -> list[GoodReply]:
    """SQL that fails, and the better one that follows."""
    ask = {"role": "user", "content": "Who is there?"}
    corrected = answer(
        request(*history(ask, BAD_SQL, "query failed with error: no such column: nmae")), None, BETTER_SQL
    )
    expected = {"name": "ask_database", "arguments": {"query": {"contains": "name"}}}
    corrected.expect = {"rule": 54, "calls": [expected]}
    return [answer(request(ask), None, BAD_SQL), corrected]


def expecting() -> list[GoodReply]:
    """Two places, two calls; a place that is missing; a question that needs no tool."""
    cities = ("Paris", "Oslo")
    ask_both = {"role": "user", "content": "How warm is it in Paris and in Oslo?"}
    made = [call(f"call_{city.lower():0<8}", "get_weather", {"location": city}) for city in reversed(cities)]
    both = answer(request(ask_both), None, *made)
    wanted = [{"name": "get_weather", "arguments": {"location": {"equals": city}}} for city in cities]
    both.expect = {"rule": 55, "calls": wanted}
    asking = answer(request({"role": "user", "content": "How warm is it?"}), "In which city?")
    asking.expect = {"rule": 56, "text": {"any_of": ["city", "where"]}}
    talking = answer(request({"role": "user", "content": "Write a line of verse."}), "The sea is grey.")
    talking.expect = {"rule": 57, "text": {}}
    return [both, asking, talking]


def choosing() -> list[GoodReply]:
    """`tool_choice`: none, required, and one by its name."""
    named = {"type": "function", "function": {"name": "get_weather"}}
    return [
        answer(request(ASK_PARIS, tool_choice="none"), "I may not look."),
        answer(request(ASK_PARIS, tool_choice="required"), None, PARIS),
        answer(request(ASK_PARIS, tool_choice=named), None, {**PARIS, "id": "call_paris003"}),
    ]


def refused() -> list[GoodReply]:
    """A model that is not there, and a request that is none."""
    missing = refusal(request(ASK_PARIS, model="nope"), 404, "model `nope` not found")
    missing.expect = {"rule": 60, "error": [404]}
    return [missing, refusal({"model": "m", "messages": "hi"}, 400, "messages is no list")]


def cut() -> list[GoodReply]:
    """Calls cut by `max_tokens`, and one that had room enough."""
    reply = answer(request(ASK_PARIS, max_tokens=20), None, PARIS, call("call_cut00001", "get_time", {}))
    reply.ending["finish_reason"] = "length"
    return [reply, answer(request(ASK_OSLO, max_tokens=200), None, PARIS | {"id": "call_whole001"})]


def at_once() -> list[GoodReply]:
    """Two requests that overlap, and one after them."""
    replies = [
        answer(request(ask, seed=None), None, call(id_, "get_weather", {"location": city}))
        for ask, city, id_ in (
            (ASK_PARIS, "Paris", "call_aaaa1111"),
            (ASK_OSLO, "Oslo, Norway", "call_bbbb2222"),
            (ASK_ROME, "Rome", "call_cccc3333"),
        )
    ]
    for reply, (started, seconds) in zip(replies, ((0.0, 2.0), (1.0, 2.0), (3.5, 1.0)), strict=True):
        reply.started_seconds, reply.seconds = started, seconds
    return replies


def renamed() -> list[GoodReply]:
    """A client that gives the calls of its history ids of its own."""
    own = {**PARIS, "id": "1"}
    again = [*history(ASK_PARIS, own, "21 degrees"), message("21 degrees.", ()), ASK_OSLO]
    oslo = call("call_oslo0001", "get_weather", {"location": "Oslo"})
    return [answer(request(ASK_PARIS), None, PARIS), answer(request(*again), None, oslo)]


CONVERSATIONS = {
    make.__name__: make
    for make in (
        with_a_result,
        with_an_error,
        expecting,
        choosing,
        refused,
        cut,
        at_once,
        renamed,
    )
}
