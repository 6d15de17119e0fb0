"""Rules 1 to 12, 25, 30 and 47: what any reply can break."""

from __future__ import annotations

from typing import Any

from tests.unit.toolcalls_good_replies import GoodReply
from tests.unit.toolcalls_mutation import BOTH, PLAIN, STREAM, WITH_CALLS, WITHOUT_CALLS, Catalogue

MUTATIONS = Catalogue()
breaks = MUTATIONS.breaks


def plain(reply: GoodReply) -> dict[str, Any]:
    assert reply.plain is not None
    return reply.plain


@breaks(1, BOTH)
def status_500(reply: GoodReply) -> None:
    reply.status = 500


@breaks(1, PLAIN)
def html_content_type(reply: GoodReply) -> None:
    reply.headers = {"content-type": "text/html; charset=utf-8"}


@breaks(1, PLAIN)
def no_content_type(reply: GoodReply) -> None:
    reply.headers = {}


@breaks(1, PLAIN)
def login_page(reply: GoodReply) -> None:
    reply.raw = b"<!doctype html><title>Sign in</title>"


@breaks(1, PLAIN)
def cut_body(reply: GoodReply) -> None:
    reply.raw = reply.body()[:-40]


@breaks(1, PLAIN)
def empty_body(reply: GoodReply) -> None:
    reply.raw = b""


@breaks(1, PLAIN)
def nan_in_the_body(reply: GoodReply) -> None:
    plain(reply)["created"] = float("nan")


@breaks(1, STREAM)
def stream_that_nobody_asked_for(reply: GoodReply) -> None:
    reply.request["stream"] = False


@breaks(2, PLAIN)
def another_object(reply: GoodReply) -> None:
    plain(reply)["object"] = "text_completion"


@breaks(2, PLAIN)
def list_body(reply: GoodReply) -> None:
    reply.raw = b"[]"


def whole(reply: GoodReply, key: str, value: Any) -> None:
    for part in [reply.plain] if reply.plain else reply.chunks:
        part[key] = value


@breaks(3, BOTH)
def empty_completion_id(reply: GoodReply) -> None:
    whole(reply, "id", "")


@breaks(3, BOTH)
def created_as_text(reply: GoodReply) -> None:
    whole(reply, "created", "1795375448")


@breaks(3, BOTH)
def null_model(reply: GoodReply) -> None:
    whole(reply, "model", None)


@breaks(3, BOTH)
def another_model(reply: GoodReply) -> None:
    whole(reply, "model", "llama")


@breaks(4, PLAIN)
def no_choices(reply: GoodReply) -> None:
    plain(reply)["choices"] = []


@breaks(4, PLAIN)
def no_message(reply: GoodReply) -> None:
    plain(reply)["choices"][0]["message"] = None


@breaks(4, PLAIN)
def two_choices(reply: GoodReply) -> None:
    plain(reply)["choices"] *= 2


@breaks(4, BOTH)
def choice_with_index_1(reply: GoodReply) -> None:
    reply.ending["index"] = 1


@breaks(4, BOTH)
def nothing_but_the_second_of_two_choices(reply: GoodReply) -> None:
    reply.request["n"] = 2
    for choice in [
        choice for whole in ([reply.plain] if reply.plain else reply.chunks) for choice in whole["choices"]
    ]:
        choice["index"] = 1


@breaks(4, STREAM)
def null_choices(reply: GoodReply) -> None:
    reply.chunks[-1]["choices"] = None
    reply.request["stream_options"] = None


@breaks(4, STREAM)
def null_delta(reply: GoodReply) -> None:
    reply.ending["delta"] = None


@breaks(4, STREAM)
def chunk_without_choice_and_usage(reply: GoodReply) -> None:
    assert reply.events is not None
    reply.events.insert(1, {**reply.chunks[0], "choices": []})


@breaks(5, PLAIN)
def null_finish_reason(reply: GoodReply) -> None:
    reply.ending["finish_reason"] = None


@breaks(5, BOTH)
def unknown_finish_reason(reply: GoodReply) -> None:
    reply.ending["finish_reason"] = "done"


@breaks(5, BOTH)
def finish_reason_as_list(reply: GoodReply) -> None:
    reply.ending["finish_reason"] = ["stop"]


@breaks(6, BOTH)
def another_role(reply: GoodReply) -> None:
    reply.message["role"] = "user"


# What is no text is no content: where there are no calls either, nothing came (12).
@breaks(7, PLAIN, WITH_CALLS)
def absent_content(reply: GoodReply) -> None:
    del reply.message["content"]


