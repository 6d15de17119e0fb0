"""What a deploy believes: the health checks, the tool-call suite and the gate, wired to it here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from console.served import check_basics
from deploy import outcomes
from deploy.errors import UsageError
from deploy.outcomes import ModelVerdict, VerifyRequest
from deploy.report import Report
from healthchecks.case import LEVELS, Case, UnknownCaseError
from healthchecks.context import check_context
from healthchecks.database import UnusableDatabaseError, check_database, make_database
from healthchecks.gate import (
    MOST_REPEATS,
    Baseline,
    Decision,
    find_doubtful,
    judge_candidate,
    judge_strictly,
    suite_fingerprint,
)
from healthchecks.provenance import check_provenance
from healthchecks.runner import CaseResult, Endpoint, load_cases, run_suite
from healthchecks.statistics import Rate, Rates, can_try, rates
from healthchecks.suite_report import SuiteReport
from healthchecks.toolcalls import RULES

DATABASE_SEED = 7


def _nobody(_host: str, _model: str, _result: CaseResult) -> None:
    pass


def _never() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What is played, and who hears of it: `keep` gets every play with its raw exchanges.

    `cases` are names; without them those of `level` are played, and without that of the model's own level.
    What `stop_if_asked` raises after a play ends the suite.
    """

    database: Path
    report: Report
    cases: Sequence[str] | None = None
    level: str | None = None
    runs: int = 1
    keep: Callable[[str, str, CaseResult], None] = _nobody
    stop_if_asked: Callable[[], None] = _never

    def chosen(self, level: str, *, uses_tools: bool = True) -> tuple[Case, ...]:
        """Those that were asked for, else those that suit a model of this level."""
        if self.cases:
            return load_cases(self.cases)
        return cases_for(self.level or level, uses_tools=uses_tools)

    def play(
        self, host: str, endpoint: Endpoint, cases: Sequence[Case], *, repeat: int = 0
    ) -> tuple[CaseResult, ...]:
        """All plays, each told as soon as it is known; `repeat` counts the single runs after those."""
        first, runs = (self.runs + repeat, 1) if repeat else (1, self.runs)

        def tell(result: CaseResult) -> None:
            self.report("case", host, model=endpoint.model, **_case_fields(result))
            self.keep(host, endpoint.model, result)
            self.stop_if_asked()

        return run_suite(endpoint, cases, database=self.database, runs=runs, first_run=first, on_result=tell)


def cases_for(level: str, *, uses_tools: bool) -> tuple[Case, ...]:
    """A model without tools plays those that send none."""
    return tuple(case for case in load_cases(level=level) if uses_tools or not case.tools)


def verify_model(
    request: VerifyRequest, database: Path, report: Report, stop_if_asked: Callable[[], None] = _never
) -> ModelVerdict:
    """What a deploy asks before it promotes; a host's first model need not be perfect."""
    suite = Suite(database=database, report=report, stop_if_asked=stop_if_asked)
    return verdict_of(prove_model(request, suite, judge_candidate))


def smoke_model(request: VerifyRequest, suite: Suite) -> SuiteReport:
    """The same of what is served; without a baseline every finding counts."""

    def judge(
        results: Sequence[CaseResult], counted: Rates, cases: Sequence[Case], baseline: Baseline | None
    ) -> Decision:
        if baseline is None:
            return judge_strictly(results, counted, cases)
        return judge_candidate(results, counted, cases, baseline)

    return prove_model(request, suite, judge)


Decide = Callable[[Sequence[CaseResult], Rates, Sequence[Case]], Decision]
Gate = Callable[[Sequence[CaseResult], Rates, Sequence[Case], Baseline | None], Decision]


def prove_model(request: VerifyRequest, suite: Suite, gate: Gate) -> SuiteReport:
    """Server, load, GPU truth, what the model is shown, the suite; stops where the rest means nothing."""
    cases = suite.chosen(request.cases, uses_tools=request.uses_tools)
    told = examine_model(request, suite, cases)
    if told.obstacles:
        return told

    endpoint = endpoint_of(request, told)
    results = suite.play(told.host, endpoint, cases)
    baseline = _comparable(request.baseline(), cases)
    results, counted = play_doubtful(suite, told.host, endpoint, cases, results, baseline)
    return _decided(told, suite, cases, results, counted, gate(results, counted, cases, baseline))


def play_doubtful(
    suite: Suite,
    host: str,
    endpoint: Endpoint,
    cases: Sequence[Case],
    results: tuple[CaseResult, ...],
    baseline: Baseline | None,
) -> tuple[tuple[CaseResult, ...], Rates]:
    """All plays, and the rates: what looks worse in a few trials is played until there are enough of them.

    Only the rules in doubt are counted anew. The others keep the rate of the run in which every case was
    played equally often.
    """
    counted = rates(results, cases)
    for repeat in range(1, MOST_REPEATS + 1):
        doubtful = find_doubtful(results, counted, cases, baseline)
        if not doubtful:
            break
        again = [case for case in cases if any(can_try(case, rule) for rule in doubtful)]
        suite.report("note", host, text=f"{_names(doubtful)} looked worse in a few trials: played again")
        results += suite.play(host, endpoint, again, repeat=repeat)
        of_all = rates(results, cases).by_rule
        anew = {rule: rate for rule, rate in of_all.items() if rule in doubtful}
        counted = replace(counted, by_rule={**counted.by_rule, **anew})
    return results, counted


