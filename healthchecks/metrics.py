"""What a run of the health checks says as Prometheus metrics: names, labels, values.

A value that is not known is left out: an absent series is no zero. There are no host names, no prompts and no
timestamps of samples in it; Prometheus itself adds `instance` and the time.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from healthchecks.health import CHECKS, DEADLINE_SECONDS, CheckResult, HealthConfig, HealthReport, State

PREFIX = "ollama_fleet_"
GAUGE, COUNTER = "gauge", "counter"


@dataclass(frozen=True)
class Metric:
    """One name with its labels, which are always all there."""

    text: str
    labels: tuple[str, ...] = ()
    kind: str = GAUGE


METRICS: Mapping[str, Metric] = {
    "check_success": Metric("1 if the last run of this check passed or warned, 0 if it failed.", ("check",)),
    "check_state": Metric("1 for the state of the last run of this check.", ("check", "state")),
    "check_duration_seconds": Metric("How long the last run of this check took.", ("check",)),
    "check_deadline_seconds": Metric("After how long this check is given up.", ("check",)),
    "check_failures_total": Metric("Runs in which this check failed.", ("check",), COUNTER),
    "check_consecutive_failures": Metric(
        "Runs in which this check failed since it was last known not to.", ("check",)
    ),
    "check_last_success_timestamp_seconds": Metric(
        "When this check last passed or warned, Unix time.", ("check",)
    ),
    "check_last_run_timestamp_seconds": Metric("When the last run ended, Unix time."),
    "check_interval_seconds": Metric("How often the host checks itself."),
    "runs_total": Metric("Runs of the health checks.", (), COUNTER),
    "run_duration_seconds": Metric("How long the last run took."),
    "build_info": Metric(
        "1, labelled with what serves and what deployed it.", ("ollama_version", "toolkit_version", "release")
    ),
    "unit_active": Metric("1 if the service is active.", ("unit",)),
    "unit_restarts_total": Metric("Restarts of the service by systemd: NRestarts.", ("unit",), COUNTER),
    "api_response_seconds": Metric("How long the server took to answer.", ("endpoint",)),
    "model_present": Metric("1 if the server has the model.", ("model",)),
    "model_digest_match": Metric("1 if its weights are those that were deployed.", ("model",)),
    "model_weights_bytes": Metric("Size of the model's file.", ("model",)),
    "model_size_bytes": Metric("Bytes of the loaded model, as the server says.", ("model",)),
    "model_vram_bytes": Metric("Bytes of the loaded model in GPU memory, as the server says.", ("model",)),
    "model_load_seconds": Metric("How long the model took to load, 0 where it was loaded.", ("model",)),
    "first_token_seconds": Metric("From the request to the first piece of the answer.", ("model",)),
    "generation_tokens_per_second": Metric("Speed of the last generation.", ("model",)),
    "generation_baseline_tokens_per_second": Metric(
        "Its median speed in the first runs after its deploy.", ("model",)
    ),
    "toolcall_success": Metric("1 if the judge passed the tool call.", ("model",)),
    "toolcall_duration_seconds": Metric("How long the tool call's case took.", ("model",)),
    "gpu_count": Metric("GPUs that the driver has."),
    "gpu_expected_count": Metric("GPUs that the first deploy found, where the inventory expects any."),
    "gpu_memory_total_bytes": Metric("Memory of the GPU.", ("gpu", "uuid")),
    "gpu_memory_used_bytes": Metric("Memory in use, without what the driver reserves.", ("gpu", "uuid")),
    "gpu_temperature_celsius": Metric("Temperature of the GPU.", ("gpu", "uuid")),
    "gpu_utilization_ratio": Metric("Share of time in which the GPU computed.", ("gpu", "uuid")),
    "gpu_xid_last_code": Metric("Last Xid in the kernel's log since the boot.", ("gpu", "uuid")),
    "driver_info": Metric(
        "1, labelled with the versions of NVIDIA's driver.", ("driver_version", "cuda_version")
    ),
    "models_filesystem_avail_bytes": Metric("Room where the models lie.", ("path",)),
    "config_drift": Metric("1 if this file of ours is not as it was written.", ("file",)),
    "listener_exposed": Metric("1 if the server's port is open beyond loopback there.", ("addr",)),
    "rollback_available": Metric("1 if there is a previous release to go back to."),
    "deploy_last_success_timestamp_seconds": Metric(
        "When the last deploy that changed something ended well, Unix time."
    ),
}
"""By name without the prefix, in the order of the file."""


@dataclass(frozen=True)
class Counters:
    """What outlives a run; the last three by check."""

    runs: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    consecutive_failures: Mapping[str, int] = field(default_factory=dict)
    last_success_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """`name` is a key of METRICS; `labels` are in its order."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


def count_run(before: Counters, report: HealthReport) -> Counters:
    """The counters after this run; what was not found out is no failure, and ends no row of them."""
    failures, in_a_row = dict(before.failures), dict(before.consecutive_failures)
    last_success = dict(before.last_success_seconds)
    for result in report.checks:
        if result.state is State.FAIL:
            failures[result.check] = failures.get(result.check, 0) + 1
            in_a_row[result.check] = in_a_row.get(result.check, 0) + 1
        elif result.state is not State.UNKNOWN:
            in_a_row[result.check] = 0
            last_success[result.check] = _ended(report)
    return Counters(before.runs + 1, failures, in_a_row, last_success)


