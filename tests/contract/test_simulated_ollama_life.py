"""Start, store, damage, loading and stopping of the simulated server, held to the life of real ones."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed import ollama
from testbed.ollama import Settings, StartError, open_server, start_server
from tests.contract.test_simulated_ollama_http import RECORDED_GGUF, write_gguf
from tests.contract.test_simulated_ollama_replay import (
    CAPTURES,
    VERSIONS,
    Reply,
    case_names,
    load_case,
    send,
)

PROGRAM = Path(ollama.__file__)
NO_RUNNER = "there is no runner process to kill or restart"
NO_VERBS = "of the client only what loads and lists models is simulated"
RECORDED = VERSIONS[:2]
"""Of these the whole life is recorded, of 0.32.15 a part."""
LIFE_NOT_COVERED = {
    "binary_changed_while_running": "the simulated server starts no second process from its file",
    "client_disconnect": "answers take no time, so none can be left early",
    "default_repeat_penalty": "no model, no penalty",
    "disk_full": "needs a full file system",
    "ps_during_load": "a load takes no time",
    "queue_full": "nothing waits for a load; the tests of faults hold the fault 503 to the recorded refusal",
    "runner_killed_during_generation": NO_RUNNER,
    "second_server_same_store": "the pruning at start that causes it is in prune_at_start",
    "sigkill_during_generation": NO_RUNNER,
    "store_of_other_version": "one store format only",
}
LIFE_COVERED = set(
    """
    aborted_blob_upload blob_sharing corrupt_store default_context files_after_create files_after_delete
    heal_damaged_blob keep_alive_and_reload non_gguf_blob_at_start preplaced_blob prune_at_start
    raw_http sigint_during_generation sigterm_during_generation startup_times umask_077
    unprivileged_user
    """.split()
)
CLI_COVERED = set(
    """
    help_unknown serve_bad_host serve_bad_keepalive serve_first_start serve_host_0000
    serve_models_is_file serve_models_unwritable serve_no_home serve_port_taken version_client_differs
    version_other_port version_server_down version_server_up
    list_filter list_server_down ps_forever ps_loaded ps_server_down run_missing show show_missing
    """.split()
)
CLI_NOT_COVERED = {
    **dict.fromkeys(
        """
        cp cp_missing create_again create_bad_instruction create_bad_name create_bad_parameter
        create_bad_parameter_value create_bad_template create_empty create_from_missing_model
        create_missing_file create_no_from create_no_modelfile create_not_gguf create_ok create_quantize
        create_tiny_gguf create_truncated_gguf create_unclosed_quote list list_host_0000 ps ps_after_stop
        pull_offline rm rm_missing run show_modelfile show_parameters show_template show_tools stop
        stop_missing
        """.split(),
        NO_VERBS,
    ),
    "serve_debug_start": "the debug log is not simulated",
    "serve_load_log": "the runner's log is not simulated",
}


def cli_names(version: str) -> set[str]:
    return {path.stem for path in (CAPTURES / version / "cli").glob("*.txt")}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_recorded_case_is_covered_or_named_with_a_reason(version: str) -> None:
    assert LIFE_COVERED & set(LIFE_NOT_COVERED) == set()
    assert CLI_COVERED & set(CLI_NOT_COVERED) == set()
    life, cli = LIFE_COVERED | set(LIFE_NOT_COVERED), CLI_COVERED | set(CLI_NOT_COVERED)
    if version in RECORDED:
        assert (life, cli) == (set(case_names(version, "life")), cli_names(version))
    else:
        assert life >= set(case_names(version, "life"))
        assert cli >= cli_names(version)


# ---- helpers
@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("gguf") / "smollm2.gguf"
    return path, write_gguf(path)


def post(port: int, path: str, body: Mapping[str, Any], method: str = "POST") -> Reply:
    return send(port, method, path, json.dumps(body).encode())


def place(models: Path, gguf: tuple[Path, str]) -> Path:
    blob = models / "blobs" / f"sha256-{gguf[1]}"
    blob.hardlink_to(gguf[0])
    return blob


def create(
    port: int, name: str, digest: str, template: str = ollama.CHATML_TEMPLATE, **parameters: Any
) -> Reply:
    parameters = parameters or {"num_ctx": 2048, "stop": ["<|im_end|>"]}
    body = {
        "model": name,
        "files": {"m.gguf": f"sha256:{digest}"},
        "template": template,
        "parameters": parameters,
    }
    return post(port, "/api/create", {**body, "stream": False})


def listing(models: Path) -> list[list[Any]]:
    return [[path.name, path.stat().st_size] for path in sorted((models / "blobs").iterdir())]


def shown_ps(port: int) -> list[tuple[Any, ...]]:
    models = json.loads(send(port, "GET", "/api/ps").text)["models"]
    return [(m["name"], m["size"], m["size_vram"], m["context_length"]) for m in models]


def wait_until(done: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- the store
@pytest.mark.parametrize("version", RECORDED)
def test_create_and_delete_leave_the_recorded_files(
    version: str, gguf: tuple[Path, str], tmp_path: Path
) -> None:
    case, models = load_case(version, "life", "files_after_create"), tmp_path / "models"
    with start_server(models_dir=str(models), version=version) as server:
        before = [str(path.relative_to(models)) for path in sorted(models.rglob("*"))]
        assert before == [entry["path"] for entry in case["before"]]
        place(models, gguf)
        assert create(server.port, "smol", gguf[1]).text == '{"status":"success"}'
        manifest = (models / case["manifest_path"]).read_text()
        here = {RECORDED_GGUF: gguf[1], "$MODELS": str(models)}
        wanted, config = (
            case["manifest_raw"],
            case["small_blobs"][case["manifest"]["config"]["digest"]]["text"],
        )
        for old, new in here.items():
            wanted, config = wanted.replace(old, new), config.replace(old, new)
        wanted = wanted.replace(
            case["manifest"]["config"]["digest"], json.loads(manifest)["config"]["digest"]
        )
        assert manifest == wanted
        blob = models / "blobs" / json.loads(manifest)["config"]["digest"].replace(":", "-")
        assert blob.read_text() == config
        for layer in json.loads(manifest)["layers"][1:]:
            text = (models / "blobs" / layer["digest"].replace(":", "-")).read_text()
            assert text == case["small_blobs"][layer["digest"]]["text"]
        found = [(oct(path.stat().st_mode & 0o777), path.is_dir()) for path in sorted(models.rglob("*"))]
        assert sorted(found) == sorted(
            (entry["mode"], entry["type"] == "dir") for entry in case["after_create"]
        )
        tags = json.loads(send(server.port, "GET", "/api/tags").text)["models"][0]
        assert tags["size"] == case["size_in_api_tags"]
        assert post(server.port, "/api/delete", {"model": "smol"}, "DELETE").status == 200
        left = [str(path.relative_to(models)) for path in sorted(models.rglob("*"))]
        recorded = load_case(version, "life", "files_after_delete")["after_delete"]
        assert left == [entry["path"] for entry in recorded]


NOT_OF_THE_CASE = (12, 40, 30_000_000)
"""Sizes of blobs that an earlier case left behind."""


@pytest.mark.parametrize("version", VERSIONS)
def test_blobs_are_shared_and_go_with_their_last_user(
    version: str, gguf: tuple[Path, str], tmp_path: Path
) -> None:
    case = load_case(version, "life", "blob_sharing")

    def sizes(blobs: list[list[Any]]) -> list[int]:
        return sorted(size for _, size in blobs if size not in NOT_OF_THE_CASE)

    with start_server(models_dir=str(tmp_path), version=version) as server:
        place(tmp_path, gguf)
        create(server.port, "a", gguf[1], template="other")
        for name, extra in (("b", ""), ("c", "\n")):
            create(server.port, name, gguf[1], template=ollama.CHATML_TEMPLATE + extra)
        post(server.port, "/api/delete", {"model": "a"}, "DELETE")
        assert sizes(listing(tmp_path)) == sizes(case["blobs_after_deleting_a"])
        create(server.port, "c", gguf[1], template=ollama.CHATML_TEMPLATE + "\n\n")
        assert sizes(listing(tmp_path)) == sizes(case["blobs_after_recreate_with_another_template"])


def make_old(path: Path, hours: int = 2) -> None:
    """Give a file the time of some hours ago."""
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


@pytest.mark.parametrize("version", RECORDED)
def test_stray_blobs_are_removed_at_start(version: str, gguf: tuple[Path, str], tmp_path: Path) -> None:
    case = load_case(version, "life", "prune_at_start")
    settings = Settings(version=version, models_dir=str(tmp_path))
    with open_server("127.0.0.1", 0, settings) as server:
        server.start()
        place(tmp_path, gguf)
        create(server.port, "smol", gguf[1])
    blobs, layers = tmp_path / "blobs", listing(tmp_path)
    fresh = ["sha256-123456789", "sha256-" + "ab" * 32]
    old = ["notablob.txt", "sha256-987654321", "sha256-" + "cd" * 32]
    old += [f"sha256-{'ef' * 32}-partial", f"sha256-{'ef' * 32}-partial-0"]
    for name in (*fresh, *old):
        (blobs / name).write_text("x")
    for path in (blobs / name for name in old):
        make_old(path)
    lines: list[str] = []
    with open_server("127.0.0.1", 0, settings, lambda _, line: lines.append(line)):
        left = {path.name for path in blobs.iterdir()} - {name for name, _ in layers}
    assert sorted(name[:20] for name in left) == sorted(
        name for name in (name[:20] for name in case["after"]) if name[:20] in {n[:20] for n in fresh + old}
    )
    assert len(left) + len(layers) == len(case["after"])
    assert lines == re.findall(r'msg="([^"]*)"', "\n".join(case["log"]))


@pytest.mark.parametrize("version", RECORDED)
def test_a_preplaced_blob_is_taken_as_it_is(version: str, gguf: tuple[Path, str], tmp_path: Path) -> None:
    case = load_case(version, "life", "preplaced_blob")
    settings = Settings(version=version, models_dir=str(tmp_path))
    with open_server("127.0.0.1", 0, replace(settings, prune=False)) as server:
        server.start()
        source = tmp_path / "source.gguf"
        source.write_bytes(ollama.render_gguf({"general.architecture": "qwen2"}, [("t", (32, 2))]))
        make_old(source)
        modified = source.stat().st_mtime
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        source.chmod(0o640)
        blob = tmp_path / "blobs" / f"sha256-{digest}"
        blob.hardlink_to(source)
        assert send(server.port, "HEAD", f"/api/blobs/sha256:{digest}").status == case["head"]
        assert (
            send(server.port, "POST", f"/api/blobs/sha256:{digest}", b"other").status == case["post_status"]
        )
        assert create(server.port, "smol", digest).status == 200
        assert blob.stat().st_nlink == case["links"]
        assert oct(blob.stat().st_mode & 0o777) == case["mode_after"]
        assert (source.stat().st_mtime != modified) == case["mtime_changed"]
    with open_server("127.0.0.1", 0, settings) as server:
        server.start()
        assert blob.exists()
        post(server.port, "/api/delete", {"model": "smol"}, "DELETE")
        assert (source.exists(), blob.exists()) == (case["source_survives_delete"], case["blob_after_delete"])
        blob.hardlink_to(source)
        os.utime(source)
    with open_server("127.0.0.1", 0, settings):
        assert blob.exists() == case["preplaced_before_start_survives_start"]
    make_old(source)
    with open_server("127.0.0.1", 0, settings):
        assert blob.exists() == case["preplaced_2h_old_survives_start"]


@pytest.mark.parametrize("version", RECORDED)
def test_a_blob_of_another_user_is_taken_or_refused_as_recorded(
    version: str, gguf: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = load_case(version, "life", "unprivileged_user")

    def refuse(path: str, *_: object) -> None:
        # utime(2): only the owner of a file, or root, may set its time.
        if path.endswith(gguf[1]):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)

    with start_server(models_dir=str(tmp_path), version=version) as server:
        place(tmp_path, gguf)
        monkeypatch.setattr(os, "utime", refuse)
        made = create(server.port, "smol", gguf[1])
        status, text = recorded["create_root_owned_0644"]
        here = text.replace(RECORDED_GGUF, gguf[1]).replace("$MODELS", str(tmp_path))
        assert (made.status, made.text) == (status, here)
        deleted = post(server.port, "/api/delete", {"model": "smol"}, "DELETE")
        assert [deleted.status, deleted.text] == recorded["delete_root_owned_blob"]
        assert (tmp_path / "blobs" / f"sha256-{gguf[1]}").exists() == recorded["blob_left"]


@pytest.mark.parametrize("version", RECORDED)
def test_an_aborted_upload_leaves_nothing_and_a_killed_one_as_recorded(version: str, tmp_path: Path) -> None:
    case = load_case(version, "life", "aborted_blob_upload")
    blobs = tmp_path / "blobs"
    with start_server(models_dir=str(tmp_path), version=version) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = (
                b"POST /api/blobs/sha256:"
                + b"0" * 64
                + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
            )
            connection.sendall(head + b"x" * 100_000)
            wait_until(lambda: any(blobs.iterdir()))
            assert re.fullmatch(r"sha256-\d+", next(blobs.iterdir()).name)
        # Names alone: the server removes the file when it likes, and a look at its size could come too late.
        wait_until(lambda: not any(blobs.iterdir()))
    left = blobs / "sha256-579210047"
    left.write_bytes(b"half")
    with start_server(models_dir=str(tmp_path), version=version):
        assert left.exists() == any(re.fullmatch(r"sha256-\d+", name) for name, _ in case["after_restart"])


# ---- damage
DAMAGE: dict[str, Callable[[Path, Path], Any]] = {
    "truncated_half": lambda blob, _: os.truncate(blob, 49_000_000),
    "truncated_header": lambda blob, _: os.truncate(blob, 400),
    "zero_bytes": lambda blob, _: os.truncate(blob, 0),
    "missing": lambda blob, _: blob.unlink(),
    "garbage": lambda blob, _: blob.write_bytes(b"\x01garbage" * 100),
    "manifest_garbage": lambda _, manifest: manifest.write_text('{"schemaVersion":2,"lay'),
    "manifest_empty": lambda _, manifest: manifest.write_text(""),
    "config_blob_missing": lambda blob, manifest: _layer_path(blob, manifest, None).unlink(),
    "template_blob_missing": lambda blob, manifest: _layer_path(blob, manifest, 1).unlink(),
}
DAMAGE_NOT_COVERED = {
    "flipped_tensor_bytes": "tensors are never read",
    "unreadable_blob": "recorded as root, who reads it all the same",
}


def _layer_path(blob: Path, manifest: Path, index: int | None) -> Path:
    value = json.loads(manifest.read_text())
    layer = value["config"] if index is None else value["layers"][index]
    return blob.parent / str(layer["digest"]).replace(":", "-")


@pytest.fixture
def damaged(gguf: tuple[Path, str], tmp_path: Path) -> tuple[Path, Path]:
    """A store with the model `smol`, its GGUF no hard link any more, and its manifest; no server runs."""
    with start_server(models_dir=str(tmp_path)) as server:
        blob = place(tmp_path, gguf)
        create(server.port, "smol", gguf[1])
    blob.unlink()
    with blob.open("wb") as file, gguf[0].open("rb") as source:
        file.write(source.read(3_000_000))
        file.truncate(gguf[0].stat().st_size)
    return blob, tmp_path / "manifests" / "registry.ollama.ai" / "library" / "smol" / "latest"


def _equal(recorded: Mapping[str, Any], reply: Reply, here: Mapping[str, str]) -> None:
    body = recorded["body"]
    for old, new in here.items():
        body = body.replace(old, new)

    def plain(text: str) -> str:
        return re.sub(r"tensor .* exceeds", "tensor exceeds", text)

    assert (reply.status, plain(reply.text)) == (recorded["status"], plain(body))


@pytest.mark.parametrize("version", RECORDED)
@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_a_damaged_store_answers_as_recorded(
    name: str, version: str, damaged: tuple[Path, Path], gguf: tuple[Path, str], tmp_path: Path
) -> None:
    recorded = load_case(version, "life", "corrupt_store")["damage"][name]
    DAMAGE[name](*damaged)
    if recorded["start"] != "ok":
        with pytest.raises(StartError, match="panic: ") as refused:
            start_server(models_dir=str(tmp_path), version=version)
        assert refused.value.code == 2
        return
    with start_server(models_dir=str(tmp_path), version=version) as server:
        here = {RECORDED_GGUF: gguf[1], "$MODELS": str(tmp_path)}
        _equal(recorded["show"], post(server.port, "/api/show", {"model": "smol"}), here)
        _equal(
            recorded["generate"], post(server.port, "/api/generate", {"model": "smol", "prompt": "x"}), here
        )
        chat = {"model": "smol", "messages": [{"role": "user", "content": "x"}]}
        _equal(recorded["v1_chat"], post(server.port, "/v1/chat/completions", chat), here)
        _equal(
            recorded["v1_chat_stream"],
            post(server.port, "/v1/chat/completions", {**chat, "stream": True}),
            here,
        )
        assert (
            send(server.port, "HEAD", f"/api/blobs/sha256:{gguf[1]}").status
            == recorded["blob_head"]["status"]
        )
        listed = [line.split()[0] for line in recorded["tags"]["body"] if "smol" in line]
        models = json.loads(send(server.port, "GET", "/api/tags").text)["models"]
        assert [model["name"] for model in models] == listed
        _equal(recorded["create_again"], create(server.port, "smol", gguf[1]), here)


@pytest.mark.parametrize("version", RECORDED)
def test_every_recorded_damage_is_covered_or_named_with_a_reason(version: str) -> None:
    recorded = load_case(version, "life", "corrupt_store")["damage"]
    assert set(DAMAGE) | set(DAMAGE_NOT_COVERED) == set(recorded)


BAD_BYTES = {
    "text_1000_x": b"x" * 1000,
    "html_error_page": b"<html><body>login</body></html>" * 9,
    "git_lfs_pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "zeros_1000": bytes(1000),
    "zeros_100MB_sparse": bytes(5000),
    "magic_then_garbage": b"GGUF" + bytes(range(100, 200)),
    "magic_only": b"GGUF",
}


@pytest.mark.parametrize("version", RECORDED)
@pytest.mark.parametrize("name", sorted(BAD_BYTES))
def test_a_blob_that_is_no_gguf_answers_or_ends_the_server_as_recorded(
    name: str, version: str, damaged: tuple[Path, Path], tmp_path: Path
) -> None:
    cases = load_case(version, "life", "non_gguf_blob_at_start")["damage"]
    assert set(cases) == set(BAD_BYTES)
    recorded = cases[name]["starts"][0]
    damaged[0].write_bytes(BAD_BYTES[name])
    if recorded["exited_by_itself"]:
        with pytest.raises(StartError) as refused:
            start_server(models_dir=str(tmp_path), version=version)
        assert refused.value.code == recorded["exit_code"]
        assert str(refused.value).splitlines()[0] == recorded["panic_lines"][0]
        return
    with start_server(models_dir=str(tmp_path), version=version) as server:
        chat = {"model": "smol", "messages": [{"role": "user", "content": "x"}]}
        show, talk = (
            post(server.port, "/api/show", {"model": "smol"}),
            post(server.port, "/v1/chat/completions", chat),
        )
        assert [show.status, show.headers.get("Content-Type"), show.text] == recorded["show"]
        assert [talk.status, talk.headers.get("Content-Type"), talk.text] == recorded["v1_chat"]
        assert send(server.port, "GET", "/api/tags").status == recorded["tags"][0]


def test_of_the_newest_a_blob_that_is_no_gguf_is_not_simulated(
    damaged: tuple[Path, Path], tmp_path: Path
) -> None:
    damaged[0].write_bytes(BAD_BYTES["html_error_page"])
    with start_server(models_dir=str(tmp_path), version="0.32.15") as server:
        reply = post(server.port, "/api/show", {"model": "smol"})
    assert (reply.status, "simulated: a model that is no GGUF" in reply.text) == (501, True)


@pytest.mark.parametrize("version", RECORDED)
def test_a_truncated_blob_is_healed_by_removing_it_first(
    version: str, damaged: tuple[Path, Path], gguf: tuple[Path, str], tmp_path: Path
) -> None:
    recorded = load_case(version, "life", "heal_damaged_blob")
    os.truncate(damaged[0], recorded["blob_size_after"])
    with start_server(models_dir=str(tmp_path), version=version) as server:
        assert create(server.port, "smol", gguf[1]).status == 500
        assert post(server.port, "/api/delete", {"model": "smol"}, "DELETE").status == 200
        assert damaged[0].exists() == recorded["blob_left_after_rm"]
        place(tmp_path, gguf)
        assert create(server.port, "smol", gguf[1]).status == 200


# ---- loading
@pytest.mark.parametrize("version", RECORDED)
def test_context_and_size_of_a_loaded_model_are_the_recorded_ones(
    version: str, gguf: tuple[Path, str], tmp_path: Path
) -> None:
    recorded = load_case(version, "life", "default_context")
    lengths = {0: "ps", 3000: "with_OLLAMA_CONTEXT_LENGTH_3000", 300000: "with_OLLAMA_CONTEXT_LENGTH_300000"}
    for at, (length, key) in enumerate(lengths.items()):
        settings = Settings(version=version, models_dir=str(tmp_path), context_length=length)
        with open_server("127.0.0.1", 0, settings) as server:
            server.start()
            if at == 0:
                place(tmp_path, gguf)
                create(server.port, "noctx", gguf[1], seed=1)
                create(server.port, "smol", gguf[1])
            for name, wanted in (
                ("noctx", recorded[key]),
                ("smol", recorded["model_num_ctx_2048_beats_env"]),
            ):
                post(server.port, "/api/generate", {"model": name})
                assert shown_ps(server.port) == [
                    (m["name"], m["size"], m["size_vram"], m["context_length"]) for m in wanted
                ]


@pytest.mark.parametrize("version", RECORDED)
def test_keep_alive_and_reloads_are_as_recorded(version: str, gguf: tuple[Path, str], tmp_path: Path) -> None:
    recorded = load_case(version, "life", "keep_alive_and_reload")
    settings = Settings(
        version=version,
        models_dir=str(tmp_path),
        keep_alive_seconds=0.3,
        script={"x": ollama.Played(("y",), "stop")},
    )

    def ps(key: str) -> list[tuple[Any, ...]]:
        return [(m["name"], m["size"], m["size_vram"], m["context_length"]) for m in recorded[key]]

    def is_forever() -> bool:
        model = json.loads(send(server.port, "GET", "/api/ps").text)["models"][0]
        return int(model["expires_at"][:4]) > 2300

    with open_server("127.0.0.1", 0, settings) as server:
        server.start()
        place(tmp_path, gguf)
        create(server.port, "smol", gguf[1])
        post(server.port, "/api/copy", {"source": "smol", "destination": "other"})
        post(server.port, "/api/generate", {"model": "smol"})
        wait_until(lambda: shown_ps(server.port) == [])
        post(server.port, "/api/generate", {"model": "smol", "keep_alive": -1})
        assert shown_ps(server.port) == ps("ps_2048")
        assert is_forever()
        post(server.port, "/api/generate", {"model": "other"})
        assert shown_ps(server.port) == ps("ps_2048"), "two names of one GGUF share a runner"
        chat = {"model": "smol", "messages": [{"role": "user", "content": "x"}]}
        assert post(server.port, "/v1/chat/completions", chat).status == 200
        assert is_forever(), "a plain /v1 request keeps keep_alive"
        post(server.port, "/api/generate", {"model": "smol", "options": {"num_ctx": 1024}})
        assert shown_ps(server.port) == ps("ps_1024")
        assert not is_forever(), "a request with another num_ctx drops it"
        assert post(server.port, "/v1/chat/completions", chat).status == 200
        assert shown_ps(server.port) == ps("ps_v1")


# ---- bytes on the socket
@pytest.mark.parametrize("version", VERSIONS)
def test_plain_sockets_see_the_recorded_bytes(version: str, tmp_path: Path) -> None:
    recorded = load_case(version, "life", "raw_http")
    requests = {"http10": b"GET / HTTP/1.0\r\n\r\n", "no_host_http11": b"GET / HTTP/1.1\r\n\r\n"}
    with start_server(models_dir=str(tmp_path), version=version) as server:
        for key, request in requests.items():
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(request)
                raw = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
            head, _, body = raw.partition("\r\n\r\n")
            wanted_head, _, wanted_body = recorded[key].partition("\r\n\r\n")
            assert body + "<EOF>" == wanted_body
            assert head.split("\r\n")[0].split(" ")[:2] == wanted_head.split("\r\n")[0].split(" ")[:2]


# ---- the process
@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `ollama serve` as it would be on a host; every process is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, umask: int = -1, **env: str | None) -> subprocess.Popen[str]:
        values = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "OLLAMA_NO_CLOUD": "1", **env}
        (tmp_path / "home").mkdir(exist_ok=True)
        process = subprocess.Popen(
            [str(PROGRAM), *arguments],
            env={k: v for k, v in values.items() if v is not None},
            umask=umask,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_answer(port: int) -> None:
    def answers() -> bool:
        try:
            return send(port, "GET", "/").text == "Ollama is running"
        except OSError:
            return False

    wait_until(answers)


def read_cli(version: str, name: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a recorded command."""
    text = (CAPTURES / version / "cli" / f"{name}.txt").read_text()
    code = int(re.findall(r"# exit code: (\d+)", text)[0])
    out, _, err = text.partition("--- stdout\n")[2].partition("--- stderr\n")
    return code, out.strip(), err.strip()


