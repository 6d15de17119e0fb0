"""Which release a version plays, and what no recording shows of their differences: held to the sources."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed import ollama
from testbed.archive import make_release_archive
from testbed.ollama import StartError, ToolParser, start_server
from tests.contract.ollama_binaries import SIMULATED, free_address, serve, wait_ready
from tests.contract.test_simulated_ollama_replay import VERSIONS, Reply, events_of, load_case, resolve, send

SCRIPT = {"hi": {"chunks": ["Hello", " there"], "done_reason": "stop"}}


@pytest.mark.parametrize(
    ("version", "recorded"),
    [
        ("0.1.2", "0.17.5"),
        ("0.17.9", "0.17.5"),
        ("0.23.9", "0.17.5"),
        ("0.24", "0.24.0"),
        ("0.32.5", "0.24.0"),
        ("0.32.6-rc1", "0.32.15"),
        ("0.32.15", "0.32.15"),
        ("1.0.0", "0.32.15"),
    ],
)
def test_a_version_plays_the_recorded_release_before_it(version: str, recorded: str) -> None:
    assert ollama.release_of(version).recorded == recorded


def test_every_release_is_recorded_and_begins_after_the_one_before() -> None:
    assert tuple(release.recorded for release in ollama.RELEASES) == VERSIONS
    assert [release.since for release in ollama.RELEASES] == sorted(r.since for r in ollama.RELEASES)


@pytest.mark.parametrize("version", ["latest", "0..1", "0.17.5.1"])
def test_what_is_no_version_stops_the_start(version: str) -> None:
    with pytest.raises(StartError, match="is no version"):
        start_server(script=SCRIPT, version=version)


def test_the_version_packed_into_an_archive_is_played(tmp_path: Path) -> None:
    packed = tmp_path / "a.tgz"
    make_release_archive(packed, version="0.24.0", compression="tgz", binary=SIMULATED, python=sys.executable)
    (tmp_path / "release").mkdir()
    subprocess.run(["tar", "-xzf", packed, "-C", tmp_path / "release"], check=True)
    with serve(tmp_path / "release/bin/ollama", tmp_path / "state", free_address()) as server:
        wait_ready(server)
        port = int(server.address.rpartition(":")[2])
        assert '"type":"not_found_error"' in send(port, "GET", "/v1/models/nope").text
    assert "simulated ollama 0.24.0, playing 0.24.0: " in server.log.read_text()


def post(port: int, path: str, body: dict[str, Any]) -> Reply:
    return send(port, "POST", path, json.dumps(body).encode())


# server/routes.go of the three tags.
ROUTES = {
    ("POST", "/v1/images/generations"): ("0.17.5", "0.24.0"),
    ("DELETE", "/api/experimental/aliases"): ("0.17.5",),
    ("GET", "/api/experimental/model-recommendations"): ("0.24.0", "0.32.15"),
    ("POST", "/v1/audio/transcriptions"): ("0.24.0", "0.32.15"),
    ("POST", "/v1/messages"): VERSIONS,
}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_route_that_is_not_played_is_501_where_it_exists_and_else_404(version: str) -> None:
    with start_server(script=SCRIPT, version=version) as server:
        found = {route: send(server.port, *route, b"{}").status for route in ROUTES}
    assert found == {route: 501 if version in having else 404 for route, having in ROUTES.items()}


# api/types.go and server/routes.go: "max" came, and with it went a second refusal of every text.
THINKING = {
    ("/api/chat", "max"): [
        'invalid think value: "max" (must be "high", "medium", "low", true, or false)',
        '"qwen" does not support thinking',
        '"qwen" does not support thinking',
    ],
    ("/api/generate", "high"): [
        'think value "high" is not supported for this model',
        '"qwen" does not support thinking',
        '"qwen" does not support thinking',
    ],
    ("/api/chat", "more"): [
        'invalid think value: "more" (must be "high", "medium", "low", true, or false)',
        'invalid think value: "more" (must be "high", "medium", "low", "max", true, or false)',
        'invalid think value: "more" (must be "high", "medium", "low", "max", true, or false)',
    ],
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("path", "think"), THINKING)
def test_how_to_think_is_refused_in_the_words_of_the_release(path: str, think: str, version: str) -> None:
    body = {"model": "qwen", "prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "think": think}
    with start_server(script=SCRIPT, version=version) as server:
        reply = post(server.port, path, body)
    wanted = THINKING[path, think][VERSIONS.index(version)]
    assert (reply.status, json.loads(reply.text)) == (400, {"error": wanted})


@pytest.mark.parametrize(
    ("version", "effort"), [("0.24.0", "ultra"), ("0.32.15", "ultra"), ("0.32.15", "minimal")]
)
def test_efforts_of_other_scales_are_clamped_by_the_newest_only(version: str, effort: str) -> None:
    body = {"model": "qwen", "messages": [{"role": "user", "content": "hi"}], "reasoning_effort": effort}
    with start_server(script=SCRIPT, version=version) as server:
        reply = post(server.port, "/v1/chat/completions", body)
    told = json.loads(reply.text)["error"]["message"]
    assert reply.status == 400
    assert (told == '"qwen" does not support thinking') == (version == "0.32.15")


@pytest.mark.parametrize(
    ("version", "error"),
    [
        ("0.17.5", "quantization is only supported for F16 and F32 models"),
        ("0.24.0", "simulated: quantization is not implemented"),
    ],
)
def test_a_bf16_model_is_quantized_from_0_24_on(version: str, error: str, tmp_path: Path) -> None:
    gguf = ollama.render_gguf({"general.architecture": "qwen2", "general.file_type": 32}, [("t", (32, 2))])
    with start_server(models_dir=str(tmp_path), version=version) as server:
        digest = server.simulation.store.write_blob(iter([gguf]), "").digest
        body = {"model": "x", "files": {"a.gguf": digest}, "quantize": "Q8_0"}
        reply = post(server.port, "/api/create", body)
    assert json.loads(events_of(reply.text)[-1]) == {"error": error}


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("qwen:cloud", 501, "simulated: models of the cloud"),
        ("qwen:7b-cloud", 501, "simulated: models of the cloud"),
        ("nope:local", 404, "model 'nope:local' not found"),
        ("qwen:local:cloud", 400, 'use either :local or :cloud, not both: "qwen:local:cloud"'),
        ("", 400, "model is required"),
    ],
)
def test_from_0_24_on_a_name_may_say_where_the_model_is(name: str, status: int, error: str) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
    with start_server(script=SCRIPT, version="0.24.0") as server:
        reply = post(server.port, "/api/chat", body)
        assert post(server.port, "/api/chat", {**body, "model": " qwen:LOCAL"}).status == 200
    assert (reply.status, json.loads(reply.text)) == (status, {"error": error})
    with start_server(script=SCRIPT, version="0.17.5") as server:
        assert post(server.port, "/api/chat", {**body, "model": "qwen:local"}).status == 404


# Seen on a real 0.24.0 without a cloud, but for the cloud's own names.
@pytest.mark.parametrize(
    ("method", "path", "body", "told"),
    [
        ("DELETE", "/api/delete", {"model": "nope:local"}, "model 'nope:local' not found"),
        ("DELETE", "/api/delete", {"model": "qwen:cloud"}, "simulated: models of the cloud"),
        (
            "DELETE",
            "/api/delete",
            {"model": "a:local:cloud"},
            'use either :local or :cloud, not both: "a:local:cloud"',
        ),
        ("DELETE", "/api/delete", {"model": " "}, "model is required"),
        ("DELETE", "/api/delete", {"model": "a b/../c"}, 'name "a b/../c" is invalid'),
        ("POST", "/api/create", {"model": "x", "from": "qwen:LOCAL "}, None),
        ("POST", "/api/create", {"model": "x", "from": "a:local:cloud"}, "invalid model name"),
        ("POST", "/api/create", {"model": "x", "from": "qwen:cloud"}, "simulated: models of the cloud"),
        ("POST", "/api/show", {"model": "qwen:local"}, None),
        ("POST", "/api/show", {"model": " "}, "model is required"),
        ("POST", "/api/generate", {"model": " "}, "model ' ' not found"),
        ("POST", "/api/pull", {"model": ""}, "invalid model name"),
    ],
)
def test_from_0_24_on_every_route_reads_such_names(
    method: str, path: str, body: dict[str, Any], told: str | None
) -> None:
    with start_server(script=SCRIPT, version="0.24.0") as server:
        reply = send(server.port, method, path, json.dumps(body).encode())
    assert json.loads(reply.text.splitlines()[-1]).get("error") == told


def _stream(version: str, played: dict[str, Any], tools: Any = None, model: str = "qwen") -> list[Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True, "tools": tools}
    with start_server(script={"hi": played}, version=version) as server:
        reply = post(server.port, "/v1/chat/completions", body)
    return [
        json.loads(event.removeprefix("data: ")) for event in events_of(reply.text) if "[DONE]" not in event
    ]


# openai/openai.go, FinishChunk: "tool_calls" overrides "stop" alone.
@pytest.mark.parametrize(("version", "reason"), [("0.24.0", "tool_calls"), ("0.32.15", "length")])
def test_a_cut_after_a_call_is_told_by_the_newest_only(version: str, reason: str) -> None:
    played = {
        **load_case("0.24.0", "scripted", "two_calls_parallel")["model_output"],
        "done_reason": "length",
    }
    chunks = _stream(version, played, resolve("@../tools.json"))
    assert any("tool_calls" in chunk["choices"][0]["delta"] for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == reason


def test_a_stream_of_the_newest_has_one_time_one_role_and_its_reason_in_an_empty_chunk() -> None:
    chunks = _stream("0.32.15", SCRIPT["hi"])
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": "Hello"}, {"content": " there"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert len({chunk["created"] for chunk in chunks}) == 1


def test_a_stream_of_the_newest_without_a_word_opens_with_a_role() -> None:
    deltas = [
        chunk["choices"][0]["delta"] for chunk in _stream("0.32.15", {"chunks": [], "done_reason": "stop"})
    ]
    assert deltas == [{"role": "assistant", "content": ""}, {}]


def test_a_stream_of_the_newest_that_breaks_off_has_an_empty_chunk_and_no_reason() -> None:
    chunks = _stream(
        "0.32.15", {"chunks": ["Hel"], "done_reason": "stop", "then_error": "the runner is gone"}
    )
    assert [chunk["model"] for chunk in chunks] == ["qwen", ""]
    assert [chunk["choices"][0] for chunk in chunks] == [
        {"index": 0, "delta": {"role": "assistant", "content": "Hel"}, "finish_reason": None},
        {"index": 0, "delta": {"content": ""}, "finish_reason": None},
    ]


# tools/tools.go, done.
@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ('{"a": "}"', '{"a": "}"', ""),
        ('{"a": "{"}', "", '{"a": "{"}'),
        ('{"a": "\\"{"}', "", '{"a": "\\"{"}'),
        ('{"a": 1}', '{"a": 1}', '{"a": 1}'),
    ],
)
def test_the_newest_parser_counts_no_braces_in_strings(text: str, old: str, new: str) -> None:
    for skips_strings, shown in ((False, old), (True, new)):
        parser = ToolParser("{", ["get_time"], skips_strings)
        assert parser.add(text) == ([], shown), skips_strings


@pytest.mark.parametrize(
    ("version", "shown"),
    [("0.24.0", ['{"a": "{"} and more']), ("0.32.15", ['{"a": "{"}', " and more"])],
)
def test_the_newest_server_uses_the_newest_parser(version: str, shown: list[str]) -> None:
    played = {"chunks": ['{"a": "{"}', " and more"], "done_reason": "stop"}
    chunks = _stream(version, played, resolve("@../tools.json"), "bare")
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert [text for text in texts if text] == shown


# server/create.go.
def test_the_newest_has_drafts_which_are_not_simulated_and_older_ones_do_not_know_them() -> None:
    body = {"model": "x", "from": "qwen", "draft_quantize": "Q8_0"}
    for version in VERSIONS:
        with start_server(script=SCRIPT, version=version) as server:
            last = json.loads(post(server.port, "/api/create", body).text.splitlines()[-1])
        told = {"error": "simulated: create with `draft_quantize` is not implemented"}
        assert last == (told if version == "0.32.15" else {"status": "success"})


def test_a_copied_gguf_has_the_same_keys_and_tensors_in_another_order(tmp_path: Path) -> None:
    tensors = [("z", (32, 3)), ("blk.10.a", (5,)), ("blk.2.b", (32,)), ("blk.2.a", (7, 3)), ("a", (1,))]
    written = bytearray(ollama.render_gguf({"general.architecture": "x", "x.block_count": 1}, tensors))
    source, copied, again = (tmp_path / name for name in ("source", "copied", "again"))
    source.write_bytes(written)
    before = ollama.read_gguf(str(source))
    for number, tensor in enumerate(before.tensors, 1):
        at = before.data_start + tensor.offset
        written[at : at + 4] = struct.pack("<f", number)
    source.write_bytes(written)
    copied.write_bytes(b"".join(ollama.copy_gguf(str(source))))
    after = ollama.read_gguf(str(copied))

    def content(path: Path, gguf: ollama.Gguf) -> dict[str, bytes]:
        data = path.read_bytes()
        places = {tensor.name: gguf.data_start + tensor.offset for tensor in gguf.tensors}
        return {t.name: data[places[t.name] : places[t.name] + t.size_bytes()] for t in gguf.tensors}

    assert [tensor.name for tensor in after.tensors] == ["a", "z", "blk.2.a", "blk.2.b", "blk.10.a"]
    assert after.values == before.values
    assert content(copied, after) == content(source, before)
    assert copied.stat().st_size == source.stat().st_size
    again.write_bytes(b"".join(ollama.copy_gguf(str(copied))))
    assert again.read_bytes() == copied.read_bytes()
