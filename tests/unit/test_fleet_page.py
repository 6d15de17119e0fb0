"""The fleet's page without a browser: what hosts have kept, how it is judged, and what is drawn."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthchecks.charts import draw_bar, draw_line, draw_strip
from healthchecks.fleet_page import FleetHost, HostState, render_fleet_page
from healthchecks.health_report import CheckResult, HealthReport, State, render_report
from healthchecks.kept_reports import KeptReports, parse_kept, parse_moment
from healthchecks.results import history_entry
from tests.unit.health_host import NOW, report

AT = NOW.timestamp()


def said(last: HealthReport | None, *history: HealthReport, scheduled: str = "scheduled") -> bytes:
    lines = [str(int(AT)), scheduled, "" if last is None else json.dumps(render_report(last))]
    return "\n".join([*lines, *(json.dumps(history_entry(one)) for one in history)]).encode() + b"\n"


def checked(state: State = State.PASS, **facts: Any) -> HealthReport:
    found = report(**facts)
    return replace(found, checks=(CheckResult("api", state, f"it is {state}"),))


def host(kept: KeptReports | None, period_seconds: float | None = 300.0, **more: Any) -> FleetHost:
    return FleetHost("gpu01", kept, period_seconds, **more)


def test_what_a_host_keeps_is_read_packed_or_not_and_a_cut_line_is_left_out() -> None:
    text = said(checked(), checked(State.WARN), checked()) + b'{"started": "2026-11-'
    for sent in (text, gzip.compress(text)):
        kept = parse_kept(sent)
        assert kept.scheduled
        assert kept.report == checked()
        assert [run.state for run in kept.runs] == [State.WARN, State.PASS]
        assert kept.age_seconds == 300


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"now\nscheduled\n\n",
        b"1\nmaybe\n\n",
        gzip.compress(b"1\nnever\n\n", mtime=0)[:-9],
        b"\x1f\x8bno",
    ],
)
def test_what_is_no_reply_is_refused(sent: bytes) -> None:
    with pytest.raises(ValueError, match="reply"):
        parse_kept(sent)


def test_a_reply_that_unpacks_to_too_much_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than any"):
        parse_kept(gzip.compress(bytes(65 * 1024 * 1024)))


@pytest.mark.parametrize("last", [b"{}", b"[" * 100_000, b'{"format": 2}', b'{"format": 1, "host": 5}'])
def test_a_report_that_cannot_be_read_is_a_reason_and_no_pass(last: bytes) -> None:
    kept = parse_kept(b"1\nscheduled\n" + last + b"\n")
    assert host(kept).state is HostState.UNKNOWN
    assert host(kept).reason.startswith("its last report cannot be read: ")


def test_a_host_has_the_state_of_its_report_while_that_counts() -> None:
    for state in State:
        assert host(parse_kept(said(checked(state)))).state == HostState(state.value)
    old = host(parse_kept(said(checked())), 99.0)
    assert (old.state, old.reason) == (
        HostState.STALE,
        "its last report is 5 min old, due every 99 s, and said pass",
    )
    assert host(parse_kept(said(checked())), 100.0).state is HostState.PASS
    assert host(parse_kept(said(checked())), None).state is HostState.STALE
    undated = replace(checked(), started="soon")
    assert host(parse_kept(said(undated))).reason.startswith("its last report has no date")


def test_a_report_that_is_dated_more_than_a_period_ahead_does_not_count() -> None:
    def dated(seconds: int) -> FleetHost:
        started = (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return host(parse_kept(said(replace(checked(), started=started))))

    assert dated(300).state is HostState.PASS
    ahead = dated(3 * 3600)
    assert (ahead.state, ahead.reason) == (
        HostState.STALE,
        "its last report is dated 3 h ahead of the host's clock, due every 5 min, and said pass",
    )
    page = render_fleet_page([ahead], NOW).decode()
    assert "before it was asked" not in page
    assert "0 s ago" not in page


@pytest.mark.parametrize("started", ["0001-01-01T00:00:00+1400", "9999-12-31T23:59:59-1400"])
def test_a_run_of_a_time_that_no_calendar_has_is_left_out_of_the_page(started: str) -> None:
    assert parse_moment(started) is None
    kept = parse_kept(said(checked(), replace(checked(), started=started), checked()))
    assert len(kept.runs) == 1
    assert "last 1 runs since" in render_fleet_page([host(kept)], NOW).decode()


def test_a_host_without_a_report_is_no_pass() -> None:
    never = host(parse_kept(said(None, scheduled="never")))
    assert (never.state, never.reason) == (HostState.NEVER, "nothing checks this host")
    waits = host(parse_kept(said(None)))
    assert (waits.state, waits.reason) == (HostState.UNKNOWN, "no check has ended yet")
    gone = host(None, problem="no route")
    assert (gone.state, gone.reason) == (HostState.UNREACHABLE, "no route")


def test_hosts_with_the_same_trouble_are_one_line_with_the_first_of_their_names() -> None:
    kept = parse_kept(said(checked(State.FAIL)))
    page = render_fleet_page([replace(host(kept), name=f"gpu{n:02}") for n in range(12)], NOW).decode()
    assert page.count('<td class="names"') == 1
    assert " and 4 more</td>" in page
    assert "12: <a" in page


def test_checks_of_one_host_that_were_not_made_for_one_reason_are_one_line() -> None:
    checks = tuple(CheckResult(name, State.UNKNOWN, "no python3") for name in ("drift", "clock"))
    kept = parse_kept(said(replace(checked(), checks=checks)))
    page = render_fleet_page([host(kept)], NOW).decode()
    assert page.count('<td class="names"') == 1
    assert '<th scope="row" class="lead">drift, clock</th>' in page


def test_a_line_breaks_where_nothing_was_measured_and_shows_the_worst_of_a_place() -> None:
    line = draw_line([(0, 10.0), (1, 10.0), (2, None), (3, 10.0), (4, 5.0)], min)
    assert line is not None
    assert line.path == "M1 4h0L30 4M90 4h0L119 50"
    assert (line.least, line.most, line.last, line.count) == (5.0, 10.0, 5.0, 4)
    crowded = draw_line([(at, 1.0 if at == 500 else 10.0) for at in range(1000)], min)
    assert crowded is not None
    assert crowded.path.count("L") < 120
    assert " 87" in crowded.path, "a minute of trouble in a day is seen"
    assert draw_line([(0, 1.0), (1, None)], min) is None
    # The least that a float can say, which nothing can be divided by.
    tiny = draw_line([(0, 5e-324), (5e-324, 5e-324)], max)
    assert tiny is not None
    assert tiny.path.startswith("M")


def test_a_bar_shows_no_more_than_is_in_use_and_the_rest_as_nobodys() -> None:
    parts = draw_bar(100, 60, [("a", 20), ("b", 30)])
    assert [(part.label, part.left, part.width) for part in parts] == [
        ("a", 0, 20),
        ("b", 20, 30),
        ("", 50, 10),
    ]
    claimed = draw_bar(100, 10, [("a", 20), ("b", 30)])
    assert [(part.label, part.size_bytes, part.width) for part in claimed] == [("a", 20, 10)]
    assert draw_bar(100, 0, [("a", 20)]) == ()


def test_a_strip_joins_runs_of_one_state() -> None:
    spans = draw_strip(["pass", "pass", "fail", "pass"])
    assert [(span.state, span.left, span.width) for span in spans] == [
        ("pass", 0, 50),
        ("fail", 50, 25),
        ("pass", 75, 25),
    ]


class Balanced(HTMLParser):
    """Fails for an element that is not closed, or that could do anything."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "img", "iframe", "object", "embed", "form", "base")
        assert not [name for name, _ in attrs if name.startswith("on") or name == "src"]
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = ("models", "gpus", "unit", "filesystem", "driver", "listeners", "drifted_files", "ollama_version")
OF_MODELS = ("name", "size_bytes", "vram_bytes", "tokens_per_second", "first_token_seconds", "present")
OF_GPUS = ("index", "memory_total_bytes", "memory_used_bytes", "temperature_celsius", "name")


@given(
    facts=st.fixed_dictionaries({}, optional=dict.fromkeys((*KEYS, "api_seconds", "release"), ANYTHING)),
    models=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(OF_MODELS, ANYTHING)), max_size=3),
    gpus=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(OF_GPUS, ANYTHING)), max_size=3),
    name=st.text(),
)
def test_a_host_may_say_anything(facts: Any, models: Any, gpus: Any, name: str) -> None:
    found = checked(State.FAIL, **facts)
    for more in ({}, {"models": models, "gpus": gpus}):
        told = replace(found, host=name, facts={**found.facts, **facts, **more})
        kept = parse_kept(said(told, told, told, checked()))
        Balanced(render_fleet_page([replace(host(kept), name=name)], NOW))
