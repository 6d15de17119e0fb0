"""Asks this machine's NVIDIA driver, in a process of its own: a driver that hangs takes only that along.

The only importer of `pynvml` (package nvidia-ml-py). `python -m healthchecks.nvml` prints what the driver
says as one JSON object: `gpus`, each with the fields of `Gpu`; `driver` and `cuda`; `code`, the nvmlReturn_t
of what failed or null; `said`, the driver's words for it. A deploy runs that program for this machine's GPUs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable, TypeVar

from healthchecks.child import run_child

Value = TypeVar("Value")

HANGS = -1
"""The code of a driver that does not answer; the others are nvmlReturn_t of nvml.h."""

BROKEN = -2
"""The code of one that ended the process that asked it."""


@dataclass(frozen=True)
class GpuProcess:
    """A process that computes on a GPU.

    `pid` is as the reader's own namespace numbers it, and processes of others are not told (measured on
    driver 580.159); other drivers tell a container the host's.
    """

    pid: int
    name: str
    memory_used_bytes: int | None


@dataclass(frozen=True)
class Gpu:
    """One GPU or MIG instance (`mig`: "off", "split" or "instance"). What the driver does not tell is None.

    `memory_used_bytes` is without what the driver reserves, where it says how much that is. `throttle` is the
    mask of nvmlDeviceGetCurrentClocksEventReasons. Uncorrected ECC errors are `ecc_volatile` since the driver
    was loaded and `ecc_aggregate` over the card's life. `graphics_bytes` is held by processes that draw and
    do not compute. `lists_processes` is False where the driver did not give the list: nobody is not no one.
    """

    index: int
    name: str
    uuid: str
    driver: str
    mig: str = "off"
    pci: str | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    processes: tuple[GpuProcess, ...] = ()
    lists_processes: bool = True
    graphics_bytes: int | None = None
    temperature_celsius: int | None = None
    slowdown_celsius: int | None = None
    utilization_percent: int | None = None
    throttle: int | None = None
    persistence: bool | None = None
    ecc_volatile: int | None = None
    ecc_aggregate: int | None = None
    remapped_pending: bool | None = None
    remapped_failed: bool | None = None
    retired_pending: bool | None = None


@dataclass(frozen=True)
class GpuReading:
    """What the driver answered. `gpus` and `code` may both be set: one GPU of several can be lost.

    `code` is None where nothing failed; `said` holds the driver's own words. `lists_instances` is False where
    the one that was asked knows no instance of MIG, as `nvidia-smi --query-gpu`.
    """

    gpus: tuple[Gpu, ...] = ()
    code: int | None = None
    said: str = ""
    driver: str | None = None
    cuda: str | None = None
    lists_instances: bool = True


def read_gpus(deadline_seconds: float) -> GpuReading:
    """What the driver says of every GPU; what goes wrong is in the value, nothing is raised."""
    try:
        # Without `site`: the search path is ours, which in a one-file program names the file itself.
        ran = run_child(
            [sys.executable, "-S", "-m", "healthchecks.nvml"],
            deadline_seconds,
            {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        )
    except TimeoutError:
        return GpuReading(code=HANGS, said=f"no answer within {deadline_seconds:g} s")
    try:
        return parse_reading(json.loads(ran.stdout))
    except (ValueError, KeyError, TypeError):
        last = ran.stderr.strip().splitlines()[-1:] or ["no answer"]
        said = f"the process that asked ended with {ran.exit_code}: {last[0]}"
        return GpuReading(code=BROKEN, said=said)


def parse_reading(reply: Any) -> GpuReading:
    """What the program prints. Raises ValueError, KeyError or TypeError for anything else."""
    gpus = tuple(
        Gpu(**{**fields, "processes": tuple(GpuProcess(**process) for process in fields["processes"])})
        for fields in reply["gpus"]
    )
    return GpuReading(gpus, reply["code"], reply["said"], reply["driver"], reply["cuda"])


def _main() -> None:
    json.dump(dataclasses.asdict(_ask_driver()), sys.stdout)


def _ask_driver() -> GpuReading:
    import pynvml

    try:
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        return GpuReading(code=error.value, said=f"nvmlInit: {error}")
    # 12040 is 12.4.
    cuda = _optional(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    gpus: list[Gpu] = []
    code, said = None, ""
    for index in range(count):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpus += _read_device(index, handle, driver)
        except pynvml.NVMLError as error:  # noqa: PERF203 - the others still count
            code, said = error.value, f"GPU {index}: {error}"
    return GpuReading(
        tuple(gpus), code, said, driver, None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}"
    )


def _read_device(index: int, handle: Any, driver: str) -> Iterator[Gpu]:
    """The GPU, and each of its MIG instances: only these have memory that CUDA can use then."""
    import pynvml

    mode = _optional(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0])
    split = mode == pynvml.NVML_DEVICE_MIG_ENABLE
    yield _read_health(_read_one(index, handle, driver, "split" if split else "off"), handle)
    if not split:
        return
    for number in range(_optional(lambda: int(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle))) or 0):
        # Not every place has an instance.
        with contextlib.suppress(pynvml.NVMLError_NotFound):
            instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            yield _read_one(index, instance, driver, "instance")


def _read_one(index: int, handle: Any, driver: str, mig: str) -> Gpu:
    import pynvml

    def memory() -> Any:
        try:
            return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        except pynvml.NVMLError_FunctionNotFound:
            # Drivers before 510 count what they reserve as used.
            return pynvml.nvmlDeviceGetMemoryInfo(handle)

    sizes = _optional(memory)

    running = _optional(lambda: _ask_newest(handle, "nvmlDeviceGetComputeRunningProcesses"))
    return Gpu(
        index=index,
        name=pynvml.nvmlDeviceGetName(handle),
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        driver=driver,
        mig=mig,
        memory_total_bytes=None if sizes is None else sizes.total,
        memory_used_bytes=None if sizes is None else sizes.used,
        memory_free_bytes=None if sizes is None else sizes.free,
        processes=tuple(_process(item.pid, item.usedGpuMemory) for item in running or ()),
        lists_processes=running is not None,
    )


def _read_health(gpu: Gpu, handle: Any) -> Gpu:
    """What the card says of its own state; an instance of it says nothing of that."""
    import pynvml as nvml

    def ecc(counter: int) -> int | None:
        uncorrected = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        return _unless_lost(lambda: int(nvml.nvmlDeviceGetTotalEccErrors(handle, uncorrected, counter)))

    remapped = _unless_lost(lambda: nvml.nvmlDeviceGetRemappedRows(handle))
    retired = _unless_lost(lambda: nvml.nvmlDeviceGetRetiredPagesPendingStatus(handle))
    persistence = _unless_lost(lambda: nvml.nvmlDeviceGetPersistenceMode(handle))
    return dataclasses.replace(
        gpu,
        graphics_bytes=_unless_lost(
            lambda: _sum_graphics(handle, {process.pid for process in gpu.processes})
        ),
        pci=_unless_lost(lambda: _text(nvml.nvmlDeviceGetPciInfo(handle).busId)),
        temperature_celsius=_unless_lost(
            lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
        ),
        slowdown_celsius=_unless_lost(
            lambda: nvml.nvmlDeviceGetTemperatureThreshold(handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
        ),
        utilization_percent=_unless_lost(lambda: int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        # The older of the two names, which drivers from 2023 on still have.
        throttle=_unless_lost(lambda: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))),
        persistence=None if persistence is None else bool(persistence),
        ecc_volatile=ecc(nvml.NVML_VOLATILE_ECC),
        ecc_aggregate=ecc(nvml.NVML_AGGREGATE_ECC),
        remapped_pending=None if remapped is None else bool(remapped[2]),
        remapped_failed=None if remapped is None else bool(remapped[3]),
        retired_pending=None if retired is None else bool(retired),
    )


def _sum_graphics(handle: Any, computing: set[int]) -> int:
    """A process may do both; its memory is counted once."""
    drawing = _ask_newest(handle, "nvmlDeviceGetGraphicsRunningProcesses")
    return sum(item.usedGpuMemory or 0 for item in drawing if item.pid not in computing)


def _ask_newest(handle: Any, call: str) -> Any:
    """Drivers before 510 have the second form only; without a number the binding would refuse them."""
    import pynvml

    try:
        return getattr(pynvml, f"{call}_v3")(handle)
    except pynvml.NVMLError_FunctionNotFound:
        return getattr(pynvml, f"{call}_v2")(handle)


def _process(pid: int, memory_used_bytes: int | None) -> GpuProcess:
    import pynvml

    try:
        name = _unless_lost(lambda: str(pynvml.nvmlSystemGetProcessName(pid)))
    except UnicodeDecodeError:
        name = None
    # A process of another container has no name here.
    return GpuProcess(pid=pid, name=name or "", memory_used_bytes=memory_used_bytes)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


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
        pynvml.NVMLError_InvalidArgument,
    ):
        return None


def _unless_lost(ask: Callable[[], Value]) -> Value | None:
    """The same for what the checks can do without: no odd answer about it may hide the card."""
    import pynvml

    try:
        return ask()
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED):
            raise
        return None


if __name__ == "__main__":
    _main()