@pytest.mark.parametrize("version", RECORDED)
def test_the_first_start_leaves_the_recorded_files_and_says_that_it_is_simulated(
    version: str, serve: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    recorded, port = load_case(version, "life", "startup_times"), free_port()
    process = serve(
        "serve",
        OLLAMA_SIMULATED_VERSION=version,
        OLLAMA_HOST=f"127.0.0.1:{port}",
        OLLAMA_MODELS=str(tmp_path / "m"),
    )
    wait_for_answer(port)
    home = [
        (str(path.relative_to(tmp_path / "home")), oct(path.stat().st_mode & 0o777))
        for path in sorted((tmp_path / "home").rglob("*"))
    ]
    assert home == [(entry["path"], entry["mode"]) for entry in recorded["files_home_after_first_start"]]
    models = [entry["path"] for entry in recorded["files_models_after_first_start"]]
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == models
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=10)
    assert process.returncode == recorded["exit_code_on_sigterm_idle"]
    assert "simulated" in log.splitlines()[0]
    assert f"Listening on 127.0.0.1:{port} (version {version})" in log


@pytest.mark.parametrize("version", RECORDED)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_cuts_what_is_in_the_air_and_exits_0(
    number: signal.Signals, version: str, serve: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    recorded = load_case(version, "life", f"{number.name.lower()}_during_generation")
    port = free_port()
    faults = f"hang=/v1,version={version}"
    process = serve(
        "serve", "--fault", faults, OLLAMA_HOST=f"127.0.0.1:{port}", OLLAMA_MODELS=str(tmp_path / "m")
    )
    wait_for_answer(port)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        process.send_signal(number)
        assert process.wait(timeout=10) == recorded["exit_code"]
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""


@pytest.mark.parametrize("version", RECORDED)
def test_files_under_umask_077_have_the_recorded_modes(
    version: str, serve: Callable[..., subprocess.Popen[str]], gguf: tuple[Path, str], tmp_path: Path
) -> None:
    recorded, port = load_case(version, "life", "umask_077"), free_port()
    serve(
        "serve",
        umask=0o077,
        OLLAMA_SIMULATED_VERSION=version,
        OLLAMA_HOST=f"127.0.0.1:{port}",
        OLLAMA_MODELS=str(tmp_path / "m"),
    )
    wait_for_answer(port)
    place(tmp_path / "m", gguf)
    create(port, "smol", gguf[1])
    found = [oct(path.stat().st_mode & 0o777) for path in (tmp_path / "m").rglob("*")]
    assert sorted(found) == sorted(mode for _, mode in recorded["models"])
    home = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "home").rglob("*")}
    assert home == {Path(name).name: mode for name, mode in recorded["home"]}


