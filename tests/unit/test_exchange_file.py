"""A saved reply or an exchange file: what is read is what was written, and nothing bad is taken for good."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthchecks.exchange_file import InvalidExchangeFileError, parse_saved, render_exchange_file
from healthchecks.toolcalls import Exchange

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=8), JSON, max_size=4)
TOOLS = st.lists(
    st.builds(
        lambda name, function: {"type": "function", "function": {**function, "name": name}},
        st.text(),
        OBJECTS,
    ),
    max_size=2,
)
SECONDS = st.none() | st.floats(0, 1e9)
EXCHANGES = st.builds(
    Exchange,
    OBJECTS,
    st.none() | st.integers(100, 599),
    st.none() | st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()),
    SECONDS,
    SECONDS,
    st.none() | st.text(max_size=8),
    st.sampled_from([None, {"rule": 60, "error": [404]}, {"rule": 57, "text": {"any_of": ["a", "b"]}}]),
)


@given(st.lists(EXCHANGES, min_size=1, max_size=3), st.none() | TOOLS)
def test_what_was_written_is_what_is_read(
    exchanges: list[Exchange], tools: list[dict[str, Any]] | None
) -> None:
    saved = parse_saved(render_exchange_file(exchanges, tools=tools))
    assert list(saved.exchanges) == exchanges
    assert saved.tools == (None if tools is None else tuple(tools))
    assert not saved.bare


@given(st.binary(max_size=200))
def test_any_bytes_are_a_reply(data: bytes) -> None:
    saved = parse_saved(data)
    assert saved.bare
    assert len(saved.exchanges) == 1


@pytest.mark.parametrize(
    "reply",
    [
        b'{"object": "chat.completion", "choices": [], "request": {}}',
        b'data: {"request": {}, "exchanges": []}\n\ndata: [DONE]\n\n',
        b': ping\n\ndata: {"exchanges": 1}\n\n',
        b"<html>",
        b"",
        b'{"exchanges": [',
        b"[" * 5000 + b'"request"',
    ],
)
def test_a_reply_stays_a_reply_whatever_words_it_holds(reply: bytes) -> None:
    saved = parse_saved(reply)
    assert saved.bare
    assert saved.exchanges == (Exchange({}, None, None, reply),)


def test_the_mark_that_an_editor_put_before_a_reply_is_not_the_servers() -> None:
    assert parse_saved(b'\xef\xbb\xbf{"id": "x"}').exchanges[0].body == b'{"id": "x"}'


EXCHANGE = {"request": {"model": "m"}, "status": 200, "body": "{}"}


@pytest.mark.parametrize("document", [{"exchanges": [EXCHANGE]}, [EXCHANGE], EXCHANGE])
def test_the_list_may_stand_alone_and_so_may_an_exchange(document: Any) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        saved = parse_saved(mark + json.dumps(document).encode())
        assert saved.exchanges == (Exchange({"model": "m"}, 200, None, b"{}"),)
        assert not saved.bare


def test_a_body_may_be_written_as_the_json_it_is() -> None:
    (exchange,) = parse_saved(json.dumps({**EXCHANGE, "body": {"id": "x"}}).encode()).exchanges
    assert json.loads(exchange.body) == {"id": "x"}


def test_the_tools_of_a_file_may_be_bare_functions_as_those_of_the_flag() -> None:
    bare = {"name": "look_up", "parameters": {"type": "object"}}
    for tool in (bare, {"type": "function", "function": bare}):
        saved = parse_saved(json.dumps({"exchanges": [EXCHANGE], "tools": [tool]}).encode())
        assert saved.tools == ({"type": "function", "function": bare},)


def test_bytes_that_are_no_text_are_kept_as_base64() -> None:
    written = json.loads(render_exchange_file([Exchange({}, 200, None, b"\xff\x00")]))
    assert written["exchanges"][0] == {
        "request": {},
        "status": 200,
        "body_base64": base64.b64encode(b"\xff\x00").decode(),
    }


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"request": 7}, "[0].request"),
        ({"status": "200"}, "[0].status"),
        ({"status": True}, "[0].status"),
        ({"headers": ["a"]}, "[0].headers"),
        ({"headers": {"a": 1}}, "[0].headers"),
        ({"body": 7}, "[0].body"),
        ({"body_base64": "*"}, "[0].body_base64"),
        ({"body_base64": 7}, "[0].body_base64"),
        ({"started_seconds": "now"}, "[0].started_seconds"),
        ({"seconds": 10**400}, "[0].seconds"),
        ({"error": 7}, "[0].error"),
        ({"expect": []}, "[0].expect"),
        ({"expect": {"rule": 1, "text": {}}}, "[0].expect"),
        ({"expect": {"rule": 55}}, "[0].expect"),
        ({"expect": {"rule": 60, "error": [200]}}, "[0].expect"),
    ],
)
def test_an_exchange_that_is_none_is_refused_with_its_place(change: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidExchangeFileError) as caught:
        parse_saved(json.dumps([{**EXCHANGE, **change}]).encode())
    assert caught.value.where.removeprefix("exchanges") == where


@pytest.mark.parametrize(
    "document", [{"exchanges": []}, {"exchanges": {}}, {"exchanges": [7]}, [EXCHANGE, 7]]
)
def test_a_file_without_exchanges_is_refused(document: Any) -> None:
    with pytest.raises(InvalidExchangeFileError):
        parse_saved(json.dumps(document).encode())


def test_a_recording_of_the_tests_is_no_exchange_file() -> None:
    recording = {"case": "x", "exchanges": [{"variant": "v1", "request": {"body": {}}, "response": {}}]}
    with pytest.raises(InvalidExchangeFileError, match="no `body`"):
        parse_saved(json.dumps(recording).encode())


def test_no_reply_at_all_needs_no_body() -> None:
    given = {"request": {}, "error": "connection refused"}
    assert parse_saved(json.dumps(given).encode()).exchanges[0].body == b""
