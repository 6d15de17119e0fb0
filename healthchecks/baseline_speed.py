"""How fast each model was in the first runs after its deploy: what later runs are compared with.

The deploy does not measure it, since a cold machine or a first load would be all it sees. The host keeps the
speeds of the first runs and takes their median. A model with other weights, another release or another number
of GPUs is another thing, and is measured anew; a GPU that got lost is none: the number is that of the deploy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from healthchecks.health_config import HealthConfig, ModelConfig
from healthchecks.health_report import HealthReport, State
from healthchecks.results import replace_file

RUNS = 5
_DISTURBING = ("gpu", "gpu_truth", "gpu_heat")
"""While one of these finds something, the speed is not the one to compare with."""


def with_baselines(config: HealthConfig, path: Path) -> HealthConfig:
    """The configuration with what was measured, where the deploy told no baseline."""
    known = _read(path)

    def with_baseline(model: ModelConfig) -> ModelConfig:
        speeds = _speeds(known, config, model)
        if model.baseline_tokens_per_second is not None or len(speeds) < RUNS:
            return model
        return replace(model, baseline_tokens_per_second=median(speeds))

    return replace(config, models=tuple(map(with_baseline, config.models)))


def note_speeds(path: Path, config: HealthConfig, report: HealthReport) -> None:
    """Keep the speeds of a run, until there are enough of them. Raises OSError."""
    disturbed = any(
        result.check in _DISTURBING and result.state in (State.WARN, State.FAIL) for result in report.checks
    )
    facts = () if disturbed else report.facts.get("models") or ()
    measured = {one["name"]: one["tokens_per_second"] for one in facts}
    known, kept = _read(path), {}
    for model in config.models:
        speeds, speed = _speeds(known, config, model), measured.get(model.name)
        if len(speeds) < RUNS and speed is not None:
            speeds = [*speeds, speed]
        kept[model.name] = {**_measured_of(config, model), "tokens_per_second": speeds}
    if kept != known:
        replace_file(path, (json.dumps(kept, indent=1) + "\n").encode())


def _measured_of(config: HealthConfig, model: ModelConfig) -> dict[str, Any]:
    """What makes the same name another thing."""
    return {
        "weights_sha256": model.weights_sha256,
        "release": config.release,
        "gpus": config.gpu_expected_count,
    }


def _speeds(known: Mapping[str, Any], config: HealthConfig, model: ModelConfig) -> list[float]:
    entry = known.get(model.name)
    if not isinstance(entry, dict):
        return []
    speeds = entry.get("tokens_per_second")
    is_same = {**_measured_of(config, model), "tokens_per_second": speeds} == entry
    if not is_same or not isinstance(speeds, list):
        return []
    return [speed for speed in speeds if isinstance(speed, (int, float)) and speed > 0][:RUNS]


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
