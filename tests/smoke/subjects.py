"""What tests/smoke is about: the models of an inventory's hosts, or one endpoint."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from console.proof import Suite, cases_for, check_cases, endpoint_of, examine_model
from console.run import Run, make_sources, transport_for
from console.smoke import AskedEndpoint, level_of, reach, request_for
from deploy.desired import Desired, DesiredModel
from deploy.errors import FleetError, render_error
from deploy.report import Report
from healthchecks.case import Case, load_cases
from healthchecks.runner import CaseResult, Endpoint
from healthchecks.suite_report import SuiteReport

_FLAG = re.compile(r"(?<![\w-])--(?=(?:inventory|limit|url|model|key-env|level|server)\b)")

Opened = tuple[Endpoint | None, SuiteReport]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One model on one server. `open` reaches it and says what can be known before the suite is played."""

    name: str
    cases: tuple[Case, ...]
    open: Callable[[Suite, ExitStack], Opened]


@dataclass(slots=True, kw_only=True)
class Stage:
    """What all tests of a run share: each server is reached once, each case played once in both modes."""

    suite: Suite
    opened: ExitStack
    known: dict[str, Opened] = field(default_factory=dict)
    played: dict[tuple[str, str], dict[str, CaseResult]] = field(default_factory=dict)

    def reach(self, subject: Subject) -> Opened:
        if subject.name not in self.known:
            try:
                self.known[subject.name] = subject.open(self.suite, self.opened)
            except FleetError as error:
                told = SuiteReport(subject.name, subject.name, obstacles=(render_error(error),))
                self.known[subject.name] = (None, told)
        return self.known[subject.name]

    def play(self, subject: Subject, case: Case, mode: str) -> CaseResult:
        """Fails the test where the server cannot be asked."""
        endpoint, told = self.reach(subject)
        if endpoint is None:
            pytest.fail("\n".join(told.obstacles), pytrace=False)
        key = (subject.name, case.name)
        if key not in self.played:
            results = self.suite.play(told.host, endpoint, [case])
            self.played[key] = {result.mode: result for result in results}
        return self.played[key][mode]


def make_subjects(config: pytest.Config) -> tuple[Subject, ...]:
    """As the options say; none without them. Raises FleetError for what cannot be meant."""
    inventory, url = config.getoption("fleet_inventory", None), config.getoption("fleet_url", None)
    level = config.getoption("fleet_level", None)
    check_cases(None, level)
    if url is not None:
        asked = AskedEndpoint(
            url=url,
            model=config.getoption("fleet_model"),
            key_env=config.getoption("fleet_key_env"),
            server=config.getoption("fleet_server"),
        )
        return (_endpoint_subject(asked, asked.endpoint(), level),)
    if inventory is None:
        return ()
    run = Run(
        report=silent_report(),
        sources=make_sources(inventory, None),
        limit=config.getoption("fleet_limit"),
        forks=1,
        stop_requested=threading.Event(),
    )
    return tuple(_host_subject(desired, model, level) for desired in run.hosts() for model in desired.models)


def as_options(said: str) -> str:
    """An error about flags of `./fleet`, about the options of pytest that stand for them."""
    return "\n".join(line if "./fleet" in line else _FLAG.sub("--fleet-", line) for line in said.splitlines())


def silent_report() -> Report:
    """What tests find is told by their messages."""
    return Report(as_json=True, stdout=io.StringIO(), stderr=io.StringIO())


def _endpoint_subject(asked: AskedEndpoint, endpoint: Endpoint, level: str | None) -> Subject:
    def open_it(_suite: Suite, _opened: ExitStack) -> Opened:
        return reach(asked.host, endpoint)

    cases = load_cases(level=level or level_of(endpoint.model))
    return Subject(name=f"{asked.host}-{endpoint.model}", cases=cases, open=open_it)


def _host_subject(desired: Desired, model: DesiredModel, level: str | None) -> Subject:
    cases = cases_for(level or model.cases, uses_tools=model.uses_tools)

    def open_it(suite: Suite, opened: ExitStack) -> Opened:
        transport = transport_for(desired)
        url = opened.enter_context(transport.http_url(desired.url))
        request = request_for(desired, transport, url, model)
        told = examine_model(request, suite, cases)
        return None if told.obstacles else endpoint_of(request, told), told

    return Subject(name=f"{desired.host}-{model.name}", cases=cases, open=open_it)
