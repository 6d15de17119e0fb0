"""For us: what is measured, and the pages of `docs/` that are generated from code and recordings."""

from __future__ import annotations

import importlib

from deploy.errors import UsageError
from deploy.report import Report

ACTIONS = {"judge": "bench.judge", "rules": "bench.rules", "verdicts": "bench.verdicts"}
"""By the word on the command line: the module whose `run(report)` does it and returns the exit code."""


def run_bench(action: str, report: Report) -> int:
    """Raises UsageError for an action that does not exist."""
    if action not in ACTIONS:
        raise UsageError(
            sentence=f"`bench {action}` is no benchmark",
            unchanged="everything",
            hint=f"the actions are {', '.join(ACTIONS)}",
        )
    code: int = importlib.import_module(ACTIONS[action]).run(report)
    return code
