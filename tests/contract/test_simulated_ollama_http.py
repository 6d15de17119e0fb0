"""Every recorded request of `http/`: answered as by the real server, or named here with why it is not."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from testbed import ollama
from testbed.ollama import RunningServer, Settings, open_server, start_server
from tests.contract.test_simulated_ollama_replay import (
    VERSIONS,
    case_names,
    differences,
    events_of,
    load_case,
    send,
    send_recorded,
)

RECORDED_GGUF = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RECORDED_COPY = "941f309b54caaad6747569ba43712bcde44a2be3bae16c3282ff499c37c54af5"
"""What create of 0.32.15 makes of it."""
GGUF_BYTES = 98_362_432
NO_GGUF = "sha256-a0639d03e7e77d7630dffce7bfe26d51813d4c799f13821e5b6786e2736baaed"
TRUNCATED_GGUF = "sha256-fa80757178f9d960ce1f2d4b5e380287486492d9597fbde68c48e602a7777181"

NOT_SIMULATED = "the real server embeds, here it is 501"
UNKNOWN_TEMPLATE = "renders a TEMPLATE that is not simulated, here it is 501"
_NOT_COVERED = {
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
    **{name: UNKNOWN_TEMPLATE for name in case_names("0.17.5", "http") if name.startswith("template_")},
}
NOT_COVERED = {
    version: {name: why for name, why in _NOT_COVERED.items() if name in case_names(version, "http")}
    for version in VERSIONS
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
    (version, name)
    for version in VERSIONS
    for name in case_names(version, "http")
    if name.startswith(
        ("host_", "origin_", "options_", "method_", "version_", "root_", "status_", "any_", "not_found_")
    )
    or name in {"health", "metrics", "pprof", "double_slash", "trailing_slash", "v1_root"}
]

# ---- what the real model said: played here; texts by value, counts by type
HELLO = {
    "0.17.5": ("Hello", ",", " welcome", " to", " my", " world", "."),
    "0.24.0": ("Hello", ",", " welcome", " to", " my", " world", "!"),
    "0.32.15": (
        *"Hello|,| I|'m| a| friendly| AI| designed| to| assist| with| any| type| of| text|.".split("|"),
    ),
}
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
    "v1_real_tool_call": (*CALL, ' France", "format": "celsius"}}'),
    "chat_real_tool_call": (*CALL, ' France", "format": "celsius"}}'),
}
COUNTS = frozenset("prompt_tokens completion_tokens total_tokens usage prompt_eval_count eval_count".split())


def recorded_text(version: str, name: str) -> tuple[str, ...]:
    """The pieces of the real model in a case: as streamed, or one for a reply that was not streamed."""
    response = load_case(version, "http", name)["response"]
    texts = []
    for text in response.get("events") or [json.dumps(response["body"])]:
        value = json.loads(text.removeprefix("data: ")) if "[DONE]" not in text else {}
        choice = (value.get("choices") or [{}])[0]
        message = choice.get("delta") or choice.get("message") or value.get("message") or {}
        texts.append(message.get("content") or choice.get("text") or value.get("response") or "")
    return tuple(filter(None, texts))


def pieces_of(version: str, name: str) -> tuple[str, ...]:
    """What the model says in a played case."""
    if name.startswith(("v1_real_tag_", "chat_real_tag_")):
        number = "one" if "_one_" in name else "two"
        reply = load_case(version, "http", f"v1_real_tag_{number}_raw_text")["response"]["body"]
        return tuple(ollama.split_pieces(reply["choices"][0]["message"]["content"]))
    longest = max((key for key in PIECES if name.startswith(key)), key=len, default="")
    if longest:
        return PIECES[longest]
    body = load_case(version, "http", name)["request"].get("body") or {}
    others = ("response_format", "temperature_high", "reasoning_effort", "v1_chat_tool")
    if "Say hello in five" in json.dumps(body) and not any(word in name for word in others):
        return HELLO[version]
    return recorded_text(version, name)


PLAYED = [
    (version, name)
    for version in VERSIONS
    for name in case_names(version, "http")
    if name not in {*NOT_COVERED[version], *STORY, *NAMES_STORY} and (version, name) not in STATELESS
]


def write_gguf(path: Path) -> str:
    """A sparse file with the recorded model's metadata, tensors and size; give its sha256."""
    info = load_case("0.17.5", "http", "show")["response"]["body"]["model_info"]

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
    places, offset = [], 0
    for name, shape in tensors:
        kind = 0 if len(shape) == 1 else 8 if name.startswith("token") else 3
        places.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset))
        offset += ollama.Tensor(name, kind, shape, 0).size_bytes()

    def header(filler: int) -> bytes:
        keys = [text(key) + pack(key, value) for key, value in values.items()]
        # Where the real file has its vocabulary: with it the last tensor ends where the file ends.
        keys[list(values).index("tokenizer.ggml.tokens")] = (
            text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 1) + text("a" * filler)
        )
        start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
        return start + b"".join(keys) + b"".join(places)

    with path.open("wb") as file:
        file.write(header(GGUF_BYTES - offset - len(header(0))))
        file.truncate(GGUF_BYTES)
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("gguf") / "smollm2.gguf"
    return path, write_gguf(path)


