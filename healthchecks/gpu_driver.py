"""Does the driver answer, and does it have all GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from healthchecks.child import KILL_SECONDS
from healthchecks.health_config import HealthConfig
from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look
from healthchecks.nvml import BROKEN, HANGS, Gpu, GpuReading

# nvml.h, nvmlReturn_t: what is said, and what to do next.
_CODES: Mapping[int, tuple[str, str]] = {
    4: ("the driver refuses this user", "let the user read and write /dev/nvidia*"),
    6: ("the driver finds no GPU", "read `lspci | grep -i nvidia`"),
    9: (
        "the driver is not loaded",
        (
            "modprobe nvidia; then read `dmesg | grep NVRM`; where it is loaded, /dev/nvidia* is missing: "
            "start a container with `--gpus all`"
        ),
    ),
    12: ("no driver is installed", "install NVIDIA's driver; start a container with `--gpus all`"),
    15: ("a GPU is lost", "read `dmesg | grep Xid`; then nvidia-smi --gpu-reset, or reboot"),
    16: ("a GPU must be reset", "read `dmesg | grep Xid`; then nvidia-smi --gpu-reset, or reboot"),
    18: ("the driver's module and its library are of different versions", "reboot: the driver was upgraded"),
    HANGS: ("the driver does not answer", "read `dmesg | grep Xid`; usually only a reboot helps"),
    BROKEN: ("the driver crashes whoever asks it", "run nvidia-smi on the host; read `dmesg | grep NVRM`"),
}
_OTHER = ("the driver reports an error", "run nvidia-smi on the host, and read `dmesg | grep NVRM`")


def check_gpu_driver(look: Look) -> Judgement:
    """NVML's answer, and the number of GPUs against that of the first deploy."""
    reading = look.gpus()
    gpus = whole_gpus(reading)
    expected = look.config.gpu_expected_count
    evidence = {
        "count": len(gpus),
        "expected": expected,
        "code": reading.code,
        "said": reading.said,
        "driver": reading.driver,
        "mig": sorted({gpu.mig for gpu in reading.gpus}),
    }
    facts = {
        "driver": {"driver_version": reading.driver, "cuda_version": reading.cuda},
        "gpus": {gpu.uuid: _facts(gpu) for gpu in gpus},
    }
    problem, hint = problem_of(reading)
    if problem is not None and not gpus:
        return Judgement(State.FAIL, f"{problem}: {reading.said}", hint, evidence, facts)
    found = "1 GPU" if len(gpus) == 1 else f"{len(gpus)} GPUs"
    if problem is not None:
        reason = f"{problem}; {found} of {expected or 'several'} answer: {reading.said}"
        return Judgement(State.FAIL, reason, hint, evidence, facts)
    if expected is not None and len(gpus) < expected:
        hint = "read `dmesg | grep -e Xid -e 'fallen off'` and `lspci | grep -i nvidia`; reboot"
        return Judgement(State.FAIL, f"{found} of {expected} are there", hint, evidence, facts)
    if not gpus:
        return Judgement(State.FAIL, "the driver has no GPU", _CODES[6][1], evidence, facts)
    split = [gpu for gpu in gpus if gpu.mig == "split"]
    if split and reading.lists_instances and not any(gpu.mig == "instance" for gpu in reading.gpus):
        reason = f"MIG is on for GPU {split[0].index}, and it has no instance: nothing can compute there"
        return Judgement(State.FAIL, reason, "nvidia-smi mig -cgi, or nvidia-smi -mig 0", evidence, facts)
    if expected is not None and len(gpus) > expected:
        hint = f"./fleet schedule --limit {look.config.host} takes the new number"
        return Judgement(State.WARN, f"{found} are there, and {expected} were", hint, evidence, facts)
    mig = "; MIG is on: Ollama uses one instance" if split else ""
    return Judgement(State.PASS, f"{found}, driver {reading.driver}{mig}", None, evidence, facts)


def gpu_deadline(config: HealthConfig) -> float:
    """Later than the driver's, so that it is the driver that is blamed."""
    return config.thresholds.gpu_deadline_seconds + 2 * KILL_SECONDS


def whole_gpus(reading: GpuReading) -> tuple[Gpu, ...]:
    """Cards, without the instances of MIG."""
    return tuple(gpu for gpu in reading.gpus if gpu.mig != "instance")


def problem_of(reading: GpuReading) -> tuple[str | None, str | None]:
    """What went wrong with the reading and what to do, both None where nothing did."""
    return (None, None) if reading.code is None else _CODES.get(reading.code, _OTHER)


def _facts(gpu: Gpu) -> Mapping[str, Any]:
    return {
        "index": gpu.index,
        "name": gpu.name,
        "memory_total_bytes": gpu.memory_total_bytes,
        "memory_used_bytes": gpu.memory_used_bytes,
        "temperature_celsius": gpu.temperature_celsius,
        "utilization_percent": gpu.utilization_percent,
    }