@pytest.mark.parametrize("version", RECORDED)
@pytest.mark.parametrize(
    ("name", "env"),
    [
        ("serve_models_is_file", {"OLLAMA_MODELS": "/etc/hostname"}),
        ("serve_models_unwritable", {"OLLAMA_MODELS": "/proc/nope"}),
        ("serve_no_home", {"HOME": None}),
    ],
)
def test_a_start_that_fails_fails_as_recorded(
    name: str, env: dict[str, str | None], version: str, serve: Callable[..., subprocess.Popen[str]]
) -> None:
    code, _, log = read_cli(version, name)
    host = f"127.0.0.1:{free_port()}"
    process = serve("serve", OLLAMA_SIMULATED_VERSION=version, OLLAMA_HOST=host, **env)
    _, ours = process.communicate(timeout=10)
    assert process.returncode == code
    wanted = next(line for line in log.splitlines() if line.startswith(("Error:", "panic:")))
    assert wanted in ours.splitlines()


@pytest.mark.parametrize("version", RECORDED)
def test_a_store_or_home_that_cannot_be_written_is_told_as_recorded(
    version: str, serve: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    recorded = load_case(version, "life", "unprivileged_user")
    (tmp_path / "file").write_text("")
    store = str(tmp_path / "file" / "m")
    played = {"OLLAMA_SIMULATED_VERSION": version, "OLLAMA_HOST": f"127.0.0.1:{free_port()}"}
    process = serve("serve", **played, OLLAMA_MODELS=store)
    _, ours = process.communicate(timeout=10)
    wanted = recorded["start_with_unwritable_models"]
    assert process.returncode == wanted[0]
    assert ours.splitlines()[-1].startswith("Error: mkdir ")
    assert ours.splitlines()[-1].endswith(wanted[1].rpartition(": ")[2])
    process = serve("serve", **played, HOME=str(tmp_path / "file"))
    _, ours = process.communicate(timeout=10)
    wanted = recorded["start_with_unwritable_home"]
    assert process.returncode == wanted[0]
    assert ours.splitlines()[-1].startswith(wanted[1].partition("$RUN")[0])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_taken_port_is_told_as_recorded(
    version: str, serve: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    code, _, log = read_cli(version, "serve_port_taken")
    with start_server(models_dir=str(tmp_path)) as server:
        process = serve("serve", OLLAMA_SIMULATED_VERSION=version, OLLAMA_HOST=f"127.0.0.1:{server.port}")
        _, ours = process.communicate(timeout=10)
    wanted = re.sub(r":115\d\d", f":{server.port}", log.splitlines()[-1])
    assert (process.returncode, ours.splitlines()[-1]) == (code, wanted)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("127.0.0.1:notaport", ("127.0.0.1", 11434)),
        ("", ("127.0.0.1", 11434)),
        ("0.0.0.0:11551", ("0.0.0.0", 11551)),
        ("http://10.0.0.1", ("10.0.0.1", 80)),
        ("[::1]:5", ("::1", 5)),
        (":5", ("", 5)),
        ("gpu01", ("gpu01", 11434)),
    ],
)
def test_the_host_setting_is_read_as_recorded(text: str, host: tuple[str, int]) -> None:
    assert {read_cli(version, "serve_bad_host")[0] for version in RECORDED} == {0}
    assert ollama.parse_host(text) == host


