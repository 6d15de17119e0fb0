"""The probe: one script over one connection, and its reply read into facts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.errors import ProbeFailed
from deploy.facts import (
    Account,
    Blob,
    Disk,
    FileFact,
    HostFacts,
    Listener,
    ProcessId,
    ServerProcess,
    StoredModel,
    SystemdFacts,
    UnitState,
)
from deploy.gpu import GpuReading, Problem, parse_nvidia_smi, problem_of

PROBE_SCRIPT = Path(__file__).with_name("probe.sh")
FIRST_LINE = b"@fleet-probe\t1"
LAST_LINE = b"@end"
_TIMED_OUT = 124  # timeout(1)

_MODEL_LAYER = "application/vnd.ollama.image.model"
_TEMPLATE_LAYER = "application/vnd.ollama.image.template"
_PARAMETERS_LAYER = "application/vnd.ollama.image.params"
_SYSTEM_LAYER = "application/vnd.ollama.image.system"


class _Reply:
    """The reply as lines and files; content is kept as bytes until its meaning is known."""

    def __init__(self, reply: bytes) -> None:
        self.rows: dict[str, list[list[str]]] = {}
        self.files: dict[str, bytes] = {}
        position, ended = 0, False
        if not reply.startswith(FIRST_LINE + b"\n"):
            raise ProbeFailed(
                sentence="the `probe` did not answer with its version line",
                cause=reply[:200].decode(errors="replace") or "the reply is empty",
                unchanged="everything: a probe changes nothing",
                hint="a login script that prints text is usual; make it silent for non-interactive shells",
            )
        while position < len(reply):
            end = reply.find(b"\n", position)
            end = len(reply) if end < 0 else end
            line, position = reply[position:end], end + 1
            if line == LAST_LINE:
                ended = True
                break
            name, *fields = line.decode(errors="replace").split("\t")
            if name == "@file":
                key, size = fields[0], int(fields[1])
                self.files[key] = reply[position : position + size]
                position += size + 1
            else:
                self.rows.setdefault(name, []).append(fields)
        if not ended:
            raise ProbeFailed(
                sentence="the `probe`'s reply was cut short",
                cause=f"{len(reply)} bytes without the last line",
                unchanged="everything: a probe changes nothing",
                hint="run the same command again",
            )

    def first(self, name: str, default: str = "") -> str:
        fields = self.rows.get(name, [[default]])[0]
        return fields[0] if fields else default

    def under(self, prefix: str) -> dict[str, bytes]:
        return {key.removeprefix(prefix): data for key, data in self.files.items() if key.startswith(prefix)}


def parse_reply(reply: bytes, root: PurePosixPath) -> HostFacts:
    """Read the reply of `probe.sh` for the host paths below `root`.

    Raises ProbeFailed when it is not a probe's reply, was cut short or makes no sense.
    """
    try:
        return _facts(_Reply(reply), root)
    except (ValueError, IndexError, KeyError) as error:
        raise ProbeFailed(
            sentence="the `probe`'s reply makes no sense",
            cause=str(error),
            unchanged="everything: a probe changes nothing",
            hint="run the same command again; a file that changed while it was read is usual",
        ) from error


def _facts(parsed: _Reply, root: PurePosixPath) -> HostFacts:
    systemd = _systemd(parsed)
    processes = _processes(parsed, root, systemd.unit.main_pid if systemd is not None else None)
    return HostFacts(
        systemd=systemd,
        store_owner=parsed.first("@store_owner") or None,
        gpus=_gpus(parsed),
        architecture=parsed.first("@architecture"),
        kernel=parsed.first("@kernel"),
        user_id=int(parsed.first("@user_id", "-1")),
        boot_id=parsed.first("@boot_id"),
        tools={fields[0]: fields[1] for fields in parsed.rows.get("@tool", [])},
        disks={
            fields[0]: Disk(available_bytes=int(fields[1]) * 1024, mount=fields[2])
            for fields in parsed.rows.get("@disk", [])
        },
        releases=_releases(parsed),
        current=parsed.first("@current") or None,
        previous=parsed.first("@previous") or None,
        artefacts={fields[0]: int(fields[1]) for fields in parsed.rows.get("@artefact", [])},
        leftovers=tuple(fields[0] for fields in parsed.rows.get("@leftover", [])),
        servers=_servers(processes),
        orphans=_orphans(processes),
        listener=_listener(parsed),
        blobs={
            fields[0].removeprefix("sha256-"): Blob(
                size_bytes=int(fields[1]), is_gguf=len(fields) > 2 and fields[2] == "GGUF"
            )
            for fields in parsed.rows.get("@blob", [])
        },
        models=_models(parsed),
    )


def _systemd(reply: _Reply) -> SystemdFacts | None:
    shown = reply.files.get("systemd/units")
    if shown is None:
        return None
    # `systemctl show` of several units: an empty line between two.
    blocks = [
        dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        for text in shown.decode(errors="replace").split("\n\n")
    ]
    modes = {fields[0]: fields[1] for fields in reply.rows.get("@mode", [])}
    account = next(iter(reply.rows.get("@account", [])), None)
    foreign = reply.rows.get("@foreign", [["", ""]])[0]
    users = {values["Id"]: values.get("User", "") for values in blocks if values["LoadState"] != "not-found"}
    return SystemdFacts(
        units={values["Id"]: _unit(values) for values in blocks},
        files={
            path: FileFact(text=data.decode(errors="replace"), mode=modes.get(path, ""))
            for path, data in reply.under("host").items()
        },
        user=users.get("ollama.service"),
        account=Account(name=account[0], home=account[1], groups=tuple(account[2].split()))
        if account is not None
        else None,
        account_is_ours="@our_account" in reply.rows,
        gpu_groups=tuple(fields[0] for fields in reply.rows.get("@gpu_group", [])),
        foreign_program=foreign[0] or None,
        foreign_version=foreign[1] or None,
        is_leased="@lease" in reply.rows,
    )


def _unit(values: Mapping[str, str]) -> UnitState:
    return UnitState(
        load_state=values["LoadState"],
        active_state=values["ActiveState"],
        enabled=values.get("UnitFileState", ""),
        result=values.get("Result", "success"),
        main_pid=int(values.get("MainPID", "0")) or None,
        restarts=int(values.get("NRestarts", "0")),
        fragment=values.get("FragmentPath") or None,
        drop_ins=tuple(values.get("DropInPaths", "").split()),
    )


def _gpus(reply: _Reply) -> GpuReading | None:
    ended = {fields[0]: int(fields[1]) for fields in reply.rows.get("@gpu_exit", [])}
    if not ended:
        return None
    answers = {key: data.decode(errors="replace") for key, data in reply.under("gpu/").items()}
    for key, code in ended.items():
        if code == _TIMED_OUT:
            return GpuReading(problem=Problem.HANGS, said="nvidia-smi did not answer")
        if code:
            return GpuReading(problem=problem_of(code), said=answers.get(key, ""))
    return GpuReading(gpus=parse_nvidia_smi(answers["gpus"], answers["processes"]))


def _releases(reply: _Reply) -> dict[str, str]:
    found = {fields[0]: int(fields[1]) for fields in reply.rows.get("@release_bytes", [])}
    releases = {}
    for version, data in reply.under("release/").items():
        record = _json_object(data) or {}
        whole = record.get("bytes", found.get(version)) == found.get(version)
        releases[version] = str(record.get("archive_sha256", "")) if whole else ""
    return releases


def _listener(reply: _Reply) -> Listener | None:
    for fields in reply.rows.get("@listener", []):
        pid, command = fields[0], fields[1] if len(fields) > 1 else ""
        return Listener(pid=None if pid == "-" else int(pid), command=command.strip())
    return None


def _processes(
    reply: _Reply, root: PurePosixPath, main_pid: int | None
) -> dict[int, tuple[int, ServerProcess]]:
    """Every process with our mark, and the unit's, by pid, with its parent's pid."""
    clock = reply.rows.get("@clock", [["0", "100"]])[0]
    boot_time, ticks = float(clock[0] or 0), float(clock[1])
    files = reply.under("process/")
    found = {}
    for pid in sorted({int(key.partition("/")[0]) for key in files}):
        command = tuple(files.get(f"{pid}/cmdline", b"").decode(errors="replace").splitlines())
        lines = files.get(f"{pid}/environ", b"").decode(errors="replace").splitlines()
        environment = dict(line.split("=", 1) for line in lines if "=" in line)
        # proc(5): fields 3, 4 and 22 are state, parent and start time in clock ticks since boot; the name in
        # field 2 may hold spaces.
        fields = files.get(f"{pid}/stat", b"").decode(errors="replace").rpartition(")")[2].split()
        is_ours = environment.get("OLLAMA_FLEET_ROOT") == str(root) or pid == main_pid
        if not is_ours or len(fields) < 20 or fields[0] == "Z":
            continue
        process = ProcessId(pid=pid, create_time=boot_time + float(fields[19]) / ticks)
        found[pid] = (
            int(fields[1]),
            ServerProcess(process=process, command=command, environment=environment),
        )
    return found


def _servers(processes: Mapping[int, tuple[int, ServerProcess]]) -> tuple[ServerProcess, ...]:
    """The runners inherit the environment; a server is what was told to serve."""
    return tuple(process for _, process in processes.values() if process.command[-1:] == ("serve",))


def _orphans(processes: Mapping[int, tuple[int, ServerProcess]]) -> tuple[ServerProcess, ...]:
    """Runners without a parent of ours."""
    return tuple(
        process
        for parent, process in processes.values()
        if process.command[-1:] != ("serve",) and parent not in processes
    )


def _models(reply: _Reply) -> dict[str, StoredModel]:
    layers = reply.under("layer/")
    models = {}
    for path, data in reply.under("manifest/").items():
        name, _, tag = path.rpartition("/")
        manifest = _json_object(data)
        if manifest is None or not name:
            continue
        # Names are case-insensitive on the server (measured), so are ours.
        models[f"{name}:{tag}".lower()] = _stored_model(manifest, layers)
    return models


def _stored_model(manifest: Mapping[str, Any], layers: Mapping[str, bytes]) -> StoredModel:
    digests: dict[str, str] = {}
    sizes: dict[str, Any] = {}
    layers_told = manifest.get("layers")
    for layer in layers_told if isinstance(layers_told, list) else []:
        if not isinstance(layer, dict):
            continue
        digests[str(layer.get("mediaType"))] = str(layer.get("digest", "")).removeprefix("sha256:")
        sizes[str(layer.get("mediaType"))] = layer.get("size")

    def text(kind: str) -> str | None:
        data = layers.get(digests.pop(kind, ""))
        return None if data is None else data.decode(errors="replace")

    model = digests.pop(_MODEL_LAYER, None)
    template, system, parameters = text(_TEMPLATE_LAYER), text(_SYSTEM_LAYER), text(_PARAMETERS_LAYER)
    return StoredModel(
        model_sha256=model,
        template=template,
        system=system,
        parameters=_json_object((parameters or "{}").encode()) or {},
        other_layers=tuple(sorted(digests)),
        model_bytes=size if isinstance(size := sizes.get(_MODEL_LAYER), int) else None,
    )


def _json_object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
