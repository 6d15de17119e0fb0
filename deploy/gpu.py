"""What a GPU is and holds, and what keeps it from being used: values, and a reader of `nvidia-smi` CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from deploy.errors import GpuUnusable, ProbeFailed

_MIB = 1024 * 1024
_GIB = 1024 * _MIB

QUERY_GPUS = (
    "nvidia-smi",
    "--query-gpu=index,uuid,driver_version,memory.total,memory.used,memory.free,mig.mode.current,name",
    "--format=csv,noheader,nounits",
)
QUERY_PROCESSES = (
    "nvidia-smi",
    "--query-compute-apps=gpu_uuid,pid,used_gpu_memory,process_name",
    "--format=csv,noheader,nounits",
)
"""Names stand last: they are not quoted and may contain commas. Memory is in MiB, rounded up."""

ADAPTERS_SCRIPT = r"""
for device in "$1"/bus/pci/devices/*; do
    read -r class 2>/dev/null <"$device/class" && read -r vendor 2>/dev/null <"$device/vendor" || continue
    case $class in 0x03* | 0x12*) printf '%s %s\n' "${device##*/}" "$vendor" ;; esac
done
"""
"""`sh -c SCRIPT sh /sys`: PCI address and vendor of display controllers (class 03) and accelerators (12)."""

_NVIDIA, _AMD = "0x10de", "0x1002"


class Mig(StrEnum):
    """Whether a GPU is one, is split into instances (CUDA then sees only these), or is such an instance."""

    OFF = "off"
    SPLIT = "split"
    INSTANCE = "instance"


class Problem(StrEnum):
    """Why the driver gave no, or no whole, answer."""

    NO_LIBRARY = "no driver is installed"
    NOT_LOADED = "the driver is not loaded"
    VERSION_MISMATCH = "the driver's module and its library are of different versions"
    NO_PERMISSION = "the driver refuses this user"
    NO_GPU = "no GPU was found"
    GPU_LOST = "a GPU is lost or must be reset"
    HANGS = "the driver does not answer"
    OTHER = "the driver reports an error"


# nvml.h, nvmlReturn_t. `nvidia-smi` ends with the same numbers (nvidia-smi(1), RETURN VALUE).
_PROBLEMS: Mapping[int, Problem] = {
    4: Problem.NO_PERMISSION,
    6: Problem.NO_GPU,
    9: Problem.NOT_LOADED,
    12: Problem.NO_LIBRARY,
    15: Problem.GPU_LOST,
    16: Problem.GPU_LOST,
    18: Problem.VERSION_MISMATCH,
}

_HINTS: Mapping[Problem, str] = {
    Problem.NO_LIBRARY: "install NVIDIA's driver; start a container with `--gpus all`",
    Problem.NOT_LOADED: (
        "modprobe nvidia; then read `dmesg | grep NVRM`; where it is loaded, /dev/nvidia* is missing: "
        "start a container with `--gpus all`"
    ),
    Problem.VERSION_MISMATCH: "reboot: the driver was upgraded under the running kernel module",
    Problem.NO_PERMISSION: "let the user read and write /dev/nvidia*; start a container with `--gpus all`",
    Problem.NO_GPU: "read `lspci | grep -i nvidia`, CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES",
    Problem.GPU_LOST: "read `dmesg | grep Xid`; then nvidia-smi --gpu-reset, or reboot",
    Problem.HANGS: "read `dmesg | grep Xid`; usually only a reboot helps",
    Problem.OTHER: "run nvidia-smi on the host, and read `dmesg | grep NVRM`",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that computes on a GPU.

    `pid` is as the reader's own namespace numbers it, and processes of others are not told (measured on
    driver 580.159); other drivers tell a container the host's.
    """

    pid: int
    name: str
    memory_used_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU or MIG instance. A number that the driver does not tell is None, `n/a` for a reader.

    `memory_used_bytes` is without what the driver reserves, so used and free are less than total.
    """

    index: int
    name: str
    uuid: str
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    memory_free_bytes: int | None
    driver: str
    processes: tuple[GpuProcess, ...] = ()
    mig: Mig = Mig.OFF


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """What a host's driver answered. Both may be set: one GPU of several can be lost.

    `said` holds the driver's own words.
    """

    gpus: tuple[Gpu, ...] = ()
    problem: Problem | None = None
    said: str = ""


def problem_of(code: int) -> Problem:
    """The meaning of an `nvmlReturn_t`, or of the exit code of `nvidia-smi`."""
    return _PROBLEMS.get(code, Problem.OTHER)


def code_of(problem: Problem) -> int | None:
    """An `nvmlReturn_t` with this meaning; None for a problem that has no number of its own."""
    return next((code for code, meaning in _PROBLEMS.items() if meaning is problem), None)


def parse_nvidia_smi(gpus_csv: str, processes_csv: str) -> tuple[Gpu, ...]:
    """The answers to QUERY_GPUS and QUERY_PROCESSES; `[N/A]` and its like become None.

    Raises ProbeFailed for a line that is no answer to these questions.
    """
    processes: dict[str, list[GpuProcess]] = {}
    for line in _lines(processes_csv):
        uuid, pid, memory, name = _split(line, 4)
        found = GpuProcess(pid=_whole(pid, line), name=name, memory_used_bytes=_mebibytes(memory, line))
        processes.setdefault(uuid, []).append(found)
    return tuple(
        replace(gpu, processes=tuple(processes.get(gpu.uuid, ()))) for gpu in map(_gpu, _lines(gpus_csv))
    )


def parse_adapters(listing: str) -> tuple[str, ...]:
    """The vendors' words for the output of ADAPTERS_SCRIPT: `nvidia`, `amd`, or the PCI id."""
    words = {_NVIDIA: "nvidia", _AMD: "amd"}
    vendors = [line.split()[1] for line in listing.splitlines() if len(line.split()) == 2]
    return tuple(words.get(vendor, vendor) for vendor in vendors)


