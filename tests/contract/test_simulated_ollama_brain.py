"""The conversations of the smoke suite as the simulated models `canary` and `myqwen2` hold them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import ollama
from testbed.ollama import RunningServer, start_server
from tests.contract.test_simulated_ollama_replay import send

ROOT = Path(__file__).parents[2]
TOOLS = {
    name: {"type": "function", "function": {"name": name, **tool}}
    for name, tool in json.loads((ROOT / "healthchecks" / "tools.json").read_text(encoding="utf-8")).items()
}
WEATHER = [TOOLS["get_current_weather"], TOOLS["get_n_day_weather_forecast"]]
DATABASE = [TOOLS["ask_database"]]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with start_server() as running:
        yield running


def say(
    server: RunningServer, tools: list[Any], *messages: Any, model: str = "myqwen2"
) -> tuple[str, list[Any]]:
    """The text and the calls (name, arguments) that come back; plain texts are user and assistant in turn."""
    turns = [
        message if isinstance(message, dict) else {"role": ("user", "assistant")[at % 2], "content": message}
        for at, message in enumerate(messages)
    ]
    body = json.dumps({"model": model, "messages": turns, "tools": tools}).encode()
    reply = send(server.port, "POST", "/v1/chat/completions", body)
    assert reply.status == 200, reply.text
    message = json.loads(reply.text)["choices"][0]["message"]
    calls = [
        (c["function"]["name"], json.loads(c["function"]["arguments"]))
        for c in message.get("tool_calls") or []
    ]
    return message["content"], calls


def now(place: str, unit: str = "celsius") -> tuple[str, dict[str, Any]]:
    return "get_current_weather", {"location": place, "format": unit}


def ahead(place: str, days: int, unit: str = "celsius") -> tuple[str, dict[str, Any]]:
    return "get_n_day_weather_forecast", {"location": place, "format": unit, "num_days": days}


@pytest.mark.parametrize(
    "question", ["What's the weather like today", "how is the weather", "Is it raining?"]
)
def test_without_a_place_it_asks_for_one(server: RunningServer, question: str) -> None:
    text, calls = say(server, WEATHER, question)
    assert "city" in text
    assert calls == []


@pytest.mark.parametrize(
    "answer", ["I'm in Glasgow, Scotland.", "Glasgow, Scotland", "in Glasgow, Scotland please"]
)
def test_with_the_place_it_calls_once(server: RunningServer, answer: str) -> None:
    assert say(server, WEATHER, "What's the weather like today", ollama.ASK_PLACE, answer) == (
        "",
        [now("Glasgow, Scotland")],
    )


def test_a_unit_that_is_said_is_used(server: RunningServer) -> None:
    _, calls = say(server, WEATHER, "what's the weather like in Boston, MA today in fahrenheit?")
    assert calls == [now("Boston, MA", "fahrenheit")]


def test_without_days_it_asks_for_them_and_then_calls_with_an_integer(server: RunningServer) -> None:
    question = "What is the weather going to be like in Glasgow, Scotland over the next x days"
    text, calls = say(server, WEATHER, question)
    assert "days" in text
    assert calls == []
    for answer, days in (("5 days", 5), ("5", 5), ("in the next three days", 3)):
        assert say(server, WEATHER, question, text, answer) == ("", [ahead("Glasgow, Scotland", days)])


@pytest.mark.parametrize(
    ("question", "calls"),
    [
        (
            "what is the weather going to be like in San Francisco and Glasgow over the next 4 days",
            [ahead("San Francisco", 4), ahead("Glasgow", 4)],
        ),
        ("what's the weather like in Paris and Tokyo?", [now("Paris"), now("Tokyo")]),
        (
            "the weather forecast for Paris, France and Tokyo, Japan for the next two days",
            [ahead("Paris, France", 2), ahead("Tokyo, Japan", 2)],
        ),
    ],
)
def test_several_places_give_several_calls(server: RunningServer, question: str, calls: list[Any]) -> None:
    assert say(server, WEATHER, question) == ("", calls)


@pytest.mark.parametrize("result", ["[('Greatest Hits',)]", '[("It\'s a Test",)]', "[('Ein Album', 57)]"])
def test_a_database_is_asked_and_its_answer_told(server: RunningServer, result: str) -> None:
    question = "What is the name of the album with the most tracks?"
    _, calls = say(server, DATABASE, question)
    assert [name for name, _ in calls] == ["ask_database"]
    assert calls[0][1]["query"].startswith("SELECT Album.Title FROM Album")
    history = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "ask_database", "arguments": json.dumps(calls[0][1])},
    }
    turns = [question, {"role": "assistant", "content": "", "tool_calls": [history]},
             {"role": "tool", "tool_call_id": "call_1", "content": result}]  # fmt: skip
    text, more = say(server, DATABASE, *turns)
    assert more == []
    title = result[3:].partition(result[2])[0]
    assert title in text


def tool(name: str, **properties: Any) -> Any:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def called(name: str, result: str, **arguments: Any) -> list[Any]:
    """A call in the history and its result."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"id": "call_1", "type": "function", "function": function}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]