@pytest.fixture(scope="module")
def digests(gguf: tuple[Path, str]) -> dict[str, str]:
    """The recorded digests of the model file, and what they are here."""
    copied = hashlib.sha256()
    for piece in ollama.copy_gguf(str(gguf[0])):
        copied.update(piece)
    return {RECORDED_GGUF: gguf[1], RECORDED_COPY: copied.hexdigest()}


class Player:
    """Runs recorded cases of a version in order against one server and keeps what differs."""

    def __init__(
        self, version: str, server: RunningServer, gguf: tuple[Path, str], digests: dict[str, str]
    ) -> None:
        self.version = version
        self.server = server
        self.gguf = gguf
        self.replace = {**digests, "$MODELS": server.models_dir}
        self.found: dict[str, list[str]] = {}

    def play(self, name: str) -> None:
        if name.startswith(">"):
            getattr(self, name[1:].replace("-", "_"))()
            return
        case = load_case(self.version, "http", name)
        reply = send_recorded(self.server.port, case["request"], self.replace)
        if name in {"tags_filled", "v1_models", "name_case_tags", "name_case_tags_after_delete"}:
            self._compare_lists(name, case["response"]["body"], json.loads(reply.text))
            return
        loose = frozenset({"tensors", "model_info"}) if name == "show_verbose" else frozenset({"tensors"})
        if self.version == "0.32.15":
            loose |= {"size"}  # of a loaded model: what another runner's log says
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


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("story", [STORY, NAMES_STORY], ids=["a store's life", "names in any case"])
def test_a_story_of_recorded_requests_gives_the_recorded_replies(
    story: list[str], version: str, gguf: tuple[Path, str], digests: dict[str, str], tmp_path: Path
) -> None:
    with start_server(models_dir=str(tmp_path / "models"), version=version) as server:
        player = Player(version, server, gguf, digests)
        for name in story:
            player.play(name)
    assert {name: found for name, found in player.found.items() if found} == {}


@pytest.fixture(scope="module")
def empty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], RunningServer]]:
    """A server of a version on a host, without models; each is started once."""
    running: dict[tuple[str, str], RunningServer] = {}
    with ExitStack() as stack:

        def start(version: str, host: str) -> RunningServer:
            if (version, host) not in running:
                models = str(tmp_path_factory.mktemp("empty"))
                # The origin is one that a case allows and no other case asks for.
                settings = Settings(
                    version=version, models_dir=models, no_cloud=True, origins=("http://ui.example.com",)
                )
                server = stack.enter_context(open_server(host, 0, settings))
                server.start()
                running[version, host] = server
            return running[version, host]

        yield start


@pytest.mark.parametrize(("version", "name"), STATELESS)
def test_a_request_that_needs_no_model_gives_the_recorded_reply(
    version: str, name: str, empty_server: Callable[[str, str], RunningServer]
) -> None:
    case = load_case(version, "http", name)
    server = empty_server(version, "0.0.0.0" if name.startswith("any_") else "127.0.0.1")
    reply = send_recorded(server.port, case["request"])
    assert differences(case["response"], reply) == []
    for header, value in case["response"]["headers"].items():
        if header.startswith("Access-Control"):
            assert reply.headers[header] == value