def check_gpus(host: str, reading: GpuReading, adapters: Sequence[str]) -> None:
    """Raises GpuUnusable where a host that must compute on an NVIDIA GPU has none that works."""
    problem = reading.problem or (None if reading.gpus else Problem.NO_GPU)
    if problem is None:
        return
    if "amd" in adapters and "nvidia" not in adapters:
        raise GpuUnusable(
            sentence="this host has an AMD GPU, and only `nvidia` is supported",
            host=host,
            cause=str(problem),
            unchanged="everything",
            hint=f"set `ollama_gpu=none` for `{host}` in the inventory to compute on the CPU",
        )
    raise GpuUnusable(
        sentence=f"`ollama_gpu=nvidia`, and {problem}",
        host=host,
        cause=reading.said or None,
        unchanged="everything",
        hint=f"{_HINTS[problem]}; or set `ollama_gpu=none` for `{host}` in the inventory",
    )


def render_gpu(gpu: Gpu) -> dict[str, Any]:
    """The stable JSON form: see `docs/gpu.md`."""
    return {
        "index": gpu.index,
        "name": gpu.name,
        "uuid": gpu.uuid,
        "memory_total_bytes": gpu.memory_total_bytes,
        "memory_used_bytes": gpu.memory_used_bytes,
        "memory_free_bytes": gpu.memory_free_bytes,
        "driver": gpu.driver,
        "mig": str(gpu.mig),
        "processes": [
            {"pid": process.pid, "name": process.name, "memory_used_bytes": process.memory_used_bytes}
            for process in gpu.processes
        ],
    }


def size_text(size_bytes: int | None) -> str:
    """For people: `5.07 GiB`, small ones in MiB, `n/a` for what is not known."""
    if size_bytes is None:
        return "n/a"
    return f"{size_bytes / _GIB:.2f} GiB" if size_bytes >= _GIB else f"{size_bytes / _MIB:.0f} MiB"


def _gpu(line: str) -> Gpu:
    index, uuid, driver, total, used, free, mig, name = _split(line, 8)
    return Gpu(
        index=_whole(index, line),
        name=name,
        uuid=uuid,
        memory_total_bytes=_mebibytes(total, line),
        memory_used_bytes=_mebibytes(used, line),
        memory_free_bytes=_mebibytes(free, line),
        driver=driver,
        mig=Mig.SPLIT if mig == "Enabled" else Mig.OFF,
    )


def _lines(text: str) -> list[str]:
    """`nvidia-smi` adds prose: that there is nothing to list, or that an infoROM is corrupted."""
    prose = ("No devices were found", "No running processes found", "WARNING:")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(prose)]


def _split(line: str, count: int) -> list[str]:
    fields = [field.strip() for field in line.split(",", count - 1)]
    if len(fields) != count:
        raise _unreadable(line)
    return fields


def _whole(field: str, line: str) -> int:
    if not field.isascii() or not field.isdigit():
        raise _unreadable(line)
    return int(field)


def _mebibytes(field: str, line: str) -> int | None:
    if field == "N/A" or (field.startswith("[") and field.endswith("]")):
        return None
    return _whole(field, line) * _MIB


def _unreadable(line: str) -> ProbeFailed:
    return ProbeFailed(
        sentence="the reply of `nvidia-smi` could not be read",
        cause=f"this line: {line[:200]}",
        unchanged="everything: a probe changes nothing",
        hint="run nvidia-smi on the host",
    )
