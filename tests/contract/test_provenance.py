"""Template provenance and the context budget, asked of the simulated server and of a real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from healthchecks import provenance as provenance_module
from healthchecks.api import server_version
from healthchecks.case import load_cases
from healthchecks.check import Check
from healthchecks.context import check_context
from healthchecks.database import make_database
from healthchecks.endpoint import Endpoint
from healthchecks.provenance import check_provenance
from healthchecks.wire import Answer, send
from testbed.ollama import ARTICLE_TEMPLATE, CHATML_TEMPLATE, CORRECTED_TEMPLATE, start_server
from tests.contract.ollama_binaries import free_address, serve, wait_ready
from tests.contract.test_smoke_suite import create_canary

CORE = ("ask_database", "no_tools", "weather_forecast", "weather_one_call", "weather_parallel")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    make_database(tmp_path / "music.sqlite", seed=1)
    return tmp_path / "music.sqlite"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with start_server() as server:
        yield server.url


def create(url: str, name: str, **fields: Any) -> None:
    answer = send(
        "POST", f"{url}/api/create", {"model": name, "from": "canary", **fields}, deadline_seconds=30
    )
    assert answer.status == 200, answer.body
    assert b"error" not in answer.body


def provenance(url: str, model: str, database: Path, version: str = "0.17.5") -> Check:
    return check_provenance(
        Endpoint(url, model, server=f"ollama/{version}"), load_cases(CORE), database=database
    )


def context(url: str, model: str, database: Path) -> Check:
    return check_context(Endpoint(url, model), load_cases(CORE), database=database)


@pytest.mark.parametrize("model", ["canary", "myqwen2"])
def test_our_template_shows_everything(url: str, model: str, database: Path) -> None:
    check = provenance(url, model, database)
    assert (check.name, check.ok, check.data["judged"]) == ("provenance", True, True)
    assert check.reason.startswith("6 prompts hold every tool and message that was sent")
    assert [fault["known"] for fault in check.data["faults"]] == [
        "ollama: `required` of nested objects is dropped",
        "ollama: each part of a tool's result is a message",
        None,
    ]
    assert check.data["faults"][-1]["probe"] == "the role developer"


def test_the_articles_own_template_is_caught(url: str, database: Path) -> None:
    create(url, "published", template=ARTICLE_TEMPLATE)
    check = provenance(url, "published", database)
    assert (check.ok, check.data["judged"]) == (False, True)
    assert "`<nil>`: a value printed by Go instead of JSON; write `{{ json .Function }}`" in check.reason
    assert "{object <nil> <nil> [" in check.data["faults"][0]["evidence"]


def test_a_template_that_the_server_replaced_is_caught(database: Path) -> None:
    with start_server(faults=["broken-template"]) as server:
        check = provenance(server.url, "canary", database, "0.32.15")
    assert (check.ok, check.data["judged"]) == (False, True)
    reasons = {fault["reason"]: fault["hint"] for fault in check.data["faults"]}
    assert "1 tool of 1 not in the prompt as JSON: `ask_database`" in reasons
    replaced = reasons["the prompt was not made by the model's TEMPLATE: none of its longer texts is in it"]
    assert "OLLAMA_GO_TEMPLATE=1" in replaced


def test_a_model_without_tools_is_refused_with_what_the_server_says(url: str, database: Path) -> None:
    create(url, "deaf", template=CHATML_TEMPLATE)
    check = provenance(url, "deaf", database)
    assert not check.ok
    assert "does not support tools" in check.reason


def test_turns_that_do_not_fit_are_caught(url: str, database: Path) -> None:
    create(url, "short", parameters={"num_ctx": 300}, template=CORRECTED_TEMPLATE)
    check = provenance(url, "short", database)
    assert not check.ok
    cut = [fault for fault in check.data["faults"] if "not in the prompt, in order" in fault["reason"]]
    assert "num_ctx" in cut[0]["hint"]
    assert "num_ctx" in check.reason


def test_a_server_that_does_not_render_is_not_judged_and_does_not_pass(database: Path) -> None:
    with start_server(script={}, faults=["hang=/v1"]) as server:
        endpoint = Endpoint(server.url, "canary")
        check = check_provenance(endpoint, load_cases(["no_tools"]), database=database, deadline_seconds=0.3)
    assert (check.ok, check.data["judged"]) == (False, True)
    assert "no answer within 0.3 s" in check.reason


def test_a_server_that_answers_instead_of_rendering_is_not_judged_and_does_not_pass(
    url: str, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_as_to_another_server(method: str, url: str, payload: Any, **options: Any) -> Answer:
        known = {key: value for key, value in payload.items() if key != "_debug_render_only"}
        return send(method, url, known, **options)

    monkeypatch.setattr(provenance_module, "send", send_as_to_another_server)
    check = provenance(url, "canary", database)
    assert (check.ok, check.data) == (False, {"judged": False, "faults": []})
    assert check.reason.startswith("not judged: the server does not say what it renders")


def test_the_context_is_counted(url: str, database: Path) -> None:
    check = context(url, "canary", database)
    assert check.ok
    data = check.data
    assert (data["judged"], data["clipped"], data["case"], data["tools"]) == (True, False, "ask_database", 1)
    assert data["context_tokens"] == 4096
    assert 100 < data["tool_tokens"] < data["prompt_tokens"] < 4096
    assert f"takes {data['prompt_tokens']} of 4096 tokens" in check.reason


def test_a_clipped_prompt_is_an_error_with_its_numbers(url: str, database: Path) -> None:
    create(url, "narrow", parameters={"num_ctx": 200})
    check = check_context(Endpoint(url, "narrow"), load_cases(["weather_forecast"]), database=database)
    whole = check_context(Endpoint(url, "canary"), load_cases(["weather_forecast"]), database=database)
    assert not check.ok
    assert check.data["clipped"]
    needed = whole.data["prompt_tokens"]
    assert check.reason.endswith("the server cuts it; raise `PARAMETER num_ctx` or send fewer tools")
    assert f" of 200 tokens, {check.data['tool_tokens']} of them for 2 tools" in check.reason
    assert check.data["prompt_tokens"] > 200
    assert needed * 0.9 < check.data["prompt_tokens"] < needed * 1.5


def test_a_context_without_room_for_the_answer_is_said(url: str, database: Path) -> None:
    create(url, "tight", parameters={"num_ctx": 800})
    check = context(url, "tight", database)
    assert check.ok
    assert check.reason.endswith(" are left for an answer that may have 512")


@pytest.fixture(scope="module")
def real_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server from `OLLAMA_BIN` that serves the canary to two at once."""
    if "OLLAMA_BIN" not in os.environ:
        pytest.skip("OLLAMA_BIN names no real ollama")
    state = tmp_path_factory.mktemp("real")
    binary = Path(os.environ["OLLAMA_BIN"])
    with serve(binary, state, free_address(), OLLAMA_NUM_PARALLEL="2") as server:
        wait_ready(server)
        create_canary(server.url)
        yield server.url


