"""Does the model call a tool, and is the call right: one conversation of the smoke suite, judged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from healthchecks.api_answers import does_answer
from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look

CASE = "weather_one_call"
MODE = "plain"
_SEED = 7


def check_tool_call(look: Look) -> Judgement:
    """Each model that uses tools plays the case; one that fails is played once more.

    A model at temperature 0 may still answer otherwise now and then: what fails once is a warning.
    """
    models = [model.name for model in look.config.models if model.uses_tools]
    if not models:
        return Judgement(State.PASS, "no model is served that uses tools")
    silent = look.known.get("silent", set())
    if not does_answer(look) or silent.issuperset(models):
        # It was waited for long enough.
        facts_of_all = {model: {"toolcall_ok": False} for model in models}
        hint = f"./fleet logs --limit {look.config.host}"
        reason = "the server does not answer" if not does_answer(look) else "no model answers"
        return Judgement(State.FAIL, reason, hint, facts={"models": facts_of_all})
    # Loading jsonschema takes longer than all checks that only look.
    from healthchecks.database import make_database
    from healthchecks.endpoint import Endpoint
    from healthchecks.runner import CaseResult, load_cases, run_suite
    from healthchecks.toolcalls import WARN

    version = look.known.get("version")
    server = f"ollama/{version.data['version']}" if version is not None and version.ok else None
    cases = load_cases([CASE])
    deadline = look.config.thresholds.generate_deadline_seconds / (4 * len(models))
    evidence: dict[str, Any] = {"case": CASE, "models": {}}
    facts: dict[str, Any] = {}
    failed, doubtful = [], []

    def reasons(result: CaseResult) -> list[str]:
        told = [f"rule {one.rule}: {one.reason}" for one in result.findings if one.severity != WARN]
        return told or ([result.error] if result.error else [])

    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory, "shop.db")
        make_database(database, _SEED)
        for model in models:
            endpoint = Endpoint(look.config.url, model, server=server)
            plays: list[CaseResult] = []
            while len(plays) < 2 and not any(one.passed for one in plays):
                plays += run_suite(
                    endpoint, cases, database=database, modes=(MODE,), deadline_seconds=deadline
                )
            last = plays[-1]
            facts[model] = {"toolcall_ok": last.passed, "toolcall_seconds": round(last.seconds, 3)}
            evidence["models"][model] = {"plays": [one.passed for one in plays], "reasons": reasons(plays[0])}
            if not last.passed:
                failed.append(f"`{model}`: {_first(reasons(last))}")
            elif len(plays) > 1:
                doubtful.append(f"`{model}` failed once: {_first(reasons(plays[0]))}")
    told = {"models": facts}
    smoke = f"./fleet smoke --limit {look.config.host}"
    if failed:
        return Judgement(State.FAIL, "; ".join(failed), smoke, evidence, told)
    if doubtful:
        return Judgement(State.WARN, "; ".join(doubtful), smoke, evidence, told)
    names = ", ".join(f"`{model}`" for model in models)
    return Judgement(State.PASS, f"{names}: the call is right", None, evidence, told)


def _first(reasons: Iterable[str]) -> str:
    return next(iter(reasons), "no reason was told")
