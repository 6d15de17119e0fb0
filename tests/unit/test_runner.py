"""The runner plays whole conversations; here the server is a function, broken in one way at a time."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from healthchecks import endpoint as endpoint_module
from healthchecks.case import parse_case
from healthchecks.database import UnusableDatabaseError, make_database, most_tracks_album
from healthchecks.runner import CaseResult, Endpoint, load_cases, run_suite
from healthchecks.toolcalls import WARN, Verdict
from healthchecks.toolcalls.conversation import judge_conversation
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
    refusal: str = "refused"
    prompt_tokens: int | None = 5
    id_: str | None = None


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
            "error": {
                "message": say.refusal,
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
        }
        return Answer(say.status, {"Content-Type": "application/json"}, json.dumps(error).encode())
    calls = [
        {
            "id": say.id_ or f"call_{next(CALL_IDS)}",
            "index": index,
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for index, (name, arguments) in enumerate(say.calls)
    ]
    message = {"role": "assistant", "content": None, "tool_calls": calls} if calls else {}
    message = message or {"role": "assistant", "content": say.text}
    finish = "tool_calls" if calls else "stop"
    prompt = say.prompt_tokens
    usage = {"prompt_tokens": prompt, "completion_tokens": 7, "total_tokens": 7 + (prompt or 0)}
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
    def run(
        model: Model,
        *names: str,
        sent: list[Mapping[str, Any]] | None = None,
        runs: int = 1,
        server: str | None = None,
    ) -> tuple[CaseResult, ...]:
        def send(method: str, url: str, payload: Mapping[str, Any], **_: object) -> Answer:
            assert (method, url) == ("POST", "http://server/v1/chat/completions")
            if sent is not None:
                sent.append(payload)
            return answer(payload, model(payload))

        monkeypatch.setattr(endpoint_module, "send", send)
        cases = load_cases(names or None, "core")
        return run_suite(Endpoint("http://server", "m", server=server), cases, database=database, runs=runs)

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


@pytest.mark.parametrize(("plain", "streamed", "same"), [(1, True, False), (1, 1.0, True), (0, False, False)])
def test_calls_are_the_same_where_their_json_is(
    play_custom: Custom, plain: object, streamed: object, same: bool
) -> None:
    def model(request: Mapping[str, Any]) -> Say:
        return Say(calls=[("look_up", {"y": [streamed if request["stream"] else plain]})])

    _, stream = play_custom(model, turns=one_turn(55, call_of=["look_up"]))
    assert (49 in rules(stream)) is not same


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


TOOLS = {
    name: {"description": name, "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
    for name in ("look_up", "put_down")
}
Custom = Callable[..., tuple[CaseResult, ...]]


@pytest.fixture
def play_custom(database: Path, monkeypatch: pytest.MonkeyPatch) -> Custom:
    """Plays a case of the test's own against a model."""

    def run(
        model: Model, server: str | None = None, sent: list[Mapping[str, Any]] | None = None, **case: object
    ) -> tuple[CaseResult, ...]:
        def send(_: str, __: str, payload: Mapping[str, Any], **___: object) -> Answer:
            if sent is not None:
                sent.append(payload)
            return answer(payload, model(payload))

        monkeypatch.setattr(endpoint_module, "send", send)
        text = json.dumps({"about": "x", "level": "extended", "tools": list(TOOLS), **case})
        endpoint = Endpoint("http://server", "m", server=server)
        return run_suite(endpoint, [parse_case("own", text, TOOLS)], database=database)

    return run


def one_turn(rule: int, request: object = None, **expect: object) -> list[Mapping[str, object]]:
    asked: dict[str, object] = {"user": "go", "expect": {"rule": rule, **expect}}
    return [{**asked, "request": request} if request else asked]


def severities(results: Sequence[CaseResult]) -> list[list[tuple[int, str, str | None]]]:
    return [[(f.rule, f.severity, f.known) for f in result.findings] for result in results]


LOOKING = Say(calls=[("look_up", {"x": 1})])


