"""The tasks that only look: status, smoke, render, inventory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from console.changes import count_cases, exit_code, ollama_word, outcome_of_error, tell_outcome
from console.paths import MODELFILES
from console.proof import check_cases, smoke_database, verify_model
from console.run import Run, inventory_path, transport_for
from deploy.converge import probe_host
from deploy.desired import Desired, DesiredModel, ServiceBackend
from deploy.errors import ExitCode, FleetError
from deploy.facts import HostFacts
from deploy.fleet import each
from deploy.outcomes import HostOutcome, Outcome, VerifyRequest
from deploy.plan import plan, render_plan
from deploy.report import Report
from healthchecks.api import server_version


def show_smoke(run: Run, cases: Sequence[str] | None) -> ExitCode:
    """`smoke`: the suite against what every host serves, and its table."""
    check_cases(cases)
    outcomes = smoke_hosts(run, run.hosts(), cases)
    show_cases(run.report, outcomes)
    run.report.summary(outcomes, **count_cases(outcomes), **ollama_word(outcomes))
    return exit_code(outcomes)


def smoke_hosts(run: Run, hosts: Sequence[Desired], cases: Sequence[str] | None) -> tuple[HostOutcome, ...]:
    """The suite against `NAME:latest` of every model of every host."""
    with smoke_database(run.database) as database:

        def one(desired: Desired) -> HostOutcome:
            transport = transport_for(desired)
            verdicts = {}
            with transport.http_url(desired.url) as url:
                for model in desired.models:
                    request = _request(desired, url, model)
                    verdicts[model.name] = verify_model(request, database, run.report, cases)
            for verdict in verdicts.values():
                if not verdict.cases:
                    run.report("note", desired.host, text="; ".join(verdict.reasons))
            passed = all(verdict.passed for verdict in verdicts.values())
            outcome = Outcome.OK if passed else Outcome.FAILED
            return tell_outcome(run, HostOutcome(host=desired.host, outcome=outcome, verdicts=verdicts))

        return each(hosts, one, run.forks)


def _request(desired: Desired, url: str, model: DesiredModel) -> VerifyRequest:
    return VerifyRequest(
        host=desired.host,
        url=url,
        model=f"{model.name}:latest",
        uses_tools=model.uses_tools,
        version=desired.server.version,
        gpu=str(desired.gpu),
        cases=model.cases,
    )


def show_cases(report: Report, outcomes: Sequence[HostOutcome]) -> None:
    """The suite's table."""
    rows = [
        [
            outcome.host,
            name,
            case["case"],
            case["mode"],
            "passed" if case["passed"] else "FAILED",
            f"{case['seconds']:.2f}",
        ]
        for outcome in outcomes
        for name, verdict in outcome.verdicts.items()
        for case in verdict.cases
    ]
    report.table("tool calls over /v1", ["host", "model", "case", "mode", "verdict", "seconds"], rows)


def show_status(run: Run, *, drift_code: bool) -> ExitCode:
    """`status`: what every host serves and how it differs; with `drift_code` end with 3 when one does."""
    found = each(run.hosts(), lambda desired: _status_of(run, desired), run.forks)
    columns = ["host", "release", "server", "ollama", "models", "state"]
    rows = [row for _, row, _ in found]
    run.report.table("status", columns, rows)
    outcomes = [outcome for outcome, _, _ in found]
    drifted = sum(1 for _, _, differs in found if differs)
    run.report.summary(outcomes, drifted=drifted)
    drift = ExitCode.DRIFT if drift_code and drifted else ExitCode.DONE
    return max(exit_code(outcomes), drift)


def _status_of(run: Run, desired: Desired) -> tuple[HostOutcome, list[str], bool]:
    """One host's outcome, its row of the table, and whether it differs from what is desired."""
    try:
        facts = probe_host(desired, transport_for(desired))
    except FleetError as error:
        run.report.error(error)
        failed = HostOutcome(host=desired.host, outcome=outcome_of_error(error), error=error)
        return failed, [desired.host, *"-----"], False
    try:
        drift = render_plan(plan(desired, facts))["steps"]
        state = f"{len(drift)} step{'' if len(drift) == 1 else 's'} to do" if drift else "as desired"
    except FleetError as error:
        # What keeps a deploy from being planned (a taken port, a full disk) is part of the state.
        drift, state = [{"reason": error.sentence}], error.sentence
    fields = {**_status_fields(desired, facts), "drift": drift}
    run.report("status", desired.host, **fields)
    row = [
        desired.host,
        str(fields["release"] or "-"),
        _server_word(fields),
        str(fields["ollama"] or "-"),
        ", ".join(fields["models"]) or "-",
        state,
    ]
    return HostOutcome(host=desired.host, outcome=Outcome.OK), row, bool(drift)


def _server_word(fields: dict[str, Any]) -> str:
    """`process` hosts: nobody starts their server again when it ends, or at boot."""
    word = f"pid {fields['pids'][0]}" if fields["pids"] else "stopped"
    if not fields["supervised"]:
        return f"{word}, not supervised"
    unit = fields["unit"]
    return f"{word}, {unit['state']}, {unit['enabled'] or 'not enabled'}"


def _status_fields(desired: Desired, facts: HostFacts) -> dict[str, Any]:
    ollama = None
    if facts.servers:
        with transport_for(desired).http_url(desired.url) as url:
            answer = server_version(url)
        kind = "simulated" if answer.data.get("simulated") else "real"
        ollama = f"{answer.data['version']} ({kind})" if answer.ok else "no answer"
    supervised = facts.systemd if desired.server.backend is ServiceBackend.SYSTEMD else None
    return {
        "release": facts.current,
        "releases": sorted(facts.releases),
        "backend": str(desired.server.backend),
        "supervised": supervised is not None,
        "unit": None
        if supervised is None
        else {
            "state": supervised.unit.active_state,
            "enabled": supervised.unit.enabled,
            "restarts": supervised.unit.restarts,
            "lease": supervised.is_leased,
        },
        "previous": facts.previous,
        "pids": [server.process.pid for server in facts.servers],
        "address": desired.server.environment["OLLAMA_HOST"],
        "ollama": ollama,
        "models": sorted(facts.models),
        "log": str(desired.paths.log),
    }


def show_modelfile(report: Report, name: str, *, as_published: bool) -> None:
    """`render`: one model's Modelfile, linted; or the article's own, which is not."""
    from deploy.models import find_model, parse_models, render_as_published, rendered_modelfile

    models = parse_models(MODELFILES)
    spec = find_model(name, models)
    text = (
        render_as_published(spec, MODELFILES) if as_published else rendered_modelfile(spec, MODELFILES).text
    )
    report.text("modelfile", text, model=spec.name)


def show_inventory(given: str | None, limit: str | None) -> None:
    """`inventory --list`: what `ansible-inventory --list` prints."""
    from deploy.inventory import parse_inventory, render_list

    listed = render_list(parse_inventory(inventory_path(given)), limit)
    print(json.dumps(listed, indent=4, sort_keys=True, ensure_ascii=False))