def real_version(url: str) -> str:
    return str(server_version(url).data["version"])


def test_a_real_server_shows_everything(real_url: str, database: Path) -> None:
    endpoint = Endpoint(real_url, "canary", server=f"ollama/{real_version(real_url)}")
    check = check_provenance(endpoint, load_cases(), database=database)
    assert check.ok, check.reason
    known = {fault["known"] for fault in check.data["faults"]}
    assert known <= {
        None,
        "ollama: `required` of nested objects is dropped",
        "ollama: each part of a tool's result is a message",
    }


def test_the_articles_own_template_is_caught_on_a_real_server(real_url: str, database: Path) -> None:
    create(real_url, "published", template=ARTICLE_TEMPLATE)
    check = provenance(real_url, "published", database, real_version(real_url))
    assert "`<nil>`: a value printed by Go instead of JSON" in check.reason
    assert not check.ok


def test_a_real_server_cuts_a_prompt_that_is_longer_than_one_share(real_url: str, database: Path) -> None:
    # Ollama makes OLLAMA_NUM_PARALLEL times num_ctx: a request has all of num_ctx, whoever else is served.
    create(real_url, "narrow", parameters={"num_ctx": 700})
    fits = check_context(Endpoint(real_url, "narrow"), load_cases(["ask_database"]), database=database)
    assert (fits.ok, fits.data["context_tokens"]) == (True, 700)
    assert fits.data["prompt_tokens"] > 350
    create(real_url, "narrow", parameters={"num_ctx": 400})
    cut = check_context(Endpoint(real_url, "narrow"), load_cases(["ask_database"]), database=database)
    assert (cut.ok, cut.data["clipped"], cut.data["context_tokens"]) == (False, True, 400)


def test_a_model_that_is_not_there_is_not_judged(url: str, database: Path) -> None:
    check = context(url, "nope", database)
    assert (check.ok, check.data) == (False, {"judged": False})
    assert "not judged: HTTP 404" in check.reason
