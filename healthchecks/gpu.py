"""Do the weights sit in GPU memory: what the server claims in `/api/ps`.

The figures are the server's own and parsed from its runner's log, with a fall back to the file's size
(`llm/llama_server.go` of Ollama): a "100 %" here is necessary, not sufficient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from healthchecks.api import loaded_runner
from healthchecks.check import Check

NO_GPU_CAUSES = (
    "usual causes: no driver visible to the service, the nvidia-uvm module not loaded after a reboot, "
    "or no lib/ollama/cuda_* beside the binary"
)
TOO_BIG_CAUSES = "usual causes: a num_ctx too large for the card, or another process that holds GPU memory"


def check_residency(url: str, model: str, expected: str) -> Check:
    """Whether `model`, loaded before (`healthchecks.api.load_model`), sits where the inventory wants it.

    Args:
        expected: the inventory's `ollama_gpu`. "nvidia": every byte in GPU memory. "none": anywhere.

    Raises:
        ValueError: `expected` is neither.
    """
    if expected not in ("nvidia", "none"):
        raise ValueError(f'`expected` is "nvidia" or "none", not {expected!r}')
    try:
        runner = loaded_runner(url, model)
        if runner is None:
            raise ValueError(f"`{model}` is not loaded")
        size_bytes, vram_bytes = _whole_number(runner, "size"), _whole_number(runner, "size_vram")
    except ValueError as problem:
        return Check("residency", False, str(problem), {"model": model})
    ok, reason = judge_residency(model, expected, size_bytes, vram_bytes)
    return Check(
        "residency", ok, reason, {"model": model, "size_bytes": size_bytes, "vram_bytes": vram_bytes}
    )


def judge_residency(model: str, expected: str, size_bytes: int, vram_bytes: int) -> tuple[bool, str]:
    """Whether the server's own figures are as the inventory wants them, and a sentence on it."""
    if size_bytes <= 0:
        return expected == "none", f"the server states no size for `{model}`"
    share = f"{100 * vram_bytes // size_bytes} % of `{model}`"
    if vram_bytes >= size_bytes:
        return True, f"{share} is in GPU memory"
    if expected == "none":
        return True, f"{share} is in GPU memory; no GPU is expected"
    if vram_bytes == 0:
        return False, f"`{model}` runs on the CPU; {NO_GPU_CAUSES}"
    return False, f"only {share} is in GPU memory, the rest runs on the CPU; {TOO_BIG_CAUSES}"


def _whole_number(runner: Mapping[str, Any], key: str) -> int:
    # Go leaves a zero out where the field says omitempty.
    value = runner.get(key, 0)
    if isinstance(value, int):
        return value
    raise ValueError(f"`{key}` in /api/ps is {value!r}, not a number of bytes")
