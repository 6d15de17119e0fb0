"""One entry is one line of JSON, read back whatever stands in it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from deploy.journal import parse_entries, render_entry, render_entry_line

AT = datetime(2026, 3, 1, 12, 30, 5, 999, timezone(timedelta(hours=8)))


def test_an_entry_says_when_in_utc_who_what_and_how_it_ended() -> None:
    line = render_entry(
        at=AT,
        who="ana@laptop",
        what="deploy",
        result="done",
        changes=["release 0.17.5", "myqwen2:latest"],
        release="0.17.5",
        seconds=3.5,
    )
    assert json.loads(line) == {
        "at": "2026-03-01T04:30:05Z",
        "who": "ana@laptop",
        "what": "deploy",
        "result": "done",
        "changes": ["release 0.17.5", "myqwen2:latest"],
        "release": "0.17.5",
        "seconds": 3.5,
    }


def test_what_is_not_known_is_left_out() -> None:
    line = render_entry(at=AT, who="ana@laptop", what="remove", result="started", before={})
    assert sorted(json.loads(line)) == ["at", "changes", "result", "what", "who"]


@given(words=st.text())
def test_any_words_stay_on_one_line_and_come_back(words: str) -> None:
    line = render_entry(at=AT, who=words, what="deploy", result=words, changes=[words])
    assert line.isascii()
    assert "\n" not in line
    (entry,) = parse_entries(f"{line}\n")
    assert (entry["who"], entry["result"], entry["changes"]) == (words, words, [words])


def test_a_line_that_was_cut_short_hides_no_other() -> None:
    good = render_entry(at=AT, who="ana@laptop", what="deploy", result="done")
    entries = parse_entries(f'{good}\n{{"at": "2026\n[1]\n\n{good}\n')
    assert [entry.get("text") for entry in entries] == [None, '{"at": "2026', "[1]", None]


def test_an_entry_is_told_in_one_line() -> None:
    line = render_entry(
        at=AT, who="a@b", what="deploy", result="done", changes=["x", "y"], release="1", seconds=2
    )
    assert (
        render_entry_line(json.loads(line)) == "2026-03-01T04:30:05Z  a@b  deploy: done; release 1; x, y; 2 s"
    )
    same = render_entry(at=AT, who="a@b", what="deploy", result="started", changes=["release 1"], release="1")
    assert render_entry_line(json.loads(same)) == "2026-03-01T04:30:05Z  a@b  deploy: started; release 1"
    assert render_entry_line({"text": "half a li"}) == "half a li"
    assert render_entry_line({}) == "?  ?  ?: ?"
