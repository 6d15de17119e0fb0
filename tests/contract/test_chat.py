"""`chat` with the official client against a simulated server, on a line that is cut where a test wants it."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from console import chat_client
from console.chat import ChatTask, chat
from console.chat_client import Deadlines
from deploy.errors import CommandFailed, ModelRefused, ServiceError, UsageError
from deploy.report import Report
from healthchecks.wire import send
from testbed.ollama import start_server

PROJECT = Path(__file__).resolve().parents[2]
CHINOOK = PROJECT / "tests/data/chinook/Chinook_Sqlite.sqlite"
DEADLINE_SECONDS = 30
ALBUM = "What is the name of the album with the most tracks?"
TWO_PLACES = "What is the weather going to be like in San Francisco and Glasgow over the next 4 days"


@dataclass
class Relay:
    """Passes connections on. Of those to /v1 the first `refuse` are closed at once; `cut` ends an answer."""

    upstream: int
    refuse: int = 0
    cut: bool = False
    requests: list[bytes] = field(default_factory=list)
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    url: str = ""

    def __post_init__(self) -> None:
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.upstream)) as server:
            request = b""
            try:
                while b"\r\n\r\n" not in request:
                    request += client.recv(65536)
                length = int(request.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or b"0")
                while len(request.partition(b"\r\n\r\n")[2]) < length:
                    request += client.recv(65536)
                talks = b" /v1/" in request.split(b"\r\n")[0]
                if talks:
                    self.requests.append(request.partition(b"\r\n\r\n")[2])
                    if len(self.requests) <= self.refuse:
                        return
                # One request a connection keeps this simple.
                server.sendall(request.replace(b"Connection: keep-alive", b"Connection: close", 1))
                while piece := server.recv(65536):
                    head, event, _ = piece.partition(b"\n\n")
                    if talks and self.cut and event:
                        client.sendall(head + event)
                        return
                    client.sendall(piece)
            except OSError:
                return

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.requests]


@contextmanager
def relay(*, refuse: int = 0, cut: bool = False, **server: Any) -> Iterator[Relay]:
    with start_server(**server) as started:
        found = Relay(started.port, refuse=refuse, cut=cut)
        thread = threading.Thread(target=found.serve, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            found.listener.shutdown(socket.SHUT_RDWR)
            found.listener.close()
            thread.join(DEADLINE_SECONDS)


@dataclass
class Said:
    out: io.StringIO = field(default_factory=io.StringIO)
    err: io.StringIO = field(default_factory=io.StringIO)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.getvalue().splitlines()]


Ask = Callable[..., Said]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """One `chat` in this process; what it said is in `last` also where it raises."""
    monkeypatch.setattr(chat_client, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    def run(url: str, *, inventory: Path | None = None, said: Said | None = None, **fields: Any) -> Said:
        said = said or Said()
        as_json = fields.get("as_json", False)
        report = Report(as_json=as_json, stdout=said.out, stderr=said.err)
        path = inventory or write_inventory(tmp_path / "inventory.ini", url)
        chat(ChatTask(report=report, inventory=path, **fields))
        return said

    return run


def write_inventory(
    path: Path, url: str, hosts: str = "box ansible_connection=local", more: str = ""
) -> Path:
    settings = f"ollama_service=process\nollama_gpu=none\nollama_host={url.removeprefix('http://')}\n{more}"
    path.write_text(f"{hosts}\n\n[all:vars]\nollama_models=canary\n{settings}")
    return path


def test_one_question_gets_one_answer(ask: Ask) -> None:
    with relay() as server:
        said = ask(server.url, prompt="hello")
    start, user, answer = said.out.getvalue().splitlines()
    assert start == "box: canary on Ollama 0.17.5 (simulated), default sampling"
    assert user == "user: hello"
    assert answer.startswith("assistant: ")
    (request,) = server.bodies()
    assert request["stream"] is True
    assert request.keys() == {"model", "messages", "stream", "stream_options"}


def test_the_models_own_sampling_is_sent(ask: Ask) -> None:
    with relay() as server:
        create(server, "tuned", parameters={"top_p": 0.8, "temperature": 0.7, "num_ctx": 4096})
        said = ask(server.url, prompt="hello", model="tuned", as_json=True)
    assert said.events[0]["sampling"] == {"temperature": 0.7, "top_p": 0.8}
    (request,) = server.bodies()
    assert (request["temperature"], request["top_p"]) == (0.7, 0.8)
    assert "num_ctx" not in request


def create(server: Relay, model: str, **fields: Any) -> None:
    made = {"model": model, "from": "canary", "stream": False, **fields}
    assert send("POST", f"{server.url}/api/create", made, deadline_seconds=10).status == 200


def test_the_database_is_asked_and_the_answer_comes_from_it(ask: Ask) -> None:
    with relay() as server:
        said = ask(server.url, prompt=ALBUM, tools="database", database=CHINOOK)
    shown = said.out.getvalue()
    assert 'assistant: ask_database({"query":"SELECT Album.Title' in shown
    assert "function (ask_database): [('Greatest Hits',)]\n" in shown
    assert shown.endswith("assistant: The album with the most tracks is Greatest Hits.\n")
    last = server.bodies()[-1]["messages"]
    assert [message["role"] for message in last] == ["system", "user", "assistant", "tool"]
    assert last[3]["tool_call_id"] == last[2]["tool_calls"][0]["id"]


def test_two_calls_in_one_answer_get_two_results(ask: Ask) -> None:
    with relay() as server:
        said = ask(server.url, prompt=TWO_PLACES, tools="weather")
    lines = said.out.getvalue().splitlines()
    assert sum(line.startswith("assistant: get_n_day_weather_forecast(") for line in lines) == 2
    results = [line for line in lines if line.startswith("function (get_n_day_weather_forecast): ")]
    assert len(results) == 2
    assert all("(stub: invented numbers)" in line for line in results)
    assert lines[-1].startswith("assistant: The answer is: ")


def test_with_json_every_turn_is_an_event_and_the_summary_is_the_last(ask: Ask) -> None:
    with relay() as server:
        said = ask(server.url, prompt=ALBUM, tools="database", as_json=True)
    names = [event["event"] for event in said.events]
    assert names[:4] == ["chat", "message", "message", "message"]
    assert names[-2:] == ["message", "summary"]
    assert said.events[0]["tools"] == ["ask_database"]
    called = said.events[3]
    assert called["tool_calls"][0]["function"]["name"] == "ask_database"
    assert called["finish_reason"] == "tool_calls"
    told = "".join(event["text"] for event in said.events if event["event"] == "delta")
    assert said.events[-2]["content"] == told
    assert said.events[-2]["usage"]["completion_tokens"] > 0
    assert {**said.events[-1], "seconds": 0} == {
        "event": "summary",
        "hosts": 1,
        "changed": 0,
        "failed": 0,
        "unreachable": 0,
        "model": "canary",
        "questions": 1,
        "ollama": "simulated",
        "seconds": 0,
    }


def test_a_question_comes_from_a_pipe(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("grüße \xff".encode("latin-1"))))
    with relay() as server:
        ask(server.url)
    assert server.bodies()[0]["messages"] == [{"role": "user", "content": "gr��e �"}]


def test_a_connection_that_is_cut_before_the_first_token_is_tried_again(ask: Ask) -> None:
    with relay(refuse=2) as server:
        said = ask(server.url, prompt="hello")
    assert len(server.requests) == 3
    assert said.out.getvalue().count("assistant: ") == 1


def test_a_connection_that_is_always_cut_is_given_up(ask: Ask) -> None:
    with relay(refuse=99) as server, pytest.raises(ServiceError) as raised:
        ask(server.url, prompt="hello")
    assert len(server.requests) == chat_client.ATTEMPTS
    assert raised.value.sentence == f"the answer of `{server.url}` did not begin"
    assert raised.value.hint == "./fleet service start --limit box"


def test_after_the_first_token_nothing_is_tried_again(ask: Ask) -> None:
    said = Said()
    with relay(cut=True) as server, pytest.raises(ServiceError) as raised:
        ask(server.url, prompt="hello", said=said)
    assert len(server.requests) == 1
    assert raised.value.sentence == f"the answer of `{server.url}` broke off"
    assert "assistant: " in said.out.getvalue()
    assert said.out.getvalue().endswith("\n")


def test_an_answer_without_a_finish_reason_is_none(ask: Ask) -> None:
    script = {"hello": {"chunks": ["Hel"], "done_reason": "stop", "then_error": "the runner is gone"}}
    with relay(script=script) as server, pytest.raises(ServiceError) as raised:
        ask(server.url, prompt="hello", model="qwen")
    assert raised.value.sentence == "the answer of `qwen` broke off"


def test_a_server_that_refuses_is_asked_once(ask: Ask) -> None:
    with relay(faults=["503"]) as server, pytest.raises(ServiceError) as raised:
        ask(server.url, prompt="hello")
    assert len(server.requests) == 1
    assert raised.value.cause is not None
    assert raised.value.cause.startswith("HTTP 503: ")


def test_a_server_that_hangs_is_given_up_at_the_deadline(ask: Ask) -> None:
    with relay(faults=["hang=/v1"]) as server, pytest.raises(ServiceError) as raised:
        ask(server.url, prompt="hello", deadlines=Deadlines(silence_seconds=0.2))
    assert len(server.requests) == 1
    assert raised.value.cause == "nothing came for 0.2 s"


def test_an_answer_without_end_is_given_up_at_the_deadline(ask: Ask) -> None:
    with relay() as server, pytest.raises(ServiceError) as raised:
        ask(server.url, prompt="hello", deadlines=Deadlines(answer_seconds=0))
    assert raised.value.sentence.endswith("did not end")


@pytest.mark.parametrize(
    ("fault", "rule"), [("missing-argument", 21), ("text-calls", 30), ("no-done", 32), ("duplicate-id", 14)]
)
def test_what_the_judge_finds_is_a_hint(ask: Ask, fault: str, rule: int) -> None:
    with relay(faults=[fault]) as server:
        said = ask(server.url, prompt=TWO_PLACES, tools="weather")
    assert f"hint: rule {rule} (" in said.out.getvalue()


def test_a_good_answer_has_no_hint(ask: Ask) -> None:
    with relay() as server:
        said = ask(server.url, prompt=TWO_PLACES, tools="weather")
    assert "hint" not in said.out.getvalue()


def test_a_wrong_call_goes_back_to_the_model_as_an_error(ask: Ask) -> None:
    with relay(faults=["missing-argument"]) as server:
        ask(server.url, prompt=TWO_PLACES, tools="weather")
    result = server.bodies()[-1]["messages"][-1]
    assert result["role"] == "tool"
    assert result["content"].endswith("cannot be used: 'location' is a required property")


def test_a_model_that_only_calls_is_stopped(ask: Ask) -> None:
    query = '<tool_call>\n{"name": "ask_database", "arguments": {"query": "SELECT 1"}}\n</tool_call>'
    script = {"again": {"chunks": [query], "done_reason": "stop", "then_error": None}}
    with relay(script=script) as server, pytest.raises(CommandFailed) as raised:
        ask(server.url, prompt="again", tools="database", model="qwen")
    assert len(server.requests) == 8
    assert "still calls functions after 8 rounds" in raised.value.sentence


def test_a_server_that_is_down_is_named_with_the_command_that_starts_it(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ServiceError) as raised:
        ask(url, prompt="hello")
    assert raised.value.sentence == f"no Ollama answers at `{url}`"
    assert raised.value.hint == "./fleet service start --limit box"


def test_a_model_that_is_not_served_is_refused_with_those_that_are(ask: Ask) -> None:
    with relay() as server, pytest.raises(ModelRefused) as raised:
        ask(server.url, prompt="hello", model="nope")
    assert raised.value.cause == "the server has bare:latest, canary:latest, myqwen2:latest, qwen:latest"


def test_a_model_that_cannot_call_gets_no_tools(ask: Ask) -> None:
    with relay() as server:
        create(server, "plain", template="{{ .Prompt }}")
        with pytest.raises(UsageError) as raised:
            ask(server.url, prompt="hello", model="plain", tools="weather")
        ask(server.url, prompt="hello", model="canary", tools="weather")
    assert raised.value.sentence == "`plain` cannot call functions, so `--tools weather` is of no use"


@pytest.mark.parametrize(
    ("limit", "sentence", "cause"),
    [
        (None, "names 2 hosts, not one", "these: one, two"),
        ("all", "`--limit all` selects 2 hosts, not one", "these: one, two"),
        ("one:!one", "`--limit one:!one` selects no host, not one", "there are: one, two"),
    ],
)
def test_one_talks_to_one_host(
    ask: Ask, tmp_path: Path, limit: str | None, sentence: str, cause: str
) -> None:
    hosts = "one ansible_connection=local\ntwo ansible_connection=local"
    inventory = write_inventory(tmp_path / "two.ini", "http://127.0.0.1:9", hosts)
    with pytest.raises(UsageError) as raised:
        ask("", inventory=inventory, prompt="hello", limit=limit)
    assert raised.value.sentence.endswith(sentence)
    assert raised.value.cause == cause


def test_without_a_model_in_the_inventory_one_has_to_be_chosen(ask: Ask, tmp_path: Path) -> None:
    with relay() as server:
        inventory = write_inventory(tmp_path / "none.ini", server.url, more="ollama_models=\n")
        with pytest.raises(UsageError) as raised:
            ask(server.url, inventory=inventory, prompt="hello")
        assert raised.value.sentence.startswith("`box` has no `ollama_models` in ")
        ask(server.url, inventory=inventory, prompt="hello", model="myqwen2")


@pytest.mark.parametrize(
    ("stdin", "what"),
    [(b"", "empty"), (b" \n", "empty"), ("é".encode() * 2**21 + b"!", "longer than 4194304")],
)
def test_what_no_question_can_be_is_refused(
    ask: Ask, stdin: bytes, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    with pytest.raises(UsageError, match=f"the question in `standard input` is {what}"):
        ask("http://127.0.0.1:9")


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What a person types, line by line; the end of it is Ctrl-D."""

    def type_lines(*lines: str | type[BaseException]) -> None:
        left = iter(lines)

        def read(_: str = "") -> str:
            line = next(left, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("sys.stdin", Keyboard())
        monkeypatch.setattr("builtins.input", read)

    return type_lines


def test_a_talk_remembers_what_was_said(ask: Ask, typed: Callable[..., None]) -> None:
    typed("What's the weather like today", "", "I'm in Glasgow, Scotland.")
    with relay() as server:
        said = ask(server.url, tools="weather")
    assert 'assistant: get_current_weather({"location":"Glasgow, Scotland"' in said.out.getvalue()
    roles = [message["role"] for message in server.bodies()[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "tool"]


def test_reset_forgets_all_but_the_system_text(ask: Ask, typed: Callable[..., None]) -> None:
    typed("What's the weather like today", "/reset", "hello", "/exit", "never sent")
    with relay() as server:
        ask(server.url, tools="weather")
    assert [message["content"] for message in server.bodies()[-1]["messages"]][1:] == ["hello"]
    assert len(server.requests) == 2


def test_commands_are_not_sent_to_the_model(ask: Ask, typed: Callable[..., None]) -> None:
    typed("/tools", "/nonsense", KeyboardInterrupt, "/exit")
    with relay() as server:
        said = ask(server.url, tools="weather")
    assert "get_current_weather(location, format): Get the current weather" in said.out.getvalue()
    assert "`/nonsense` is no command: /tools shows" in said.out.getvalue()
    assert server.requests == []


def test_an_error_ends_the_answer_and_not_the_talk(ask: Ask, typed: Callable[..., None]) -> None:
    script = {"one": {"chunks": ["Yes."], "done_reason": "stop", "then_error": None}}
    typed("one", "not in the script", "one")
    with relay(script=script) as server:
        said = ask(server.url, model="qwen", as_json=True)
    assert [e["kind"] for e in said.events if e["event"] == "error"] == ["ServiceError"]
    assert said.events[-1]["questions"] == 3
    last = server.bodies()[-1]["messages"]
    assert [message["content"] for message in last] == ["one", "Yes.", "one"]


def test_ctrl_c_ends_the_answer_and_not_the_program(tmp_path: Path) -> None:
    with relay(faults=["hang=/v1"]) as server:
        inventory = write_inventory(tmp_path / "inventory.ini", server.url)
        master, slave = pty.openpty()
        words = [sys.executable, str(PROJECT), "chat", "--inventory", str(inventory)]
        environment = {**os.environ, "TERM": "xterm"}
        process = subprocess.Popen(
            words, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        try:
            shown = read_until(master, b"", b"user: ")
            os.write(master, b"hello\n")
            wait_for(lambda: bool(server.requests))
            process.send_signal(2)
            shown = read_until(master, shown, b"(stopped; this question is forgotten)")
            shown = read_until(master, shown, b"user: ", after=b"forgotten)")
            os.write(master, b"/exit\n")
            assert process.wait(DEADLINE_SECONDS) == 0
        finally:
            process.kill()
            process.wait()
            os.close(master)
    assert b"\x1b[32m" in shown


def read_until(master: int, shown: bytes, wanted: bytes, after: bytes = b"") -> bytes:
    stop_at = time.monotonic() + DEADLINE_SECONDS
    while wanted not in shown.rpartition(after)[2] if after else wanted not in shown:
        ready, _, _ = select.select([master], [], [], max(0.0, stop_at - time.monotonic()))
        assert ready, shown
        shown += os.read(master, 65536)
    return shown


def wait_for(condition: Callable[[], bool]) -> None:
    stop_at = time.monotonic() + DEADLINE_SECONDS
    waiting = threading.Event()
    while not condition():
        assert time.monotonic() < stop_at
        waiting.wait(0.01)
