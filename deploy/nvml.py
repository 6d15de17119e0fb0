"""Asks this machine's NVIDIA driver, in a process of its own: a driver that hangs takes only that along.

The only importer of `pynvml` (package nvidia-ml-py).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from deploy.gpu import Gpu, GpuProcess, GpuReading, Mig, Problem, problem_of, render_gpu

DEADLINE_SECONDS = 20.0
"""Without persistence mode the first question initialises every GPU, which takes seconds each."""

_PROJECT = Path(__file__).resolve().parent.parent
Value = TypeVar("Value")


def read_gpus(deadline_seconds: float = DEADLINE_SECONDS) -> GpuReading:
    """What the driver says of every GPU; what goes wrong is in the value, nothing is raised."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.nvml"],
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
    gpus = tuple(
        Gpu(
            **{
                **fields,
                "mig": Mig(fields["mig"]),
                "processes": tuple(GpuProcess(**process) for process in fields["processes"]),
            }
        )
        for fields in reply["gpus"]
    )
    code = reply["code"]
    return GpuReading(gpus=gpus, problem=None if code is None else problem_of(code), said=reply["said"])


def _main() -> None:
    print(json.dumps(_ask_driver()))


def _ask_driver() -> dict[str, Any]:
    """`gpus` as `render_gpu` writes them; `code` is the nvmlReturn_t of what failed."""
    import pynvml

    gpus: list[dict[str, Any]] = []
    code, said = None, ""
    try:
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        return {"gpus": gpus, "code": error.value, "said": f"nvmlInit: {error}"}
    for index in range(count):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpus += [render_gpu(gpu) for gpu in _read_device(index, handle, driver)]
        except pynvml.NVMLError as error:
            # The others still count: they are told beside the failure.
            code, said = error.value, f"GPU {index}: {error}"
    return {"gpus": gpus, "code": code, "said": said}


def _read_device(index: int, handle: Any, driver: str) -> Iterator[Gpu]:
    """The GPU, and each of its MIG instances: only these have memory that CUDA can use then."""
    import pynvml

    mode = _optional(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0])
    split = mode == pynvml.NVML_DEVICE_MIG_ENABLE
    yield _read_one(index, handle, driver, Mig.SPLIT if split else Mig.OFF)
    if not split:
        return
    for number in range(_optional(lambda: int(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle))) or 0):
        # Not every place has an instance.
        with contextlib.suppress(pynvml.NVMLError_NotFound):
            instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            yield _read_one(index, instance, driver, Mig.INSTANCE)


def _read_one(index: int, handle: Any, driver: str, mig: Mig) -> Gpu:
    import pynvml

    def memory() -> Any:
        try:
            return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        except pynvml.NVMLError_FunctionNotFound:
            # Drivers before 510 count what they reserve as used.
            return pynvml.nvmlDeviceGetMemoryInfo(handle)

    sizes = _optional(memory)
    running = _optional(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return Gpu(
        index=index,
        name=pynvml.nvmlDeviceGetName(handle),
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        memory_total_bytes=None if sizes is None else sizes.total,
        memory_used_bytes=None if sizes is None else sizes.used,
        memory_free_bytes=None if sizes is None else sizes.free,
        driver=driver,
        processes=tuple(_process(item.pid, item.usedGpuMemory) for item in running),
        mig=mig,
    )


def _process(pid: int, memory_used_bytes: int | None) -> GpuProcess:
    import pynvml

    try:
        name = _optional(lambda: str(pynvml.nvmlSystemGetProcessName(pid)))
    except UnicodeDecodeError:
        name = None
    # A process of another container has no name here.
    return GpuProcess(pid=pid, name=name or "", memory_used_bytes=memory_used_bytes)


def _optional(ask: Callable[[], Value]) -> Value | None:
    """None for a field that this GPU, driver or user does not get."""
    import pynvml

    try:
        return ask()
    except (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_NoPermission,
        pynvml.NVMLError_FunctionNotFound,
        pynvml.NVMLError_NotFound,
    ):
        return None


if __name__ == "__main__":
    _main()
