"""What the switches of the simulated server break, what a script may say, and what is refused."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from testbed import ollama
from testbed.ollama import RunningServer, StartError, parse_faults, parse_script, start_server
from tests.contract.test_simulated_ollama_life import free_port, wait_for_answer
from tests.contract.test_simulated_ollama_replay import Reply, events_of, load_case, resolve, send

TWO_CALLS = load_case("0.17.5", "scripted", "two_calls_parallel")["model_output"]
TOOLS = resolve("@../tools.json")
SCRIPT = {
    "two": {"chunks": TWO_CALLS["chunks"], "done_reason": "stop"},
    "text": {"chunks": ["a", " b", " c"], "done_reason": "stop"},
}


def chat(
    server: RunningServer, message: str = "two", path: str = "/v1/chat/completions", **more: Any
) -> Reply:
    body = {"model": "qwen", "messages": [{"role": "user", "content": message}], "tools": TOOLS, **more}
    return send(server.port, "POST", path, json.dumps(body).encode())


def calls_of(reply: Reply) -> list[dict[str, Any]]:
    message = json.loads(reply.text)["choices"][0]["message"]
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    return calls


# ---- faults
def test_without_a_fault_two_calls_have_ids_indices_and_arguments() -> None:
    with start_server(script=SCRIPT) as server:
        calls = calls_of(chat(server))
    assert [call["index"] for call in calls] == [0, 1]
    assert len({call["id"] for call in calls}) == 2
    assert all("location" in json.loads(call["function"]["arguments"]) for call in calls)


def test_duplicate_id_gives_all_calls_one_id() -> None:
    with start_server(script=SCRIPT, faults=["duplicate-id"]) as server:
        assert len({call["id"] for call in calls_of(chat(server))}) == 1


def test_index_zero_gives_all_calls_the_index_0() -> None:
    with start_server(script=SCRIPT, faults=["index-zero"]) as server:
        assert [call["index"] for call in calls_of(chat(server))] == [0, 0]


def test_missing_argument_drops_a_required_one() -> None:
    with start_server(script=SCRIPT, faults=["missing-argument"]) as server:
        calls = calls_of(chat(server))
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"format": "celsius"}, {}]


def test_text_calls_brings_calls_back_as_text() -> None:
    with start_server(script=SCRIPT, faults=["text-calls"]) as server:
        reply = chat(server)
    assert calls_of(reply) == []
    assert json.loads(reply.text)["choices"][0]["message"]["content"] == TWO_CALLS["text"]
    assert json.loads(reply.text)["choices"][0]["finish_reason"] == "stop"


def test_swallow_bills_tokens_for_an_empty_answer() -> None:
    with start_server(script=SCRIPT, faults=["swallow"]) as server:
        value = json.loads(chat(server).text)
    assert value["choices"][0]["message"] == {"role": "assistant", "content": ""}
    assert value["choices"][0]["finish_reason"] == "stop"
    assert value["usage"]["completion_tokens"] > 0


def test_no_done_ends_a_stream_without_its_last_line() -> None:
    with start_server(script=SCRIPT, faults=["no-done"]) as server:
        events = events_of(chat(server, stream=True).text)
    assert '"finish_reason":"tool_calls"' in events[-1]


def test_503_refuses_as_a_full_queue_does() -> None:
    recorded = next(
        e
        for e in load_case("0.17.5", "life", "queue_full")["12_at_once_model_not_loaded"]
        if e["status"] == 503
    )
    with start_server(script=SCRIPT, faults=["503"]) as server:
        reply = chat(server)
        assert send(server.port, "GET", "/api/version").status == 200
    assert (reply.status, reply.text) == (recorded["status"], recorded["body"])


def test_slow_waits_before_the_first_piece() -> None:
    with start_server(script=SCRIPT, faults=["slow=0.3"]) as server:
        started = time.monotonic()
        chat(server)
        assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize(("faults", "slowest", "fastest"), [([], 20, 25), (["slow=2"], 1, 10)])
def test_the_speed_of_a_reply_is_told_as_that_of_a_model(
    faults: list[str], slowest: float, fastest: float
) -> None:
    with start_server(faults=faults) as server:
        body = json.dumps({"model": "canary", "prompt": "hello", "stream": False}).encode()
        reply = json.loads(send(server.port, "POST", "/api/generate", body).text)
    assert slowest <= reply["eval_count"] * 1e9 / reply["eval_duration"] <= fastest
    told = reply["load_duration"] + reply["prompt_eval_duration"] + reply["eval_duration"]
    assert told <= reply["total_duration"]


def test_reload_loads_the_model_for_every_answer() -> None:
    with start_server(faults=["reload=0.2"]) as server:
        body = json.dumps({"model": "canary", "prompt": "hello", "stream": False}).encode()
        replies = [json.loads(send(server.port, "POST", "/api/generate", body).text) for _ in range(2)]
    assert all(reply["load_duration"] >= 0.2e9 for reply in replies)


def test_hang_accepts_and_never_answers() -> None:
    with start_server(script=SCRIPT, faults=["hang=/v1"]) as server:
        assert send(server.port, "GET", "/api/version").status == 200
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=0.2)
        connection.request("GET", "/v1/models")
        with pytest.raises(TimeoutError):
            connection.getresponse()
        connection.close()


@pytest.mark.parametrize(
    ("faults", "share"), [([], 0.0), (["gpu"], 1.0), (["gpu=50"], 0.5), (["gpu", "cpu"], 0.0), (["cpu"], 0.0)]
)
def test_size_vram_tells_what_is_claimed_to_be_on_the_gpu(faults: list[str], share: float) -> None:
    with start_server(script=SCRIPT, faults=faults) as server:
        send(server.port, "POST", "/api/generate", b'{"model": "qwen"}')
        model = json.loads(send(server.port, "GET", "/api/ps").text)["models"][0]
    assert model["size_vram"] == int(model["size"] * share)


def test_memory_is_really_taken_when_a_model_is_loaded(tmp_path: Path) -> None:
    port = free_port()
    arguments = ["serve", "--port", str(port), "--model", "qwen", "--fault", "memory=64"]
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [ollama.__file__, *arguments], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_for_answer(port)
        server = psutil.Process(process.pid)
        before = server.memory_info().rss
        assert send(port, "POST", "/api/generate", b'{"model": "qwen"}').status == 200
        assert 64 <= (server.memory_info().rss - before) / 2**20 < 96
        process.kill()


def test_version_is_reported_and_played_as_asked() -> None:
    types = {"0.23.9": "api_error", "0.24.0": "not_found_error"}
    for version, kind in types.items():
        with start_server(script=SCRIPT, faults=[f"version={version}"]) as server:
            assert send(server.port, "GET", "/api/version").text == f'{{"version":"{version}"}}'
            assert f'"type":"{kind}"' in send(server.port, "GET", "/v1/models/nope").text


@pytest.mark.parametrize(("fault", "events"), [("die", 1), ("die-after-call", 1)])
def test_die_ends_the_process_in_the_middle_of_a_stream(fault: str, events: int, tmp_path: Path) -> None:
    script, port = tmp_path / "script.json", free_port()
    script.write_text(json.dumps(SCRIPT))
    arguments = ["serve", "--port", str(port), "--script", str(script), "--fault", fault]
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [ollama.__file__, *arguments], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_for_answer(port)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        body = {
            "model": "bare",
            "messages": [{"role": "user", "content": "two"}],
            "tools": TOOLS,
            "stream": True,
        }
        connection.request("POST", "/v1/chat/completions", json.dumps({**body, "model": "qwen"}))
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)) as caught:
            connection.getresponse().read()
        if isinstance(caught.value, http.client.IncompleteRead):
            assert caught.value.partial.count(b"data: ") == events
        assert process.wait(timeout=10) == 1
        connection.close()
    assert [path.name for path in tmp_path.iterdir()] == ["script.json"]


def test_start_fails_panics_with_exit_code_2(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OLLAMA_HOST": f"127.0.0.1:{free_port()}"}
    env["OLLAMA_SIMULATED_FAULT"] = "start-fails"
    done = subprocess.run([ollama.__file__, "serve"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "panic: " in done.stderr


@pytest.mark.parametrize(
    "fault", ["dead", "slow", "slow=x", "reload", "reload=x", "503=1", "version", "gpu=half"]
)
def test_an_unknown_or_wrong_fault_is_refused_with_the_list(fault: str) -> None:
    with pytest.raises(StartError) as caught:
        parse_faults([fault])
    assert caught.value.code == 1
    assert f"`{fault}`" in str(caught.value)
    assert all(name in str(caught.value) for name in ollama.FAULTS)


def test_faults_come_from_the_environment_and_from_flags() -> None:
    settings = ollama.read_settings({"OLLAMA_SIMULATED_FAULT": "slow=1, no-done"}, faults=["gpu=20"])
    assert settings.faults == {"slow": "1", "no-done": "", "gpu": "20"}


# ---- scripts
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"a": 1}', "must be an object"),
        ('{"a": {"chunks": "x", "done_reason": "stop"}}', "`chunks`"),
        ('{"a": {"chunks": [1], "done_reason": "stop"}}', "`chunks`"),
        ('{"a": {"chunks": []}}', "`done_reason`"),
        ('{"a": {"chunks": [], "done_reason": "end"}}', "`done_reason`"),
        ('{"a": {"chunks": [], "done_reason": "stop", "then_error": 1}}', "`then_error`"),
        ('{"a": {"chunks": [], "done_reason": "stop", "then_error_status": 500}}', "`then_error_status`"),
        ('{"a": {"chunks": [], "done_reason": null, "then": "x"}}', "`then`"),
        ('{"a": {"chunks": [], "done_reason": "stop", "pieces": []}}', "unknown key pieces"),
        ('{"a": {"chunks": [], "done_reason": "stop"}, "a": {"chunks": [], "done_reason": "stop"}}', "twice"),
    ],
)
def test_a_wrong_script_is_refused_with_what_is_wrong(script: str, message: str) -> None:
    with pytest.raises(ValueError, match="script") as caught:
        parse_script(script)
    assert message in str(caught.value)


def test_a_wrong_script_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"a": 1}')
    with pytest.raises(StartError, match=r"s\.json"):
        ollama.read_script(str(tmp_path / "s.json"))
    with pytest.raises(StartError, match="No such file"):
        ollama.read_script(str(tmp_path / "absent.json"))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_a_message_that_is_not_in_the_script_is_an_error(path: str) -> None:
    with start_server(script=SCRIPT) as server:
        reply = chat(server, "something else", path)
    assert reply.status == 500
    assert 'simulated: no script for \\"something else\\"' in reply.text


def test_any_template_may_be_played_but_only_known_ones_rendered() -> None:
    tag = "{{ range .Messages }}{{ if .ToolCalls }}[CALL]{{ end }}{{ end }}{{ .Tools }}"
    text = TWO_CALLS["text"].replace("<tool_call>", "[CALL]")
    with start_server(script={"x": {"chunks": [text], "done_reason": "stop"}}) as server:
        body = {"model": "mine", "from": "qwen", "template": tag, "stream": False}
        assert send(server.port, "POST", "/api/create", json.dumps(body).encode()).status == 200
        assert len(calls_of(chat(server, "x", model="mine"))) == 2
        assert chat(server, "x", model="mine", _debug_render_only=True).status == 501


def test_a_scripted_server_has_ready_models_and_more_by_name(tmp_path: Path) -> None:
    settings = ollama.Settings(script=parse_script(json.dumps(SCRIPT)))
    with ollama.open_server("127.0.0.1", 0, settings, preload=["team/mine:v1"]) as server:
        server.start()
        names = [model["name"] for model in json.loads(send(server.port, "GET", "/api/tags").text)["models"]]
        assert sorted(names) == [
            "bare:latest",
            "canary:latest",
            "myqwen2:latest",
            "qwen:latest",
            "team/mine:v1",
        ]
        store = Path(server.models_dir)
        assert store.is_dir()
    assert not store.exists()


def test_a_port_given_by_flag_means_a_temporary_store_and_leaves_home_alone(tmp_path: Path) -> None:
    port, home = free_port(), tmp_path / "home"
    home.mkdir()
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "HOME": str(home)}
    arguments = [ollama.__file__, "serve", "--port", str(port), "--model", "mine"]
    with subprocess.Popen(
        arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_for_answer(port)
        assert '"mine:latest"' in send(port, "GET", "/api/tags").text
        process.terminate()
        assert process.wait(timeout=10) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "text", "finish"),
    [
        ({"max_tokens": 2}, "a b", "length"),
        ({"max_tokens": 3}, "a b c", "length"),
        ({"max_tokens": 4}, "a b c", "stop"),
        ({"max_tokens": 0}, "a b c", "stop"),
        ({"stop": "b"}, "a ", "stop"),
        ({"stop": ["zzz", " c"]}, "a b", "stop"),
        ({"stop": "b c"}, "a ", "stop"),
        ({"stop": "cd"}, "a b c", "stop"),
    ],
)
def test_limits_of_a_request_cut_what_is_played(more: dict[str, Any], text: str, finish: str) -> None:
    with start_server(script=SCRIPT) as server:
        choice = json.loads(chat(server, "text", **more).text)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, finish)
