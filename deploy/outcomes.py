"""What became of a host, and what a verification said: values that reports are made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cases: tuple[Mapping[str, Any], ...] = ()
    rates: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    schema_accuracy: tuple[int, int] | None = None
    suite: str | None = None
    ollama: str | None = None


Verify = Callable[[VerifyRequest], ModelVerdict]
"""Handed in from `tasks.py`: this package never imports the health checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOutcome:
    """The end of one host's converge."""

    host: str
    outcome: Outcome
    steps_done: int = 0
    seconds: float = 0.0
    error: FleetError | None = None
    verdicts: Mapping[str, ModelVerdict] = field(default_factory=dict)
    version: str | None = None

    @property
    def exit_code(self) -> ExitCode:
        return self.error.exit_code if self.error is not None else ExitCode.DONE


class Events(Protocol):
    """Where a converge tells what it does; a report renders it."""

    def __call__(self, event: str, host: str | None, **fields: Any) -> None: ...
