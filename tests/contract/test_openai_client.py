"""The official client, newest and 1.x, talks to the simulated server and to a real one as to any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from healthchecks.case import load_cases
from healthchecks.conversation import declared_tools
from healthchecks.database import describe_schema, make_database, most_tracks_album
from testbed.ollama import start_server
from tests.conftest import CALLER
from tests.contract import openai_conversation
from tests.contract.ollama_binaries import BINARIES, SIMULATED, free_address, serve, wait_ready
from tests.contract.openai_clients import NotInstalledError, openai1_python
from tests.contract.test_smoke_suite import create_canary

CASES = ("weather_one_call", "weather_parallel", "ask_database")


@pytest.fixture(scope="module", params=["newest", "1.x"])
def python(request: pytest.FixtureRequest) -> Path:
    """The Python whose `openai` is meant."""
    if request.param == "newest":
        return Path(sys.executable)
    try:
        return openai1_python(request.config.stash[CALLER])
    except NotInstalledError as error:
        reason = f"openai 1.x is not installed: {error}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(
    scope="module", params=BINARIES, ids=lambda path: "simulated" if path == SIMULATED else "real"
)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == SIMULATED:
        with start_server() as server:
            yield server.url
        return
    state = tmp_path_factory.mktemp("real")
    with serve(request.param, state, free_address()) as server:
        wait_ready(server)
        create_canary(server.url)
        yield server.url


@pytest.fixture(scope="module")
def said(python: Path, url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    database = tmp_path_factory.mktemp("database") / "music.sqlite"
    make_database(database, seed=5)
    schema = describe_schema(database)
    conversations = [
        {
            "system": case.system,
            "tools": declared_tools(case, schema),
            "user": [turn.user for turn in case.turns if turn.user is not None],
        }
        for case in load_cases(CASES)
    ]
    given = {
        "base_url": f"{url}/v1",
        "model": "canary",
        "database": str(database),
        "conversations": conversations,
    }
    done = subprocess.run(
        [python, openai_conversation.__file__],
        input=json.dumps(given),
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI_"))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    told["album"] = most_tracks_album(database)[0]
    return told


def test_it_is_the_client_that_is_meant(said: dict[str, Any], request: pytest.FixtureRequest) -> None:
    is_old = "1.x" in request.node.name
    assert said["version"].startswith("1.") is is_old


@pytest.mark.parametrize("mode", ["plain", "stream"])
def test_a_question_and_then_one_call_with_an_answer_to_its_result(said: dict[str, Any], mode: str) -> None:
    asked, called, *_ = said[mode][0]
    assert (asked["finish"], asked["calls"]) == ("stop", [])
    assert asked["content"]
    assert called["finish"] == "tool_calls"
    (call,) = called["calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "get_current_weather"
    assert "Glasgow" in json.loads(call["function"]["arguments"])["location"]


@pytest.mark.parametrize("mode", ["plain", "stream"])
def test_two_calls_of_one_reply_and_both_results_are_taken(said: dict[str, Any], mode: str) -> None:
    called, *rest = said[mode][1]
    assert called["finish"] == "tool_calls"
    places = [json.loads(call["function"]["arguments"])["location"] for call in called["calls"]]
    assert len(places) == 2
    assert len({call["id"] for call in called["calls"]}) == 2
    assert {"Glasgow", "San Francisco"} == {
        name for name in ("Glasgow", "San Francisco") if name in str(places)
    }
    assert rest, "the history with two results got no reply"
    assert rest[0]["finish"] in ("stop", "tool_calls", "length")


@pytest.mark.parametrize("mode", ["plain", "stream"])
def test_the_loop_of_call_result_and_text(said: dict[str, Any], mode: str) -> None:
    called, last = said[mode][2]
    assert called["calls"][0]["function"]["name"] == "ask_database"
    assert (last["finish"], last["calls"]) == ("stop", [])
    assert said["album"] in last["content"]


def test_the_stream_says_what_the_plain_reply_says_and_counts_its_tokens(said: dict[str, Any]) -> None:
    def meaning(mode: str) -> list[Any]:
        return [
            [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in reply["calls"]]
            for talk in said[mode]
            for reply in talk
        ]

    assert meaning("plain") == meaning("stream")
    assert all(reply["usage"] > 0 for talk in said["stream"] for reply in talk)
