"""Rules 31 to 50 and parts of others: what only a stream can break."""

from __future__ import annotations

import copy
from typing import Any

from tests.unit.toolcalls_good_replies import DONE, GoodReply
from tests.unit.toolcalls_mutation import STREAM, WITH_CALLS, WITH_SEVERAL_CALLS, WITHOUT_CALLS, Catalogue

MUTATIONS = Catalogue()
breaks = MUTATIONS.breaks


def events(reply: GoodReply) -> list[Any]:
    assert reply.events is not None
    return reply.events


def chunk_with(reply: GoodReply, delta: dict[str, Any]) -> dict[str, Any]:
    """Another chunk of the same stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {**reply.chunks[0], "choices": [choice]}


def place_of_the_finish(reply: GoodReply) -> int:
    return next(n for n, c in enumerate(reply.chunks) if c["choices"] and c["choices"][0]["finish_reason"])


def add_tool_delta(reply: GoodReply, piece: dict[str, Any]) -> None:
    """One more delta for the last call."""
    events(reply).insert(place_of_the_finish(reply), chunk_with(reply, {"tool_calls": [piece]}))


@breaks(16, STREAM, WITH_CALLS)
def late_function_as_list(reply: GoodReply) -> None:
    add_tool_delta(reply, {"index": reply.calls[-1]["index"], "function": []})


@breaks(31, STREAM)
def json_content_type(reply: GoodReply) -> None:
    reply.headers = {"Content-Type": "application/json"}


@breaks(31, STREAM)
def line_that_is_no_field(reply: GoodReply) -> None:
    reply.raw = reply.body().replace(b"\n\n", b"\n<p>hello</p>\n\n", 1)


@breaks(31, STREAM)
def event_that_is_not_json(reply: GoodReply) -> None:
    events(reply).insert(1, "{hello}")


@breaks(31, STREAM)
def event_that_is_no_object(reply: GoodReply) -> None:
    events(reply).insert(1, "[]")


@breaks(31, STREAM)
def no_blank_line_at_the_end(reply: GoodReply) -> None:
    reply.raw = reply.body()[:-1]


@breaks(31, STREAM)
def only_comments(reply: GoodReply) -> None:
    reply.raw = b": keep-alive\n\n"


@breaks(31, STREAM)
def login_page_in_place_of_a_stream(reply: GoodReply) -> None:
    reply.raw = b"<!doctype html><title>Sign in</title>"


@breaks(32, STREAM)
def no_done(reply: GoodReply) -> None:
    events(reply).remove(DONE)


@breaks(32, STREAM)
def done_twice(reply: GoodReply) -> None:
    events(reply).append(DONE)


@breaks(32, STREAM)
def chunk_after_done(reply: GoodReply) -> None:
    events(reply).append(reply.chunks[-1])


@breaks(33, STREAM)
def chunk_that_is_a_completion(reply: GoodReply) -> None:
    reply.chunks[-1]["object"] = "chat.completion"


@breaks(34, STREAM)
def another_id_in_the_end(reply: GoodReply) -> None:
    reply.chunks[-1]["id"] = "chatcmpl-0"


@breaks(34, STREAM)
def id_once_only(reply: GoodReply) -> None:
    for chunk in reply.chunks[1:]:
        del chunk["id"]


@breaks(35, STREAM)
def created_anew(reply: GoodReply) -> None:
    reply.chunks[-1]["created"] += 1


@breaks(35, STREAM)
def another_model_in_the_end(reply: GoodReply) -> None:
    reply.chunks[-1]["model"] = ""


@breaks(36, STREAM)
def no_role(reply: GoodReply) -> None:
    del reply.deltas[0]["role"]


@breaks(36, STREAM)
def role_in_every_delta(reply: GoodReply) -> None:
    for delta in reply.deltas:
        delta["role"] = "assistant"


@breaks(37, STREAM, WITH_CALLS)
def no_index(reply: GoodReply) -> None:
    for call in reply.calls:
        del call["index"]


@breaks(37, STREAM, WITH_CALLS)
def index_as_text(reply: GoodReply) -> None:
    for call in reply.calls:
        call["index"] = str(call["index"])


@breaks(38, STREAM, WITH_CALLS)
def indices_from_1(reply: GoodReply) -> None:
    for call in reply.calls:
        call["index"] += 1


@breaks(38, STREAM, WITH_SEVERAL_CALLS)
def gap_between_indices(reply: GoodReply) -> None:
    reply.calls[-1]["index"] += 1


@breaks(39, STREAM, WITH_SEVERAL_CALLS)
def index_always_0(reply: GoodReply) -> None:
    for call in reply.calls:
        call["index"] = 0


# Two calls with one id are two calls with one id (14), however they are told apart.
@breaks(39, STREAM, WITH_SEVERAL_CALLS, implies=(14,))
def one_id_at_two_indices(reply: GoodReply) -> None:
    reply.calls[-1]["id"] = reply.calls[0]["id"]


def send_late(reply: GoodReply, key: str) -> None:
    call = reply.calls[-1]
    add_tool_delta(reply, {"index": call["index"], key: call.pop(key)})


@breaks(40, STREAM, WITH_CALLS)
def late_id(reply: GoodReply) -> None:
    send_late(reply, "id")


@breaks(40, STREAM, WITH_CALLS)
def late_type(reply: GoodReply) -> None:
    send_late(reply, "type")


@breaks(40, STREAM, WITH_CALLS)
def late_function(reply: GoodReply) -> None:
    send_late(reply, "function")


@breaks(41, STREAM, WITH_CALLS)
def name_that_changes(reply: GoodReply) -> None:
    add_tool_delta(reply, {"index": reply.calls[-1]["index"], "function": {"name": "ask_anything"}})


@breaks(41, STREAM, WITH_CALLS)
def type_that_changes(reply: GoodReply) -> None:
    add_tool_delta(reply, {"index": reply.calls[-1]["index"], "type": "custom"})


@breaks(41, STREAM, WITH_CALLS)
def id_that_changes(reply: GoodReply) -> None:
    add_tool_delta(reply, {"index": reply.calls[-1]["index"], "id": "call_other"})


@breaks(42, STREAM, WITH_CALLS)
def null_piece(reply: GoodReply) -> None:
    add_tool_delta(reply, {"index": reply.calls[-1]["index"], "function": {"arguments": None}})


@breaks(42, STREAM, WITH_CALLS)
def object_piece(reply: GoodReply) -> None:
    reply.calls[0]["function"] = {"name": "get_current_weather", "arguments": {"location": "Paris"}}


@breaks(43, STREAM)
def empty_tool_delta(reply: GoodReply) -> None:
    reply.deltas[-1]["tool_calls"] = []


@breaks(43, STREAM)
def tool_delta_as_object(reply: GoodReply) -> None:
    reply.deltas[-1]["tool_calls"] = {}


@breaks(43, STREAM)
def tool_delta_of_texts(reply: GoodReply) -> None:
    reply.deltas[-1]["tool_calls"] = ["get_time"]


@breaks(43, STREAM, WITH_CALLS)
def nothing_but_tool_deltas_without_a_list(reply: GoodReply) -> None:
    for delta in reply.deltas:
        if "tool_calls" in delta:
            delta["tool_calls"] = delta["tool_calls"][0]


@breaks(44, STREAM)
def no_finish_reason(reply: GoodReply) -> None:
    reply.ending["finish_reason"] = None


@breaks(44, STREAM)
def no_chunk_at_all(reply: GoodReply) -> None:
    reply.events = [DONE]


@breaks(44, STREAM)
def nothing_but_comments_and_the_end(reply: GoodReply) -> None:
    reply.raw = b": keep-alive\n\n: keep-alive\n\ndata: [DONE]\n\n"


@breaks(44, STREAM, implies=(31,))  # The event is a warning besides.
def nothing_but_pings_and_the_end(reply: GoodReply) -> None:
    reply.raw = b"event: ping\ndata: {}\n\ndata: [DONE]\n\n"


@breaks(44, STREAM)
def nothing_but_annotations_and_the_end(reply: GoodReply) -> None:
    annotation = {"id": "", "object": "", "created": 0, "model": ""}
    offsets = {"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 1}}
    reply.events = [
        {**annotation, "choices": [], "prompt_filter_results": []},
        {**annotation, "choices": [offsets]},
        DONE,
    ]


@breaks(44, STREAM)
def two_finish_reasons(reply: GoodReply) -> None:
    place = place_of_the_finish(reply)
    events(reply).insert(place, copy.deepcopy(reply.chunks[place]))


@breaks(45, STREAM, WITHOUT_CALLS)
def text_after_the_finish(reply: GoodReply) -> None:
    place = place_of_the_finish(reply)
    events(reply).insert(place + 1, chunk_with(reply, {"content": "More."}))


@breaks(45, STREAM, WITH_SEVERAL_CALLS)
def tool_delta_after_the_finish(reply: GoodReply) -> None:
    place = place_of_the_finish(reply)
    events(reply).insert(place - 1, events(reply).pop(place))


@breaks(46, STREAM)
def no_usage_chunk(reply: GoodReply) -> None:
    events(reply).remove(reply.chunks[-1])


@breaks(46, STREAM)
def two_usage_chunks(reply: GoodReply) -> None:
    events(reply).insert(-1, reply.chunks[-1])


@breaks(46, STREAM)
def usage_beside_a_choice(reply: GoodReply) -> None:
    last = events(reply).pop(-2)
    reply.chunks[-1]["usage"] = last["usage"]


@breaks(46, STREAM)
def usage_that_nobody_asked_for(reply: GoodReply) -> None:
    del reply.request["stream_options"]


@breaks(47, STREAM)
def error_event(reply: GoodReply) -> None:
    events(reply).insert(-1, {"error": {"message": "unexpected EOF"}})


# A stream that is cut lacks its end too (32, 44).
@breaks(47, STREAM, implies=(32, 44))
def cut_between_events(reply: GoodReply) -> None:
    del events(reply)[place_of_the_finish(reply) :]


@breaks(47, STREAM, implies=(32, 44))
def cut_inside_an_event(reply: GoodReply) -> None:
    del events(reply)[place_of_the_finish(reply) + 1 :]
    reply.raw = reply.body()[:-20]


@breaks(47, STREAM, WITH_CALLS, implies=(32, 44))
def cut_inside_the_arguments(reply: GoodReply) -> None:
    del events(reply)[place_of_the_finish(reply) :]
    function = reply.calls[-1]["function"]
    function["arguments"] = function["arguments"][:-3]
    reply.raw = reply.body() + b'data: {"id": "chat'


@breaks(47, STREAM, implies=(32,))
def cut_inside_the_usage_chunk(reply: GoodReply) -> None:
    events(reply).remove(DONE)
    reply.raw = reply.body()[:-20]


@breaks(48, STREAM, WITH_CALLS)
def empty_text_beside_a_tool_delta(reply: GoodReply) -> None:
    for delta in reply.deltas:
        if "tool_calls" in delta:
            delta["content"] = ""


def say_in_pieces(reply: GoodReply, *pieces: str) -> None:
    place = place_of_the_finish(reply)
    events(reply)[place:place] = [chunk_with(reply, {"content": piece}) for piece in pieces]


@breaks(30, STREAM)
def tag_in_chunks_that_look_like_annotations(reply: GoodReply) -> None:
    say_in_pieces(reply, "</tool_call>")
    for chunk in reply.chunks:
        for choice in chunk["choices"]:
            choice["content_filter_offsets"] = {"check_offset": 1}


@breaks(50, STREAM)
def tag_across_chunks(reply: GoodReply) -> None:
    say_in_pieces(reply, "<tool_", "call>")


@breaks(50, STREAM)
def call_across_chunks(reply: GoodReply) -> None:
    say_in_pieces(reply, '{"name": ', '"get_time", ', '"arguments": {}}')
