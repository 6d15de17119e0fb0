"""The task `gpu`: what every host's GPUs hold, and whether the host can compute on them as it should."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from console.changes import exit_code
from console.run import Run
from console.selected import SelectedHost, selected_hosts
from deploy import nvml
from deploy.desired import GpuKind
from deploy.errors import CommandFailed, FleetError
from deploy.fleet import each
from deploy.gpu import (
    ADAPTERS_SCRIPT,
    QUERY_GPUS,
    QUERY_PROCESSES,
    Gpu,
    GpuReading,
    Problem,
    check_gpus,
    parse_adapters,
    parse_nvidia_smi,
    problem_of,
    render_gpu,
    size_text,
)
from deploy.outcomes import HostOutcome, Outcome
from deploy.settings import Connection
from deploy.transport import Transport

DEADLINE_SECONDS = 20.0
_NOT_STARTED = (126, 127)  # sh(1): found but not executable, not found


def show_gpus(run: Run) -> int:
    """`gpu`: a table of all GPUs; a host without one fails unless its inventory says `ollama_gpu=none`.

    Needs the inventory only: neither models nor pins.
    """
    found = each(selected_hosts(run), lambda host: _one(run, host), run.forks)
    rows = [row for _, host_rows in found for row in host_rows]
    columns = ["host", "gpu", "name", "total", "used", "free", "driver", "processes"]
    run.report.table("gpus", columns, rows)
    outcomes = [outcome for outcome, _ in found]
    run.report.summary(outcomes, gpus=len(rows))
    return exit_code(outcomes)


def read_by_nvidia_smi(transport: Transport) -> GpuReading:
    """What `nvidia-smi` says on the host. Raises ProbeFailed for a reply that cannot be read."""
    replies = []
    for question in (QUERY_GPUS, QUERY_PROCESSES):
        try:
            # Through a shell: its absence is an exit code then, with every transport.
            done = transport.run(["sh", "-c", 'exec "$@"', "sh", *question], timeout_seconds=DEADLINE_SECONDS)
        except CommandFailed:
            return GpuReading(problem=Problem.HANGS, said=f"no answer within {DEADLINE_SECONDS:g} s")
        if done.exit_code in _NOT_STARTED:
            return GpuReading(problem=Problem.NO_LIBRARY, said="nvidia-smi is not installed")
        if done.exit_code:
            return GpuReading(problem=problem_of(done.exit_code), said=done.last_words)
        replies.append(done.stdout.decode(errors="replace"))
    return GpuReading(gpus=parse_nvidia_smi(*replies))


def read_adapters(transport: Transport, sysfs: str = "/sys") -> tuple[str, ...]:
    """The vendors of the host's display controllers and accelerators."""
    done = transport.run(["sh", "-c", ADAPTERS_SCRIPT, "sh", sysfs])
    return parse_adapters(done.stdout.decode(errors="replace"))


def _one(run: Run, selected: SelectedHost) -> tuple[HostOutcome, list[list[str]]]:
    """One host's outcome and its rows of the table."""
    host, settings = selected.name, selected.settings
    reading = GpuReading()
    try:
        transport = selected.transport()
        local = settings.connection == Connection.LOCAL
        reading = nvml.read_gpus() if local else read_by_nvidia_smi(transport)
        adapters = read_adapters(transport)
        run.report(
            "gpu",
            host,
            gpus=[render_gpu(gpu) for gpu in reading.gpus],
            wanted=str(settings.gpu),
            problem=None if reading.problem is None else str(reading.problem),
            adapters=adapters,
        )
        if settings.gpu is GpuKind.NVIDIA:
            check_gpus(host, reading, adapters)
        elif not reading.gpus:
            run.report("note", host, text="no GPU is used here: ollama_gpu=none")
    except FleetError as error:
        error.host = error.host or host
        run.report.error(error)
        return HostOutcome(host=host, outcome=Outcome.FAILED, error=error), _rows(host, reading.gpus)
    return HostOutcome(host=host, outcome=Outcome.OK), _rows(host, reading.gpus)


def _rows(host: str, gpus: Sequence[Gpu]) -> list[list[str]]:
    return [
        [
            host,
            str(gpu.index),
            gpu.name,
            size_text(gpu.memory_total_bytes),
            size_text(gpu.memory_used_bytes),
            size_text(gpu.memory_free_bytes),
            gpu.driver,
            ", ".join(
                f"{process.pid} {PurePosixPath(process.name).name or '?'}"
                f" {size_text(process.memory_used_bytes)}"
                for process in gpu.processes
            )
            or "-",
        ]
        for gpu in gpus
    ]
