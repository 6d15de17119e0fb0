"""The keys of a report's `facts`: fixed, each there in every report, None where it was not found out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from healthchecks.health_config import HealthConfig

FACTS = {
    "toolkit_version": "ours, of the last deploy",
    "ollama_version": "what the server says",
    "release": "the directory that `current` leads to",
    "boot_id": "of the kernel, another one after each boot",
    "unit": "`active` (true or false) and `restarts` (systemd's NRestarts) of the service",
    "api_seconds": "how long /api/version took",
    "models": "one object a deployed model",
    "gpus": "one object a GPU that NVML tells of",
    "gpu_expected_count": "what the first deploy found",
    "driver": "`driver_version` and `cuda_version`",
    "filesystem": "`path`, `avail_bytes` and `avail_inodes` of the models' file system",
    "listeners": "addresses on which the server's port is open, as `127.0.0.1:11434`",
    "drifted_files": "paths of ours that are not as they were written",
    "rollback_available": "whether a previous release is there",
    "deploy_last_success_at": "UTC",
}

MODEL_FACTS = {
    "name": "as deployed",
    "present": "whether the server has it",
    "digest_match": "whether its weights are those that were deployed",
    "size_bytes": "of the loaded model, /api/ps",
    "vram_bytes": "of these in GPU memory, as the server says",
    "load_seconds": "of this run's generation",
    "first_token_seconds": "of this run's generation, from the request to the first piece",
    "tokens_per_second": "eval_count / eval_duration",
    "toolcall_ok": "whether the judge passed the call",
    "toolcall_seconds": "of the whole case",
}

GPU_FACTS = {
    "index": "NVML's",
    "uuid": "",
    "name": "",
    "memory_total_bytes": "",
    "memory_used_bytes": "without what the driver reserves",
    "temperature_celsius": "",
    "utilization_percent": "",
    "xid_last_code": "of the kernel's log since the boot, None without one",
}


def empty_facts(config: HealthConfig) -> dict[str, Any]:
    """What is known before any check; everything else None, lists of things empty."""
    facts: dict[str, Any] = dict.fromkeys(FACTS)
    facts.update(
        toolkit_version=config.toolkit_version,
        models=[{**dict.fromkeys(MODEL_FACTS), "name": model.name} for model in config.models],
        gpus=[],
        gpu_expected_count=config.gpu_expected_count,
        deploy_last_success_at=config.deployed_at,
    )
    return facts


def add_facts(facts: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Put what a check found into `facts`.

    `models` is by name and `gpus` by uuid: several checks know something of each.

    Raises:
        ValueError: no such key is promised.
    """
    for key, value in found.items():
        if key not in FACTS:
            raise ValueError(f"`{key}` is no fact of a report")
        if key == "models":
            _merge(facts["models"], "name", value, MODEL_FACTS)
        elif key == "gpus":
            _merge(facts["gpus"], "uuid", value, GPU_FACTS)
        else:
            facts[key] = value


def _merge(
    known: list[dict[str, Any]], key: str, found: Mapping[str, Mapping[str, Any]], keys: Mapping[str, str]
) -> None:
    for name, values in found.items():
        unknown = sorted(set(values) - set(keys))
        if unknown:
            raise ValueError(f"`{unknown[0]}` is no fact of `{name}`")
        entry = next((one for one in known if one[key] == name), None)
        if entry is None:
            entry = {**dict.fromkeys(keys), key: name}
            known.append(entry)
        entry.update(values)
