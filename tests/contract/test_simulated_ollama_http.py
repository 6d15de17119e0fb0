"""Every recorded request of `http/`: answered as by a real 0.17.5, or the case is named here with why not."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import ollama
from testbed.ollama import RunningServer, Settings, open_server, start_server
from tests.contract.test_simulated_ollama_replay import (
    case_names,
    differences,
    events_of,
    load_case,
    send,
    send_recorded,
)

RECORDED_GGUF = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
NO_GGUF = "sha256-a0639d03e7e77d7630dffce7bfe26d51813d4c799f13821e5b6786e2736baaed"
TRUNCATED_GGUF = "sha256-fa80757178f9d960ce1f2d4b5e380287486492d9597fbde68c48e602a7777181"

NOT_SIMULATED = "the real server embeds, here it is 501"
UNKNOWN_TEMPLATE = "renders a TEMPLATE that is not simulated, here it is 501"
NOT_COVERED = {
    "blob_post_gguf": "98 MB; blob_post_created sends a blob the same way",
    "embed": NOT_SIMULATED,
    "generate_too_long": "depends on the real tokenizer",
    "v1_chat_logprobs": "no model, no probabilities: here it is 501",
    "v1_chat_logprobs_stream": "no model, no probabilities: here it is 501",
    "v1_chat_render_too_long_history": "which turns fit depends on the real tokenizer",
    "v1_chat_too_long": "depends on the real tokenizer",
    "v1_embeddings": NOT_SIMULATED,
    "v1_embeddings_bad_input": NOT_SIMULATED,
    "v1_embeddings_empty": NOT_SIMULATED,
    "v1_embeddings_missing_model": NOT_SIMULATED,
    "v1_embeddings_no_input": NOT_SIMULATED,
    "v1_messages": "the Anthropic API is 501 here",
    "v1_responses": "the responses API is 501 here",
    **{name: UNKNOWN_TEMPLATE for name in case_names("http") if name.startswith("template_")},
}

# ---- what has an order: one store from its first blob to its last model; `>` marks steps of ours between
STORY = """
tags_empty tags_head ps_empty ps_head v1_models_empty
blob_head_absent blob_head_uppercase blob_head_dash blob_post_created blob_head_present blob_post_present
blob_post_mismatch blob_head_after_mismatch_wrong blob_head_after_mismatch_real blob_post_bad_digest
blob_head_bad_digest >place blob_get_present method_get_api_blobs blob_post_present_wrong_body
create_stream create_stream_again create_no_stream create_no_template create_no_template_stream create_tools
create_tools_bare create_from_model create_messages_license create_tag create_digest_dash
create_gguf_bin_extension create_template_empty create_template_unknown_field create_template_unknown_function
create_bad_template create_bad_template_no_stream create_bad_parameter_name create_bad_parameter_type
create_bad_parameter_float create_bad_name create_no_name create_bad_json create_no_body create_neither
create_modelfile_key create_files_empty create_bad_digest create_empty_digest create_path_absolute
create_path_parent create_missing_blob create_missing_blob_no_stream create_not_gguf create_not_gguf_no_stream
create_not_gguf_other_extension create_truncated_gguf create_quantize create_from_missing create_case_variant
tags_filled v1_models show show_auto show_verbose show_messages show_tools show_name_key show_badparam
show_badparamt show_missing show_invalid_name show_no_name show_no_body show_bad_json
v1_model v1_model_tag v1_model_missing pull_offline pull_offline_no_stream
generate_load generate_load_again ps_loaded_forever generate_load_string ps_loaded generate_bad_keep_alive
generate_missing_model generate_missing_model_stream generate_unload_missing chat_load chat_missing_model
generate_badparamt generate_bad_option_type chat_tools_unsupported v1_chat_tools_unsupported
v1_chat_tools_unsupported_stream v1_completions_no_prompt v1_completions_suffix generate_bad_format
generate_unload ps_after_unload generate_unload_not_loaded chat_unload
copy copy_over copy_missing copy_bad_name delete delete_again delete_missing delete_name_key delete_no_name
delete_no_body delete_bad_json >load-bin delete_loaded ps_after_delete_loaded
""".split()
NAMES_STORY = [">names", "name_case_tags", "name_case_lookup", ">delete-name", "name_case_tags_after_delete"]

# ---- what needs no order and no model: any server answers it
STATELESS = [
    name
    for name in case_names("http")
    if name.startswith(
        ("host_", "origin_", "options_", "method_", "version_", "root_", "status_", "any_", "not_found_")
    )
    or name in {"health", "metrics", "pprof", "double_slash", "trailing_slash", "v1_root"}
]

# ---- what the real model said: played here; texts by value, counts by type
HELLO = ("Hello", ",", " welcome", " to", " my", " world", ".")
CALL = (
    "{",
    "\n",
    " ",
    ' "',
    "name",
    '":',
    ' "',
    "get",
    "_",
    "current_weather",
    '", "arguments": {"location": "Paris,',
)
PIECES: dict[str, tuple[str, ...]] = {
    "v1_chat_tool": ("Hello", ",", " my", " name", " is", " Alex", "."),
    "v1_chat_tools_text": ("Hello", ",", " my", " name", " is", " Alex", "."),
    "v1_real_tool_call": (*CALL, ' France", "format": "celsius"}}'),
    "chat_real_tool_call": (*CALL, ' France", "format": "celsius"}}'),
}
COUNTS = frozenset("prompt_tokens completion_tokens total_tokens usage prompt_eval_count eval_count".split())


def recorded_text(name: str) -> tuple[str, ...]:
    """The pieces of the real model in a case: as streamed, or one for a reply that was not streamed."""
    response = load_case("http", name)["response"]
    texts = []
    for text in response.get("events") or [json.dumps(response["body"])]:
        value = json.loads(text.removeprefix("data: ")) if "[DONE]" not in text else {}
        choice = (value.get("choices") or [{}])[0]
        message = choice.get("delta") or choice.get("message") or value.get("message") or {}
        texts.append(message.get("content") or choice.get("text") or value.get("response") or "")
    return tuple(filter(None, texts))


def pieces_of(name: str) -> tuple[str, ...]:
    """What the model says in a played case."""
    if name.startswith(("v1_real_tag_", "chat_real_tag_")):
        number = "one" if "_one_" in name else "two"
        text = load_case("http", f"v1_real_tag_{number}_raw_text")["response"]["body"]["choices"][0][
            "message"
        ]["content"]
        return tuple(ollama.split_pieces(text))
    longest = max((key for key in PIECES if name.startswith(key)), key=len, default="")
    if longest:
        return PIECES[longest]
    body = load_case("http", name)["request"].get("body") or {}
    others = ("response_format", "temperature_high", "reasoning_effort")
    if "Say hello in five" in json.dumps(body) and not any(word in name for word in others):
        return HELLO
    return recorded_text(name)


PLAYED = sorted(set(case_names("http")) - set(NOT_COVERED) - set(STORY) - set(NAMES_STORY) - set(STATELESS))


def write_gguf(path: Path) -> str:
    """A sparse file with the recorded model's metadata, tensors and size; give its sha256."""
    info = load_case("http", "show")["response"]["body"]["model_info"]

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def pack(key: str, value: Any) -> bytes:
        if value is None:
            return struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
        if isinstance(value, bool):
            return struct.pack("<I?", 7, value)
        if isinstance(value, str):
            return struct.pack("<I", 8) + text(value)
        if "rope.freq_base" in key or isinstance(value, float):
            return struct.pack("<If", 6, value)
        return struct.pack("<II", 4, value)

    width, hidden = 576, 1536
    layer = {
        "attn_norm": (width,),
        "ffn_down": (hidden, width),
        "ffn_gate": (width, hidden),
        "ffn_up": (width, hidden),
        "ffn_norm": (width,),
        "attn_k": (width, 192),
        "attn_output": (width, width),
        "attn_q": (width, width),
        "attn_v": (width, 192),
    }
    tensors: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (width, 49152))]
    tensors += [(f"blk.{at}.{name}.weight", shape) for at in range(30) for name, shape in layer.items()]
    tensors += [("output_norm.weight", (width,))]
    order = ["blk.0.attn_norm.weight", "blk.0.ffn_down.weight"]
    tensors.sort(
        key=lambda item: (item[0] != "token_embd.weight", order.index(item[0]) if item[0] in order else 9)
    )
    values = {key: value for key, value in info.items() if key != "general.parameter_count"}
    values["tokenizer.chat_template"] = ollama.CHATML_JINJA[4][0]
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(values))]
    parts += [text(key) + pack(key, value) for key, value in values.items()]
    offset = 0
    for name, shape in tensors:
        kind = 0 if len(shape) == 1 else 8 if name.startswith("token") else 3
        parts.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset))
        offset += ollama.Tensor(name, kind, shape, 0).size_bytes()
    with path.open("wb") as file:
        file.write(b"".join(parts))
        file.truncate(GGUF_BYTES)
    with path.open("rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("gguf") / "smollm2.gguf"
    return path, write_gguf(path)


class Player:
    """Runs recorded cases in order against one server and keeps what differs."""

    def __init__(self, server: RunningServer, gguf: tuple[Path, str]) -> None:
        self.server = server
        self.gguf = gguf
        self.replace = {RECORDED_GGUF: gguf[1], "$MODELS": server.models_dir}
        self.found: dict[str, list[str]] = {}

    def play(self, name: str) -> None:
        if name.startswith(">"):
            getattr(self, name[1:].replace("-", "_"))()
            return
        case = load_case("http", name)
        reply = send_recorded(self.server.port, case["request"], self.replace)
        if name in {"tags_filled", "v1_models", "name_case_tags", "name_case_tags_after_delete"}:
            self._compare_lists(name, case["response"]["body"], json.loads(reply.text))
            return
        loose = frozenset({"tensors", "model_info"}) if name == "show_verbose" else frozenset({"tensors"})
        if "note" in case and "cut" in case["note"]:
            part = {key: json.loads(reply.text)[key] for key in case["response"]["body"]}
            reply = type(reply)(reply.status, reply.headers, json.dumps(part))
        self.found[name] = differences(case["response"], reply, self.replace, loose)

    def _compare_lists(self, name: str, recorded: dict[str, Any], body: dict[str, Any]) -> None:
        """Entries of one second have no order; the sizes of name_case depend on requests not recorded."""
        (key,) = set(recorded) - {"object"}
        loose = {"digest", "modified_at", "created"} | ({"size"} if name.startswith("name_case") else set())

        def stripped(entries: list[dict[str, Any]]) -> list[str]:
            kept = [{k: v for k, v in entry.items() if k not in loose} for entry in entries]
            return sorted(json.dumps(entry) for entry in kept)

        same = stripped(recorded[key]) == stripped(body[key])
        self.found[name] = [] if same else [json.dumps(body[key])]

    def blobs(self) -> Path:
        return Path(self.server.models_dir) / "blobs"

    def place(self) -> None:
        (self.blobs() / f"sha256-{self.gguf[1]}").hardlink_to(self.gguf[0])
        (self.blobs() / NO_GGUF).write_bytes(b"x" * 100)
        with self.gguf[0].open("rb") as file:
            (self.blobs() / TRUNCATED_GGUF).write_bytes(file.read(400))

    def load_bin(self) -> None:
        send(self.server.port, "POST", "/api/generate", b'{"model": "smol-bin"}')

    def names(self) -> None:
        self.place()
        for name, parameters in (("anchor", {}), ("Mixed", {}), ("MIXED", {"num_ctx": 512})):
            files = {"a.gguf": f"sha256:{self.gguf[1]}"}
            body = {
                "model": name,
                "files": files,
                "template": ollama.CHATML_TEMPLATE,
                "parameters": parameters,
            }
            assert send(self.server.port, "POST", "/api/create", json.dumps(body).encode()).status == 200

    def delete_name(self) -> None:
        assert send(self.server.port, "DELETE", "/api/delete", b'{"model": "mIxEd"}').status == 200


@pytest.mark.parametrize("story", [STORY, NAMES_STORY], ids=["a store's life", "names in any case"])
def test_a_story_of_recorded_requests_gives_the_recorded_replies(
    story: list[str], gguf: tuple[Path, str], tmp_path: Path
) -> None:
    with start_server(models_dir=str(tmp_path / "models")) as server:
        player = Player(server, gguf)
        for name in story:
            player.play(name)
    assert {name: found for name, found in player.found.items() if found} == {}


@pytest.mark.parametrize("name", STATELESS)
def test_a_request_that_needs_no_model_gives_the_recorded_reply(name: str, tmp_path: Path) -> None:
    case = load_case("http", name)
    settings = Settings(models_dir=str(tmp_path), no_cloud=True)
    if name == "origin_allowed_by_env":
        settings = Settings(models_dir=str(tmp_path), origins=("http://ui.example.com",))
    host = "0.0.0.0" if name.startswith("any_") else "127.0.0.1"
    with open_server(host, 0, settings) as server:
        server.start()
        reply = send_recorded(server.port, case["request"])
    assert differences(case["response"], reply) == []
    for header, value in case["response"]["headers"].items():
        if header.startswith("Access-Control"):
            assert reply.headers[header] == value


@pytest.fixture(scope="module")
def store(gguf: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of the recorded run."""
    models = tmp_path_factory.mktemp("store") / "models"
    with start_server(models_dir=str(models)) as server:
        player = Player(server, gguf)
        for name in ">place create_stream create_tools create_tools_bare".split():
            player.play(name)
        for name in ("create_bad_parameter_name", "create_template_unknown_field", "create_case_variant"):
            player.play(name)
        for copy in ("fs1", "fs2"):
            send(server.port, "POST", "/api/copy", json.dumps({"source": "qw", "destination": copy}).encode())
    return models


def _special_body(name: str) -> bytes | None:
    """Bodies that the captures describe instead of holding them."""
    hello = load_case("http", "v1_chat_no_stream")["request"]["body"]
    if name == "v1_chat_gzip_body":
        return gzip.compress(json.dumps(hello).encode())
    if name == "v1_chat_oversized_body_40mb":
        content = "x" * (40 << 20)
        return json.dumps({"model": "nope", "messages": [{"role": "user", "content": content}]}).encode()
    if name == "chat_too_long_no_truncate":
        message = {"role": "user", "content": "word " * 6000}
        return json.dumps(
            {"model": "smol", "messages": [message], "truncate": False, "stream": False}
        ).encode()
    return None


@pytest.mark.parametrize("name", PLAYED)
def test_what_the_real_model_said_is_told_in_the_recorded_shape(name: str, store: Path) -> None:
    case = load_case("http", name)
    request = case["request"]
    body = request["body"] if isinstance(request.get("body"), dict) else {}
    users = [
        m for m in body.get("messages") or [] if isinstance(m, dict) and isinstance(m.get("content"), str)
    ]
    asked = [m["content"] for m in users if m.get("role") == "user"] or [body.get("prompt", "")]
    final = (
        "length"
        if "raw_text" not in name and '"length"' in json.dumps(case["response"]).replace("\\", "")
        else "stop"
    )
    entry: dict[str, Any] = {"chunks": pieces_of(name), "done_reason": final}
    if "repeat_guard" in name:
        entry = {"chunks": recorded_text(name), "done_reason": None, "then": "no_final_message"}
    # A prompt that is only rendered or only measured needs no script; a script would take its place.
    script = {str(asked[-1]): entry} if not name.startswith("chat_too_long") else None
    with start_server(models_dir=str(store), script=script) as server:
        special = _special_body(name)
        if special is not None:
            reply = send(server.port, request["method"], request["path"], special, request["headers"])
        elif request.get("body_raw"):
            raw = request["body_raw"].encode()
            script_key = "Say hello in five words."
            server.simulation.settings.script[script_key] = ollama.Played(HELLO, "stop")  # type: ignore[index]
            reply = send(server.port, request["method"], request["path"], raw, request["headers"])
        else:
            reply = send_recorded(server.port, request)
    assert differences(case["response"], reply, loose=COUNTS) == []


def test_every_recorded_request_is_covered_or_named_with_a_reason() -> None:
    covered = {*(name for name in [*STORY, *NAMES_STORY] if not name.startswith(">")), *STATELESS, *PLAYED}
    assert covered & set(NOT_COVERED) == set()
    assert covered | set(NOT_COVERED) == set(case_names("http"))


@pytest.mark.parametrize(
    "name", ["template_json_function", "embed", "v1_embeddings", "v1_messages", "v1_responses"]
)
def test_what_is_not_simulated_is_told_with_501(name: str, store: Path, tmp_path: Path) -> None:
    case = load_case("http", name)
    with start_server(models_dir=str(tmp_path)) as server:
        if "template" in case:
            (tmp_path / "blobs").mkdir(exist_ok=True)
            for blob in (store / "blobs").iterdir():
                if blob.stat().st_size > 1 << 20:
                    (tmp_path / "blobs" / blob.name).hardlink_to(blob)
                    digest = blob.name.replace("-", ":")
                    create = {
                        "model": case["request"]["body"]["model"],
                        "files": {"a.gguf": digest},
                        "template": case["template"],
                    }
                    reply = send(server.port, "POST", "/api/create", json.dumps(create).encode())
                    assert events_of(reply.text)[-1] == '{"status":"success"}'
        reply = send_recorded(server.port, case["request"])
    assert reply.status == 501
    assert "simulated: " in reply.text


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    yield
    ollama.parse_template.cache_clear()
