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
