"""`./fleet bench ACTION`: which one, with which numbers."""

from __future__ import annotations

import random

from deploy.errors import UsageError
from deploy.report import Report


def run_bench(
    report: Report,
    action: str,
    *,
    hosts: int,
    count: int,
    seed: str | None,
    minutes: float,
    rounds: int,
    from_round: int,
) -> int:
    """The exit code: 2 when a target was missed. Raises UsageError for what is no bench."""
    match action:
        case "converge":
            from bench import converge
            from bench.peers import compare

            return max(converge.run(report, hosts), compare.run(report, hosts))
        case "scale":
            from bench import scale

            return scale.run(report)
        case "kills":
            from bench import kills

            return kills.run(report, count, choose_seed(seed))
        case "cuts":
            from bench import kills

            return kills.run_cuts(report, count, choose_seed(seed))
        case "chaos":
            from bench import chaos

            chosen = choose_seed(seed)
            return chaos.run(report, seed=chosen, minutes=minutes, rounds=rounds, first=from_round)
        case "faults":
            from bench import faults

            return faults.run(report)
        case "judge":
            from bench import judge

            return judge.run(report)
        case "rules":
            from bench import rules

            return rules.run(report)
        case "verdicts":
            from bench import verdicts

            return verdicts.run(report)
        case "health" | "fleet-health":
            from bench import agent_runs, fleet_health

            return agent_runs.run(report, count) if action == "health" else fleet_health.run(report)
        case _:
            raise UsageError(
                sentence=f"`bench {action}` is no bench",
                unchanged="everything",
                hint="./fleet bench "
                "converge|scale|kills|cuts|faults|chaos|health|fleet-health|judge|rules|verdicts",
            )


def choose_seed(given: str | None) -> int:
    """The one that was given, 0 like any other; else another one each time. Raises UsageError."""
    if given is None:
        return random.randrange(1, 1_000_000)
    try:
        return int(given)
    except ValueError:
        raise UsageError(
            sentence=f"`--seed {given}` is no number",
            unchanged="everything",
            hint="leave it out for another one each time, which is told",
        ) from None
