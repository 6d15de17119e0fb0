"""What a host should be, for its own checks: `config.json`, as `healthchecks/health_config.py` reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from deploy.crontab import cron_files, why_no_cron
from deploy.desired import Desired, DesiredModel, HostFile, ServiceBackend
from deploy.facts import HostFacts
from deploy.server_plan import Release
from deploy.units import UNIT, health_files, host_files, load_unit, server_files

FORMAT = 1
_TEXTFILE_DIR = "var/lib/prometheus/node-exporter"
"""As in `healthchecks/textfile.py`."""


def render_health_config(desired: Desired, facts: HostFacts, release: Release) -> str:
    """JSON for people too, ending in a line break. The same desired state and host give the same text.

    When the host was deployed is not in it: its own journal knows.
    """
    paths = desired.paths
    document = {
        "format": FORMAT,
        "host": desired.host,
        "url": desired.url,
        "root": str(paths.root),
        "models_dir": str(paths.models_dir),
        "current": str(paths.current),
        "previous": str(paths.previous),
        "release": release.name,
        "backend": str(desired.server.backend),
        "unit": UNIT,
        "gpu": str(desired.gpu),
        "gpu_expected_count": _expected_gpus(desired, facts),
        "models": [_model(model) for model in desired.models],
        "files": [_file(file) for file in _files(desired, facts, release)],
        "toolkit_version": desired.health.toolkit_version if desired.health is not None else "",
        "deployed_at": None,
        "every_seconds": desired.health.every_minutes * 60 if desired.health is not None else None,
        "textfile_dir": _textfile_dir(desired),
        "thresholds": {},
    }
    return json.dumps(document, indent=1) + "\n"


def metrics_file(desired: Desired, facts: HostFacts) -> PurePosixPath:
    """What the checks of the host write for node_exporter, whether it is there or not."""
    told = _told_before(desired, facts).get("textfile_dir")
    directory = PurePosixPath(told) if isinstance(told, str) else desired.paths.root / _TEXTFILE_DIR
    return directory / "ollama_fleet.prom"


def _textfile_dir(desired: Desired) -> str | None:
    asked = desired.health.textfile_dir if desired.health is not None else None
    return None if asked is None else str(asked)


def _model(model: DesiredModel) -> dict[str, Any]:
    stored = model.stored
    template = model.modelfile.template if stored is None else stored.template
    return {
        "name": model.name,
        "weights_sha256": model.weights.sha256 if stored is None else stored.model_sha256,
        "size_bytes": model.weights.size_bytes if stored is None else stored.model_bytes,
        "template_sha256": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        "parameters": _parameters(model.modelfile.parameters if stored is None else stored.parameters),
        "uses_tools": model.uses_tools,
        "baseline_tokens_per_second": None,
    }


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """One text for what a Modelfile asks for and what the store has of it, where Ollama writes 0.0 as 0."""

    def plain(value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return {name: plain(value) for name, value in sorted(parameters.items())}


def _files(desired: Desired, facts: HostFacts, release: Release) -> tuple[HostFile, ...]:
    """What `systemd_steps` and `schedule_steps` write."""
    every = desired.health.every_minutes if desired.health is not None else None
    if desired.server.backend is ServiceBackend.PROCESS:
        return () if every is None or why_no_cron(desired, facts) else cron_files(desired, every)
    if facts.systemd is None:
        return ()
    health = () if every is None else health_files(desired, every)
    served = (*server_files(desired, facts, release), load_unit(desired, facts, release))
    return (*host_files(desired), *served, *health)


def _file(file: HostFile) -> dict[str, str]:
    return {"path": str(file.path), "sha256": hashlib.sha256(file.text.encode()).hexdigest()}


def _expected_gpus(desired: Desired, facts: HostFacts) -> int | None:
    """As many as were ever found here: one that is gone is for the checks to tell, not to be forgotten."""
    found = len(facts.gpus.gpus) if facts.gpus is not None and facts.gpus.problem is None else None
    told = _told_before(desired, facts).get("gpu_expected_count")
    before = told if isinstance(told, int) else None
    known = [count for count in (found, before) if count is not None]
    return max(known, default=None)


def _told_before(desired: Desired, facts: HostFacts) -> dict[str, Any]:
    """The configuration that is on the host; empty where there is none that can be read."""
    found = facts.systemd or facts.cron
    fact = found.files.get(str(desired.paths.health / "config.json")) if found is not None else None
    try:
        document = json.loads(fact.text) if fact is not None else None
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
