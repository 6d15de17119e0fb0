"""The page of the tool-call suite as a browser shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from healthchecks.page import render_page
from tests.browser.conftest import Open
from tests.unit.suite_reports import FORM, exchange, play, suite_report


@pytest.fixture
def suite_page(tmp_path: Path) -> Path:
    hostile = "<script>document.title='hacked'</script>" + "x" * 2_000
    told = suite_report(play("no_tools", FORM, exchanges=(exchange(hostile.encode()),)))
    path = tmp_path / "smoke.html"
    path.write_bytes(render_page([told]))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_reply_that_is_hostile_and_long_runs_nothing_and_fits_a_phone(
    suite_page: Path, open_page: Open, scheme: str
) -> None:
    page = open_page(suite_page, width=360, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.title() == "Tool calls over /v1"
    assert page.locator("script, img").count() == 0
    assert "<script>document.title='hacked'</script>" in page.locator("pre").last.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_suites_text_is_the_same_without_javascript(suite_page: Path, open_page: Open) -> None:
    with_script, without = open_page(suite_page), open_page(suite_page, script=False)
    assert without.locator("body").inner_text() == with_script.locator("body").inner_text()
