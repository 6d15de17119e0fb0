"""`./fleet judge`: what it reads, what it prints, and how it ends."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from console.judge import JudgeTask, judge_file
from deploy.errors import ExitCode, UsageError
from deploy.report import Report
from healthchecks.exchange_file import render_exchange_file
from healthchecks.toolcalls import RULES
from tests.unit.toolcalls_conversations import CONVERSATIONS, PARIS, TOOLS, answer, request
from tests.unit.toolcalls_good_replies import faultless, recorded

PROJECT = Path(__file__).resolve().parents[2]
Judge = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Judge:
    """The command over files with these contents; its exit code and what it printed."""

    def judged(
        data: bytes | str, *, tools: Any = None, server: str | None = None, as_json: bool = False
    ) -> tuple[int, str]:
        file = data if isinstance(data, str) else str(tmp_path / "reply.txt")
        if isinstance(data, bytes):
            Path(file).write_bytes(data)
        listed = None
        if tools is not None:
            listed = str(tmp_path / "tools.json")
            Path(listed).write_text(tools if isinstance(tools, str) else json.dumps(tools))
        report = Report(as_json=as_json)
        task = JudgeTask(report=report, file=file, tools=listed, server=server, as_json=as_json)
        code = judge_file(task)
        return code, capsys.readouterr().out

    return judged


def test_a_good_reply_ends_with_0(run: Judge) -> None:
    for stream in (False, True):
        reply = faultless("one_call", stream=stream)
        code, said = run(reply.body(), tools=reply.request["tools"])
        assert code == ExitCode.DONE
        assert "rules judged, none is broken, 0 warnings" in said


def test_json_is_one_object_with_what_fired_and_what_was_not_judged(run: Judge) -> None:
    reply = faultless("one_call", stream=False)
    reply.give("get_current_weather", "{}")
    code, said = run(reply.body(), tools=reply.request["tools"], as_json=True)
    assert code == ExitCode.FAILED
    verdict = json.loads(said)
    assert list(verdict) == ["ok", "fired", "not_judged"]
    assert verdict["fired"] == [
        {
            "rule": 21,
            "severity": "interop",
            "known": None,
            "where": "choices[0].message.tool_calls[0].function.arguments",
            "reason": "'location' is a required property",
        }
    ]
    assert verdict["ok"] is False
    assert {1, 26, 31, 49, *range(51, 64)} <= set(verdict["not_judged"])
    assert 21 not in verdict["not_judged"]


def test_people_read_rule_severity_place_reason_title_and_source(run: Judge) -> None:
    reply = faultless("one_call", stream=False)
    reply.plain = {**(reply.plain or {}), "object": "chat"}
    _, said = run(reply.body())
    first, second, third, last = said.splitlines()
    assert first == "rule 2 (must) object: `object` is `chat`"
    assert second == f"    {RULES[2].title} ({RULES[2].source})"
    assert third == "not judged, for want of what they need: 1, 17, 21-24, 26-27, 31-63"
    assert last == "22 of 63 rules judged, 1 broken, 0 warnings"


def test_without_tools_nothing_is_said_of_tools(run: Judge) -> None:
    reply = faultless("one_call", stream=False)
    reply.give("send_email", {"to": "a@b.c"})
    code, said = run(reply.body(), as_json=True)
    assert code == ExitCode.DONE
    assert {17, 21, 22, 23, 24} <= set(json.loads(said)["not_judged"])
    assert run(reply.body(), tools=reply.request["tools"])[0] == ExitCode.FAILED


def test_a_known_fault_is_a_warning_only_where_the_server_is_named(run: Judge) -> None:
    body = recorded("plain_text", stream=True).body()
    assert run(body)[0] == ExitCode.FAILED
    # What the reply says of itself, as its fingerprint, is no version.
    assert b"fp_ollama" in body
    code, said = run(body, server="ollama/0.17.5", as_json=True)
    assert code == ExitCode.DONE
    (fired,) = json.loads(said)["fired"]
    assert (fired["rule"], fired["severity"], fired["known"]) == (36, "warn", "ollama#17485")
    assert run(body, server="ollama/0.32.6")[0] == ExitCode.FAILED
    assert "rule 36 (warn, known as ollama#17485) events[1]" in run(body, server="ollama/0.17.5")[1]


def test_an_exchange_file_is_judged_as_a_conversation(run: Judge) -> None:
    replies = CONVERSATIONS["with_a_result"]()
    code, said = run(render_exchange_file([reply.exchange() for reply in replies]), as_json=True)
    assert code == ExitCode.DONE
    assert {49, 51, 52, 53, 58, 61}.isdisjoint(json.loads(said)["not_judged"])
    replies[1].give("get_time", {})
    code, said = run(render_exchange_file([reply.exchange() for reply in replies]))
    assert code == ExitCode.FAILED
    assert said.startswith("rule 49 (interop) exchange 2: tool_calls: ")


def test_tools_fill_in_only_where_no_request_names_any(run: Judge) -> None:
    reply = answer(request({"role": "user", "content": "Hi"}, tools=None), None, PARIS)
    alone = render_exchange_file([reply.exchange()])
    assert "rule 58" in run(alone)[1]
    assert run(alone, tools=TOOLS)[0] == ExitCode.DONE
    assert run(render_exchange_file([reply.exchange()], tools=TOOLS))[0] == ExitCode.DONE
    other = CONVERSATIONS["at_once"]()[0]
    assert "rule 58" in run(render_exchange_file([reply.exchange(), other.exchange()]), tools=TOOLS)[1]


@pytest.mark.parametrize("wrap", [lambda tools: tools, lambda tools: {"tools": tools}])
@pytest.mark.parametrize("bare", [False, True])
def test_tools_come_in_several_forms(run: Judge, wrap: Callable[[Any], Any], bare: bool) -> None:
    reply = faultless("one_call", stream=False)
    tools = [tool["function"] for tool in reply.request["tools"]] if bare else reply.request["tools"]
    code, said = run(reply.body(), tools=wrap(tools), as_json=True)
    assert code == ExitCode.DONE
    assert 21 not in json.loads(said)["not_judged"]


def test_one_function_alone_is_a_tool(run: Judge) -> None:
    reply = faultless("one_call", stream=False)
    (tool,) = (
        t["function"] for t in reply.request["tools"] if t["function"]["name"] == "get_current_weather"
    )
    assert run(reply.body(), tools=tool)[0] == ExitCode.DONE


@pytest.mark.parametrize(
    "tools", ["7", "{", "[7]", '{"tools": 7}', '{"a": 1}', '[{"type": "function"}]', "null"]
)
def test_what_is_no_list_of_tools_is_refused_with_the_forms(run: Judge, tools: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(b"{}", tools=tools)
    assert "is no list of tools" in caught.value.sentence
    assert '{"tools": [...]}' in (caught.value.hint or "")
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_file_that_cannot_be_read_is_a_designed_error(run: Judge, tmp_path: Path) -> None:
    for name in ("absent", "."):
        with pytest.raises(UsageError, match="cannot be read"):
            run(str(tmp_path / name))


def test_an_error_that_has_a_request_of_its_own_is_a_reply(run: Judge) -> None:
    body = b'{"error": {"message": "bad", "type": "x"}, "request": {"id": "x"}}'
    code, said = run(body, as_json=True)
    assert (code, [fired["rule"] for fired in json.loads(said)["fired"]]) == (ExitCode.FAILED, [47])
    # That of an exchange is a text.
    code, said = run(b'{"error": "connection refused", "request": {}}', as_json=True)
    assert [fired["where"] for fired in json.loads(said)["fired"]] == ["exchange 1: the whole answer"]


def test_no_text_of_a_file_reaches_the_terminal_as_it_is(run: Judge) -> None:
    evil = "x\x1b[31m red\x07\nrule 5 faked"
    reply = faultless("one_call", stream=False)
    reply.calls[0]["id"] = reply.calls[0]["type"] = evil
    entry = {"request": {"model": evil}, "status": 200, "headers": {"content-type": evil}}
    expect = {"rule": 55, "calls": [{"name": "f", "arguments": {"x": {"equals": evil}}}]}
    for more in ({"body": reply.plain, "expect": expect}, {"error": evil}, {"error": evil, "body": evil}):
        _, said = run(json.dumps({"exchanges": [{**entry, **more}]}).encode())
        assert said.replace("\n", "").isprintable()
        assert not any(line.startswith("rule 5 faked") for line in said.splitlines())


def test_an_exchange_file_with_a_mistake_is_told_its_place(run: Judge) -> None:
    with pytest.raises(UsageError) as caught:
        run(json.dumps({"exchanges": [{"request": {}, "body": "", "status": "200"}]}).encode())
    assert (caught.value.cause or "").startswith("exchanges[0].status: ")


@pytest.mark.parametrize(
    "server",
    [
        "0.17.5",
        "ollama",
        "",
        "ollama/",
        "ollama/latest",
        "ollama/0.17",
        "ollama/0.17.5.1x y",
        "ollama/0.17.5\n",
    ],
)
def test_a_server_without_a_version_is_refused(run: Judge, server: str) -> None:
    with pytest.raises(UsageError, match="is no server and version"):
        run(b"{}", server=server)


def test_standard_input_is_a_dash(run: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    body = faultless("one_call", stream=True).body()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(body)))
    assert run("-")[0] == ExitCode.DONE


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff\xfe", b"data: {", b"[]", b"null", b"{}", b"\n\n"])
def test_whatever_else_comes_is_a_bad_reply(run: Judge, data: bytes) -> None:
    code, said = run(data, as_json=True)
    assert code == ExitCode.FAILED
    assert json.loads(said)["fired"]


def test_the_exchange_file_on_the_page_is_judged_and_good(run: Judge) -> None:
    (example,) = re.findall(r"```json\n(.*?)```", (PROJECT / "docs/judge.md").read_text(), re.DOTALL)
    code, said = run(example.encode(), as_json=True)
    verdict = json.loads(said)
    assert (code, verdict["fired"]) == (ExitCode.DONE, [])
    assert {1, 21, 55}.isdisjoint(verdict["not_judged"])
    (exchange,) = json.loads(example)["exchanges"]
    page = (PROJECT / "docs/judge.md").read_text()
    listed = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`\w+`[^|]*)\|", page, re.MULTILINE))))
    assert set(exchange) | {"body_base64", "error"} <= listed