def _names(rules: Iterable[int]) -> str:
    numbers = [str(rule) for rule in sorted(rules)]
    return f"rule {numbers[0]}" if len(numbers) == 1 else f"rules {', '.join(numbers)}"


def examine_model(request: VerifyRequest, suite: Suite, cases: Sequence[Case]) -> SuiteReport:
    """All that can be known of a model before the suite is played."""
    version, checks = check_basics(request)
    told = SuiteReport(
        request.host,
        request.model,
        server=f"ollama/{version.data['version']}" if version.ok else None,
        simulated=bool(version.data.get("simulated")),
    )
    if not checks[-1].ok:
        return replace(told, obstacles=(checks[-1].reason,))
    endpoint = endpoint_of(request, told)
    shown = [check(endpoint, cases, database=suite.database) for check in (check_provenance, check_context)]
    for check in shown:
        suite.report("check", request.host, model=request.model, **asdict(check))
    return replace(
        told,
        faults=tuple(check.reason for check in shown if not check.ok and check.data["judged"]),
        notes=tuple(f"{check.name} {check.reason}" for check in shown if not check.data["judged"]),
    )


def endpoint_of(request: VerifyRequest, told: SuiteReport) -> Endpoint:
    """Where the suite is played, with the version that the server told."""
    return Endpoint(request.url, request.model, server=told.server)


def play_suite(
    told: SuiteReport, suite: Suite, endpoint: Endpoint, cases: Sequence[Case], decide: Decide
) -> SuiteReport:
    """`told` with the plays, what was counted in them, and the decision on them."""
    results = suite.play(told.host, endpoint, cases)
    counted = rates(results, cases)
    return _decided(told, suite, cases, results, counted, decide(results, counted, cases))


def _decided(
    told: SuiteReport,
    suite: Suite,
    cases: Sequence[Case],
    results: tuple[CaseResult, ...],
    counted: Rates,
    decision: Decision,
) -> SuiteReport:
    suite.report("rates", told.host, model=told.model, **rate_fields(counted))
    return replace(
        told,
        suite=suite_fingerprint(cases),
        results=results,
        rates=counted,
        decision=decision,
    )


def verdict_of(told: SuiteReport) -> ModelVerdict:
    """As plain values: `deploy` does not know the checks."""
    counted = told.rates
    return ModelVerdict(
        passed=told.passed,
        reasons=told.reasons,
        notes=(*told.notes, *(told.decision.notes if told.decision is not None else ())),
        cases=tuple(_case_fields(result) for result in told.results),
        rates={} if counted is None else {rule: _plain(rate) for rule, rate in counted.by_rule.items()},
        schema_accuracy=None if counted is None else _plain(counted.schema_accuracy),
        suite=told.suite,
        ollama=told.kind,
    )


def rate_fields(counted: Rates) -> dict[str, Any]:
    """Of the event `rates`: the rules with their titles, and the share of replies with good calls."""
    return {
        "schema_accuracy": _rate_fields(counted.schema_accuracy),
        "rules": [
            {"rule": rule, "title": RULES[rule].title, **_rate_fields(rate)}
            for rule, rate in counted.by_rule.items()
        ],
    }


def _rate_fields(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval
    shares = {"share": rate.share, "low": low, "high": high}
    return {**asdict(rate), **{name: round(value, 4) for name, value in shares.items()}}


def _plain(rate: Rate) -> tuple[int, int]:
    return rate.successes, rate.trials


def _comparable(known: outcomes.Baseline | None, cases: Sequence[Case]) -> Baseline | None:
    """Of other cases, or of other versions of them, nothing can be compared."""
    if known is None or known.suite != suite_fingerprint(cases):
        return None
    counted = {rule: Rate(*one) for rule, one in known.rates.items()}
    return Baseline(f"promoted {known.date} on release {known.release}", counted)


def check_cases(names: Sequence[str] | None, level: str | None = None) -> None:
    """Raises UsageError for the name of a case that does not exist, or of a level."""
    if level not in (None, *LEVELS):
        raise UsageError(
            sentence=f"`--level {level}` is no level",
            unchanged="everything",
            hint=f"the levels are {', '.join(LEVELS)}",
        )
    try:
        load_cases(names)
    except UnknownCaseError as error:
        raise UsageError(
            sentence=f"`--case {error.unknown[0]}` is no case",
            unchanged="everything",
            hint=f"the cases are {', '.join(error.known)}",
        ) from error


@contextmanager
def smoke_database(given: Path | None) -> Iterator[Path]:
    """The database of the `ask_database` case: the one given, else one with rows of our own."""
    if given is None:
        with tempfile.TemporaryDirectory(prefix="ollama-fleet-") as directory:
            path = Path(directory) / "chinook.sqlite"
            make_database(path, DATABASE_SEED)
            yield path
        return
    try:
        check_database(given)
    except UnusableDatabaseError as error:
        raise UsageError(
            sentence=f"`--database {given}` cannot be used",
            cause=str(error),
            unchanged="everything",
            hint="give a SQLite file with Chinook's tables, or leave it out",
        ) from error
    yield given


def _case_fields(result: CaseResult) -> dict[str, Any]:
    return {
        "case": result.case,
        "mode": result.mode,
        "run": result.run,
        "passed": result.passed,
        "seconds": round(result.seconds, 3),
        "findings": [asdict(finding) for finding in result.findings],
        **({"error": result.error} if result.error else {}),
    }
