"""What the simulated server makes of a given model output, held to the exchanges of real servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from testbed.ollama import RunningServer, ToolParser, parse_template, start_server
from tests.contract.test_simulated_ollama_replay import case_names, differences, load_case, send_recorded

# Texts that the recorded runs put into the runner's final message; the captures do not hold them.
FINAL_TEXTS = {
    "text_in_done_message": "bye",
    "call_in_done_message": load_case("0.17.5", "scripted", "one_call")["model_output"]["text"],
}
VERSIONS = ("0.17.5", "0.24.0")
CASES = [(version, name) for version in VERSIONS for name in case_names(version, "scripted")]


def script_entry(case: dict[str, Any]) -> dict[str, Any]:
    """The case's model output as a script's entry; pieces recorded as "how: char" are single characters."""
    output: dict[str, Any] = dict(case["model_output"])
    if isinstance(output["chunks"], str):
        assert output["chunks"].endswith("how: char")
        output["chunks"] = list(output["text"])
    if case["case"] in FINAL_TEXTS:
        output["done_content"] = FINAL_TEXTS[case["case"]]
    return output


def _script(version: str) -> dict[str, Any]:
    script = {}
    for name in case_names(version, "scripted"):
        case = load_case(version, "scripted", name)
        for exchange in case["exchanges"]:
            script[exchange["request"]["body"]["messages"][-1]["content"]] = script_entry(case)
    return script


@pytest.fixture(scope="module")
def server_of() -> Iterator[Callable[[str], RunningServer]]:
    """A server of a version with the outputs of all its cases; one each for this module."""
    running: dict[str, RunningServer] = {}
    with ExitStack() as stack:

        def start(version: str) -> RunningServer:
            if version not in running:
                # No recording says what this newest one makes of them: it plays the older ones' outputs.
                script = _script(version if version in VERSIONS else VERSIONS[-1])
                running[version] = stack.enter_context(start_server(script=script, version=version))
            return running[version]

        yield start


@pytest.mark.parametrize(("version", "name"), CASES)
def test_a_given_model_output_gives_the_recorded_replies(
    server_of: Callable[[str], RunningServer], version: str, name: str
) -> None:
    server = server_of(version)
    for exchange in load_case(version, "scripted", name)["exchanges"]:
        reply = send_recorded(server.port, exchange["request"])
        assert differences(exchange["response"], reply) == [], exchange["variant"]
        assert reply.headers["X-Ollama-Simulated"] == "1"


@pytest.mark.parametrize("version", [*VERSIONS, "0.32.15"])
def test_every_streamed_event_is_a_chunk_of_its_own(
    server_of: Callable[[str], RunningServer], version: str
) -> None:
    import socket

    server = server_of(version)
    case = load_case(VERSIONS[-1], "scripted", "text_before_call")
    exchange = case["exchanges"][1]
    body = json.dumps({**exchange["request"]["body"], "tools": []}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Connection: close\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head % len(body) + body)
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    chunks = raw.partition(b"\r\n\r\n")[2].split(b"\r\n")
    texts = [chunk for chunk in chunks[1::2] if chunk]
    assert all(text.startswith(b"data: {") for text in texts)
    assert texts[-1].endswith(b"}\n\ndata: [DONE]\n\n")
    assert len(texts) == len(case["model_output"]["chunks"]) + 1


# What tools/tools.go of 0.17.5 gives: tag, declared tools, pieces, and calls and text of each piece.
PARSED: list[tuple[str, list[str], list[str], list[tuple[list[Any], str]]]] = [
    (
        "<tool_call>",
        ["lookup", "lookup_all"],
        ['<tool_call>{"name": "x", "arguments": {"a": 1}} lookup', "_all", " "],
        [([], ""), ([], ""), ([["lookup_all", {"a": 1}, 0]], "")],
    ),
    (
        "<tool_call>",
        ["get", "get_time"],
        ["<tool_", 'call>{"get_time": {"a": [1, 2.50, 1e2]}}'],
        [([], ""), ([["get_time", {"a": [1, 2.5, 100]}, 0]], "")],
    ),
    (
        "<tool_call>",
        ["f"],
        ["a<tool", "b<tool_call", '> f {"parameters": {"x": "\\ud800"}, "name": 1}'],
        [([], "a"), ([], "<toolb"), ([["f", {"x": "\ufffd"}, 0]], "")],
    ),
    (
        "{",
        ["f"],
        [" \n", '{"name": "f", "arguments": "{\\"a\\": 1}"}', "tail"],
        [([], " \n"), ([["f", {"a": 1}, 0]], ""), ([], "")],
    ),
    (
        "[",
        ["f"],
        ['[{"name": "f", "arguments": {"a": 1}}, ', '{"name": "f", "arguments": {"b": 2}}]', "done"],
        [([["f", {"a": 1}, 0]], ""), ([["f", {"b": 2}, 1]], ""), ([], "")],
    ),
    (
        "<tool_call>",
        ["f"],
        ['<tool_call>f {"x": [{"name": "y"}, {"name": "z", "arguments": {"k": null}}]}'],
        [([], "")],
    ),
    (
        "<tool_call>",
        ["f"],
        ['<tool_call>f {"a": 01} {"a": 1e400} {"a": 2}'],
        [([["f", {"a": 2}, 0]], "")],
    ),
]


@pytest.mark.parametrize(("tag", "tools", "pieces", "steps"), PARSED)
def test_the_parser_gives_what_the_original_gives(
    tag: str, tools: list[str], pieces: list[str], steps: list[tuple[list[Any], str]]
) -> None:
    parser = ToolParser(tag, tools)
    found = []
    for piece in pieces:
        calls, text = parser.add(piece)
        found.append(([[call.name, call.arguments, call.index] for call in calls], text))
    assert found == steps


@pytest.mark.parametrize(
    ("template", "tag"),
    [
        ('{{ if .ToolCalls }}\n<call> {"name"{{ end }}', "<call>"),
        ("{{- range .M }}{{ if .ToolCalls }}{{ range .ToolCalls }}[T]{{ end }}{{ end }}{{ end }}", "[T]"),
        ("{{ if .ToolCalls }}{{ if .Content }} {{ end }}<tool_call>{{ end }}", "{"),
        ("{{ if .ToolCalls }}{{ .Content }}<tool_call>{{ end }}", "{"),
        ("{{ if .Messages }}{{ else if .ToolCalls }}x{y{{ end }}", "x"),
        ("{{ with .A }}{{ if and .B .C.ToolCalls }}\r\n <a>\r\n<b> {{ end }}{{ end }}", "<a>\n<b>"),
        ("{{ if (len .ToolCalls) }}no{{ end }}{{ if not .ToolCalls }}yes{{ end }}", "yes"),
        ("{{ if .ToolCalls }}{{ end }}{{ if .ToolCalls }}second{{ end }}", "{"),
        ("{{ if $.ToolCalls }}var{{ else }}{{ if .ToolCalls }}field{{ end }}{{ end }}", "field"),
        ('{{ define "x" }}{{ if .ToolCalls }}hidden{{ end }}{{ end }}{{ template "x" . }}', "{"),
        ("{{ if .ToolCalls }}{{/* c */}}{{ with .A }}{{ else }}W{{ end }}{{ end }}", "W"),
        ("no calls", "{"),
    ],
)
def test_the_tag_comes_from_the_template_by_the_original_rule(template: str, tag: str) -> None:
    assert parse_template(template).tag == tag
