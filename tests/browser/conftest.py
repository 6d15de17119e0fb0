"""The system's Chromium, in which no page may ask anybody for anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, Route, sync_playwright

from healthchecks.fleet_page import render_fleet_page
from healthchecks.health import HealthReport
from tests.browser import sample_fleet
from tests.browser.chromium import find_chromium

FLEETS = ("mixed", "one", "hostile", "none")
"""The large one is slow to lay out: it has a test of its own."""

Open = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    assert program is not None, "`./fleet test` runs this tier only where there is a Chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program)
        yield started
        started.close()


@pytest.fixture(scope="session")
def real_reports(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, HealthReport]:
    return sample_fleet.real_reports(tmp_path_factory.mktemp("checked"))


@pytest.fixture(scope="session")
def pages(
    real_reports: Mapping[str, HealthReport], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """The page of each fleet, as a file."""
    mixed = sample_fleet.mixed_fleet(real_reports)
    fleets = {
        "mixed": mixed,
        "one": mixed[:1],
        "hostile": sample_fleet.hostile_fleet(real_reports),
        "none": [],
    }
    directory = tmp_path_factory.mktemp("pages")
    for name, hosts in fleets.items():
        (directory / f"{name}.html").write_bytes(render_fleet_page(hosts, sample_fleet.NOW))
    return {name: directory / f"{name}.html" for name in fleets}


@pytest.fixture(scope="session")
def large_page(real_reports: Mapping[str, HealthReport], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two hundred hosts."""
    path = tmp_path_factory.mktemp("large") / "large.html"
    path.write_bytes(render_fleet_page(sample_fleet.large_fleet(real_reports), sample_fleet.NOW))
    return path


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a file; at the end, it must have asked for nothing else and have had nothing to complain of."""
    contexts: list[BrowserContext] = []
    asked: list[str] = []
    said: list[str] = []

    def make(path: Path, *, width: int = 1200, scheme: str = "light", script: bool = True) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if scheme == "dark" else "light",
            java_script_enabled=script,
        )
        contexts.append(context)

        def route(route: Route) -> None:
            if route.request.url.partition("#")[0] == path.as_uri():
                route.continue_()
                return
            asked.append(route.request.url)
            route.abort()

        def hear(message: ConsoleMessage) -> None:
            said.append(message.text)

        def refuse(dialog: Dialog) -> None:
            said.append(dialog.message)
            dialog.dismiss()

        context.route("**/*", route)
        page = context.new_page()
        page.on("console", hear)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", refuse)
        page.goto(path.as_uri())
        return page

    yield make
    for context in contexts:
        context.close()
    assert (asked, said) == ([], [])
