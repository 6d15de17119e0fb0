"""Does memory stay behind without an owner: runners whose server is gone, GPU memory of no process.

A server that is killed leaves its runner, which lives on, idle, with its memory (measured on 0.17.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from healthchecks.gpu_truth import is_in_container
from healthchecks.health_report import State
from healthchecks.host_view import Process
from healthchecks.judgement import Judgement, Look, is_gpu_host
from healthchecks.nvml import Gpu
from healthchecks.server_process import is_runner, is_server


def check_owners(look: Look) -> Judgement:
    """Runners without a server above them; on GPU hosts also used - Σ of the processes."""
    orphans = find_orphans(look.processes())
    evidence: dict[str, Any] = {"orphans": [process.pid for process in orphans]}
    if orphans:
        pids = " ".join(str(process.pid) for process in orphans)
        reason = f"a runner lives on whose server is gone, and keeps its memory (process {pids})"
        return Judgement(State.WARN, reason, f"kill {pids}", evidence)
    nobody = Judgement(State.PASS, "every runner has its server", None, evidence)
    if not is_gpu_host(look.config):
        return nobody
    gpus = [gpu for gpu in look.gpus().gpus if gpu.mig == "off"]
    unowned = {gpu.uuid: unowned_bytes(gpu) for gpu in gpus}
    evidence["unowned_gpu_bytes"] = unowned
    limit = look.config.thresholds.unowned_gpu_bytes
    for gpu in gpus:
        size_bytes = unowned[gpu.uuid]
        if size_bytes is not None and size_bytes > limit:
            reason = f"{size_bytes / 1024**3:.2f} GiB of GPU {gpu.index} belong to no process"
            if is_in_container(look):
                # The driver leaves out the processes of other containers (measured on 580.159).
                hint = "run the checks on the host"
                return Judgement(State.UNKNOWN, f"{reason} of this container", hint, evidence)
            hint = "fuser -v /dev/nvidia* finds who has it; nvidia-smi --gpu-reset frees what nobody has"
            return Judgement(State.WARN, reason, hint, evidence)
    if not gpus or None in unowned.values():
        reason = "every runner has its server; the driver does not say whose the GPU memory is"
        return Judgement(State.UNKNOWN, reason, None, evidence)
    return Judgement(State.PASS, "every runner has its server, all GPU memory its process", None, evidence)


def find_orphans(processes: Sequence[Process]) -> list[Process]:
    """Runners that have no `ollama serve` among their ancestors."""
    by_pid = {process.pid: process for process in processes}

    def has_server(process: Process) -> bool:
        seen: set[int] = set()
        above = by_pid.get(process.parent_pid)
        while above is not None and above.pid not in seen:
            if is_server(above):
                return True
            seen.add(above.pid)
            above = by_pid.get(above.parent_pid)
        return False

    return [process for process in processes if is_runner(process) and not has_server(process)]


def unowned_bytes(gpu: Gpu) -> int | None:
    """What is used beyond the sum of its processes; None where a figure is missing.

    Drivers before 510 count what they reserve as used: then used and free are all there is, and nobody can
    tell the two apart.
    """
    sizes = (gpu.memory_total_bytes, gpu.memory_used_bytes, gpu.memory_free_bytes)
    total, used, free = sizes
    if total is None or used is None or free is None or used + free >= total or not gpu.lists_processes:
        return None
    counted = [process.memory_used_bytes for process in gpu.processes]
    owned = sum(size or 0 for size in counted) + (gpu.graphics_bytes or 0)
    return None if None in counted else max(used - owned, 0)