def test_nonsense_in_settings_falls_back_as_recorded() -> None:
    assert {read_cli(version, "serve_bad_keepalive")[0] for version in RECORDED} == {0}
    settings = ollama.read_settings({"OLLAMA_KEEP_ALIVE": "soon", "OLLAMA_CONTEXT_LENGTH": "y"})
    assert (settings.keep_alive_seconds, settings.context_length) == (300.0, 0)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_foreign_interface_is_told_as_recorded(
    version: str, serve: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    recorded, port = (CAPTURES / version / "cli" / "serve_host_0000.txt").read_text(), free_port()
    process = serve(
        "serve",
        OLLAMA_SIMULATED_VERSION=version,
        OLLAMA_HOST=f"0.0.0.0:{port}",
        OLLAMA_MODELS=str(tmp_path / "m"),
    )
    wait_for_answer(port)
    process.terminate()
    _, log = process.communicate(timeout=10)
    wanted = re.sub(r":115\d\d", f":{port}", re.findall(r'msg="(Listening.*)"', recorded)[0])
    assert wanted in log


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (version, name)
        for version in VERSIONS
        for name in sorted(cli_names(version))
        if name.startswith("version_")
    ],
)
def test_the_version_is_told_as_recorded_and_as_simulated(
    version: str, name: str, serve: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    code, out, _ = read_cli(version, name)
    with start_server(models_dir=str(tmp_path), version=version) as server:
        port = server.port if name in {"version_server_up", "version_client_differs"} else 9
        client = re.findall(r"client version is (\S+)", out)[0] if "client_differs" in name else version
        process = serve("--version", OLLAMA_HOST=f"127.0.0.1:{port}", OLLAMA_SIMULATED_VERSION=client)
        ours, _ = process.communicate(timeout=10)
    assert process.returncode == code
    assert ours.splitlines() == [*out.splitlines(), "Warning: this ollama is simulated"]


@pytest.mark.parametrize(
    ("arguments", "message"), [(["nosuch"], None), (["pull", "x"], "simulated"), (["serve", "--x"], "--x")]
)
def test_another_verb_or_flag_exits_1(
    arguments: list[str], message: str | None, serve: Callable[..., subprocess.Popen[str]]
) -> None:
    ((code, _, log),) = {read_cli(version, "help_unknown") for version in VERSIONS}
    process = serve(*arguments)
    _, ours = process.communicate(timeout=10)
    assert process.returncode == code
    assert message in ours if message else ours.strip() == log


def test_without_a_python_it_exits_127_and_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", str(PROGRAM), "serve"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 127
    assert "needs Python 3.9" in done.stderr


def test_the_help_names_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert ollama.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in ollama.FAULTS if f"  {name}" not in text] == []
