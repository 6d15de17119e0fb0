"""Whatever a server answers to whichever case: results, in time, never an exception."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthchecks import endpoint as endpoint_module
from healthchecks.database import make_database
from healthchecks.runner import Endpoint, load_cases, run_suite
from healthchecks.wire import Answer
from tests.unit.test_toolcalls_fuzz import ANYTHING

GOOD = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "index": 0,
                        "type": "function",
                        "function": {"name": "ask_database", "arguments": '{"query": "select 1"}'},
                    }
                ],
            },
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
}
DEEP = "[" * 5000 + "]" * 5000
# One of each kind: what the runner does beside asking and judging.
CASES = load_cases(
    "ask_database bad_requests call_cut_short calls_8 concurrent_calls history_with_null prompt_grows "
    "results_in_parts choice_required error_corrected".split()
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside `value`, itself first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


PLACES = list(places(GOOD))


def changed(path: tuple[Any, ...], value: Any) -> Any:
    """The good reply with another value at that path."""
    if not path:
        return value
    reply = copy.deepcopy(GOOD)
    target: Any = reply
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return reply


@pytest.fixture(scope="module")
def database() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        make_database(Path(directory) / "music.sqlite", seed=1)
        yield Path(directory) / "music.sqlite"


def play(database: Path, name: str, answer: Callable[[Mapping[str, Any]], Answer]) -> None:
    case = next(case for case in CASES if case.name == name)

    def send(_method: str, _url: str, payload: Mapping[str, Any], **_: object) -> Answer:
        json.dumps(payload)  # what is sent back of a reply can be sent at all
        return answer(payload)

    with mock.patch.object(endpoint_module, "send", send):
        results = run_suite(Endpoint("http://server", "m"), [case], database=database)
    assert [result.mode for result in results] == ["plain", "stream"]
    assert all(finding.reason for result in results for finding in result.findings)


NAMES = st.sampled_from([case.name for case in CASES])


@given(NAMES, st.sampled_from(PLACES), ANYTHING)
def test_any_value_anywhere_in_a_reply(database: Path, name: str, path: tuple[Any, ...], value: Any) -> None:
    body = json.dumps(changed(path, value)).encode()
    play(database, name, lambda _: Answer(200, {"Content-Type": "application/json"}, body))


@given(NAMES, st.binary(max_size=200), st.sampled_from([200, 204, 400, 404, 500]))
def test_any_bytes_with_any_status(database: Path, name: str, body: bytes, status: int) -> None:
    play(database, name, lambda _: Answer(status, {"Content-Type": "text/event-stream"}, body))


@pytest.mark.parametrize("name", [case.name for case in CASES])
@pytest.mark.parametrize("arguments", [DEEP, '{"a": ' + DEEP + "}", '{"query": "\\ud800"}', "9" * 5000])
def test_arguments_that_are_nested_or_broken_beyond_reading(
    database: Path, name: str, arguments: str
) -> None:
    path = ("choices", 0, "message", "tool_calls", 0, "function", "arguments")
    body = json.dumps(changed(path, arguments)).encode()
    play(database, name, lambda _: Answer(200, {"Content-Type": "application/json"}, body))


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_an_error_body_that_is_nested_beyond_reading(database: Path, name: str) -> None:
    play(database, name, lambda _: Answer(404, {}, DEEP.encode()))
