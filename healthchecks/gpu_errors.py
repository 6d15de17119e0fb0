"""Has a card broken memory: ECC errors, remapped rows, retired pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from healthchecks.gpu_driver import whole_gpus
from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look
from healthchecks.nvml import Gpu

_RESET = "when nobody uses it: nvidia-smi --gpu-reset, or reboot"
_REPLACE = "take the host out of service and have the card replaced"


def check_gpu_errors(look: Look) -> Judgement:
    """The card's own counters; one without ECC memory has none."""
    gpus = whole_gpus(look.gpus())
    evidence = {"gpus": {gpu.uuid: _counters(gpu) for gpu in gpus}}
    if not gpus:
        return Judgement(State.UNKNOWN, "no GPU answers", None, evidence)
    found = [finding for gpu in gpus for finding in _find(gpu)]
    for wanted in (State.FAIL, State.WARN):
        for state, reason, hint in found:
            if state is wanted:
                return Judgement(state, reason, hint, evidence)
    if all(value is None for gpu in gpus for value in _counters(gpu).values()):
        return Judgement(State.PASS, "the cards have no ECC memory, so they count no errors", None, evidence)
    return Judgement(State.PASS, "no uncorrected error, no row or page to be replaced", None, evidence)


def _find(gpu: Gpu) -> Iterator[tuple[State, str, str]]:
    name = f"GPU {gpu.index}"
    if gpu.remapped_failed:
        yield State.FAIL, f"{name} could not replace a broken row of its memory", _REPLACE
    if gpu.ecc_volatile:
        reason = f"{name} had {gpu.ecc_volatile} uncorrected memory errors since its driver was loaded"
        yield State.FAIL, reason, f"{_RESET}; replace the card if they come back"
    if gpu.remapped_pending or gpu.retired_pending:
        yield State.WARN, f"{name} has a broken part of its memory to replace at its next reset", _RESET
    if gpu.ecc_aggregate and not gpu.ecc_volatile:
        reason = (
            f"{name} had {gpu.ecc_aggregate} uncorrected memory errors in its life, none since its last reset"
        )
        yield State.WARN, reason, "watch the number; replace the card if it grows"


def _counters(gpu: Gpu) -> dict[str, Any]:
    return {
        "ecc_volatile": gpu.ecc_volatile,
        "ecc_aggregate": gpu.ecc_aggregate,
        "remapped_pending": gpu.remapped_pending,
        "remapped_failed": gpu.remapped_failed,
        "retired_pending": gpu.retired_pending,
    }
