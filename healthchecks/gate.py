"""Which findings of a run keep a model from being served.

The server's form must be right every time. What the model does is counted: it blocks only where a run shows
that the model has become worse than the one that is served.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from healthchecks.case import Case
from healthchecks.conversation import SERVERS_RULES
from healthchecks.runner import CaseResult
from healthchecks.statistics import Rate, Rates, is_models_doing
from healthchecks.toolcalls import WARN, Finding

LEAST_TRIALS = 10
"""What looks worse in fewer is tried again before anything follows."""

MOST_REPEATS = 10
"""So many more times, and no more, a case is played for that."""

NOTHING = Rate(0, 0)


@dataclass(frozen=True)
class Baseline:
    """How often the served model did what is expected, by rule; `told` says when that was, in words."""

    told: str
    rates: Mapping[int, Rate]


@dataclass(frozen=True)
class Decision:
    """`basis` says in words what counts. `reasons` block: `beside_plays` and the findings that count.

    `notes` are the findings that do not. `blocked` are the rules of the model's doing that count, None stands
    for all of them.
    """

    basis: str
    beside_plays: tuple[str, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    blocked: frozenset[int] | None

    @property
    def passed(self) -> bool:
        return not self.reasons

    def counted(self, result: CaseResult) -> tuple[Finding, ...]:
        """The findings of a play that count."""
        return tuple(finding for finding in result.findings if self._counts(finding))

    def _counts(self, finding: Finding) -> bool:
        if finding.severity == WARN:
            return False
        return not is_models_doing(finding) or self.blocked is None or finding.rule in self.blocked


def judge_strictly(results: Sequence[CaseResult], rates: Rates, cases: Sequence[Case]) -> Decision:
    """Without a served model to compare with: every finding above `warn` counts."""
    basis = "every finding above `warn` counts: there is no baseline of these cases"
    return _decide(basis, results, rates, cases, (), None)


def judge_candidate(
    results: Sequence[CaseResult], rates: Rates, cases: Sequence[Case], baseline: Baseline | None
) -> Decision:
    """Against the model that is served; the first one has to make one good call.

    A rule of the model's doing blocks where the upper end of the run's 95 % interval lies below the served
    model's rate. One with fewer than `LEAST_TRIALS` is asked only where nothing else blocks; it does so too
    if no play comes as far as its turn any more. `find_doubtful` says beforehand which ones to play again.
    """
    if baseline is None:
        basis = "the first model that is judged by these cases: what is the model's doing does not count yet"
        return _decide(basis, results, rates, cases, (), frozenset())
    basis = f"what is the model's doing is compared with what is served: {baseline.told}"
    worse = {
        rule: f"rule {rule}: {render_rate(rate)}; the served model had {render_rate(served)}"
        for rule, rate, served in _compared(rates, baseline)
        if rate.interval[1] < served.share or not rate.trials
    }
    few = {rule for rule in worse if rates.by_rule.get(rule, NOTHING).trials < LEAST_TRIALS}
    told = tuple(said for rule, said in worse.items() if rule not in few)
    decision = _decide(basis, results, rates, cases, told, frozenset(worse).difference(few))
    if decision.passed and few:
        return _decide(basis, results, rates, cases, tuple(worse.values()), frozenset(worse))
    return decision


def find_doubtful(
    results: Sequence[CaseResult], rates: Rates, cases: Sequence[Case], baseline: Baseline | None
) -> frozenset[int]:
    """The rules that look worse in fewer than `LEAST_TRIALS`: their cases are to be played again.

    None where something blocks already: more plays would change nothing.
    """
    doubtful = frozenset(
        rule
        for rule, rate, served in _compared(rates, baseline)
        if rate.trials < LEAST_TRIALS and rate.share < served.share
    )
    if baseline is None or not doubtful:
        return frozenset()
    sure = {rule: rate for rule, rate in baseline.rates.items() if rule not in doubtful}
    settled = judge_candidate(results, rates, cases, Baseline(baseline.told, sure))
    return doubtful if settled.passed else frozenset()


def render_rate(rate: Rate) -> str:
    """`9 of 12, 75 % (47 to 91 %)`: the interval is the 95 % one."""
    if not rate.trials:
        return "no play came so far"
    low, high = (f"{100 * end:.0f}" for end in rate.interval)
    return f"{rate.successes} of {rate.trials}, {100 * rate.share:.0f} % ({low} to {high} %)"


def suite_fingerprint(cases: Sequence[Case]) -> str:
    """16 hex digits: rates are compared only where the very same conversations were played."""
    told = [dataclasses.asdict(case) for case in sorted(cases, key=lambda case: case.name)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _compared(rates: Rates, baseline: Baseline | None) -> Iterator[tuple[int, Rate, Rate]]:
    """Each rule that the served model met at all, with the run's rate and the served one."""
    for rule, served in baseline.rates.items() if baseline is not None else ():
        # What older baselines say of the server's rules is no longer counted.
        if served.successes and rule not in SERVERS_RULES:
            yield rule, rates.by_rule.get(rule, NOTHING), served


def _decide(
    basis: str,
    results: Sequence[CaseResult],
    rates: Rates,
    cases: Sequence[Case],
    worse: tuple[str, ...],
    blocked: frozenset[int] | None,
) -> Decision:
    beside = list(worse)
    wanted = [call for case in cases for turn in case.turns for call in turn.expect.calls or ()]
    with_arguments = any(call["arguments"] for call in wanted)
    if wanted and not (rates.with_arguments if with_arguments else rates.schema_accuracy.successes):
        beside.append("no reply held a call with arguments that its tool allows")
    reasons, notes = [*beside], []
    counting = Decision(basis, (), (), (), blocked)
    for result in results:
        faults = counting.counted(result)
        reasons += _told(result, faults)
        forgiven = [f for f in result.findings if f.severity != WARN and f not in faults]
        notes += _told(result, forgiven)
    return Decision(basis, tuple(beside), tuple(reasons), tuple(notes), blocked)


def _told(result: CaseResult, findings: Sequence[Finding]) -> list[str]:
    said = "; ".join(f"rule {f.rule}, {f.where}: {f.reason}" for f in findings)
    run = f", run {result.run}" if result.run > 1 else ""
    return [f"{result.case} ({result.mode}{run}): {said}"] if said else []
