"""What became of a host, and what a verification said: values that reports are made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from deploy.errors import ExitCode, FleetError


class Outcome(StrEnum):
    """How a host ended."""

    OK = "ok"
    CHANGED = "changed"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a model did when it was promoted.

    `fingerprint` says which model that was, `weights` is its layer's digest, `release` the server's version,
    `date` in ISO 8601. `suite` names the conversations that were played. `rates` maps a rule to the successes
    and trials that were counted.
    """

    fingerprint: str
    weights: str
    release: str
    date: str
    suite: str
    rates: Mapping[int, tuple[int, int]]


def no_baseline() -> None:
    """There is no served model to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest:
    """What is to be verified: a model name on a server that this process reaches under `url`.

    `cases` is the level of the smoke suite's cases, "core" or "extended". `baseline` reads that of the served
    model from the host: a round trip that cheap checks do not make.
    """

    host: str
    url: str
    model: str
    uses_tools: bool
    version: str
    gpu: str
    cases: str = "extended"
    baseline: Callable[[], Baseline | None] = no_baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVerdict:
    """What the verification says. `cases` are JSON objects: case, mode, passed, seconds, findings.

    `notes` are faults of the model that do not keep it from being served. `rates` are successes and trials by
    rule, `schema_accuracy` the same of replies with calls, `suite` the fingerprint of what was played; all
    are empty where no suite was. `ollama` is `simulated` or `real`, and None where no server answered.
    `counted` are the cases that passed and that failed, where the cases themselves are kept no longer.
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cases: tuple[Mapping[str, Any], ...] = ()
    rates: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    schema_accuracy: tuple[int, int] | None = None
    suite: str | None = None
    ollama: str | None = None
    counted: tuple[int, int] | None = None

    @property
    def count(self) -> tuple[int, int]:
        """How many cases passed, and how many failed."""
        if self.counted is not None:
            return self.counted
        passed = sum(1 for case in self.cases if case["passed"])
        return passed, len(self.cases) - passed


Verify = Callable[[VerifyRequest], ModelVerdict]
"""Handed in from `tasks.py`: this package never imports the health checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOutcome:
    """The end of one host's converge.

    `reason` says why a host was skipped, `batch` in which one it was or would have been. `in_doubt`: it was
    lost while what it serves was being changed.
    """

    host: str
    outcome: Outcome
    steps_done: int = 0
    seconds: float = 0.0
    error: FleetError | None = None
    verdicts: Mapping[str, ModelVerdict] = field(default_factory=dict)
    version: str | None = None
    batch: int | None = None
    reason: str | None = None
    in_doubt: bool = False

    @property
    def exit_code(self) -> ExitCode:
        return self.error.exit_code if self.error is not None else ExitCode.DONE

    @property
    def is_proven(self) -> bool:
        """It serves what it should, and that was checked."""
        return self.outcome in (Outcome.OK, Outcome.CHANGED)

    @property
    def spends_budget(self) -> bool:
        """It speaks against going on with others.

        A host that somebody else has locked was not touched, and one that was not reached says nothing; one
        that was lost in the middle of its change may have been lost by it.
        """
        if self.outcome is Outcome.FAILED:
            return self.exit_code is not ExitCode.LOCKED or self.steps_done > 0
        return self.in_doubt


def without_details(outcome: HostOutcome) -> HostOutcome:
    """What reports need of a host that is done: not each case, nor what an error's traceback holds on to."""
    error = outcome.error
    if error is not None:
        error.__traceback__ = error.__cause__ = error.__context__ = None
    verdicts = {
        name: replace(verdict, cases=(), rates={}, schema_accuracy=None, counted=verdict.count)
        for name, verdict in outcome.verdicts.items()
    }
    return replace(outcome, verdicts=verdicts)


def count_outcomes(outcomes: Sequence[HostOutcome]) -> dict[Outcome, int]:
    """How many hosts ended in which way; what every report counts with."""
    return {kind: sum(1 for one in outcomes if one.outcome is kind) for kind in Outcome}


class Events(Protocol):
    """Where a converge tells what it does; a report renders it."""

    def __call__(self, event: str, host: str | None, **fields: Any) -> None: ...
