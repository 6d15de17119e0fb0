"""The fleet's page as a browser shows it: on a desk, on a phone, on paper, in the dark, without a script."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import FLEETS, Open
from tests.browser.contrast import least_contrast

HOSTS_WITH_REPORT = ("gpu01", "gpu02", "gpu03", "gpu04", "gpu07")
HOSTS_IN_ORDER = ("gpu02", "gpu03", "gpu06", "gpu04", "gpu05", "gpu01", "gpu07")


def open_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")


def names_of(page: Page) -> Sequence[str]:
    return page.locator("summary h3").all_inner_texts()


@pytest.mark.parametrize("fleet", FLEETS)
def test_nothing_is_wider_than_the_window(pages: Mapping[str, Path], open_page: Open, fleet: str) -> None:
    page = open_page(pages[fleet])
    open_all(page)
    for width in (1200, 768, 360, 320):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_hosts_that_need_somebody_stand_first_and_each_state_has_its_word_and_shape(
    pages: Mapping[str, Path], open_page: Open
) -> None:
    page = open_page(pages["mixed"])
    assert names_of(page) == list(HOSTS_IN_ORDER)
    states = page.locator("summary .state")
    words = ["fail", "fail", "unreachable", "stale", "never checked", "pass", "pass"]
    assert states.all_inner_texts() == words
    shapes = [states.nth(n).locator("use").get_attribute("href") for n in range(states.count())]
    assert shapes == [f"#mark-{word.replace(' ', '-')}" for word in words]
    drawn = page.evaluate(
        "[...document.querySelectorAll('symbol')].map(one => [one.id, one.innerHTML.trim()])"
    )
    assert len({shape for _, shape in drawn}) == len(drawn)
    assert set(shapes) <= {f"#{name}" for name, _ in drawn}


@pytest.mark.parametrize("fleet", FLEETS)
def test_the_text_is_the_same_without_javascript(
    pages: Mapping[str, Path], open_page: Open, fleet: str
) -> None:
    with_script, without = open_page(pages[fleet]), open_page(pages[fleet], script=False)
    assert without.locator("body").inner_text() == with_script.locator("body").inner_text()
    assert without.locator("script").count() == 0


def test_a_hostile_host_runs_nothing_and_makes_no_element(pages: Mapping[str, Path], open_page: Open) -> None:
    page = open_page(pages["hostile"])
    open_all(page)
    assert page.title().startswith("Fleet health")
    assert page.locator("img, script, iframe, object, embed, form").count() == 0
    assert "<script>document.title='hacked'</script>" in page.locator("body").inner_text()
    handlers = "[...document.querySelectorAll('*')].flatMap(one => one.getAttributeNames())"
    assert not [name for name in page.evaluate(handlers) if name.startswith("on")]
    # Marks that turn text around are told, not followed.
    assert "\u202e" not in page.content()


def test_the_pages_own_policy_stops_a_script_and_a_request(
    pages: Mapping[str, Path], browser: Browser, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.html"
    put_in = "<script>document.title = 'hacked'</script><img src='http://127.0.0.1:9/'>"
    broken.write_text(pages["one"].read_text().replace("</main>", f"{put_in}</main>"))
    with browser.new_context() as context:
        page = context.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("requestfinished", lambda request: asked.append(request.url))
        page.goto(broken.as_uri())
        assert page.title().startswith("Fleet health")
        assert [text for text in said if "script" in text.lower()]
        assert asked == [broken.as_uri()]


def test_the_keyboard_opens_a_host_and_a_link_leads_into_it(
    pages: Mapping[str, Path], open_page: Open
) -> None:
    page = open_page(pages["mixed"], script=True)
    first = page.locator("details").first
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert first.evaluate("one => one.open")
    page.keyboard.press("Space")
    assert not first.evaluate("one => one.open")
    outline = page.locator("summary").first.evaluate("one => getComputedStyle(one).outlineStyle")
    assert outline == "solid"
    link = page.locator("table a", has_text="gpu07").last
    link.focus()
    page.keyboard.press("Enter")
    opened = page.locator("details", has=page.locator("h3", has_text="gpu07"))
    page.wait_for_function("one => one.open", arg=opened.element_handle())


def test_all_of_every_host_is_on_paper_though_nothing_was_opened(
    pages: Mapping[str, Path], open_page: Open
) -> None:
    page = open_page(pages["mixed"], script=False, scheme="dark")
    document = page.pdf(format="A4", outline=True, tagged=True)
    # Chromium makes the outline from the headings that it has laid out.
    titles = [title.decode() for title in re.findall(rb"/Title \(([^)]*)\)", document)]
    assert [titles.count(name) for name in HOSTS_IN_ORDER] == [1] * len(HOSTS_IN_ORDER)
    assert titles.count("Checks") == titles.count("History") == len(HOSTS_WITH_REPORT)
    page.emulate_media(media="print")
    assert page.locator("body").evaluate("one => getComputedStyle(one).color") == "rgb(27, 29, 34)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_that_eyes_need(
    pages: Mapping[str, Path], open_page: Open, scheme: str
) -> None:
    page = open_page(pages["mixed"], scheme=scheme)
    open_all(page)
    ratio, text = least_contrast(page)
    assert ratio >= 4.5, text


@pytest.mark.parametrize("fleet", FLEETS)
def test_what_reads_the_page_aloud_finds_its_way(
    pages: Mapping[str, Path], open_page: Open, fleet: str
) -> None:
    page = open_page(pages[fleet])
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("main").count() == page.locator("h1").count() == 1
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(one => +one.tagName[1])")
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))
    named = page.evaluate(
        "[...document.querySelectorAll('[aria-labelledby]')]"
        ".flatMap(one => one.getAttribute('aria-labelledby').split(' '))"
    )
    assert set(named) <= set(ids)
    targets = page.evaluate("[...document.querySelectorAll('a')].map(one => one.getAttribute('href'))")
    assert {target.removeprefix("#") for target in targets} <= set(ids)
    assert page.locator("th:not([scope])").count() == 0
    pictures = page.locator("svg:not([aria-hidden])")
    assert pictures.count() == page.locator("svg[role=img]").count()
    unnamed = "svg[role=img]:not([aria-label]):not([aria-labelledby]), svg[aria-label='']"
    assert page.locator(unnamed).count() == 0


def test_two_hundred_hosts_begin_with_what_needs_somebody_and_fit_a_phone(
    large_page: Path, open_page: Open
) -> None:
    page = open_page(large_page)
    names = names_of(page)
    assert len(names) == len(set(names)) == 200
    told = page.locator(".counts li")
    counts = {
        told.nth(n).locator(".state").inner_text(): int(told.nth(n).locator("b").inner_text())
        for n in range(told.count())
    }
    assert sum(counts.values()) == 200
    below = page.locator("#hosts").evaluate("one => one.getBoundingClientRect().top")
    assert below < 800, "the summary is longer than the window"
    assert page.locator("figure").count() == 5 * (200 - counts["unreachable"] - counts["never checked"])
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_chart_is_drawn_in_its_box(pages: Mapping[str, Path], open_page: Open) -> None:
    page = open_page(pages["one"])
    boxes = page.evaluate(
        "[...document.querySelectorAll('.chart')].map(one => {"
        " const line = one.querySelector('path').getBBox();"
        " return [line.x, line.y, line.x + line.width, line.y + line.height]})"
    )
    assert len(boxes) == 5
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 120
        assert 0 <= top < bottom <= 100
