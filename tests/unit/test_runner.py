"""The runner plays whole conversations; here the server is a function, broken in one way at a time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from healthchecks import endpoint as endpoint_module
from healthchecks.database import UnusableDatabaseError, make_database, most_tracks_album
from healthchecks.runner import CaseResult, Endpoint, load_cases, run_suite
from healthchecks.toolcalls import WARN
from healthchecks.wire import Answer

GLASGOW = {"location": "Glasgow, Scotland", "format": "celsius"}
SQL = (
    "SELECT Album.Title FROM Album JOIN Track ON Album.AlbumId = Track.AlbumId"
    " GROUP BY Album.Title ORDER BY COUNT(*) DESC LIMIT 1"
)
CALL_IDS = itertools.count(1)


@dataclass(frozen=True)
class Say:
    """What the model says: text, or calls as (name, arguments); or another status than 200."""

    text: str = ""
    calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    status: int = 200


Model = Callable[[Mapping[str, Any]], Say]


def forecast(place: str, days: int) -> tuple[str, Mapping[str, Any]]:
    return ("get_n_day_weather_forecast", {"location": place, "format": "celsius", "num_days": days})


def good_model(request: Mapping[str, Any]) -> Say:
    """What a model that passes says."""
    last = request["messages"][-1]
    if last["role"] == "tool":
        title = last["content"].split("'")[1] if "'" in last["content"] else last["content"]
        return Say(f"The album with the most tracks is {title}.")
    if not request.get("tools"):
        return Say("Sorry, I have no functions to look that up.")
    return {
        "What's the weather like today": Say("Which city are you in?"),
        "I'm in Glasgow, Scotland.": Say(calls=[("get_current_weather", GLASGOW)]),
        "What is the weather going to be like in Glasgow, Scotland over the next x days": Say(
            "How many days?"
        ),
        "5 days": Say(calls=[forecast("Glasgow, Scotland", 5)]),
        "What is the weather going to be like in San Francisco and Glasgow over the next 4 days": Say(
            calls=[forecast("Glasgow", 4), forecast("San Francisco", 4)]
        ),
        "What is the name of the album with the most tracks?": Say(calls=[("ask_database", {"query": SQL})]),
    }[last["content"]]


def answer(request: Mapping[str, Any], say: Say) -> Answer:
    """`say` as an OpenAI server sends it."""
    if say.status != 200:
        error = {
            "error": {"message": "refused", "type": "invalid_request_error", "param": None, "code": None}
        }
        return Answer(say.status, {"Content-Type": "application/json"}, json.dumps(error).encode())
    calls = [
        {
            "id": f"call_{next(CALL_IDS)}",
            "index": index,
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for index, (name, arguments) in enumerate(say.calls)
    ]
    message = {"role": "assistant", "content": None, "tool_calls": calls} if calls else {}
    message = message or {"role": "assistant", "content": say.text}
    finish = "tool_calls" if calls else "stop"
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    shared = {"id": "chatcmpl-1", "created": 1, "model": request["model"]}
    if not request["stream"]:
        choice = {"index": 0, "message": message, "finish_reason": finish}
        whole = {**shared, "object": "chat.completion", "choices": [choice], "usage": usage}
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(whole).encode())
    chunk = {**shared, "object": "chat.completion.chunk"}
    events = [
        {**chunk, "choices": [{"index": 0, "delta": message, "finish_reason": None}]},
        {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
        {**chunk, "choices": [], "usage": usage},
    ]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return Answer(200, {"Content-Type": "text/event-stream"}, body.encode())


@pytest.fixture
def database(tmp_path: Path) -> Path:
    make_database(tmp_path / "music.sqlite", seed=3)
    return tmp_path / "music.sqlite"


@pytest.fixture
def play(database: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[CaseResult, ...]]:
    def run(model: Model, *names: str, sent: list[Mapping[str, Any]] | None = None) -> tuple[CaseResult, ...]:
        def send(method: str, url: str, payload: Mapping[str, Any], **_: object) -> Answer:
            assert (method, url) == ("POST", "http://server/v1/chat/completions")
            if sent is not None:
                sent.append(payload)
            return answer(payload, model(payload))

        monkeypatch.setattr(endpoint_module, "send", send)
        return run_suite(Endpoint("http://server", "m"), load_cases(names or None), database=database)

    return run


Play = Callable[..., tuple[CaseResult, ...]]


def rules(result: CaseResult) -> list[int]:
    return sorted({finding.rule for finding in result.findings if finding.severity != WARN})


def test_a_good_model_passes_all_ten(play: Play) -> None:
    results = play(good_model)
    assert [(result.mode, result.passed, rules(result)) for result in results] == [
        ("plain", True, []),
        ("stream", True, []),
    ] * 5


def test_requests_are_deterministic_and_bounded(play: Play) -> None:
    sent: list[Mapping[str, Any]] = []
    play(good_model, sent=sent)
    for request in sent:
        assert (request["temperature"], request["top_p"], request["seed"]) == (0, 1, 1)
        assert request["max_tokens"] == 512
        assert ("stream_options" in request) == request["stream"]


def test_the_sql_is_really_run_and_goes_back_with_the_calls_id(play: Play, database: Path) -> None:
    (result, _) = play(good_model, "ask_database")
    _, _, calling, tool, said = result.conversation
    (title,) = most_tracks_album(database)
    assert calling["content"] is None
    assert tool == {
        "role": "tool",
        "tool_call_id": calling["tool_calls"][0]["id"],
        "content": f"[('{title}',)]",
    }
    assert title in said["content"]


def test_the_model_is_told_the_schema_of_the_database(play: Play) -> None:
    sent: list[Mapping[str, Any]] = []
    play(good_model, "ask_database", sent=sent)
    query = sent[0]["tools"][0]["function"]["parameters"]["properties"]["query"]
    assert "Table: Album\nColumns: AlbumId, Title, ArtistId\nTable: Artist\n" in query["description"]


def test_raw_exchanges_are_kept(play: Play) -> None:
    (plain, stream) = play(good_model, "weather_one_call")
    assert [json.loads(exchange.body)["object"] for exchange in plain.exchanges] == ["chat.completion"] * 2
    assert all(exchange.body.endswith(b"data: [DONE]\n\n") for exchange in stream.exchanges)
    assert plain.exchanges[1].request["messages"][-1]["content"] == "I'm in Glasgow, Scotland."


def test_results_are_told_as_they_come(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        endpoint_module, "send", lambda _m, _u, payload, **_: answer(payload, good_model(payload))
    )
    heard: list[CaseResult] = []
    endpoint = Endpoint("http://server", "m")
    results = run_suite(endpoint, load_cases(["no_tools"]), database=database, on_result=heard.append)
    assert tuple(heard) == results


@pytest.mark.parametrize(
    ("case", "when", "instead", "rule"),
    [
        (
            "weather_one_call",
            "What's the weather like today",
            Say(calls=[("get_current_weather", GLASGOW)]),
            56,
        ),
        ("weather_one_call", "What's the weather like today", Say("It is sunny."), 56),
        ("weather_one_call", "I'm in Glasgow, Scotland.", Say("It rains there."), 56),
        ("weather_one_call", "I'm in Glasgow, Scotland.", Say(calls=[forecast("Glasgow", 1)]), 56),
        (
            "weather_one_call",
            "I'm in Glasgow, Scotland.",
            Say(calls=[("get_current_weather", {**GLASGOW, "location": "Paris"})]),
            56,
        ),
        ("weather_forecast", "5 days", Say(calls=[forecast("Glasgow", 6)]), 56),
        ("weather_parallel", None, Say(calls=[forecast("Glasgow", 4)]), 55),
        ("weather_parallel", None, Say(calls=[forecast("Glasgow", 4), forecast("Glasgow", 4)]), 55),
        ("ask_database", "What is the name of the album with the most tracks?", Say("Greatest Hits."), 54),
        ("ask_database", "tool", Say("The album is called Nonsense."), 53),
        ("ask_database", "tool", Say(calls=[("ask_database", {"query": SQL})]), 53),
        ("no_tools", None, Say(calls=[("get_current_weather", GLASGOW)]), 58),
    ],
)
def test_a_reply_that_is_not_expected_breaks_its_rule_and_ends_the_case(
    play: Play, case: str, when: str | None, instead: Say, rule: int
) -> None:
    def model(request: Mapping[str, Any]) -> Say:
        last = request["messages"][-1]
        return instead if when in (None, last["content"], last["role"]) else good_model(request)

    for result in play(model, case):
        assert not result.passed
        behavioural = [f for f in result.findings if f.severity == "behavioural"]
        assert [finding.rule for finding in behavioural] == [rule]
        assert behavioural[0].where == f"reply {len(result.exchanges)}"
        assert result.error is None


def test_a_corrected_query_is_run_and_passes(play: Play) -> None:
    def model(request: Mapping[str, Any]) -> Say:
        last = request["messages"][-1]
        if last["role"] == "user":
            return Say(calls=[("ask_database", {"query": "SELECT Nope FROM Album"})])
        if "query failed with error: no such column: Nope" in last["content"]:
            return Say(calls=[("ask_database", {"query": SQL})])
        return good_model(request)

    for result in play(model, "ask_database"):
        assert (result.passed, len(result.exchanges)) == (True, 3)


def test_a_model_that_never_stops_calling_is_stopped(play: Play) -> None:
    numbers = itertools.count()

    def model(_: Mapping[str, Any]) -> Say:
        return Say(calls=[("ask_database", {"query": f"SELECT {next(numbers)}"})])

    plain = play(model, "ask_database")[0]
    assert rules(plain) == [54]
    assert len(plain.exchanges) == 5


def test_a_stream_with_other_calls_than_the_plain_reply_is_rule_49(play: Play) -> None:
    def model(request: Mapping[str, Any]) -> Say:
        said = good_model(request)
        if not (said.calls and request["stream"]):
            return said
        return Say(calls=[(name, {**arguments, "format": "fahrenheit"}) for name, arguments in said.calls])

    plain, stream = play(model, "weather_one_call")
    assert (plain.passed, rules(stream)) == (True, [49])
    assert "celsius" in stream.findings[-1].reason
    assert "fahrenheit" in stream.findings[-1].reason


def test_a_server_whose_plain_replies_differ_among_themselves_only_earns_a_warning(play: Play) -> None:
    units = itertools.chain(["celsius"], itertools.repeat("fahrenheit"))

    def model(request: Mapping[str, Any]) -> Say:
        said = good_model(request)
        unit = next(units) if said.calls else ""
        return Say(said.text, [(name, {**arguments, "format": unit}) for name, arguments in said.calls])

    _, stream = play(model, "weather_one_call")
    assert stream.passed
    assert [finding.rule for finding in stream.findings if finding.severity == WARN][-1] == 49


@pytest.mark.parametrize(("refused", "rule"), [({None}, 51), ({None, ""}, 52)])
def test_a_refused_history_is_blamed_on_its_null_content_or_on_its_results(
    play: Play, refused: set[str | None], rule: int
) -> None:
    def model(request: Mapping[str, Any]) -> Say:
        calling = [message for message in request["messages"] if "tool_calls" in message]
        refuse = calling and calling[0]["content"] in refused
        return Say(status=400) if refuse else good_model(request)

    for result in play(model, "ask_database"):
        assert rules(result)[-1] == rule


def test_a_database_without_the_tables_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(UnusableDatabaseError):
        run_suite(Endpoint("http://server", "m"), load_cases(), database=tmp_path / "missing.sqlite")


@pytest.mark.parametrize(
    ("url", "chat"),
    [
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434/v1/chat/completions"),
        ("http://127.0.0.1:11434/v1/", "http://127.0.0.1:11434/v1/chat/completions"),
        ("https://host/api/v4", "https://host/api/v4/chat/completions"),
    ],
)
def test_the_url_may_be_given_with_or_without_a_version(url: str, chat: str) -> None:
    assert Endpoint(url, "m").chat_url == chat
