"""The tasks that only look: status, render, inventory."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from console.changes import exit_code, failed_outcome
from console.paths import MODELFILES
from console.run import Run, inventory_path, transport_for
from deploy.converge import probe_host
from deploy.desired import Desired, ServiceBackend
from deploy.errors import ExitCode, FleetError, errors_of
from deploy.facts import HostFacts, LastHealth
from deploy.fleet import each
from deploy.outcomes import HostOutcome, Outcome
from deploy.plan import plan, render_plan
from deploy.report import Report, render_json
from deploy.transport import Transport
from healthchecks.api import server_version
from healthchecks.figure_texts import age_text


def show_status(run: Run, *, drift_code: bool) -> ExitCode:
    """`status`: what every host serves and how it differs; with `drift_code` end with 3 when one does."""
    found = each(run.hosts(), lambda desired: _status_of(run, desired), run.forks)
    columns = ["host", "release", "server", "ollama", "models", "health", "state"]
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
        # Hundreds of connections would be kept otherwise.
        with errors_of(desired.host), closing(transport_for(desired)) as transport:
            facts = probe_host(desired, transport)
            fields = _status_fields(desired, facts, transport)
    except FleetError as error:
        run.report.error(error)
        return failed_outcome(desired, error), [desired.host, *"------"], False
    try:
        with errors_of(desired.host):
            drift = render_plan(plan(desired, facts))["steps"]
        state = f"{len(drift)} step{'' if len(drift) == 1 else 's'} to do" if drift else "as desired"
    except FleetError as error:
        # What keeps a deploy from being planned (a taken port, a full disk) is part of the state.
        drift, state = [{"reason": error.sentence}], error.sentence
    fields["drift"] = drift
    run.report("status", desired.host, **fields)
    row = [
        desired.host,
        str(fields["release"] or "-"),
        _server_word(fields),
        str(fields["ollama"] or "-"),
        ", ".join(fields["models"]) or "-",
        _health_word(fields["health"]),
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


def _health_word(health: dict[str, Any] | None) -> str:
    """How the host's own checks ended, and how long ago: a timer that stands still is seen by that."""
    return "-" if health is None else f"{health['state']}, {age_text(health['age_seconds'])} ago"


def _health_fields(health: LastHealth | None) -> dict[str, Any] | None:
    if health is None:
        return None
    # Its clock may be ahead of ours.
    age_seconds = max(0.0, (datetime.now(UTC) - health.started).total_seconds())
    return {
        "state": health.state,
        "started": health.started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "age_seconds": round(age_seconds),
    }


def _status_fields(desired: Desired, facts: HostFacts, transport: Transport) -> dict[str, Any]:
    ollama = None
    if facts.servers:
        with transport.http_url(desired.url) as url:
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
        "health": _health_fields(facts.health),
        # Under systemd it is in journald: `./fleet logs`.
        "log": None if supervised is not None else str(desired.paths.log),
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
    print(render_json(listed, sys.stdout, indent=4, sort_keys=True))