@pytest.mark.parametrize(
    ("expect", "good", "bad"),
    [
        ({"call_of": ["look_up"]}, LOOKING, Say("no")),
        ({"call_of": ["look_up"]}, LOOKING, Say(calls=[("put_down", {"x": 1})])),
        ({"call_of": ["look_up"]}, Say(calls=[*LOOKING.calls, ("look_up", {"x": 2})]), Say("")),
        ({"text": {}}, Say("no"), LOOKING),
    ],
)
def test_a_choice_that_is_ignored_is_rule_59_and_known_of_ollama_only(
    play_custom: Custom, expect: Mapping[str, object], good: Say, bad: Say
) -> None:
    turns = one_turn(59, {"tool_choice": "required"}, **expect)
    assert severities(play_custom(lambda _: good, turns=turns)) == [[], []]
    assert (59, "interop", None) in severities(play_custom(lambda _: bad, turns=turns))[0]
    known = play_custom(lambda _: bad, turns=turns, server="ollama/0.17.5")
    assert (59, "warn", "ollama#17921") in severities(known)[1]


def test_a_choice_that_is_refused_is_as_good_where_the_case_says_so(play_custom: Custom) -> None:
    told = "tool_choice `required` is not supported"
    turns = one_turn(59, {"tool_choice": "required"}, call_of=["look_up"])
    refused = play_custom(lambda _: Say(status=400, refusal=told), turns=turns)
    assert [1 in rules(result) for result in refused] == [True, True]
    turns = one_turn(59, {"tool_choice": "required"}, call_of=["look_up"], may_refuse=True)
    for status in (400, 422, 501):
        assert severities(play_custom(lambda _, s=status: Say(status=s, refusal=told), turns=turns)) == [
            [],
            [],
        ]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (400, "refused"),
        (401, "no key; tool_choice was not looked at"),
        (404, "model `m` not found"),
        (429, "too many requests"),
        (500, "tool_choice"),
    ],
)
def test_an_error_that_is_no_refusal_of_the_choice_is_rule_1(
    play_custom: Custom, status: int, told: str
) -> None:
    turns = one_turn(59, {"tool_choice": "required"}, call_of=["look_up"], may_refuse=True)
    for result in play_custom(lambda _: Say(status=status, refusal=told), turns=turns):
        assert severities([result]) == [[(1, "must", None)]]
        again = judge_conversation(result.exchanges)
        assert {finding.rule for finding in again.findings} == {1}