PACK = [tool("pack_crate", goods={"type": "object"}), tool("ship_crate", crate={"type": "integer"})]


def test_a_call_that_is_spelled_out_is_made_to_the_letter(server: RunningServer) -> None:
    goods = {"name": 'a "b" <c>\n', "count": 3, "price": 2.5, "fragile": True, "boxes": [{"kg": 1}, {}]}
    order = (
        f"Please call `pack_crate` with exactly these arguments: {json.dumps({'goods': goods})}. Thank you."
    )
    assert say(server, PACK, order) == ("", [("pack_crate", {"goods": goods})])


def test_several_calls_that_are_spelled_out_are_made_in_order(server: RunningServer) -> None:
    order = "Call `ship_crate` with exactly these arguments: "
    orders = [order + json.dumps({"crate": number}) for number in range(1, 6)]
    assert say(server, PACK, " and ".join(orders))[1] == [("ship_crate", {"crate": n}) for n in range(1, 6)]


@pytest.mark.parametrize(
    "order",
    [
        "Call `open_crate` with exactly these arguments: {}",
        "Call `pack_crate` with exactly these arguments: {goods}",
        "Call `pack_crate` with exactly these arguments: [1]",
    ],
)
def test_an_order_for_another_tool_or_without_json_is_not_followed(server: RunningServer, order: str) -> None:
    assert say(server, PACK, order) == (ollama.NO_ANSWER, [])


def test_a_second_call_takes_its_argument_from_the_result(server: RunningServer) -> None:
    order = (
        'Call `pack_crate` with exactly these arguments: {"goods": {}}. When you have its result,'
        " call `ship_crate` with the `crate` from that result."
    )
    history = [{"role": "user", "content": order}, *called("pack_crate", '{"crate": 41}', goods={})]
    assert say(server, PACK, *history) == ("", [("ship_crate", {"crate": 41})])
    done = called("ship_crate", "It sails at noon", crate=41)
    assert say(server, PACK, *history, *done) == ("The answer is: It sails at noon.", [])


def test_an_error_that_says_what_to_use_is_corrected_once(server: RunningServer) -> None:
    refused = called(
        "pack_crate", 'error: use "kg" instead of "stone"', goods={"unit": "stone", "of": ["stone"]}
    )
    history = [{"role": "user", "content": "pack"}, *refused]
    right = {"goods": {"unit": "kg", "of": ["kg"]}}
    assert say(server, PACK, *history) == ("", [("pack_crate", right)])
    again = called("pack_crate", 'error: use "kg" instead of "stone"', **right)
    assert say(server, PACK, *history, *again)[1] == []


def test_a_question_about_there_means_the_place_of_the_last_call(server: RunningServer) -> None:
    told = called("get_current_weather", "11 degrees", location="Oslo, Norway", format="celsius")
    history = [{"role": "user", "content": "weather in Oslo, Norway?"}, *told]
    history.append({"role": "assistant", "content": "It is 11 degrees."})
    follow = {"role": "user", "content": "And what is the forecast there for the next 3 days?"}
    assert say(server, WEATHER, *history, follow) == ("", [ahead("Oslo, Norway", 3)])
    asked = {"role": "user", "content": "Sorry, how many degrees was that?"}
    assert say(server, WEATHER, *history, asked) == ("It was: 11 degrees.", [])


def test_without_tools_it_answers_in_text(server: RunningServer) -> None:
    assert say(server, [], "What's the weather like in Glasgow, Scotland?") == (ollama.NO_ANSWER, [])


