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
    seed: int,
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

            return kills.run(report, count, seed or random.randrange(1, 1_000_000))
        case "cuts":
            from bench import kills

            return kills.run_cuts(report, count, seed or random.randrange(1, 1_000_000))
        case "chaos":
            from bench import chaos

            chosen = seed or random.randrange(1, 1_000_000)
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