@pytest.mark.parametrize(
    "body",
    [
        "data: [DONE]\n\n",
        ": OPENROUTER PROCESSING\n\ndata: [DONE]\n\n",
        "event: ping\ndata: {}\n\ndata: [DONE]\n\n",
        'data: {"id": "", "choices": [], "prompt_filter_results": []}\n\ndata: [DONE]\n\n',
    ],
)
def test_a_stream_without_a_chunk_passes_no_case(
    database: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    def send(_: str, __: str, payload: Mapping[str, Any], **___: object) -> Answer:
        if payload.get("stream") is True:
            return Answer(200, {"Content-Type": "text/event-stream"}, body.encode())
        return answer(payload, good_model(payload))

    monkeypatch.setattr(endpoint_module, "send", send)
    results = run_suite(Endpoint("http://server", "m"), load_cases(None, "core"), database=database)
    assert {(result.mode, result.passed) for result in results} == {("plain", True), ("stream", False)}
    assert {rule for result in results if result.mode == "stream" for rule in rules(result)} == {44}


def test_no_reply_is_a_fault_even_where_the_judge_found_none(
    play_custom: Custom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "judge", lambda *_, **__: Verdict((), (), None))
    results = play_custom(lambda _: LOOKING, turns=one_turn(57, text={}))
    assert severities(results) == [[(1, "must", None)], [(1, "must", None)]]


def test_what_a_turn_says_besides_is_in_its_request_only(play_custom: Custom) -> None:
    sent: list[Mapping[str, Any]] = []
    turns = [*one_turn(57, {"max_tokens": 9, "tool_choice": "none"}, text={}), *one_turn(57, text={})]
    play_custom(lambda _: Say("yes"), sent=sent, turns=turns)
    assert [(r["max_tokens"], r.get("tool_choice")) for r in sent] == [(9, "none"), (512, None)] * 2


def test_an_end_that_is_not_length_is_rule_62(play_custom: Custom) -> None:
    turns = one_turn(62, {"max_tokens": 5}, finish="length")
    for result in play_custom(lambda _: LOOKING, turns=turns):
        assert severities([result]) == [[(62, "interop", None)]]
        assert result.findings[0].reason == "`length` expected as the end, `tool_calls` came"


@pytest.mark.parametrize(
    ("counts", "broken"), [((90, 20), []), ((20, 20), [61]), ((10, 20), [61]), ((None, 20), [11, 61])]
)
def test_a_prompt_that_does_not_grow_with_tools_is_rule_61(
    play_custom: Custom, counts: tuple[int | None, int], broken: list[int]
) -> None:
    def model(request: Mapping[str, Any]) -> Say:
        return Say("yes", prompt_tokens=counts[0] if "tools" in request else counts[1])

    for result in play_custom(model, turns=one_turn(61, prompt_grows=True)):
        assert rules(result) == broken
        # Both exchanges are kept; the finding is about the first.
        assert ["tools" in exchange.request for exchange in result.exchanges] == [True, False]
        assert {finding.where for finding in result.findings if finding.rule == 61} <= {"reply 1"}


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (404, {"error": {"message": "no", "type": "api_error"}}, None),
        (200, {"error": {"message": "no", "type": "api_error"}}, "HTTP 200 came"),
        (500, {"error": {"message": "no", "type": "api_error"}}, "HTTP 500 came"),
        (404, {"error": "no"}, "HTTP 404 without an `error` object"),
        (404, {"error": {"message": "no"}}, "the error object has no text in `type`"),
        (404, None, "HTTP 404 without JSON"),
    ],
)
def test_an_error_that_does_not_come_as_it_must_is_rule_60(
    database: Path, status: int, body: object, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = b"<html>" if body is None else json.dumps(body).encode()
    turns = one_turn(60, {"model": "nope"}, error=[404])
    case = parse_case("own", json.dumps({"about": "x", "level": "core", "tools": [], "turns": turns}), {})
    monkeypatch.setattr(endpoint_module, "send", lambda *_, **__: Answer(status, {}, raw))
    (result,) = run_suite(Endpoint("http://server", "m"), [case], database=database, modes=["plain"])
    assert rules(result) == ([60] if reason else [])
    if reason:
        assert f'with `model` "nope": {reason}' in result.findings[0].reason


def test_several_errors_are_asked_for_and_stay_out_of_the_history(play_custom: Custom) -> None:
    sent: list[Mapping[str, Any]] = []
    turns = [
        *one_turn(60, {"messages": "x"}, error=[400]),
        *one_turn(60, {"tools": 5}, error=[400]),
        *one_turn(57, text={}),
    ]

    def model(request: Mapping[str, Any]) -> Say:
        wrong = request["messages"] == "x" or request.get("tools") == 5
        return Say(status=400) if wrong else Say("yes")

    assert severities(play_custom(model, turns=turns, sent=sent)) == [[], []]
    assert sent[1]["messages"] == sent[2]["messages"] == [{"role": "user", "content": "go"}]


def test_results_are_sent_in_parts_where_the_case_says_so(play_custom: Custom) -> None:
    sent: list[Mapping[str, Any]] = []
    parts = {"results": {"look_up": {"parts": ["a", "b"]}}, "expect": {"rule": 53, "text": {"contains": "b"}}}
    turns = [*one_turn(55, calls=[{"name": "look_up", "arguments": {}}]), parts]
    talk = play_custom(
        lambda r: Say("a b") if r["messages"][-1]["role"] == "tool" else LOOKING, turns=turns, sent=sent
    )
    assert [result.passed for result in talk] == [True, True]
    assert sent[1]["messages"][-1]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]


