"""What a deploy believes: the health checks and the tool-call suite, wired to it here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.errors import UsageError
from deploy.outcomes import ModelVerdict, VerifyRequest
from deploy.report import Report
from healthchecks.api import load_model, server_version
from healthchecks.case import UnknownCaseError
from healthchecks.check import Check
from healthchecks.database import UnusableDatabaseError, check_database, make_database
from healthchecks.gpu import check_residency
from healthchecks.runner import CaseResult, Endpoint, load_cases, run_suite

LOAD_SECONDS = 600.0
DATABASE_SEED = 7
TOOLLESS_CASES = ("no_tools",)


def verify_model(
    request: VerifyRequest, database: Path, report: Report, cases: Sequence[str] | None = None
) -> ModelVerdict:
    """Server, load, GPU truth, then the smoke suite; stops where the rest would mean nothing."""
    version, checks = _basics(request)
    if not checks[-1].ok:
        return _verdict(version, (checks[-1].reason,))

    def tell(result: CaseResult) -> None:
        report("case", request.host, model=request.model, **_case_fields(result))

    chosen = cases or (None if request.uses_tools else TOOLLESS_CASES)
    endpoint = Endpoint(request.url, request.model, server=f"ollama/{version.data['version']}")
    results = run_suite(endpoint, load_cases(chosen, request.cases), database=database, on_result=tell)
    fields = tuple(_case_fields(result) for result in results)
    return _verdict(version, tuple(_reason(case) for case in fields if not case["passed"]), fields)


def check_served(request: VerifyRequest) -> ModelVerdict:
    """The cheap checks of a host that needs no change: server, load, and where the model sits."""
    version, checks = _basics(request)
    return _verdict(version, tuple(check.reason for check in checks if not check.ok))


def _basics(request: VerifyRequest) -> tuple[Check, Sequence[Check]]:
    """The version check, and all checks up to the first that makes the next ones meaningless."""
    version = server_version(request.url)
    checks = [version]
    if version.ok:
        checks.append(load_model(request.url, request.model, LOAD_SECONDS))
    if checks[-1].ok:
        checks.append(check_residency(request.url, request.model, request.gpu))
    return version, checks


def check_cases(names: Sequence[str] | None) -> None:
    """Raises UsageError for the name of a case that does not exist."""
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


def _verdict(
    version: Check, reasons: tuple[str, ...], cases: tuple[Mapping[str, Any], ...] = ()
) -> ModelVerdict:
    kind = ("simulated" if version.data.get("simulated") else "real") if version.ok else None
    return ModelVerdict(passed=not reasons, reasons=reasons, cases=cases, ollama=kind)


def _case_fields(result: CaseResult) -> dict[str, Any]:
    return {
        "case": result.case,
        "mode": result.mode,
        "passed": result.passed,
        "seconds": round(result.seconds, 3),
        "findings": [asdict(finding) for finding in result.findings],
        **({"error": result.error} if result.error else {}),
    }


def _reason(case: Mapping[str, Any]) -> str:
    faults = [finding for finding in case["findings"] if finding["severity"] != "warn"]
    said = "; ".join(f"rule {fault['rule']}, {fault['where']}: {fault['reason']}" for fault in faults)
    return f"{case['case']} ({case['mode']}): {said or case.get('error') or 'failed'}"
