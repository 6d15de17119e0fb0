"""The task `gpu`: what every host's GPUs hold, and whether the host can compute on them as it should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from console.changes import exit_code, outcome_of_error
from console.gpu_checks import examine_gpus, read_by_nvidia_smi
from console.run import Run
from console.selected import SelectedHost, selected_hosts
from deploy import nvml
from deploy.desired import GpuKind
from deploy.errors import FleetError, GpuUnusable, errors_of
from deploy.fleet import each
from deploy.gpu import ADAPTERS_SCRIPT, Gpu, GpuReading, check_gpus, parse_adapters, render_gpu, size_text
from deploy.outcomes import HostOutcome, Outcome
from deploy.settings import Connection
from deploy.transport import Transport
from healthchecks.health import CheckResult, State


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """What is told of a host."""

    outcome: HostOutcome
    gpus: Sequence[Gpu]
    checks: Sequence[CheckResult]


def show_gpus(run: Run) -> int:
    """`gpu`: a table of all GPUs, and the checks of the hosts' health that are about them.

    A host without one fails unless its inventory says `ollama_gpu=none`, and so does one whose checks fail.
    Needs the inventory only: neither models nor pins.
    """
    found = each(selected_hosts(run), lambda host: _one(run, host), run.forks)
    rows = [row for shown in found for row in _rows(shown.outcome.host, shown.gpus)]
    columns = ["host", "gpu", "name", "total", "used", "free", "driver", "processes"]
    run.report.table("gpus", columns, rows)
    checks = [
        [shown.outcome.host, one.check, one.state.value, one.reason]
        for shown in found
        for one in shown.checks
    ]
    if checks:
        run.report.table("checks", ["host", "check", "state", "reason"], checks)
    outcomes = [shown.outcome for shown in found]
    run.report.summary(outcomes, gpus=len(rows))
    return exit_code(outcomes)


def read_adapters(transport: Transport, sysfs: str = "/sys") -> tuple[str, ...]:
    """The vendors of the host's display controllers and accelerators."""
    done = transport.run(["sh", "-c", ADAPTERS_SCRIPT, "sh", sysfs])
    return parse_adapters(done.stdout.decode(errors="replace"))


def _one(run: Run, selected: SelectedHost) -> _Shown:
    """One host's outcome, its GPUs, and what the checks of its health say of them."""
    host, settings = selected.name, selected.settings
    is_here = settings.connection == Connection.LOCAL
    reading = GpuReading()
    checks: Sequence[CheckResult] = ()
    try:
        with errors_of(host):
            transport = selected.transport()
            reading = nvml.read_gpus() if is_here else read_by_nvidia_smi(transport)
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
                with transport.http_url(f"http://{settings.environment['OLLAMA_HOST']}") as url:
                    checks = examine_gpus(
                        host,
                        transport,
                        selected.paths,
                        settings.service,
                        url,
                        is_here=is_here,
                        reading=reading,
                    ).checks
                for result in checks:
                    told = {"check": result.check, "state": str(result.state.value), "reason": result.reason}
                    run.report("gpu_check", host, **told, hint=result.hint)
                _refuse_failed(host, checks)
            elif not reading.gpus:
                run.report("note", host, text="no GPU is used here: ollama_gpu=none")
    except FleetError as error:
        run.report.error(error)
        outcome = HostOutcome(host=host, outcome=outcome_of_error(error), error=error)
        return _Shown(outcome=outcome, gpus=reading.gpus, checks=checks)
    return _Shown(outcome=HostOutcome(host=host, outcome=Outcome.OK), gpus=reading.gpus, checks=checks)


def _refuse_failed(host: str, checks: Sequence[CheckResult]) -> None:
    failed = [result for result in checks if result.state is State.FAIL]
    if failed:
        raise GpuUnusable(
            sentence="; ".join(f"`{result.check}`: {result.reason}" for result in failed),
            host=host,
            unchanged="everything",
            hint=failed[0].hint or f"./fleet health --limit {host}",
        )


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
