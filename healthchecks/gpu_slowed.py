"""Is a card slowed down: heat, power, and the driver's habit of leaving an idle card."""

from __future__ import annotations

from collections.abc import Mapping

from healthchecks.gpu_driver import whole_gpus
from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look

# nvml.h, nvmlClocksEventReasons; a power cap by software (4) and idleness (1) are usual.
_REASONS: Mapping[int, str] = {
    8: "by its hardware (heat or power)",
    32: "by its driver, for heat",
    64: "by its hardware, for heat",
    128: "by its hardware, for its power supply",
}


def check_gpu_heat(look: Look) -> Judgement:
    """Temperature against the one at which the card slows itself, and whether it does."""
    gpus = whole_gpus(look.gpus())
    evidence = {
        "gpus": {
            gpu.uuid: {
                "temperature_celsius": gpu.temperature_celsius,
                "slowdown_celsius": gpu.slowdown_celsius,
                "throttle": gpu.throttle,
                "reasons": throttle_words(gpu.throttle),
            }
            for gpu in gpus
        }
    }
    hint = "look at fans, air and power of the host; read nvidia-smi -q -d PERFORMANCE,TEMPERATURE"
    margin = look.config.thresholds.temperature_margin_celsius
    for gpu in gpus:
        heat, limit = gpu.temperature_celsius, gpu.slowdown_celsius
        if heat is not None and limit is not None and heat >= limit:
            reason = f"GPU {gpu.index} has {heat} °C, and slows itself from {limit} °C on"
            return Judgement(State.FAIL, reason, hint, evidence)
    for gpu in gpus:
        words = throttle_words(gpu.throttle)
        if words:
            return Judgement(State.WARN, f"GPU {gpu.index} is slowed {words[0]}", hint, evidence)
    for gpu in gpus:
        heat, limit = gpu.temperature_celsius, gpu.slowdown_celsius
        if heat is not None and limit is not None and heat >= limit - margin:
            reason = f"GPU {gpu.index} has {heat} °C, and slows itself from {limit} °C on"
            return Judgement(State.WARN, reason, hint, evidence)
    known = [gpu.temperature_celsius for gpu in gpus if gpu.temperature_celsius is not None]
    if not known:
        return Judgement(State.UNKNOWN, "no GPU tells its temperature", None, evidence)
    return Judgement(State.PASS, f"at most {max(known)} °C, and no GPU is slowed", None, evidence)


def check_gpu_persistence(look: Look) -> Judgement:
    """Without persistence mode an idle card is left, and the next load waits seconds for it."""
    gpus = whole_gpus(look.gpus())
    evidence = {"gpus": {gpu.uuid: gpu.persistence for gpu in gpus}}
    off = [str(gpu.index) for gpu in gpus if gpu.persistence is False]
    if off:
        reason = f"persistence mode is off for GPU {', '.join(off)}: the first load after idleness is slow"
        return Judgement(State.WARN, reason, "systemctl enable --now nvidia-persistenced", evidence)
    if not any(gpu.persistence for gpu in gpus):
        return Judgement(State.UNKNOWN, "no GPU tells its persistence mode", None, evidence)
    return Judgement(State.PASS, "persistence mode is on", None, evidence)


def throttle_words(mask: int | None) -> list[str]:
    """Why a card is slowed, of those reasons that are a fault."""
    return [words for bit, words in _REASONS.items() if (mask or 0) & bit]
