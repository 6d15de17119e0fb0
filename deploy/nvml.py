"""Asks this machine's NVIDIA driver by the program that the health checks ask it with.

`python -m healthchecks.nvml` is run, not imported: it stands in a process of its own anyway, since a driver
that hangs takes the process that asked it along, and both rooms read GPUs with the same eyes.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from deploy.gpu import Gpu, GpuProcess, GpuReading, Mig, Problem, problem_of

DEADLINE_SECONDS = 20.0
"""Without persistence mode the first question initialises every GPU, which takes seconds each."""

_PROJECT = Path(__file__).resolve().parent.parent
_FIELDS = ("index", "name", "uuid", "memory_total_bytes", "memory_used_bytes", "memory_free_bytes", "driver")


def read_gpus(deadline_seconds: float = DEADLINE_SECONDS) -> GpuReading:
    """What the driver says of every GPU; what goes wrong is in the value, nothing is raised."""
    process = subprocess.Popen(
        [sys.executable, "-m", "healthchecks.nvml"],
        cwd=_PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        reply, words = process.communicate(timeout=deadline_seconds)
    except subprocess.TimeoutExpired:
        _give_up(process)
        return GpuReading(problem=Problem.HANGS, said=f"no answer within {deadline_seconds:g} s")
    try:
        return _parse_reply(json.loads(reply))
    except (ValueError, KeyError, TypeError):
        last = words.decode(errors="replace").strip().splitlines()[-1:] or ["no answer"]
        said = f"the process that asked ended with {process.returncode}: {last[0]}"
        return GpuReading(problem=Problem.OTHER, said=said)


def _give_up(process: subprocess.Popen[bytes]) -> None:
    """A process that waits inside the kernel does not even end when it is killed: it is not waited for."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def _parse_reply(reply: dict[str, Any]) -> GpuReading:
    """What a plan needs of the answer; the rest is for the health checks."""
    gpus = tuple(
        Gpu(
            **{name: fields[name] for name in _FIELDS},
            mig=Mig(fields["mig"]),
            processes=tuple(GpuProcess(**process) for process in fields["processes"]),
        )
        for fields in reply["gpus"]
    )
    code = reply["code"]
    return GpuReading(gpus=gpus, problem=None if code is None else problem_of(code), said=reply["said"])
