"""The checks of GPUs that hosts make by themselves, made from here: for `gpu`, and for the gate of a deploy.

What decides is the same. On this machine the driver's library is asked; a host elsewhere needs no agent for
it, only `nvidia-smi` and a shell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

from deploy.desired import Desired, HostPaths, ServiceBackend
from deploy.errors import CommandFailed, FleetError
from deploy.gpu import (
    QUERY_GPUS,
    QUERY_PROCESSES,
    GpuReading,
    Problem,
    code_of,
    parse_nvidia_smi,
    problem_of,
)
from deploy.outcomes import ModelVerdict, Verify, VerifyRequest
from deploy.transport import Transport
from healthchecks import nvml
from healthchecks.child import Ran
from healthchecks.health import (
    CHECKS,
    Effort,
    HealthConfig,
    HealthReport,
    HostView,
    LocalHost,
    State,
    run_checks,
)
from healthchecks.host_view import Process
from healthchecks.judgement import is_gpu_host

DEADLINE_SECONDS = 20.0
_NOT_STARTED = (126, 127)  # sh(1): found but not executable, not found

_OF_GPUS = tuple(check for check in CHECKS if check.concerns is is_gpu_host)
_FROM_AFAR = tuple(check for check in _OF_GPUS if check.name in ("gpu", "gpu_truth"))
"""`nvidia-smi` is asked for what these two need; of the rest, as of ECC, a host's own agent knows more."""

_UNKNOWN_ERROR = 999  # nvml.h, NVML_ERROR_UNKNOWN

# Only for a server are programs started: its command line and mark, which only its user may read.
_PROCESSES = r"""
for process in /proc/[0-9]*; do
    read -r stat 2>/dev/null <"$process/stat" || continue
    command= root=
    case $stat in
        *'(ollama)'* | *'(python'*)
            # A word may hold what ends a line: a program for `python -c` does.
            command=$(tr '\0\n' '\037 ' 2>/dev/null <"$process/cmdline") || :
            root=$(tr '\n\0' ' \n' 2>/dev/null <"$process/environ" | sed -n 's/^OLLAMA_FLEET_ROOT=//p') || :
            ;;
    esac
    printf '%s\t%s\t%s\n' "$stat" "$root" "$command"
done
"""

# proc_pid_stat(5): the name in brackets has at most 63 bytes, and blanks and brackets may be among them.
_PROCESS = re.compile(
    r"(?P<pid>\d+) \(.{0,63}\) \S (?P<parent>\d+)(?: -?\d+)+ *\t(?P<root>[^\t]*)\t(?P<command>.*)", re.DOTALL
)


