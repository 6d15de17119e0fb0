"""Is there main memory left, and does the host swap."""

from __future__ import annotations

from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look


def check_memory(look: Look) -> Judgement:
    """What can be had without swapping, and how full the swap is."""
    memory, limits = look.host.memory(), look.config.thresholds
    available = memory.available_bytes / memory.total_bytes
    swapped = memory.swap_used_bytes / memory.swap_total_bytes if memory.swap_total_bytes else 0.0
    evidence = {
        "total_bytes": memory.total_bytes,
        "available_bytes": memory.available_bytes,
        "swap_total_bytes": memory.swap_total_bytes,
        "swap_used_bytes": memory.swap_used_bytes,
    }
    hint = "look for what grows: ps -eo rss,comm --sort=-rss"
    if available < limits.memory_available_warn_share:
        return Judgement(State.WARN, f"{available:.0%} of the main memory is available", hint, evidence)
    if swapped > limits.swap_used_warn_share:
        return Judgement(State.WARN, f"{swapped:.0%} of the swap is used: the host is slow", hint, evidence)
    return Judgement(State.PASS, f"{available:.0%} of the main memory is available", None, evidence)