def collect_samples(config: HealthConfig, report: HealthReport, counters: Counters) -> Iterator[Sample]:
    """Every value that is known.

    Args:
        counters: with this run in it.
    """
    yield Sample("runs_total", counters.runs)
    yield Sample("run_duration_seconds", report.seconds)
    yield Sample("check_last_run_timestamp_seconds", _ended(report))
    yield from _known("check_interval_seconds", config.every_seconds)
    deadlines = {check.name: check.deadline_seconds(config) for check in CHECKS}
    for result in report.checks:
        yield from _of_check(result, counters)
        if result.check in deadlines:
            deadline = deadlines[result.check] or DEADLINE_SECONDS
            yield Sample("check_deadline_seconds", deadline, (result.check,))
    yield from _of_server(config, report.facts)
    baselines = {model.name: model for model in config.models}
    for model in report.facts.get("models") or ():
        yield from _of_model(model)
    for name, deployed in baselines.items():
        yield Sample("model_weights_bytes", deployed.size_bytes, (name,))
        speed = deployed.baseline_tokens_per_second
        yield from _known("generation_baseline_tokens_per_second", speed, name)
    if config.gpu == "nvidia":
        yield from _of_gpus(config, report)
    yield from _of_host(config, report)


def _of_check(result: CheckResult, counters: Counters) -> Iterator[Sample]:
    name = result.check
    if result.state is not State.UNKNOWN:
        yield Sample("check_success", result.state is not State.FAIL, (name,))
    for state in State:
        yield Sample("check_state", result.state is state, (name, state.value))
    yield Sample("check_duration_seconds", result.seconds, (name,))
    yield Sample("check_failures_total", counters.failures.get(name, 0), (name,))
    yield from _known("check_consecutive_failures", counters.consecutive_failures.get(name), name)
    yield from _known("check_last_success_timestamp_seconds", counters.last_success_seconds.get(name), name)


def _of_server(config: HealthConfig, facts: Mapping[str, Any]) -> Iterator[Sample]:
    versions = [facts.get(key) for key in ("ollama_version", "toolkit_version", "release")]
    if any(versions):
        yield Sample("build_info", 1, tuple(str(version or "") for version in versions))
    unit = facts.get("unit") or {}
    yield from _known("unit_active", unit.get("active"), config.unit)
    yield from _known("unit_restarts_total", unit.get("restarts"), config.unit)
    yield from _known("api_response_seconds", facts.get("api_seconds"), "/api/version")


_OF_A_MODEL = {
    "present": "model_present",
    "digest_match": "model_digest_match",
    "size_bytes": "model_size_bytes",
    "vram_bytes": "model_vram_bytes",
    "load_seconds": "model_load_seconds",
    "first_token_seconds": "first_token_seconds",
    "tokens_per_second": "generation_tokens_per_second",
    "toolcall_ok": "toolcall_success",
    "toolcall_seconds": "toolcall_duration_seconds",
}


def _of_model(model: Mapping[str, Any]) -> Iterator[Sample]:
    for key, name in _OF_A_MODEL.items():
        yield from _known(name, model.get(key), str(model["name"]))


_OF_A_GPU = {
    "memory_total_bytes": "gpu_memory_total_bytes",
    "memory_used_bytes": "gpu_memory_used_bytes",
    "temperature_celsius": "gpu_temperature_celsius",
    "xid_last_code": "gpu_xid_last_code",
}


def _of_gpus(config: HealthConfig, report: HealthReport) -> Iterator[Sample]:
    facts = report.facts
    gpus = facts.get("gpus") or ()
    # A driver that was not asked in time has no count, and not the count 0.
    if any(result.check == "gpu" and result.state is not State.UNKNOWN for result in report.checks):
        yield Sample("gpu_count", len(gpus))
    yield from _known("gpu_expected_count", config.gpu_expected_count)
    for gpu in gpus:
        index = gpu.get("index")
        labels = ("" if index is None else str(index), str(gpu["uuid"]))
        for key, name in _OF_A_GPU.items():
            yield from _known(name, gpu.get(key), *labels)
        percent = gpu.get("utilization_percent")
        yield from _known("gpu_utilization_ratio", None if percent is None else percent / 100, *labels)
    driver = facts.get("driver") or {}
    versions = [driver.get(key) for key in ("driver_version", "cuda_version")]
    if any(versions):
        yield Sample("driver_info", 1, tuple(str(version or "") for version in versions))


def _of_host(config: HealthConfig, report: HealthReport) -> Iterator[Sample]:
    facts = report.facts
    filesystem = facts.get("filesystem")
    if filesystem:
        yield from _known("models_filesystem_avail_bytes", filesystem["avail_bytes"], filesystem["path"])
    drifted = facts.get("drifted_files")
    if drifted is not None:
        unread = {path for one in report.checks for path in one.evidence.get("unread", ())}
        for file in config.files:
            if file.path not in unread:
                yield Sample("config_drift", file.path in drifted, (file.path,))
    for address in sorted(set(facts.get("listeners") or ())):
        yield Sample("listener_exposed", not _is_loopback(address), (address,))
    yield from _known("rollback_available", facts.get("rollback_available"))
    deployed = facts.get("deploy_last_success_at")
    if deployed:
        yield Sample("deploy_last_success_timestamp_seconds", _unix_seconds(str(deployed)))


def _known(name: str, value: float | None, *labels: str) -> Iterator[Sample]:
    if value is not None:
        yield Sample(name, value, labels)


def _is_loopback(address: str) -> bool:
    """Of `127.0.0.1:11434` or `[::1]:11434`."""
    return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback


def _ended(report: HealthReport) -> float:
    return _unix_seconds(report.started) + report.seconds


def _unix_seconds(text: str) -> float:
    """Of `2026-11-26T21:36:45Z`."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