class HostFromAfar:
    """`HostView` by a transport, as far as the checks of `_FROM_AFAR` look; all else is an OSError.

    With `reading` the driver is not asked again.
    """

    def __init__(self, transport: Transport, reading: GpuReading | None = None) -> None:
        self._transport = transport
        self._reading = reading

    def run(self, argv: Sequence[str], deadline_seconds: float) -> Ran:
        done = self._run(("sh", "-c", 'exec "$@"', "sh", *argv), deadline_seconds)
        if done.exit_code in _NOT_STARTED:
            raise FileNotFoundError(argv[0])
        return done

    def size(self, path: str) -> int | None:
        done = self._run(("stat", "-c", "%s", path), DEADLINE_SECONDS)
        return int(done.stdout) if done.exit_code == 0 else None

    def processes(self) -> Sequence[Process]:
        lines = self._run(("sh", "-c", _PROCESSES), DEADLINE_SECONDS).stdout.split("\n")
        return tuple(process for line in lines if (process := _parse_process(line)) is not None)

    def gpus(self, deadline_seconds: float) -> nvml.GpuReading:
        return _as_of_nvml(self._reading or read_by_nvidia_smi(self._transport, deadline_seconds))

    def _run(self, argv: Sequence[str], deadline_seconds: float) -> Ran:
        try:
            done = self._transport.run(argv, timeout_seconds=deadline_seconds)
        except CommandFailed as late:
            raise TimeoutError(late.sentence) from late
        except FleetError as error:
            raise OSError(error.sentence) from error
        return Ran(done.exit_code, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def refuse(*_: object) -> None:
            raise OSError(f"`{name}` is not asked from afar")

        return refuse


def read_by_nvidia_smi(transport: Transport, deadline_seconds: float = DEADLINE_SECONDS) -> GpuReading:
    """What `nvidia-smi` says on the host. Raises ProbeFailed for a reply that cannot be read."""
    replies = []
    for question in (QUERY_GPUS, QUERY_PROCESSES):
        try:
            # Through a shell: its absence is an exit code then, with every transport.
            done = transport.run(["sh", "-c", 'exec "$@"', "sh", *question], timeout_seconds=deadline_seconds)
        except CommandFailed:
            return GpuReading(problem=Problem.HANGS, said=f"no answer within {deadline_seconds:g} s")
        if done.exit_code in _NOT_STARTED:
            return GpuReading(problem=Problem.NO_LIBRARY, said="nvidia-smi is not installed")
        if done.exit_code:
            return GpuReading(problem=problem_of(done.exit_code), said=done.last_words)
        replies.append(done.stdout.decode(errors="replace"))
    return GpuReading(gpus=parse_nvidia_smi(*replies))


def examine_gpus(
    host: str,
    transport: Transport,
    paths: HostPaths,
    backend: ServiceBackend,
    url: str,
    *,
    is_here: bool,
    reading: GpuReading | None = None,
) -> HealthReport:
    """What the checks say of a host that is to compute on its GPUs. Never raises.

    Args:
        url: where this machine reaches the host's server.
        is_here: the host is this machine.
        reading: what `nvidia-smi` of a host elsewhere has just said.
    """
    config = HealthConfig(
        host=host,
        url=url,
        root=str(paths.root),
        models_dir=str(paths.models_dir),
        current=str(paths.current),
        previous=str(paths.previous),
        release="",
        backend=str(backend),
        gpu="nvidia",
    )
    view = LocalHost() if is_here else cast("HostView", HostFromAfar(transport, reading))
    checks = _OF_GPUS if is_here else _FROM_AFAR
    return run_checks(
        config, view, datetime.now(UTC), deadline_seconds=DEADLINE_SECONDS, effort=Effort.LOOK, checks=checks
    )


def believing_the_driver(
    verify: Verify, desired_of: Mapping[str, Desired], to: Callable[[Desired], Transport]
) -> Verify:
    """The same verification; with `ollama_gpu=nvidia` the driver must not contradict the server."""

    def verify_with_driver(request: VerifyRequest) -> ModelVerdict:
        verdict = verify(request)
        if request.gpu != "nvidia" or not verdict.passed:
            return verdict
        desired = desired_of[request.host]
        report = examine_gpus(
            request.host,
            to(desired),
            desired.paths,
            desired.server.backend,
            request.url,
            is_here=desired.login is None,
        )
        failed = tuple(
            f"{result.check}: {result.reason}{f'; {result.hint}' if result.hint else ''}"
            for result in report.checks
            if result.state is State.FAIL
        )
        doubtful = tuple(
            f"{result.check}: {result.reason}" for result in report.checks if result.state is State.UNKNOWN
        )
        return replace(
            verdict, passed=not failed, reasons=(*verdict.reasons, *failed), notes=(*verdict.notes, *doubtful)
        )

    return verify_with_driver


def _as_of_nvml(reading: GpuReading) -> nvml.GpuReading:
    gpus = tuple(
        nvml.Gpu(
            index=gpu.index,
            name=gpu.name,
            uuid=gpu.uuid,
            driver=gpu.driver,
            mig=str(gpu.mig),
            memory_total_bytes=gpu.memory_total_bytes,
            memory_used_bytes=gpu.memory_used_bytes,
            memory_free_bytes=gpu.memory_free_bytes,
            processes=tuple(
                nvml.GpuProcess(process.pid, process.name, process.memory_used_bytes)
                for process in gpu.processes
            ),
        )
        for gpu in reading.gpus
    )
    driver = gpus[0].driver if gpus else None
    return nvml.GpuReading(gpus, _code_of(reading.problem), reading.said, driver, lists_instances=False)


def _code_of(problem: Problem | None) -> int | None:
    if problem is None:
        return None
    return nvml.HANGS if problem is Problem.HANGS else code_of(problem) or _UNKNOWN_ERROR


def _parse_process(line: str) -> Process | None:
    """None for a line that is none: a process may name itself with a line end."""
    found = _PROCESS.fullmatch(line)
    if found is None:
        return None
    words = tuple(word for word in found["command"].split("\037") if word)
    root = found["root"]
    return Process(
        int(found["pid"]), int(found["parent"]), words, {"OLLAMA_FLEET_ROOT": root} if root else {}
    )
