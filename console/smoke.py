"""`smoke`: the tool-call suite against what hosts serve, or against any OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from console.changes import count_cases, exit_code, ollama_word, outcome_of_error, tell_outcome
from console.paths import MODELFILES
from console.proof import Suite, check_cases, play_suite, smoke_database, smoke_model, verdict_of
from console.report_files import check_report_file, write_report_file
from console.run import Run, transport_for
from deploy.baselines import find_baseline
from deploy.converge import probe_host
from deploy.desired import Desired, DesiredModel
from deploy.errors import ExitCode, FleetError, HostUnreachable, UsageError, designed_error, errors_of
from deploy.facts import StoredModel
from deploy.fleet import each
from deploy.models import parse_models
from deploy.outcomes import Baseline, HostOutcome, Outcome, VerifyRequest
from deploy.report import Report
from deploy.transport import Transport
from healthchecks.api import identify
from healthchecks.case import LEVELS, Case
from healthchecks.exchange_file import render_exchange_file
from healthchecks.gate import judge_strictly, render_rate
from healthchecks.junit import render_junit
from healthchecks.page import render_page
from healthchecks.runner import CaseResult, Endpoint
from healthchecks.statistics import rates
from healthchecks.suite_report import SuiteReport
from healthchecks.toolcalls import RULES
from healthchecks.toolcalls.known import states_version


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeTask:
    """What is played and what is written of it."""

    cases: Sequence[str] | None = None
    level: str | None = None
    runs: int = 1
    database: Path | None = None
    exchanges: Path | None = None
    junit: Path | None = None
    html: Path | None = None

    def check(self) -> None:
        """Before anything is sent. Raises UsageError."""
        check_cases(self.cases, self.level)
        if self.runs < 1:
            raise UsageError(
                sentence=f"`--runs {self.runs}` plays nothing",
                unchanged="everything",
                hint="leave it out to play every case once, plain and streamed",
            )
        for flag, path in (("--junit", self.junit), ("--html", self.html)):
            check_report_file(flag, path)
        if self.exchanges is not None and self.exchanges.exists() and not self.exchanges.is_dir():
            raise UsageError(
                sentence=f"`--exchanges {self.exchanges}` is no directory",
                unchanged="everything",
                hint="name a directory; it is made where there is none",
            )

    def suite(self, database: Path, report: Report) -> Suite:
        return Suite(
            database=database,
            report=report,
            cases=self.cases,
            level=self.level,
            runs=self.runs,
            keep=self._keep_exchanges,
        )

    def _keep_exchanges(self, host: str, model: str, result: CaseResult) -> None:
        """One file for every play, as soon as it is over: what was seen is not lost with what comes after."""
        if self.exchanges is None:
            return
        path = self.exchanges.joinpath(
            *map(_file_name, (host, model, f"{result.case}.{result.mode}.{result.run}.json"))
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_report_file(path, render_exchange_file(result.exchanges))

    def write_reports(self, reports: Sequence[SuiteReport]) -> None:
        """The files that were asked for. Raises CommandFailed or DiskTooSmall."""
        try:
            if self.junit is not None:
                write_report_file(self.junit, render_junit(reports))
            if self.html is not None:
                write_report_file(self.html, render_page(reports))
        except OSError as error:
            raise designed_error(error) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedEndpoint:
    """An endpoint as the flags name it: any server with OpenAI's `/v1/chat/completions`."""

    url: str | None = None
    model: str | None = None
    key_env: str | None = None
    server: str | None = None

    @property
    def host(self) -> str:
        """What it is called in reports."""
        return urlsplit(self.url or "").netloc

    def endpoint(self) -> Endpoint:
        """With the key from the environment. Raises UsageError; no message ever holds the key."""
        parts = self._parts()
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise _usage(f"`--url {parts.scheme}://...` is no base URL", "give it as https://HOST/v1")
        if parts.username is not None or parts.password is not None:
            raise _usage("`--url` holds a name or a password", "give the key with --key-env NAME")
        if not self.model:
            raise _usage("`--url` needs the model to ask for", "add --model NAME")
        if self.server is not None and not states_version(self.server):
            raise _usage(f"`--server {self.server}` names no version", "give it as ollama/0.17.5")
        return Endpoint(self.url or "", self.model, key=self._key(), server=self.server)

    def _parts(self) -> SplitResult:
        """Raises UsageError for what is no URL at all; its text may hold a key, and is not said."""
        try:
            parts = urlsplit(self.url or "")
            _ = parts.port
        except ValueError:
            raise _usage(
                "`--url` is no URL",
                "give it as https://HOST:PORT/v1; an IPv6 address stands in brackets, a port is below 65536",
            ) from None
        return parts

    def _key(self) -> str | None:
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise _usage(
                f"`--key-env {self.key_env}`: there is no such variable, or it is empty",
                f"export {self.key_env}=...; the flag takes the variable's name, not the key",
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise _usage(
                f"the key in `{self.key_env}` holds what no header can carry", "look at the variable"
            )
        return key


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoked:
    """What became of a host, and what the suite says of each of its models."""

    outcome: HostOutcome
    reports: tuple[SuiteReport, ...] = ()


def smoke(
    report: Report, task: SmokeTask, asked: AskedEndpoint, run: Callable[[], Run], selected: str | None
) -> ExitCode:
    """`smoke`: the hosts of the inventory, which is read only then, or one endpoint.

    `selected` is what was given to choose hosts by.
    """
    if asked.url is not None and selected is not None:
        raise _usage("`--url` is instead of the inventory's hosts", "leave --inventory and --limit out")
    if asked.url is not None:
        return smoke_url(report, asked, task)
    for flag, value in (("model", asked.model), ("key-env", asked.key_env), ("server", asked.server)):
        if value is not None:
            raise _usage(f"`--{flag}` is for `--url` only", "add --url URL, or leave it out")
    return smoke_inventory(run(), task)


def smoke_inventory(run: Run, task: SmokeTask) -> ExitCode:
    """`smoke`: the suite against what every host serves, and its table."""
    task.check()
    return _finish(run.report, task, smoke_hosts(run, run.hosts(), task))


def smoke_hosts(run: Run, hosts: Sequence[Desired], task: SmokeTask) -> tuple[Smoked, ...]:
    """The suite against `NAME:latest` of every model of every host."""
    with smoke_database(task.database) as database:
        suite = task.suite(database, run.report)

        def one(desired: Desired) -> Smoked:
            try:
                with errors_of(desired.host):
                    smoked = _smoke_host(desired, suite)
            except FleetError as error:
                names = [f"{model.name}:latest" for model in desired.models]
                smoked = _not_smoked(desired.host, names, error)
            tell_outcome(run, smoked.outcome)
            return smoked

        return each(hosts, one, run.forks)


def _smoke_host(desired: Desired, suite: Suite) -> Smoked:
    transport = transport_for(desired)
    with transport.http_url(desired.url) as url:
        reports = tuple(
            _tell(suite.report, smoke_model(request_for(desired, transport, url, model), suite))
            for model in desired.models
        )
    return _smoked(desired.host, {m.name: told for m, told in zip(desired.models, reports, strict=True)})


def _not_smoked(host: str, models: Sequence[str], error: FleetError) -> Smoked:
    error.host = error.host or host
    said = (error.sentence if error.cause is None else f"{error.sentence}: {error.cause}",)
    return Smoked(
        outcome=HostOutcome(host=host, outcome=outcome_of_error(error), error=error),
        reports=tuple(SuiteReport(host, model, obstacles=said) for model in models),
    )


def request_for(desired: Desired, transport: Transport, url: str, model: DesiredModel) -> VerifyRequest:
    """The question whether what a host serves works."""
    name = f"{model.name}:latest"

    def stored() -> StoredModel | None:
        return probe_host(desired, transport).models.get(name.lower())

    def baseline() -> Baseline | None:
        return find_baseline(transport, desired.paths.baselines, model.name, stored)

    return VerifyRequest(
        host=desired.host,
        url=url,
        model=name,
        uses_tools=model.uses_tools,
        version=desired.server.version,
        gpu=str(desired.gpu),
        cases=model.cases,
        baseline=baseline,
    )


def smoke_url(report: Report, asked: AskedEndpoint, task: SmokeTask) -> ExitCode:
    """`smoke --url`: without an inventory, and without anything that only Ollama has."""
    task.check()
    endpoint = asked.endpoint()
    try:
        endpoint, told = reach(asked.host, endpoint)
    except HostUnreachable as error:
        report.error(error)
        return _finish(report, task, [_not_smoked(asked.host, [endpoint.model], error)])
    with smoke_database(task.database) as database:
        played: list[CaseResult] = []
        suite = _remembering(task.suite(database, report), played)
        cases = suite.chosen(level_of(endpoint.model))
        try:
            told, interrupted = play_suite(told, suite, endpoint, cases, judge_strictly), False
        except KeyboardInterrupt:
            told, interrupted = tell_interrupted(told, cases, played), True
        _tell(report, told)
    code = _finish(report, task, [_smoked(asked.host, {endpoint.model: told})])
    return ExitCode.INTERRUPTED if interrupted else code


def _remembering(suite: Suite, played: list[CaseResult]) -> Suite:
    """The suite, whose plays are also in the list, as soon as each is over."""

    def keep(host: str, model: str, result: CaseResult) -> None:
        played.append(result)
        suite.keep(host, model, result)

    return replace(suite, keep=keep)


def tell_interrupted(told: SuiteReport, cases: Sequence[Case], played: Sequence[CaseResult]) -> SuiteReport:
    """What was found in the plays up to Ctrl-C; that others were to follow is what it fails for."""
    counted = rates(played, cases)
    return replace(
        told,
        obstacles=(f"interrupted after {len(played)} plays; the others were not played",),
        results=tuple(played),
        rates=counted,
        # No cases: what was not played need not have brought a good call.
        decision=judge_strictly(played, counted, ()),
    )


def level_of(model: str) -> str:
    """As models.toml says it of a model of this name: the canary is a toy, wherever it is served."""
    specs = {name.lower(): spec for name, spec in parse_models(MODELFILES).items()}
    spec = specs.get(model.partition(":")[0].lower())
    return spec.cases if spec is not None else LEVELS[-1]


def reach(host: str, endpoint: Endpoint) -> tuple[Endpoint, SuiteReport]:
    """The endpoint with what it says of itself, where it was not told. Raises HostUnreachable."""
    found = identify(endpoint.url, endpoint.key)
    if found.unreachable is not None:
        raise HostUnreachable(
            sentence=f"no server answers at `{endpoint.url}`",
            cause=found.unreachable,
            unchanged="everything",
            hint="check the address, the port and the proxy settings",
        )
    endpoint = replace(endpoint, server=endpoint.server or found.server)
    return endpoint, SuiteReport(host, endpoint.model, server=endpoint.server, simulated=found.simulated)


def _finish(report: Report, task: SmokeTask, smoked: Sequence[Smoked]) -> ExitCode:
    reports = [told for one in smoked for told in one.reports]
    show_suite(report, reports, runs=task.runs)
    task.write_reports(reports)
    outcomes = [one.outcome for one in smoked]
    report.summary(outcomes, **count_cases(outcomes), **ollama_word(outcomes))
    return exit_code(outcomes)


def _tell(report: Report, told: SuiteReport) -> SuiteReport:
    """What the lines of the plays do not say: what kept them from being played, and how they were judged."""
    decision = told.decision
    plays = () if decision is None else (decision.basis, *(f"not counted: {note}" for note in decision.notes))
    for text in (*told.obstacles, *told.faults, *told.notes, *plays):
        report("note", told.host, text=text)
    return told


def _smoked(host: str, reports: dict[str, SuiteReport]) -> Smoked:
    passed = all(told.passed for told in reports.values())
    outcome = HostOutcome(
        host=host,
        outcome=Outcome.OK if passed else Outcome.FAILED,
        verdicts={name: verdict_of(told) for name, told in reports.items()},
    )
    return Smoked(outcome=outcome, reports=tuple(reports.values()))


def show_suite(report: Report, reports: Sequence[SuiteReport], *, runs: int = 1) -> None:
    """A row for every model of every host, all that failed in full, and with several runs the rates."""
    columns = ["host", "model", "server", "plays", "failed", "good calls", "verdict", "seconds"]
    report.table("tool calls over /v1", columns, [_row(told) for told in reports])
    failed = [row for told in reports for row in _failures(told)]
    report.table("what failed", ["host", "model", "case", "rule", "where", "reason"], failed)
    if runs > 1:
        rates = [row for told in reports for row in _rate_rows(told)]
        report.table("rates", ["host", "model", "rule", "rate", "title"], rates)


def _row(told: SuiteReport) -> list[str]:
    calls = told.rates.schema_accuracy if told.rates is not None else None
    return [
        told.host,
        told.model,
        told.server or "-",
        str(len(told.results)),
        str(len(told.failed_plays())),
        "-" if calls is None else f"{calls.successes} of {calls.trials}",
        "passed" if told.passed else "FAILED",
        f"{sum(result.seconds for result in told.results):.1f}",
    ]


def _failures(told: SuiteReport) -> list[list[str]]:
    """What kept the suite from being played, what no single play shows, and every finding that counts."""
    beside = told.beside_plays
    found = Counter(
        (f"{result.case} ({result.mode})", str(fault.rule), fault.where, fault.reason)
        for result in told.results
        for fault in told.counted(result)
    )
    rows: list[tuple[str, ...]] = [("-", "-", "-", reason) for reason in beside]
    rows += [
        (*row, f"{reason} (in {times} runs)" if times > 1 else reason)
        for (*row, reason), times in found.items()
    ]
    return [[told.host, told.model, *row] for row in rows]


def _rate_rows(told: SuiteReport) -> list[list[str]]:
    if told.rates is None:
        return []
    counted = [(str(rule), rate, RULES[rule].title) for rule, rate in told.rates.by_rule.items()]
    counted.append(("-", told.rates.schema_accuracy, "replies with calls whose arguments their tools allow"))
    return [[told.host, told.model, rule, render_rate(rate), title] for rule, rate, title in counted]


def _file_name(text: str) -> str:
    """What every file system takes, and never a way out of the directory."""
    return re.sub(r"[^\w.-]|^\.+", "_", text, flags=re.ASCII) or "_"


def _usage(sentence: str, hint: str) -> UsageError:
    return UsageError(sentence=sentence, unchanged="everything; nothing was sent", hint=hint)
