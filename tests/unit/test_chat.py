"""`chat` without a socket: what it shows, which tools it declares, how it reads its words."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from console.chat import parse_sampling
from console.chat_argv import with_prompt_flag
from console.chat_tools import ToolSet, tool_set
from console.chat_view import ChatView, printable, render_turn, wants_colour
from deploy.errors import UsageError
from deploy.report import Report
from healthchecks.toolcalls import Call

SHOWN = """num_ctx                        8192
stop                           "<|im_start|>"
stop                           "temperature 2"
top_p                          0.8
temperature                    0.7"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def call(name: Any, arguments: Mapping[str, Any] | None) -> Call:
    return Call(id="call_1", name=name, raw_arguments=json.dumps(arguments), arguments=arguments, index=0)


@pytest.fixture
def weather() -> ToolSet:
    with tool_set("weather", None) as tools:
        assert tools is not None
        return tools


def test_temperature_and_top_p_are_read_from_what_the_server_shows() -> None:
    assert parse_sampling(SHOWN) == {"temperature": 0.7, "top_p": 0.8}


def test_a_model_that_states_no_sampling_has_none() -> None:
    assert parse_sampling('num_ctx                        8192\nstop    "x"') == {}


@pytest.mark.parametrize(
    ("role", "code"), [("system", 31), ("user", 32), ("assistant", 34), ("function", 35)]
)
def test_every_role_has_the_colour_of_the_cookbook(role: str, code: int) -> None:
    assert render_turn(role, "Hi", colour=True) == f"\x1b[{code}m{role}: Hi\x1b[0m\n"
    assert render_turn(role, "Hi", colour=False) == f"{role}: Hi\n"


def test_a_function_is_named_with_its_result() -> None:
    shown = render_turn("function", "[('X',)]", colour=False, name="ask_database")
    assert shown == "function (ask_database): [('X',)]\n"


def test_what_a_model_says_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b]0;title\x07b\x9b2Jc\r\nd\te\x7f") == "a\\x1b]0;title\\x07b\\x9b2Jc\nd\te\\x7f"
    assert "\x1b[2J" not in render_turn("function", "\x1b[2J", colour=True, name="\x1b[2J")


@pytest.mark.parametrize(
    ("stream", "environment", "wanted"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_colours_only_on_a_terminal_that_wants_them(
    stream: io.StringIO, environment: dict[str, str], wanted: bool
) -> None:
    assert wants_colour(stream, environment) is wanted


def view_on(stream: io.StringIO, *, as_json: bool = False) -> ChatView:
    report = Report(as_json=as_json, stdout=stream, stderr=io.StringIO())
    return ChatView(report, "box", as_json=as_json, stdout=stream)


def test_pieces_of_an_answer_are_one_line_in_one_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with view_on(terminal).answering() as tell:
        tell("Hel")
        tell("lo")
    assert terminal.getvalue() == "\x1b[34massistant: Hello\x1b[0m\n"


def test_an_answer_that_breaks_off_ends_its_line_and_its_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()

    def break_off() -> None:
        with view_on(terminal).answering() as tell:
            tell("Hel")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert terminal.getvalue() == "\x1b[34massistant: Hel\x1b[0m\n"


def test_an_answer_of_calls_alone_shows_no_empty_line() -> None:
    stream = io.StringIO()
    with view_on(stream).answering():
        pass
    assert stream.getvalue() == ""


def test_with_json_there_are_only_events() -> None:
    stream = io.StringIO()
    view = view_on(stream, as_json=True)
    view.turn("user", "a\x1bb")
    with view.answering() as tell:
        tell("é")
    view.call("f", "{}")
    view.hint("words", rule=21)
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"event": "message", "host": "box", "role": "user", "content": "a\x1bb"},
        {"event": "delta", "host": "box", "text": "é"},
        {"event": "finding", "host": "box", "rule": 21},
    ]


def test_readline_is_told_which_part_of_the_prompt_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert view_on(Terminal()).prompt(for_readline=True) == "\x01\x1b[32m\x02user: "
    assert view_on(Terminal()).prompt(for_readline=False) == "\x1b[32muser: "
    assert view_on(io.StringIO()).prompt(for_readline=True) == "user: "


def test_the_weather_is_the_same_twice_and_says_that_it_is_a_stub(weather: ToolSet) -> None:
    asked = call("get_current_weather", {"location": "Glasgow", "format": "celsius"})
    assert weather.result(asked) == weather.result(asked)
    assert weather.result(asked).endswith("degrees celsius (stub: invented numbers)")
    days = call("get_n_day_weather_forecast", {"location": "Oslo", "format": "fahrenheit", "num_days": 3})
    temperatures, _, rest = weather.result(days).partition(" degrees ")
    assert len(temperatures.split(", ")) == 3
    assert rest == "fahrenheit (stub: invented numbers)"
    assert "stub" in weather.about


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("nope", {}, "there is no function `nope`; there are get_current_weather, get_n_day"),
        (None, {}, "there is no function `None`"),
        ("get_current_weather", None, "are not a JSON object"),
        ("get_current_weather", {"location": "Oslo"}, "'format' is a required property"),
        ("get_current_weather", {"location": "Oslo", "format": "kelvin"}, "format: 'kelvin' is not one of"),
        (
            "get_n_day_weather_forecast",
            {"location": "Oslo", "format": "celsius", "num_days": 10**9},
            "`num_days` must be 1 to 14",
        ),
    ],
)
def test_a_call_that_cannot_be_answered_tells_the_model_why(
    weather: ToolSet, name: Any, arguments: Mapping[str, Any] | None, said: str
) -> None:
    result = weather.result(call(name, arguments))
    assert result.startswith("error: ")
    assert said in result


def test_the_database_is_described_to_the_model_and_only_read() -> None:
    with tool_set("database", None) as tools:
        assert tools is not None
        assert (
            "Table: Album\n"
            in tools.declared[0]["function"]["parameters"]["properties"]["query"]["description"]
        )
        assert tools.result(call("ask_database", {"query": "SELECT COUNT(*) FROM Album"})).startswith("[(")
        dropped = tools.result(call("ask_database", {"query": "DROP TABLE Album"}))
        assert dropped.startswith("query failed with error: ")


@pytest.mark.parametrize(
    ("name", "database", "said"),
    [
        ("wether", None, "`--tools wether` names no tools"),
        ("weather", Path("x.db"), "says nothing without `--tools database`"),
        ("database", Path("missing.db"), "`--database missing.db` cannot be used"),
    ],
)
def test_tools_that_cannot_be_meant_are_refused(name: str, database: Path | None, said: str) -> None:
    with pytest.raises(UsageError) as refused, tool_set(name, database):
        pass
    assert said in refused.value.sentence


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["chat"], ["chat"]),
        (["chat", "Hello there"], ["chat", "--prompt=Hello there"]),
        (["chat", "--json", "Hi"], ["chat", "--json", "--prompt=Hi"]),
        (["chat", "--tools", "weather", "Hi"], ["chat", "--tools", "weather", "--prompt=Hi"]),
        (["chat", "a=b?", "--tools=weather"], ["chat", "--prompt=a=b?", "--tools=weather"]),
        (["chat", "-t", "weather", "-lbox", "Hi"], ["chat", "-t", "weather", "-lbox", "--prompt=Hi"]),
        (["chat", "--prompt", "Hi"], ["chat", "--prompt", "Hi"]),
        (["smoke", "Hi"], ["smoke", "Hi"]),
        ([], []),
    ],
)
def test_a_question_needs_no_flag(given: list[str], meant: list[str]) -> None:
    assert with_prompt_flag(given) == meant
