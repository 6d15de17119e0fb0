"""What can be known to fail before anything is changed: a missing phase, a taken port, a disk too small or
read-only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from deploy.desired import Artefact, Desired, HostPaths
from deploy.errors import DiskReadOnly, DiskTooSmall, FleetError, PortTaken, ServiceError
from deploy.facts import HostFacts
from deploy.steps import (
    CreateModel,
    EnableUnits,
    FetchArchive,
    FetchWeights,
    OverwriteFile,
    PromoteModel,
    RemoveCandidate,
    RemoveDamagedBlob,
    RestoreModel,
    StartServer,
    Step,
    SwitchRelease,
    UnpackRelease,
    WriteFile,
)

# An archive of 1.9 GB unpacks to about twice its size; three times is asked for, since nobody knows before.
UNPACKED_FACTOR = 3
RESERVE_BYTES = 64 * 1024 * 1024
# A release has fewer than a hundred files, and the journal, the units and the store need a few.
RESERVE_INODES = 256
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


def check_writable(desired: Desired, facts: HostFacts, selected: tuple[Step, ...]) -> None:
    """Every file system that a step writes to takes writes. Raises DiskReadOnly."""
    for path in dict.fromkeys(path for step in selected for path in _written(step, desired.paths)):
        disk = facts.disks.get(str(path))
        if disk is not None and disk.is_read_only:
            raise DiskReadOnly(
                sentence=f"`{disk.mount}` is mounted read-only",
                host=desired.host,
                cause=f"this plan writes below `{path}`; the kernel mounts one with errors so",
                unchanged="everything",
                hint=f"./fleet run --yes 'dmesg | tail' --limit {desired.host}; once it is healthy: mount -o "
                f"remount,rw {disk.mount}",
            )


def _written(step: Step, paths: HostPaths) -> Iterator[PurePosixPath]:
    # The lock and the journal, whatever the step.
    yield paths.state
    match step:
        case UnpackRelease() | SwitchRelease():
            yield paths.releases
        case WriteFile() | OverwriteFile() if step.file.path.is_relative_to(paths.units):
            yield paths.units
        case EnableUnits():
            yield paths.units
        case CreateModel() | PromoteModel() | RestoreModel() | RemoveCandidate() | RemoveDamagedBlob():
            yield paths.models_dir
        case _:
            pass


def check_disks(desired: Desired, facts: HostFacts, selected: tuple[Step, ...]) -> None:
    """The bytes of every step against the free ones of its file system, and some inodes for all of them.

    Raises DiskTooSmall with figures.
    """
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
                need(paths.state, max(0, step.artefact.size_bytes - _begun_bytes(step.artefact, facts)))
            case UnpackRelease():
                need(paths.releases, step.artefact.size_bytes * UNPACKED_FACTOR)
            case CreateModel() if disk_of(paths.models_dir) != disk_of(paths.state):
                need(paths.models_dir, step.model.weights.size_bytes)
            case _:
                pass
    for disk in {disk.mount: disk for disk in facts.disks.values()}.values():
        wanted = needed.get(disk.mount)
        if wanted is None:
            continue
        if disk.free_inodes is not None and disk.free_inodes < RESERVE_INODES:
            raise DiskTooSmall(
                sentence=f"`{disk.mount}` has too few free inodes for this plan",
                host=desired.host,
                expected=f"{RESERVE_INODES} free inodes",
                actual=str(disk.free_inodes),
                cause=f"{RESERVE_INODES - disk.free_inodes} are missing; a directory with very many small "
                "files is usual",
                unchanged="everything; nothing was copied",
                hint=f"remove files on `{disk.mount}`: df -i {disk.mount}",
            )
        if wanted + RESERVE_BYTES > disk.available_bytes:
            raise DiskTooSmall(
                sentence=f"`{disk.mount}` has too little free space for this plan",
                host=desired.host,
                expected=f"{_size(wanted + RESERVE_BYTES)} free",
                actual=_size(disk.available_bytes),
                cause=f"{_size(wanted + RESERVE_BYTES - disk.available_bytes)} are missing",
                unchanged="everything; nothing was copied",
                hint=f"free it on `{disk.mount}`, or set `ollama_root` or `ollama_models_dir` elsewhere",
            )


def _begun_bytes(artefact: Artefact, facts: HostFacts) -> int:
    """What a cut run has brought of it already: it is gone on with."""
    copied = artefact.place.with_name(f".{artefact.place.name}.part")
    places = (f"sha256-{artefact.sha256}.part", str(copied))
    return sum(facts.parts.get(place.removeprefix("sha256-"), 0) for place in places)


def _size(size_bytes: int) -> str:
    return f"{size_bytes:,} bytes ({size_bytes / _GIB:.2f} GiB)"