@pytest.fixture(scope="module")
def store(
    gguf: tuple[Path, str], digests: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The models of a version's recorded run; each store is made once."""

    @functools.cache
    def make(version: str) -> Path:
        models = tmp_path_factory.mktemp("store") / "models"
        with start_server(models_dir=str(models), version=version) as server:
            player = Player(version, server, gguf, digests)
            for name in ">place create_stream create_tools create_tools_bare".split():
                player.play(name)
            for name in ("create_bad_parameter_name", "create_template_unknown_field", "create_case_variant"):
                player.play(name)
            for copy in ("fs1", "fs2"):
                body = json.dumps({"source": "qw", "destination": copy}).encode()
                send(server.port, "POST", "/api/copy", body)
        return models

    return make


@pytest.fixture(scope="module")
def scripted_server(store: Callable[[str], Path]) -> Iterator[Callable[[str], RunningServer]]:
    """A server of a version on its recorded models, whose script a test fills; each is started once."""
    running: dict[str, RunningServer] = {}
    with ExitStack() as stack:

        def start(version: str) -> RunningServer:
            if version not in running:
                server = start_server(models_dir=str(store(version)), script={}, version=version)
                running[version] = stack.enter_context(server)
            return running[version]

        yield start


def _special_body(name: str) -> bytes | None:
    """Bodies that the captures describe instead of holding them."""
    hello = load_case("0.17.5", "http", "v1_chat_no_stream")["request"]["body"]
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


def _played(version: str, name: str) -> dict[str, Any]:
    """A script that says what the real model said in a case."""
    case = load_case(version, "http", name)
    request = case["request"]
    body = request["body"] if isinstance(request.get("body"), dict) else {}
    users = [
        m for m in body.get("messages") or [] if isinstance(m, dict) and isinstance(m.get("content"), str)
    ]
    asked = [m["content"] for m in users if m.get("role") == "user"] or [body.get("prompt", "")]
    cut = "raw_text" not in name and '"length"' in json.dumps(case["response"]).replace("\\", "")
    entry: dict[str, Any] = {"chunks": pieces_of(version, name), "done_reason": "length" if cut else "stop"}
    if "repeat_guard" in name:
        entry = {"chunks": recorded_text(version, name), "done_reason": None, "then": "no_final_message"}
    hello = {"chunks": HELLO[version], "done_reason": "stop"}
    return {"Say hello in five words.": hello, str(asked[-1]): entry}


@pytest.mark.parametrize(("version", "name"), PLAYED)
def test_what_the_real_model_said_is_told_in_the_recorded_shape(
    version: str, name: str, store: Callable[[str], Path], scripted_server: Callable[[str], RunningServer]
) -> None:
    case = load_case(version, "http", name)
    request = case["request"]
    special = _special_body(name)
    if name.startswith("chat_too_long"):
        # A prompt that is measured is none that a script plays.
        with start_server(models_dir=str(store(version)), version=version) as server:
            reply = send(server.port, request["method"], request["path"], special, request["headers"])
    else:
        server = scripted_server(version)
        script = server.simulation.settings.script
        assert script is not None
        script.clear()
        script.update(ollama.parse_script(json.dumps(_played(version, name))))
        if special is not None:
            reply = send(server.port, request["method"], request["path"], special, request["headers"])
        else:
            reply = send_recorded(server.port, request)
    assert differences(case["response"], reply, loose=COUNTS) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_recorded_request_is_covered_or_named_with_a_reason(version: str) -> None:
    recorded = set(case_names(version, "http"))
    covered = {name for name in [*STORY, *NAMES_STORY] if not name.startswith(">")}
    covered |= {name for of, name in [*STATELESS, *PLAYED] if of == version}
    assert covered & set(NOT_COVERED[version]) == set()
    assert covered | set(NOT_COVERED[version]) == recorded


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "name", ["template_json_function", "embed", "v1_embeddings", "v1_messages", "v1_responses"]
)
def test_what_is_not_simulated_is_told_with_501(
    name: str, version: str, gguf: tuple[Path, str], tmp_path: Path
) -> None:
    case = load_case(version, "http", name)
    with start_server(models_dir=str(tmp_path), version=version) as server:
        if "template" in case:
            (tmp_path / "blobs" / f"sha256-{gguf[1]}").hardlink_to(gguf[0])
            create = {
                "model": case["request"]["body"]["model"],
                "files": {"a.gguf": f"sha256:{gguf[1]}"},
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
