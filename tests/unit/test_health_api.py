"""The checks of the API and of GPU residency, on what a real 0.17.5 was recorded to answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from healthchecks import api
from healthchecks.api import (
    Identity,
    identify,
    is_simulated,
    load_model,
    loaded,
    server_version,
    wait_ready,
)
from healthchecks.gpu import check_residency
from healthchecks.wire import Answer

URL = "http://127.0.0.1:1"
CANARY_BLOB, OTHER_BLOB = "ab" * 32, "cd" * 32
WEIGHTS = {"canary:candidate": CANARY_BLOB, "canary:latest": CANARY_BLOB, "other:latest": OTHER_BLOB}

Answers = dict[str, Answer]

MANIFESTS = {"canary:candidate": "11" * 32, "canary:latest": "22" * 32, "other:latest": "33" * 32}


def ok(value: object, **headers: str) -> Answer:
    return Answer(200, headers, json.dumps(value).encode())


def running(*names: str, size: int = 1000, vram: int | None = None) -> Answer:
    entry = {"size": size} if vram is None else {"size": size, "size_vram": vram}
    return ok({"models": [{"name": name, "model": name, **entry} for name in names]})


def show(model: str) -> Answer:
    model = model if ":" in model else model + ":latest"
    if model not in WEIGHTS:
        return Answer(404, {}, b'{"error":"model not found"}')
    modelfile = f"# FROM {model}\n\nFROM /srv/models/blobs/sha256-{WEIGHTS[model]}\nTEMPLATE x\n"
    return ok({"modelfile": modelfile})


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    tags = [{"model": name, "digest": digest} for name, digest in MANIFESTS.items()]
    given: Answers = {"/api/tags": ok({"models": tags})}

    def send(
        _: str,
        url: str,
        payload: Mapping[str, Any] | None = None,
        *,
        deadline_seconds: float,
        key: str | None = None,
    ) -> Answer:
        path = url.removeprefix(URL)
        return show(payload["model"]) if path == "/api/show" and payload else given[path]

    monkeypatch.setattr(api, "send", send)
    return given


def test_the_version_is_read_and_a_simulated_server_is_called_so(answers: Answers) -> None:
    answers["/api/version"] = ok({"version": "0.17.5"})
    assert server_version(URL).data == {"version": "0.17.5", "simulated": False}
    answers["/api/version"] = ok({"version": "0.17.5"}, **{"x-ollama-simulated": "1"})
    check = server_version(URL)
    assert (check.reason, check.data["simulated"]) == ("simulated Ollama 0.17.5", True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            Answer(None, None, b"", "connection refused"),
            "no Ollama answers at `http://127.0.0.1:1`: connection refused",
        ),
        (Answer(502, {}, b"bad gateway"), "HTTP 502: bad gateway"),
        (Answer(200, {}, b"<html>"), "not JSON"),
        (ok([]), "states no version"),
        (ok({}), "states no version"),
        (ok({"version": "0.17.5\x1b[31m<script>\n::evil"}), "states no version"),
        (ok({"version": "0.17.5\n"}), "states no version"),
        (ok({"version": ""}), "states no version"),
        (ok({"version": "0" * 65}), "states no version"),
    ],
)
def test_whatever_is_not_ollama_is_not_ok(answers: Answers, answer: Answer, reason: str) -> None:
    answers["/api/version"] = answer
    check = server_version(URL)
    assert not check.ok
    assert reason in check.reason


def test_a_server_that_is_not_there_yet_is_asked_again(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = iter(
        [Answer(None, None, b"", "connection refused"), Answer(503, {}, b""), ok({"version": "0.17.5"})]
    )
    monkeypatch.setattr(api, "send", lambda *_, **__: next(tries))
    assert wait_ready(URL, 5).data["version"] == "0.17.5"


def test_waiting_ends_at_the_deadline_with_the_last_reason(answers: Answers) -> None:
    answers["/api/version"] = Answer(None, None, b"", "connection refused")
    check = wait_ready(URL, 0.12)
    assert not check.ok
    assert "connection refused" in check.reason
    assert check.data["seconds"] < 1


@pytest.mark.parametrize("asked", ["canary", "CANARY:Latest", "canary:latest"])
def test_a_model_is_found_by_its_name_in_any_spelling(answers: Answers, asked: str) -> None:
    answers["/api/ps"] = running("other:latest", "canary:latest")
    assert loaded(URL, asked).ok


def test_a_model_is_found_under_the_other_name_of_its_weights(answers: Answers) -> None:
    answers["/api/ps"] = running("deleted:latest", "canary:candidate")
    check = loaded(URL, "canary")
    assert check.ok
    assert check.data["runner"]["name"] == "canary:candidate"


def test_a_copy_is_found_under_its_deleted_source(answers: Answers) -> None:
    entry = {"model": "deleted:latest", "digest": MANIFESTS["canary:latest"]}
    answers["/api/ps"] = ok({"models": [entry]})
    assert loaded(URL, "canary").data["runner"] == entry


@pytest.mark.parametrize("present", [(), ("other:latest",), ("deleted:latest",)])
def test_a_model_whose_weights_no_runner_holds_is_not_loaded(
    answers: Answers, present: tuple[str, ...]
) -> None:
    answers["/api/ps"] = running(*present)
    check = loaded(URL, "canary")
    assert (check.ok, check.reason) == (False, "`canary` is not loaded")


def test_a_failed_load_gives_the_servers_words(answers: Answers) -> None:
    answers["/api/generate"] = Answer(500, {}, b'{"error":"tensor exceeds file size"}')
    check = load_model(URL, "canary", 1)
    assert not check.ok
    assert "tensor exceeds file size" in check.reason


@pytest.mark.parametrize(
    ("expected", "vram", "passes", "reason"),
    [
        ("nvidia", 1000, True, "100 % of `canary` is in GPU memory"),
        ("nvidia", 430, False, "only 43 % of `canary`"),
        ("nvidia", 0, False, "`canary` runs on the CPU"),
        ("nvidia", None, False, "`canary` runs on the CPU"),
        ("none", 0, True, "no GPU is expected"),
        ("none", 1000, True, "100 % of `canary` is in GPU memory"),
    ],
)
def test_residency_is_what_the_inventory_expects(
    answers: Answers, expected: str, vram: int | None, passes: bool, reason: str
) -> None:
    answers["/api/ps"] = running("canary:candidate", vram=vram)
    check = check_residency(URL, "canary", expected)
    assert check.ok is passes
    assert reason in check.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (running(), "`canary` is not loaded"),
        (ok({"models": 3}), "did not answer with a list of models"),
        (ok({"models": [{"model": "canary:latest", "size": "big"}]}), "`size` in /api/ps is 'big'"),
        (Answer(None, None, b"", "no answer within 10 s"), "no answer within 10 s"),
    ],
)
def test_residency_that_cannot_be_read_is_not_ok(answers: Answers, answer: Answer, reason: str) -> None:
    answers["/api/ps"] = answer
    check = check_residency(URL, "canary", "nvidia")
    assert not check.ok
    assert reason in check.reason


def test_a_gpu_that_no_inventory_can_name_is_a_mistake_of_ours(answers: Answers) -> None:
    with pytest.raises(ValueError, match="not 'amd'"):
        check_residency(URL, "canary", "amd")


def test_the_header_of_the_simulated_server_is_found_in_any_case() -> None:

    assert is_simulated({"X-Ollama-Simulated": "1"})
    assert is_simulated({"x-ollama-simulated": "1"})
    assert not is_simulated({"Server": "1"})
    assert not is_simulated(None)


@pytest.mark.parametrize(
    ("version", "server"),
    [
        ("0.17.5", "ollama/0.17.5"),
        ("0.18.0-rc1+local", "ollama/0.18.0-rc1+local"),
        ("0.17.5\x1b[31m<script>\n::evil", None),
        ("latest", None),
    ],
)
def test_a_server_is_known_by_a_plain_version_only(
    answers: Answers, version: str, server: str | None
) -> None:
    answers["/api/version"] = ok({"version": version})
    answers["/"] = Answer(200, {}, b"Ollama is running")
    assert identify(URL) == Identity(server)


@pytest.mark.parametrize(
    "root", [Answer(404, {}, b"no route"), Answer(200, {}, b"<html>"), Answer(None, None, b"")]
)
def test_another_server_with_a_version_is_not_taken_for_ollama(answers: Answers, root: Answer) -> None:
    answers["/api/version"] = ok({"version": "1.7.2", "name": "another"})
    answers["/"] = root
    assert identify(URL) == Identity(None)
