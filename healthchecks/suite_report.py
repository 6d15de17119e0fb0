"""What a run of the suite says of one model on one server: every report is made from it."""

from __future__ import annotations

from dataclasses import dataclass

from healthchecks.gate import Decision
from healthchecks.runner import CaseResult
from healthchecks.statistics import Rates
from healthchecks.toolcalls import Finding


@dataclass(frozen=True)
class SuiteReport:
    """One model of one host.

    `server` is what it says of itself, as "ollama/0.17.5", None where it says nothing; `simulated`: it is the
    testbed's. `obstacles` kept the suite from being played: then nothing below them is set. `faults` are what
    the model is shown wrongly, `notes` what could not be looked at. `suite` is the fingerprint of the cases.
    """

    host: str
    model: str
    server: str | None = None
    simulated: bool = False
    obstacles: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    suite: str | None = None
    results: tuple[CaseResult, ...] = ()
    rates: Rates | None = None
    decision: Decision | None = None

    @property
    def passed(self) -> bool:
        return not self.reasons

    @property
    def kind(self) -> str | None:
        """`simulated` or `real`; None of a server that says nothing of itself."""
        return None if self.server is None else "simulated" if self.simulated else "real"

    @property
    def beside_plays(self) -> tuple[str, ...]:
        """What keeps the model from being served and shows in no single play."""
        decided = () if self.decision is None else self.decision.beside_plays
        return (*self.obstacles, *self.faults, *decided)

    @property
    def reasons(self) -> tuple[str, ...]:
        """All that keeps the model from being served."""
        decided = () if self.decision is None else self.decision.reasons
        return (*self.obstacles, *self.faults, *decided)

    def counted(self, result: CaseResult) -> tuple[Finding, ...]:
        """The findings for which a play counts as failed."""
        return () if self.decision is None else self.decision.counted(result)

    def failed_plays(self) -> tuple[CaseResult, ...]:
        """Those with a finding that counts."""
        return tuple(result for result in self.results if self.counted(result))