def test_a_refused_history_of_the_case_is_blamed_too(play_custom: Custom) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    history = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "found"},
    ]

    def model(request: Mapping[str, Any]) -> Say:
        return Say(status=400) if any(m["content"] is None for m in request["messages"]) else Say("found")

    for result in play_custom(model, history=history, turns=one_turn(53, text={})):
        assert rules(result) == [1, 51]


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500])
def test_an_error_that_is_not_about_the_request_is_not_laid_to_its_history(play: Play, status: int) -> None:
    def model(request: Mapping[str, Any]) -> Say:
        has_results = any(message["role"] == "tool" for message in request["messages"])
        return Say(status=status) if has_results else good_model(request)

    for result in play(model, "ask_database"):
        assert rules(result) == [1]


def test_each_case_is_played_as_often_as_asked(play: Play) -> None:
    results = play(good_model, "no_tools", "weather_parallel", runs=3)
    assert [(r.case, r.run, r.mode) for r in results] == [
        (case, run, mode)
        for case in ("no_tools", "weather_parallel")
        for run in (1, 2, 3)
        for mode in ("plain", "stream")
    ]


CONCURRENT = [{"user": "look up {n}", "expect": {"rule": 63, "calls": [
    {"name": "look_up", "arguments": {"x": {"equals": "{n}"}}}]}}]  # fmt: skip


def number_of(request: Mapping[str, Any]) -> int:
    return int(request["messages"][-1]["content"].split()[-1])


def test_concurrent_conversations_are_held_at_once_each_with_its_number(play_custom: Custom) -> None:
    all_there = threading.Barrier(4, timeout=20)

    def model(request: Mapping[str, Any]) -> Say:
        all_there.wait()
        return Say(calls=[("look_up", {"x": number_of(request)})])

    results = play_custom(model, concurrent=4, turns=CONCURRENT)
    assert [(result.passed, len(result.exchanges)) for result in results] == [(True, 4), (True, 4)]


def test_arguments_of_another_conversation_are_rule_63(play_custom: Custom) -> None:
    def model(request: Mapping[str, Any]) -> Say:
        return Say(calls=[("look_up", {"x": {1: 2, 2: 1}.get(number_of(request), number_of(request))})])

    for result in play_custom(model, concurrent=3, turns=CONCURRENT):
        assert [(finding.rule, finding.where) for finding in result.findings] == [
            (63, "conversation 1, reply 1"),
            (63, "conversation 2, reply 1"),
        ]
        assert result.findings[0].reason == "`look_up` came with `x` = 2, expected 1"


def test_arguments_of_no_conversation_are_the_models_doing(play_custom: Custom) -> None:
    def model(request: Mapping[str, Any]) -> Say:
        return Say(calls=[("look_up", {"x": 7 if number_of(request) == 1 else number_of(request)})])

    for result in play_custom(model, concurrent=3, turns=CONCURRENT):
        (finding,) = result.findings
        assert (finding.rule, finding.where) == (55, "conversation 1, reply 1")


def test_a_call_of_another_conversation_beside_the_own_one_is_rule_63(play_custom: Custom) -> None:
    def model(request: Mapping[str, Any]) -> Say:
        calls = [("look_up", {"x": number_of(request)})]
        return Say(calls=[*calls, ("look_up", {"x": 2})] if number_of(request) == 1 else calls)

    for result in play_custom(model, concurrent=2, turns=CONCURRENT):
        (finding,) = result.findings
        assert (finding.rule, finding.where) == (63, "conversation 1, reply 1")


def test_an_id_of_another_conversation_is_rule_63(play_custom: Custom) -> None:
    def model(request: Mapping[str, Any]) -> Say:
        return Say(calls=[("look_up", {"x": number_of(request)})], id_="call_same")

    for result in play_custom(model, concurrent=2, turns=CONCURRENT):
        (finding,) = result.findings
        assert (finding.rule, finding.where) == (63, "conversation 2")
        assert finding.reason == "a call has the id `call_same`, as one of conversation 1"


@pytest.mark.parametrize("id_", ["functions.look_up:0", "call_1", "0"])
def test_ids_that_merely_count_may_be_those_of_another_conversation(play_custom: Custom, id_: str) -> None:
    def model(request: Mapping[str, Any]) -> Say:
        return Say(calls=[("look_up", {"x": number_of(request)})], id_=id_)

    for result in play_custom(model, concurrent=2, turns=CONCURRENT):
        assert result.findings == ()


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