@breaks(7, BOTH, WITH_CALLS)
def content_as_parts(reply: GoodReply) -> None:
    reply.message["content"] = [{"type": "text", "text": "Hello"}]


@breaks(8, PLAIN, WITHOUT_CALLS)
def empty_list_of_calls(reply: GoodReply) -> None:
    reply.message["tool_calls"] = []


@breaks(8, PLAIN, WITHOUT_CALLS)
def calls_as_object(reply: GoodReply) -> None:
    reply.message["tool_calls"] = {}


@breaks(8, PLAIN, WITH_CALLS)
def one_call_without_a_list(reply: GoodReply) -> None:
    reply.message["tool_calls"] = reply.calls[0]


@breaks(9, BOTH, WITH_CALLS)
def calls_with_stop(reply: GoodReply) -> None:
    reply.ending["finish_reason"] = "stop"


@breaks(9, BOTH, WITH_CALLS)
def calls_that_a_filter_let_through(reply: GoodReply) -> None:
    reply.ending["finish_reason"] = "content_filter"


@breaks(9, BOTH, WITHOUT_CALLS)
def tool_calls_without_calls(reply: GoodReply) -> None:
    reply.ending["finish_reason"] = "tool_calls"


@breaks(10, BOTH)
def legacy_function_call(reply: GoodReply) -> None:
    reply.message["function_call"] = {"name": "get_time", "arguments": "{}"}


@breaks(11, BOTH)
def wrong_sum_of_tokens(reply: GoodReply) -> None:
    reply.usage["total_tokens"] += 1


@breaks(11, BOTH)
def tokens_as_text(reply: GoodReply) -> None:
    reply.usage["prompt_tokens"] = "31"


@breaks(11, BOTH)
def no_completion_tokens(reply: GoodReply) -> None:
    reply.usage.update(completion_tokens=0, total_tokens=reply.usage["prompt_tokens"])


@breaks(11, BOTH)
def tokens_below_0(reply: GoodReply) -> None:
    reply.usage.update(prompt_tokens=-1, total_tokens=reply.usage["completion_tokens"] - 1)


@breaks(11, PLAIN)
def no_usage(reply: GoodReply) -> None:
    del plain(reply)["usage"]


@breaks(11, STREAM)
def usage_as_list(reply: GoodReply) -> None:
    reply.chunks[-1]["usage"] = []


@breaks(12, BOTH)
def swallowed(reply: GoodReply) -> None:
    for holder in [reply.message] if reply.plain else reply.deltas:
        holder.pop("tool_calls", None)
        holder["content"] = ""
    reply.ending["finish_reason"] = "stop"


def say(reply: GoodReply, text: str) -> None:
    reply.message["content"] = text


@breaks(25, BOTH)
def text_in_latin_1(reply: GoodReply) -> None:
    say(reply, "MARK")
    reply.raw = reply.body().replace(b"MARK", b"caf\xe9")


@breaks(30, BOTH)
def tag_in_the_text(reply: GoodReply) -> None:
    say(reply, "</tool_call>")


@breaks(30, BOTH)
def end_of_turn_in_the_text(reply: GoodReply) -> None:
    say(reply, "Hello.<|im_end|>")


@breaks(30, BOTH)
def unclosed_think(reply: GoodReply) -> None:
    say(reply, "<think>Weather?</think> Yes. <think>But")


@breaks(30, BOTH)
def think_closed_but_never_opened(reply: GoodReply) -> None:
    say(reply, "Weather, then.</think>It is warm.")


@breaks(30, BOTH)
def function_call_tag(reply: GoodReply) -> None:
    say(reply, "<function_call>{...}</function_call>")


@breaks(30, BOTH)
def function_key_in_place_of_name(reply: GoodReply) -> None:
    say(reply, '{"function": "get_time", "arguments": {"zone": "UTC"}}')


@breaks(30, BOTH)
def call_as_text(reply: GoodReply) -> None:
    say(reply, 'Sure: {"name": "get_time", "arguments": {}}')


@breaks(30, BOTH)
def undeclared_call_as_text(reply: GoodReply) -> None:
    say(reply, '{"name": "send_email", "parameters": {"to": "a@b.c"}}')


@breaks(30, BOTH)
def reversed_call_as_text(reply: GoodReply) -> None:
    say(reply, "{'arguments': {}, 'name': 'get_time'}")


@breaks(47, PLAIN)
def error_with_status_200(reply: GoodReply) -> None:
    reply.raw = b'{"error": {"message": "unexpected EOF", "type": "api_error"}}'
