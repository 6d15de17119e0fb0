"""The page for people: nothing on it runs, whatever servers reply."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from healthchecks.html import SHOWN_CHARACTERS
from healthchecks.page import render_page
from healthchecks.suite_report import SuiteReport
from healthchecks.toolcalls import Finding
from tests.unit.suite_reports import BEHAVIOUR, FORM, WARNING, exchange, play, suite_report

VOID = {"meta", "br"}
ALLOWED = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "section",
        "article",
        "details",
        "summary",
        "h1",
        "h2",
    ),
    *(
        "h3",
        "p",
        "span",
        "strong",
        "code",
        "ul",
        "li",
        "pre",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "a",
        "br",
    ),
}


class Page(HTMLParser):
    """Reads a page; fails for what is not closed, not allowed or could do anything."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.text = ""
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.source = page.decode()
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED, tag
        for name, value in attrs:
            assert not name.startswith("on")
            assert name != "src"
            assert name != "href" or str(value).startswith("#suite-")
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def page(*reports: SuiteReport) -> Page:
    return Page(render_page(reports))


def test_it_says_what_failed_by_which_rule_and_shows_the_raw_exchange() -> None:
    made = page(
        suite_report(
            play("weather_parallel", FORM, WARNING, mode="stream", exchanges=[exchange(b"<tool_call>{}")]),
            play("no_tools"),
        )
    )
    assert "FAILED weather_parallel (stream)" in made.text
    assert "rule 30 (interop), content: the text holds `<tool_call>`" in made.text
    assert "known: ollama <0.32.6" in made.text
    assert "<tool_call>{}" in made.text
    assert "Content-Type: application/json" in made.text
    assert '"content": "weather?"' in made.text
    assert "1 passed" in made.text
    assert "ollama/0.17.5, simulated" in made.text


def test_what_does_not_count_is_told_with_what_passed() -> None:
    made = page(suite_report(play("weather_parallel", BEHAVIOUR), strict=False))
    assert "FAILED" not in made.text
    assert "rule 55 (behavioural): one call came" in made.text


def test_a_host_that_could_not_be_asked_is_on_it() -> None:
    made = page(SuiteReport("box", "m:latest", obstacles=("no Ollama answers",)))
    assert "no Ollama answers" in made.text
    assert "unknown server" in made.text


def test_it_needs_nothing_else_and_fits_small_screens_and_paper() -> None:
    made = page(suite_report(play("no_tools")))
    assert "default-src 'none'" in made.source
    assert 'name="viewport" content="width=device-width' in made.source
    assert "@media print" in made.source
    assert "http://" not in made.source
    assert "https://" not in made.source


@given(st.text(st.characters(exclude_categories=())), st.binary())
def test_whatever_a_server_replies_stays_text(text: str, body: bytes) -> None:
    hostile = Finding(30, "interop", text, text)
    page(
        suite_report(play("no_tools", hostile, exchanges=[exchange(body)], error=text), host=text, model=text)
    )


def test_a_script_in_a_reply_is_shown_and_is_no_script() -> None:
    attack = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>"
    hostile = Finding(30, "interop", attack, attack)
    made = page(suite_report(play("no_tools", hostile, exchanges=[exchange(attack.encode())]), host=attack))
    assert made.text.count(attack) >= 4


def test_what_cannot_be_seen_is_shown_as_its_escape() -> None:
    hostile = Finding(30, "interop", "content", "safe\u202egnp.exe\x1b[2J\ud800")
    made = page(suite_report(play("no_tools", hostile)))
    assert r"safe\u202egnp.exe\x1b[2J\ud800" in made.text


def test_a_huge_body_is_cut_and_says_so() -> None:
    body = b"x" * (SHOWN_CHARACTERS + 7)
    assert (
        "... 7 characters more" in page(suite_report(play("no_tools", FORM, exchanges=[exchange(body)]))).text
    )
