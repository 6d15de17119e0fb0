"""Is the model really in GPU memory: the server's claim against what the driver says of its runner.

`size_vram` of /api/ps is the server's own figure, parsed from its runner's log: a "100 %" there is necessary,
not sufficient. The driver knows which process holds how many bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from healthchecks.api import is_same_model, running_models
from healthchecks.gpu import judge_residency
from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look
from healthchecks.nvml import Gpu, GpuProcess
from healthchecks.server_process import descendants, find_service

HELD_SHARE = 0.5
"""So much of the claim must be there at least: a part of the weights may stay in main memory."""

_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")


@dataclass(frozen=True)
class _Claim:
    model: str
    size_bytes: int
    vram_bytes: int


def check_gpu_truth(look: Look) -> Judgement:
    """The claim of each runner, then the memory that the driver counts to our server's processes."""
    claims = [_parse_claim(entry) for entry in running_models(look.config.url)]
    evidence: dict[str, Any] = {
        "claimed": [
            {"model": one.model, "size_bytes": one.size_bytes, "vram_bytes": one.vram_bytes} for one in claims
        ]
    }
    facts = {"models": _loaded_facts(look, claims)}
    if not claims:
        return Judgement(State.UNKNOWN, "no model is loaded, so nobody holds GPU memory", None, evidence)
    for claim in claims:
        # The gate of a deploy asks the same through its tunnel.
        ok, reason = judge_residency(claim.model, "nvidia", claim.size_bytes, claim.vram_bytes)
        if not ok:
            return Judgement(State.FAIL, reason, _next_step(look.config.host, claim), evidence, facts)
    return _judge_memory(look, sum(claim.vram_bytes for claim in claims), evidence, facts)


def _next_step(host: str, claim: _Claim) -> str:
    if claim.vram_bytes:
        return f"free GPU memory (./fleet gpu --limit {host} tells who holds it), or take a smaller num_ctx"
    return f"./fleet logs --limit {host}: `inference compute` names what the server found; then restart it"


def is_in_container(look: Look) -> bool:
    """There the driver shows no process of another container, or tells the host's process ids."""
    return look.once("container", lambda: any(look.host.size(mark) is not None for mark in _CONTAINER_MARKS))


def _judge_memory(look: Look, claimed: int, evidence: dict[str, Any], facts: Mapping[str, Any]) -> Judgement:
    reading = look.gpus()
    used = [gpu.memory_used_bytes for gpu in reading.gpus if gpu.mig != "split"]
    held = _held_by_server(look, reading.gpus)
    ours = sum(process.memory_used_bytes or 0 for process in held or ())
    evidence.update(
        claimed_bytes=claimed,
        used_bytes=None if not used or None in used else sum(size or 0 for size in used),
        held_by_server_bytes=None if held is None else ours,
        pids=[process.pid for process in held or ()],
    )

    def judge(state: State, reason: str, hint: str | None = None) -> Judgement:
        return Judgement(state, reason, hint, evidence, facts)

    if not reading.gpus:
        return judge(State.UNKNOWN, f"the driver does not say what is in GPU memory: {reading.said}")
    fallback = "restart the service; it computes on the CPU in silence: compare tokens per second"
    used_bytes = evidence["used_bytes"]
    if used_bytes is not None and used_bytes < HELD_SHARE * claimed:
        reason = (
            f"the server claims {_size(claimed)} in GPU memory, and only {_size(used_bytes)} are in use at "
            "all: a silent CPU fallback"
        )
        return judge(State.FAIL, reason, fallback)
    if held is None:
        where = " in a container" if is_in_container(look) else ""
        return judge(State.UNKNOWN, f"the driver does not show who holds the GPU memory{where}")
    if not held:
        reason = (
            f"the server claims {_size(claimed)} in GPU memory, and the driver knows no process of it there"
        )
        return judge(State.FAIL, reason, fallback)
    if any(process.memory_used_bytes is None for process in held):
        return judge(State.PASS, "the runner is on the GPU; the driver counts no bytes by process")
    if ours < HELD_SHARE * claimed:
        reason = f"the server claims {_size(claimed)} in GPU memory, and its runner holds {_size(ours)}"
        return judge(State.FAIL, reason, fallback)
    return judge(State.PASS, f"the runner holds {_size(ours)} of GPU memory for {_size(claimed)} of models")


def _held_by_server(look: Look, gpus: Sequence[Gpu]) -> list[GpuProcess] | None:
    """The GPU processes below our server; None where the driver's processes are not those of /proc."""
    told = [process for gpu in gpus if gpu.mig != "instance" for process in gpu.processes]
    processes = look.processes()
    visible = {process.pid for process in processes}
    server = find_service(look).pid
    if server is None or server not in visible:
        return None
    family = descendants(processes, server)
    held = [process for process in told if process.pid in family]
    # Memory is in use, that was seen before: a list without anybody is one that is not shown.
    is_hidden = not told or is_in_container(look) or any(process.pid not in visible for process in told)
    if not held and is_hidden:
        return None
    return held


def _parse_claim(entry: Mapping[str, Any]) -> _Claim:
    # Go leaves a zero out where the field says omitempty.
    size, vram = entry.get("size", 0), entry.get("size_vram", 0)
    if not isinstance(size, int) or not isinstance(vram, int):
        raise ValueError(  # noqa: TRY004 - as in `healthchecks.api`
            f"/api/ps tells sizes of {size!r} and {vram!r}, not numbers of bytes"
        )
    return _Claim(str(entry.get("model")), size, vram)


def _loaded_facts(look: Look, claims: Sequence[_Claim]) -> Mapping[str, Mapping[str, Any]]:
    """By deployed name; a model that this run's generation has loaded was not there before."""
    return {
        model.name: {"size_bytes": claim.size_bytes, "vram_bytes": claim.vram_bytes}
        for model in look.config.models
        for claim in claims
        if is_same_model(claim.model, model.name)
    }


def _size(size_bytes: int) -> str:
    mib = size_bytes / 1024**2
    return f"{mib / 1024:.2f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"