def test_what_it_does_not_know_it_says_so(server: RunningServer) -> None:
    assert say(server, WEATHER, "write a poem about the sea") == (ollama.NO_ANSWER, [])


def test_a_stream_comes_in_pieces_and_says_the_same(server: RunningServer) -> None:
    body = {
        "model": "canary",
        "messages": [{"role": "user", "content": "What's the weather like today"}],
        "tools": WEATHER,
    }
    reply = send(server.port, "POST", "/v1/chat/completions", json.dumps({**body, "stream": True}).encode())
    events = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: {")]
    pieces = [event["choices"][0]["delta"]["content"] for event in events]
    assert len(pieces) > 5
    assert "".join(pieces) == ollama.ASK_PLACE


def test_prompt_tokens_grow_when_tools_are_sent(server: RunningServer) -> None:
    counts = []
    for tools in ([], WEATHER):
        body = {"model": "canary", "messages": [{"role": "user", "content": "hi"}], "tools": tools}
        reply = send(server.port, "POST", "/v1/chat/completions", json.dumps(body).encode())
        counts.append(json.loads(reply.text)["usage"]["prompt_tokens"])
    assert counts[0] < counts[1] - 100


def test_copies_and_tags_of_the_known_models_speak_and_others_do_not(server: RunningServer) -> None:
    for target in ("myqwen2:candidate", "served"):
        body = json.dumps({"source": "myqwen2", "destination": target}).encode()
        assert send(server.port, "POST", "/api/copy", body).status == 200
        assert say(server, WEATHER, "what's the weather in Oslo", model=target)[1] == [now("Oslo")]
    gguf = ollama.render_gguf({"general.architecture": "qwen2"}, [("t", (32, 1))])
    with start_server(models_dir=f"{server.models_dir}-other") as other:
        digest = "sha256:" + hashlib.sha256(gguf).hexdigest()
        assert send(other.port, "POST", f"/api/blobs/{digest}", gguf).status == 201
        create = {"model": "qwen2.5", "files": {"a.gguf": digest}, "template": ollama.CORRECTED_TEMPLATE}
        send(other.port, "POST", "/api/create", json.dumps(create).encode())
        talk = {"model": "qwen2.5", "messages": [{"role": "user", "content": "hi"}]}
        reply = send(other.port, "POST", "/v1/chat/completions", json.dumps(talk).encode())
    assert reply.status == 500
    assert "simulated: no script" in reply.text


@pytest.mark.parametrize("name", ["myqwen2.Modelfile.j2", "canary.Modelfile.j2"])
def test_the_shipped_modelfiles_use_the_template_that_is_known_here(name: str) -> None:
    assert "qwen2-tools.template" in (ROOT / "modelfiles" / name).read_text(encoding="utf-8")
    text = (ROOT / "modelfiles" / "qwen2-tools.template").read_text(encoding="utf-8")
    assert text.rstrip() == ollama.CORRECTED_TEMPLATE.rstrip()
    published = (ROOT / "modelfiles" / "myqwen2.as-published.Modelfile.j2").read_text(encoding="utf-8")
    assert published.partition('TEMPLATE """')[2].partition('"""')[0] == ollama.ARTICLE_TEMPLATE


@pytest.mark.parametrize("ending", ["", "\n"])
def test_a_corrected_template_renders_with_and_without_a_last_line_break(ending: str) -> None:
    message = ollama.Message("user", "hi")
    prompt = ollama.render_prompt(ollama.CORRECTED_TEMPLATE.rstrip() + ending, [message], [])
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" + ending


def test_two_calls_of_the_history_are_rendered_as_two_blocks() -> None:
    calls: tuple[tuple[str, dict[str, Any]], ...] = (("f", {"b": "<x>", "a": 1.0}), ("g", {}))
    messages = [ollama.Message("assistant", "", calls), ollama.Message("tool", "21")]
    prompt = ollama.render_prompt(ollama.CORRECTED_TEMPLATE.rstrip(), messages, [])
    block = '\n<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
    first, second = block % ("f", '{"a":1,"b":"\\u003cx\\u003e"}'), block % ("g", "{}")
    answer = "<|im_start|>user\n<tool_response>\n21\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert prompt == f"<|im_start|>assistant{first}{second}<|im_end|>\n{answer}"
