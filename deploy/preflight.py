"""What can be known to fail before anything is changed: a missing phase, a taken port, a disk too small."""

from __future__ import annotations

from pathlib import PurePosixPath

from deploy.desired import Desired
from deploy.errors import DiskTooSmall, FleetError, PortTaken, ServiceError
from deploy.facts import HostFacts
from deploy.steps import (
    CreateModel,
    FetchArchive,
    FetchWeights,
    StartServer,
    Step,
    SwitchRelease,
    UnpackRelease,
)

# An archive of 1.9 GB unpacks to about twice its size; three times is asked for, since nobody knows before.
UNPACKED_FACTOR = 3
RESERVE_BYTES = 64 * 1024 * 1024
_GIB = 1024**3


def check_preconditions(desired: Desired, steps: tuple[Step, ...], selected: tuple[Step, ...]) -> None:
    """A single phase must not start on what another phase has yet to make. Raises ServiceError."""

    def refuse(sentence: str, task: str) -> FleetError:
        return ServiceError(
            sentence=sentence,
            host=desired.host,
            unchanged="everything",
            hint=f"./fleet {task} --limit {desired.host}",
        )

    missing = [step for step in steps if step not in selected]
    if any(isinstance(step, SwitchRelease | StartServer) for step in selected):
        for step in missing:
            if isinstance(step, UnpackRelease):
                raise refuse(f"release `{step.version}` is not installed", "install")
    if any(isinstance(step, CreateModel) for step in selected):
        for step in missing:
            if isinstance(step, StartServer):
                raise refuse(f"the server of release `{step.version}` is not running", "service")
            if isinstance(step, FetchWeights):
                raise refuse(f"the weights of `{step.model}` are not on the host", "download")


def check_port(desired: Desired, facts: HostFacts, selected: tuple[Step, ...]) -> None:
    """A server to be started needs its port; our own server gives it back. Raises PortTaken."""
    listener = facts.listener
    if listener is None or not any(isinstance(step, StartServer) for step in selected):
        return
    if any(server.process.pid == listener.pid for server in facts.servers):
        return
    who = f"pid {listener.pid} ({listener.command})" if listener.pid else "a process of another user"
    raise PortTaken(
        sentence=f"port `{desired.port}` is taken by {who}",
        host=desired.host,
        cause="Ollama would exit with `bind: address already in use`",
        unchanged="everything; that process was not touched",
        hint=f"stop it, or set `ollama_host=127.0.0.1:PORT` for `{desired.host}` in the inventory",
    )


def check_disks(desired: Desired, facts: HostFacts, selected: tuple[Step, ...]) -> None:
    """The bytes of every step against the free ones of its file system. Raises DiskTooSmall with figures."""
    needed: dict[str, int] = {}

    def disk_of(path: PurePosixPath) -> str | None:
        disk = facts.disks.get(str(path))
        return None if disk is None else disk.mount

    def need(path: PurePosixPath, size_bytes: int) -> None:
        mount = disk_of(path)
        if mount is not None:
            needed[mount] = needed.get(mount, 0) + size_bytes

    paths = desired.paths
    for step in selected:
        match step:
            case FetchArchive():
                need(paths.state, step.artefact.size_bytes)
            case FetchWeights():
                need(paths.state, step.artefact.size_bytes)
            case UnpackRelease():
                need(paths.releases, step.artefact.size_bytes * UNPACKED_FACTOR)
            case CreateModel() if disk_of(paths.models_dir) != disk_of(paths.state):
                need(paths.models_dir, step.model.weights.size_bytes)
            case _:
                pass
    for disk in {disk.mount: disk for disk in facts.disks.values()}.values():
        wanted = needed.get(disk.mount, 0)
        if wanted and wanted + RESERVE_BYTES > disk.available_bytes:
            raise DiskTooSmall(
                sentence=f"`{disk.mount}` has too little free space for this plan",
                host=desired.host,
                expected=f"{_size(wanted + RESERVE_BYTES)} free",
                actual=_size(disk.available_bytes),
                cause=f"{_size(wanted + RESERVE_BYTES - disk.available_bytes)} are missing",
                unchanged="everything; nothing was copied",
                hint=f"free it on `{disk.mount}`, or set `ollama_root` or `ollama_models_dir` elsewhere",
            )


def _size(size_bytes: int) -> str:
    return f"{size_bytes:,} bytes ({size_bytes / _GIB:.2f} GiB)"
