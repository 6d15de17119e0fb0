"""Rules 14, 49 and 51 to 63: what several exchanges, or an exchange and its request, can break."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.unit.toolcalls_conversations import (
    ASK_PARIS,
    BAD_SQL,
    CONVERSATIONS,
    PARIS,
    answer,
    call,
    history,
    refusal,
    request,
)
from tests.unit.toolcalls_good_replies import GoodReply

BreakConversation = Callable[[list[GoodReply]], object]
OSLO = call("call_oslo0009", "get_weather", {"location": "Oslo"})
TIME = call("call_time0009", "get_time", {})


@dataclass(frozen=True)
class ConversationMutation:
    """Breaks `rule` in the good conversation `of`; `implies` as for the mutations of single replies."""

    rule: int
    of: str
    break_it: BreakConversation
    implies: frozenset[int]

    @property
    def name(self) -> str:
        return f"{self.rule}-{self.break_it.__name__}"

    def broken(self) -> list[GoodReply]:
        """The conversation with the fault in it."""
        replies = CONVERSATIONS[self.of]()
        self.break_it(replies)
        return replies


MUTATIONS: list[ConversationMutation] = []


def breaks(
    rule: int, of: str, implies: tuple[int, ...] = ()
) -> Callable[[BreakConversation], BreakConversation]:
    """Enter a function that breaks `rule` in the conversation `of`."""

    def enter(break_it: BreakConversation) -> BreakConversation:
        MUTATIONS.append(ConversationMutation(rule, of, break_it, frozenset(implies)))
        return break_it

    return enter


def say(reply: GoodReply, text: str | None, *calls: Any) -> None:
    """Another answer to the same request, plain as it is; times and expectation stay."""
    reply.plain = answer({**reply.request, "stream": False}, text, *calls).plain


def refuse(reply: GoodReply, status: int, says: str) -> None:
    """A refusal where there was an answer."""
    reply.status, reply.plain = status, refusal(reply.request, status, says).plain


@breaks(14, "renamed")
def id_of_a_call_that_the_client_renamed(replies: list[GoodReply]) -> None:
    replies[1].calls[0]["id"] = PARIS["id"]


@breaks(49, "with_a_result")
def other_arguments_in_the_stream(replies: list[GoodReply]) -> None:
    replies[1].calls[0]["function"]["arguments"] = '{"location": "Paris", "format": "celsius"}'


@breaks(49, "with_a_result")
def another_tool_in_the_stream(replies: list[GoodReply]) -> None:
    replies[1].give("get_time", {})


@breaks(49, "with_a_result")
def one_call_more_in_the_stream(replies: list[GoodReply]) -> None:
    replies[1] = answer(replies[1].request, None, {**PARIS, "id": "call_paris004"}, TIME)


@breaks(49, "with_a_result")
def no_call_in_the_stream(replies: list[GoodReply]) -> None:
    replies[1] = answer(replies[1].request, "It is warm.")


# A refusal is no completion (1): here and below.
@breaks(51, "with_a_result", (1,))
def null_content_refused(replies: list[GoodReply]) -> None:
    refuse(replies[2], 400, "invalid message content type: <nil>")


@breaks(51, "with_a_result", (1,))
def null_content_refused_without_a_word_of_it(replies: list[GoodReply]) -> None:
    replies.append(answer(request(*history(ASK_PARIS, PARIS, "21 degrees"), seed=3), "It is 21 degrees."))
    replies[-1].request["messages"][1]["content"] = ""
    replies.append(refusal(request(*history(ASK_PARIS, PARIS, "21 degrees"), seed=3), 422, "no"))


@breaks(52, "with_a_result", (1,))
def parts_refused(replies: list[GoodReply]) -> None:
    replies[3].request["messages"][1]["content"] = ""
    refuse(replies[3], 400, "content must be a string")


@breaks(52, "with_a_result", (1,))
def parts_refused_without_a_word_of_it(replies: list[GoodReply]) -> None:
    refuse(replies[3], 500, "no")


@breaks(52, "with_a_result", (1,))
def results_refused(replies: list[GoodReply]) -> None:
    refuse(replies[2], 400, "unexpected role 'tool' in messages")


@breaks(53, "with_a_result")
def same_call_again(replies: list[GoodReply]) -> None:
    say(replies[3], None, {**PARIS, "id": "call_paris005"})


@breaks(53, "with_a_result")
def text_without_the_result(replies: list[GoodReply]) -> None:
    say(replies[2], "It is warm in Paris.")


@breaks(53, "with_a_result")
def text_after_the_result_that_is_cut(replies: list[GoodReply]) -> None:
    replies[2].ending["finish_reason"] = "length"


@breaks(54, "with_an_error")
def same_call_after_an_error(replies: list[GoodReply]) -> None:
    replies[1].expect = None
    say(replies[1], None, {**BAD_SQL, "id": "call_sql00003"})


@breaks(54, "with_an_error")
def no_correction(replies: list[GoodReply]) -> None:
    say(replies[1], None, call("call_sql00004", "ask_database", {"query": "select 1"}))


@breaks(54, "with_an_error")
def calls_without_end(replies: list[GoodReply]) -> None:
    asked = {"role": "user", "content": "Who is there?"}
    tried = [
        call(f"call_try{number:05}", "ask_database", {"query": f"select {number}x"}) for number in range(6)
    ]
    messages = [asked]
    for one in tried[:5]:
        messages += history(asked, one, "error: no such column")[1:]
    replies.append(answer(request(*messages), None, tried[5]))


@breaks(55, "expecting")
def one_call_for_two_places(replies: list[GoodReply]) -> None:
    say(replies[0], None, OSLO)


@breaks(55, "expecting")
def one_place_twice(replies: list[GoodReply]) -> None:
    say(replies[0], None, OSLO, {**OSLO, "id": "call_oslo0010"})


@breaks(56, "expecting")
def guess_in_place_of_a_question(replies: list[GoodReply]) -> None:
    say(replies[1], None, OSLO)


@breaks(56, "expecting")
def another_question(replies: list[GoodReply]) -> None:
    say(replies[1], "In celsius?")


@breaks(57, "expecting")
def call_that_nobody_needs(replies: list[GoodReply]) -> None:
    say(replies[2], None, TIME)


# A call of an undeclared tool (17): none was declared.
@breaks(58, "with_a_result", (17,))
def call_without_tools(replies: list[GoodReply]) -> None:
    replies[4] = answer(replies[4].request, None, {**PARIS, "id": "call_paris006"}, prompt_tokens=20)


@breaks(59, "choosing")
def call_though_none_is_chosen(replies: list[GoodReply]) -> None:
    say(replies[0], None, TIME)


@breaks(59, "choosing")
def text_though_a_call_is_required(replies: list[GoodReply]) -> None:
    say(replies[1], "It is warm.")


@breaks(59, "choosing")
def another_tool_than_the_chosen_one(replies: list[GoodReply]) -> None:
    say(replies[2], None, TIME)


@breaks(60, "refused")
def answer_of_a_model_that_is_not_there(replies: list[GoodReply]) -> None:
    replies[0] = answer(replies[0].request, "Hello.")
    replies[0].plain = {**(replies[0].plain or {}), "model": "nope"}
    replies[0].expect = {"rule": 60, "error": [404]}


@breaks(60, "refused")
def error_without_type(replies: list[GoodReply]) -> None:
    assert replies[0].plain is not None
    del replies[0].plain["error"]["type"]


@breaks(60, "refused")
def error_as_text(replies: list[GoodReply]) -> None:
    replies[1].plain = {"error": "messages is no list"}


@breaks(60, "refused")
def error_page(replies: list[GoodReply]) -> None:
    replies[0].raw = b"<html>404</html>"


@breaks(60, "refused")
def empty_refusal(replies: list[GoodReply]) -> None:
    replies[1].raw = b""


@breaks(61, "with_a_result")
def tools_that_are_not_in_the_prompt(replies: list[GoodReply]) -> None:
    for reply in replies[:2]:
        reply.usage.update(prompt_tokens=20, total_tokens=40)


@breaks(62, "cut")
def length_overwritten(replies: list[GoodReply]) -> None:
    replies[0].ending["finish_reason"] = "tool_calls"


# The half of the arguments is no JSON (19).
@breaks(62, "cut", (19,))
def half_a_call_that_claims_to_be_whole(replies: list[GoodReply]) -> None:
    replies[0].ending["finish_reason"] = "tool_calls"
    replies[0].calls[1]["function"]["arguments"] = '{"zone": "Eur'


@breaks(63, "at_once")
def id_of_a_concurrent_reply(replies: list[GoodReply]) -> None:
    replies[1].calls[0]["id"] = replies[0].calls[0]["id"]


@breaks(63, "at_once")
def arguments_of_a_concurrent_request(replies: list[GoodReply]) -> None:
    replies[0].give("get_weather", {"location": "Oslo"})
