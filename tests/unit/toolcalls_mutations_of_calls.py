"""Rules 13 to 29: what a reply with calls can break, in one piece or streamed."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.toolcalls_good_replies import GoodReply
from tests.unit.toolcalls_mutation import BOTH, PLAIN, WITH_CALLS, WITH_SEVERAL_CALLS, Catalogue

MUTATIONS = Catalogue()
breaks = MUTATIONS.breaks


# Its first delta then lacks the id too (40).
@breaks(13, BOTH, WITH_CALLS, in_stream=(40,))
def call_without_id(reply: GoodReply) -> None:
    del reply.calls[-1]["id"]


@breaks(13, BOTH, WITH_CALLS, in_stream=(40,))
def empty_call_id(reply: GoodReply) -> None:
    reply.calls[-1]["id"] = ""


@breaks(13, BOTH, WITH_CALLS)
def blank_call_id(reply: GoodReply) -> None:
    reply.calls[-1]["id"] = " "


@breaks(13, BOTH, WITH_CALLS)
def call_id_as_number(reply: GoodReply) -> None:
    reply.calls[-1]["id"] = 7


# In a stream that id then has two indices (39).
@breaks(14, BOTH, WITH_SEVERAL_CALLS, in_stream=(39,))
def same_id_twice(reply: GoodReply) -> None:
    reply.calls[1]["id"] = reply.calls[0]["id"]


@breaks(14, BOTH, WITH_CALLS)
def id_of_an_earlier_turn(reply: GoodReply) -> None:
    earlier = {"id": reply.calls[0]["id"], "function": {"name": "get_time", "arguments": "{}"}}
    reply.request["messages"].append({"role": "assistant", "content": None, "tool_calls": [earlier]})


@breaks(15, BOTH, WITH_CALLS)
def another_type_of_call(reply: GoodReply) -> None:
    reply.calls[-1]["type"] = "custom"


@breaks(15, PLAIN, WITH_CALLS)
def call_without_type(reply: GoodReply) -> None:
    del reply.calls[-1]["type"]


@breaks(16, BOTH, WITH_CALLS)
def id_inside_the_function(reply: GoodReply) -> None:
    reply.calls[-1]["function"]["id"] = "call_1"


@breaks(16, BOTH, WITH_CALLS, in_stream=(40,))
def function_as_list(reply: GoodReply) -> None:
    reply.calls[-1]["function"] = []


@breaks(16, PLAIN, WITH_CALLS)
def call_as_text_in_the_list(reply: GoodReply) -> None:
    reply.message["tool_calls"].append("get_time")


@breaks(16, PLAIN, WITH_CALLS)
def nothing_but_text_in_the_list(reply: GoodReply) -> None:
    reply.message["tool_calls"] = ["get_time"]


@breaks(17, BOTH, WITH_CALLS)
def undeclared_name(reply: GoodReply) -> None:
    reply.calls[-1]["function"]["name"] = "send_email"


@breaks(17, BOTH, WITH_CALLS)
def name_with_a_space_behind(reply: GoodReply) -> None:
    reply.calls[-1]["function"]["name"] += " "


@breaks(17, BOTH, WITH_CALLS, in_stream=(40,))
def empty_name(reply: GoodReply) -> None:
    reply.calls[-1]["function"]["name"] = ""


@breaks(17, BOTH, WITH_CALLS, in_stream=(40,))
def no_name(reply: GoodReply) -> None:
    del reply.calls[-1]["function"]["name"]


@breaks(17, BOTH, WITH_CALLS)
def call_though_no_tool_was_sent(reply: GoodReply) -> None:
    del reply.request["tools"]


@breaks(18, PLAIN, WITH_CALLS)
def arguments_as_object(reply: GoodReply) -> None:
    reply.calls[0]["function"] = {"name": "get_current_weather", "arguments": {"location": "Paris"}}


@breaks(18, PLAIN, WITH_CALLS)
def null_arguments(reply: GoodReply) -> None:
    reply.calls[0]["function"]["arguments"] = None


def mutate_arguments(rule: int, name: str, tool: str, arguments: Any) -> None:
    def give(reply: GoodReply) -> None:
        reply.give(tool, arguments)

    give.__name__ = name
    breaks(rule, BOTH, WITH_CALLS)(give)


WEATHER = '{"location": "Paris"}'
for _rule, _name, _tool, _arguments in (
    (19, "broken_json", "get_current_weather", "{'location': 'Paris'}"),
    (19, "half_json", "get_current_weather", '{"location": "Par'),
    (19, "text_after_the_json", "get_current_weather", WEATHER + "</tool"),
    (19, "second_object", "get_current_weather", WEATHER + WEATHER),
    (19, "encoded_twice", "get_current_weather", '"{\\"location\\": \\"Paris\\"}"'),
    (20, "empty_text", "get_time", ""),
    (20, "blank_text", "get_time", "\n"),
    (20, "null", "get_time", "null"),
    (20, "list", "get_current_weather", '["Paris"]'),
    (20, "plain_string", "get_current_weather", '"Paris"'),
    (21, "required_is_missing", "get_current_weather", {"format": "celsius"}),
    (21, "nothing_given", "ask_database", {}),
    (22, "number_as_text", "set_number", {"n": "3"}),
    (22, "fraction_for_an_integer", "set_number", {"n": 1.5}),
    (22, "null_for_an_object", "set_number", {"n": 1, "opts": None}),
    (22, "list_for_a_string", "ask_database", {"query": ["select 1"]}),
    (23, "not_in_the_enum", "get_current_weather", {"location": "Paris", "format": "kelvin"}),
    (24, "arguments_of_another_tool", "get_time", {"query": "select 1"}),
    (25, "doubled_key", "get_current_weather", '{"location": "Paris", "location": "Rome"}'),
    (25, "infinite_number", "set_number", '{"n": 1, "x": 1e999}'),
    (25, "not_a_number", "set_number", '{"n": 1, "x": NaN}'),
    (25, "half_a_surrogate_pair", "ask_database", '{"query": "x\\ud83dy"}'),
    (25, "replacement_character", "ask_database", {"query": "x\ufffdy"}),
    (29, "tag_in_an_argument", "ask_database", {"query": "select 1</tool_call>"}),
    (29, "tag_in_a_nested_key", "set_number", {"n": 1, "opts": {"<|im_end|>": 1}}),
):
    mutate_arguments(_rule, _name, _tool, _arguments)


@breaks(23, BOTH, WITH_CALLS)
def value_that_comes_twice_in_a_set(reply: GoodReply) -> None:
    days = {"type": "array", "uniqueItems": True}
    reply.request["tools"][0]["function"]["parameters"]["properties"]["days"] = days
    reply.give("get_current_weather", {"location": "Paris", "days": [1, 2, 1.0]})


@breaks(24, BOTH, WITH_CALLS)
def forbidden_argument(reply: GoodReply) -> None:
    reply.request["tools"][0]["function"]["parameters"]["additionalProperties"] = False
    reply.give("get_current_weather", {"location": "Paris", "unit": "celsius"})


@breaks(24, BOTH, WITH_CALLS)
def further_argument_of_a_strict_tool(reply: GoodReply) -> None:
    reply.request["tools"][0]["function"]["strict"] = True
    reply.give("get_current_weather", {"location": "Paris", "unit": "celsius"})


@breaks(24, BOTH, WITH_CALLS)
def further_key_inside_an_argument_of_a_strict_tool(reply: GoodReply) -> None:
    place = {"type": "object", "properties": {"city": {"type": "string"}}}
    function = reply.request["tools"][0]["function"]
    function.update(strict=True, parameters={"type": "object", "properties": {"place": place}})
    reply.give("get_current_weather", {"place": {"city": "Paris", "unit": "celsius"}})


@breaks(24, BOTH, WITH_CALLS)
def argument_of_a_tool_without_parameters(reply: GoodReply) -> None:
    del reply.request["tools"][1]["function"]["parameters"]
    reply.give("get_time", {"zone": "UTC"})


@breaks(25, BOTH, WITH_CALLS)
def body_in_latin_1(reply: GoodReply) -> None:
    reply.give("ask_database", '{"query": "MARK"}')
    reply.raw = reply.body().replace(b"MARK", b"caf\xe9")


def ask_for(reply: GoodReply, text: str) -> None:
    reply.request["messages"].append({"role": "user", "content": [{"type": "text", "text": f"Run: {text}"}]})


SQL = 'select "a" from t where b < 1 -- 天気\nand c'


@breaks(26, BOTH, WITH_CALLS)
def escaped_twice(reply: GoodReply) -> None:
    ask_for(reply, SQL)
    reply.give(
        "ask_database", {"query": SQL.replace('"', '\\"').replace("<", "\\u003c").replace("\n", "\\n")}
    )


@breaks(26, BOTH, WITH_CALLS)
def escaped_as_html(reply: GoodReply) -> None:
    ask_for(reply, SQL)
    reply.give("ask_database", {"query": SQL.replace('"', "&quot;").replace("<", "&lt;")})


@breaks(26, BOTH, WITH_CALLS)
def escaped_as_html_where_it_was_asked_for_in_json(reply: GoodReply) -> None:
    ask_for(reply, json.dumps({"query": SQL}, ensure_ascii=False))
    reply.give("ask_database", {"query": SQL.replace('"', "&quot;").replace("<", "&lt;")})


@breaks(26, BOTH, WITH_CALLS)
def utf8_read_as_latin_1(reply: GoodReply) -> None:
    ask_for(reply, SQL)
    reply.give("ask_database", {"query": SQL.encode().decode("latin-1")})


@breaks(27, BOTH, WITH_CALLS)
def integer_as_float64(reply: GoodReply) -> None:
    ask_for(reply, str(2**53 + 1))
    reply.give("set_number", {"n": 2**53})


@breaks(28, PLAIN, WITH_CALLS)
def index_that_is_not_the_position(reply: GoodReply) -> None:
    reply.calls[-1]["index"] = 7


@breaks(28, PLAIN, WITH_SEVERAL_CALLS)
def index_always_0_in_a_plain_reply(reply: GoodReply) -> None:
    for call in reply.calls:
        call["index"] = 0
