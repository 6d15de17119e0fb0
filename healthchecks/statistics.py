"""How often a model does what is expected, and how sure of that a few plays make us."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from healthchecks.case import Case
from healthchecks.conversation import SERVERS_RULES, models_rule
from healthchecks.runner import CaseResult
from healthchecks.toolcalls import BEHAVIOURAL, WARN, Call, Exchange, Finding, judge
from healthchecks.toolcalls.asked import Tool, parse_request
from healthchecks.toolcalls.findings import Findings
from healthchecks.toolcalls.schema import check_arguments_fit

ARGUMENT_RULES = (21, 22, 23, 24)
"""Arguments against the called tool's schema: the server passes on what the model wrote."""


@dataclass(frozen=True)
class Rate:
    """`successes` of `trials`."""

    successes: int
    trials: int

    @property
    def share(self) -> float:
        """Between 0 and 1; of no trials, 0."""
        return self.successes / self.trials if self.trials else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """With 95 % confidence."""
        return wilson_interval(self.successes, self.trials)


@dataclass(frozen=True)
class Rates:
    """What the plays of a run say of a model.

    `by_rule`: a trial is a play that came as far as a turn whose expectation names the rule; for rules 21 to
    24 it is also every call that could be judged.

    `schema_accuracy` is that of the K2 Vendor Verifier (`successful_tool_call_count` of `finish_tool_calls`,
    its `tool_calls_eval.py`): a trial is a reply whose finish reason is `tool_calls`, a success one whose
    calls all name a declared tool and have arguments that its schema allows. Only that a reply without any
    call is none, which its script counts as one. `with_arguments`: in so many of those successes a call has
    any; a server that drops them all still answers well where none are due.
    """

    by_rule: Mapping[int, Rate]
    schema_accuracy: Rate
    with_arguments: int


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a rate: it stays within 0 and 1, and is honest for few trials and for 0 and 1.

    E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal of the
    American Statistical Association 22 (1927), 209-212. Nothing is known of no trials: (0, 1).

    Raises:
        ValueError: not 0 <= successes <= trials, or a confidence that is not between 0 and 1.
    """
    if not 0 <= successes <= trials or not 0 < confidence < 1:
        raise ValueError(f"{successes} successes of {trials} trials with confidence {confidence}")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, scale = successes / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # The ends are exact there; the roots are so only nearly.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == trials else middle + half
    return low, high


def is_models_doing(finding: Finding) -> bool:
    """Whether the model is to blame, whose replies are to be counted; all else is the server's form."""
    if finding.rule in SERVERS_RULES:
        return False
    return finding.rule in ARGUMENT_RULES or finding.severity == BEHAVIOURAL


def rates(results: Iterable[CaseResult], cases: Sequence[Case]) -> Rates:
    """Count the plays of a run.

    Args:
        cases: those that were played, whose expectations name the behavioural rules.
    """
    known = {case.name: case for case in cases}
    trials: list[tuple[int, bool]] = []
    replies: list[tuple[bool, bool]] = []
    for result in results:
        trials += _behaviour(result, known[result.case])
        for exchange in result.exchanges:
            for broken in map(_broken_rules, *_judgeable(exchange)):
                trials += [(rule, rule not in broken) for rule in ARGUMENT_RULES]
            replies += _successes(exchange)
    rules = sorted({rule for rule, _ in trials})
    return Rates(
        by_rule={rule: _rate(ok for one, ok in trials if one == rule) for rule in rules},
        schema_accuracy=_rate(good for good, _ in replies),
        with_arguments=sum(good and argued for good, argued in replies),
    )


def can_try(case: Case, rule: int) -> bool:
    """Whether a play of this case can be a trial of a rule of the model's doing."""
    expected = [turn.expect for turn in case.turns]
    if rule in ARGUMENT_RULES and any(expect.calls for expect in expected):
        return True
    return any(models_rule(expect.rule) == rule for expect in expected)


def _rate(outcomes: Iterable[bool]) -> Rate:
    found = list(outcomes)
    return Rate(sum(found), len(found))


def _behaviour(result: CaseResult, case: Case) -> Iterator[tuple[int, bool]]:
    """The rules that the expectations of a play name: those that were met up to the one that was not.

    What a play did not come to is no trial. One that ended without a reply tells nothing of the model.
    """
    behaviour = (finding for finding in result.findings if finding.severity == BEHAVIOURAL)
    broken = {finding.rule for finding in behaviour if finding.rule not in SERVERS_RULES}
    told = {finding.rule for finding in result.findings}
    met: set[int] = set()
    for turn in case.turns:
        if not told.isdisjoint((turn.expect.rule, models_rule(turn.expect.rule))):
            break
        met.add(models_rule(turn.expect.rule))
    else:
        ended_well = bool(result.conversation) and result.conversation[-1]["role"] == "assistant"
        met = set() if broken or not ended_well else met
    yield from {**dict.fromkeys(met.difference(SERVERS_RULES), True), **dict.fromkeys(broken, False)}.items()


def _judgeable(exchange: Exchange) -> tuple[list[Tool], list[Call]]:
    """The calls of a reply whose arguments can be held against a declared tool, and that tool of each."""
    tools = parse_request(exchange.request).tools or {}
    reply = judge(exchange).reply
    calls = [
        call
        for call in (reply.calls if reply is not None else ())
        if call.arguments is not None and isinstance(call.name, str) and call.name in tools
    ]
    return [tools[call.name] for call in calls], calls


def _broken_rules(tool: Tool, call: Call) -> frozenset[int]:
    found = Findings(None)
    check_arguments_fit(tool, call.arguments or {}, "", found)
    return frozenset(finding.rule for finding in found.all() if finding.severity != WARN)


def _successes(exchange: Exchange) -> list[tuple[bool, bool]]:
    """Of a reply that ends with `tool_calls`: are all its calls good, has any arguments? Of others none."""
    reply = judge(exchange).reply
    if reply is None or reply.finish_reason != "tool_calls":
        return []
    tools, calls = _judgeable(exchange)
    good = bool(calls) and len(calls) == len(reply.calls) and not any(map(_broken_rules, tools, calls))
    return [(good, any(call.arguments for call in calls))]
