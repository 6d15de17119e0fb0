"""The probe: one script over one connection, and its reply read into facts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.desired import HostPaths
from deploy.errors import ProbeFailed
from deploy.facts import (
    Account,
    Blob,
    CronFacts,
    Disk,
    FileFact,
    HostFacts,
    LastHealth,
    Listener,
    ProcessId,
    SecretFact,
    ServerProcess,
    StoredModel,
    SystemdFacts,
    UnitState,
    Unpacked,
)
from deploy.gpu import GpuReading, Problem, parse_nvidia_smi, problem_of
from deploy.server_plan import render_mark
from deploy.unit_text import assignments

PROBE_SCRIPT = Path(__file__).with_name("probe.sh")
FIRST_LINE = b"@fleet-probe\t2"
LAST_LINE = "@end"
_TIMED_OUT = 124  # timeout(1)
# USER_HZ is 100 on every architecture that Ollama is built for: asm-generic/param.h.
_TICKS_PER_SECOND = 100
_DF_LINE = re.compile(r".* (?P<available>\d+) +[\d-]+% +(?P<mount>.*)")
# As `healthchecks/health_report.py` and `deploy/templates/health.sh` write it.
_LAST_HEALTH = re.compile(
    r'\{"format": 1, "host": "(?:[^"\\]|\\.)*", "started": "(?P<started>[^"]*)", "seconds": [\d.e-]+, '
    r'"state": "(?P<state>pass|warn|fail|unknown)"'
)

_MODEL_LAYER = "application/vnd.ollama.image.model"
_TEMPLATE_LAYER = "application/vnd.ollama.image.template"
_PARAMETERS_LAYER = "application/vnd.ollama.image.params"
_SYSTEM_LAYER = "application/vnd.ollama.image.system"


@dataclass(frozen=True, slots=True)
class _Stat:
    """What stat(1) says of a path."""

    size_bytes: int
    mode: str
    user_id: int
    owner: str


class _Reply:
    """The reply as rows, sections and files; content is kept as bytes until its meaning is known."""

    def __init__(self, reply: bytes) -> None:
        self.rows: dict[str, list[list[str]]] = {}
        self.sections: dict[str, list[str]] = {}
        self.stats: dict[str, _Stat] = {}
        self.files: dict[str, bytes] = {}
        self._reply, self._position = reply, 0
        if not reply.startswith(FIRST_LINE + b"\n"):
            raise ProbeFailed(
                sentence="the `probe` did not answer with its version line",
                cause=reply[:200].decode(errors="replace") or "the reply is empty",
                unchanged="everything: a probe changes nothing",
                hint="a login script that prints text is usual; make it silent for non-interactive shells",
            )
        section: list[str] = []
        while (line := self._line()) != LAST_LINE:
            if not line.startswith("@"):
                section.append(line)
                continue
            name, *fields = line.split("\t")
            section = self.sections.setdefault(name, [])
            if name == "@file":
                self.files[fields[0]] = self._content(int(fields[1]))
                self._end_of_content()
            elif name == "@files":
                for path in [self._line() for _ in range(int(fields[0]))]:
                    self.files[path] = self._content(self.stats[path].size_bytes)
                self._end_of_content()
            elif name == "@stat":
                path, size, mode, user_id, owner = fields
                self.stats[path] = _Stat(int(size), mode, int(user_id), owner)
            else:
                self.rows.setdefault(name, []).append(fields)

    def _line(self) -> str:
        end = self._reply.find(b"\n", self._position)
        if end < 0:
            raise ProbeFailed(
                sentence="the `probe`'s reply was cut short",
                cause=f"{len(self._reply)} bytes without the last line",
                unchanged="everything: a probe changes nothing",
                hint="run the same command again",
            )
        line, self._position = self._reply[self._position : end], end + 1
        return line.decode(errors="replace")

    def _content(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        return self._reply[start : self._position]

    def _end_of_content(self) -> None:
        if self._line():
            raise ValueError("a file had another size than it was said to have")

    def first(self, name: str, default: str = "") -> str:
        fields = self.rows.get(name, [[default]])[0]
        return fields[0] if fields else default

    @cached_property
    def paths(self) -> _Paths:
        state, releases, models, _ = self.rows["@paths"][0]
        return _Paths(state=state, releases=releases, models=models)

    def under(self, directory: str) -> dict[str, bytes]:
        """The files below a directory by their path in it."""
        prefix = f"{directory}/"
        return {
            path.removeprefix(prefix): data for path, data in self.files.items() if path.startswith(prefix)
        }

    def sizes_under(self, directory: str) -> dict[str, int]:
        """The sizes of what lies below a directory."""
        prefix = f"{directory}/"
        return {
            path.removeprefix(prefix): found.size_bytes
            for path, found in self.stats.items()
            if path.startswith(prefix)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paths:
    """The directories that the probe looked at, as it was told them."""

    state: str
    releases: str
    models: str

    @property
    def blobs(self) -> str:
        return f"{self.models}/blobs"


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
    paths = parsed.paths
    systemd = _systemd(parsed)
    processes = _processes(parsed, root, systemd.unit.main_pid if systemd is not None else None)
    kernel, _, machine = parsed.first("@machine").rpartition(" ")
    store = parsed.stats.get(paths.models)
    agents = HostPaths(root=root, models_dir=PurePosixPath(paths.models)).agents
    return HostFacts(
        systemd=systemd,
        cron=_cron(parsed),
        store_owner=store.owner if store is not None else None,
        gpus=_gpus(parsed),
        architecture=machine,
        kernel=kernel,
        user_id=parsed.stats["/proc/self"].user_id,
        boot_id=parsed.first("@boot_id"),
        tools={name: path for name, path in parsed.rows.get("@tool", []) if path},
        disks=_disks(parsed),
        releases=_releases(parsed),
        unpacked=_unpacked(parsed),
        current=_link(parsed, "@current"),
        previous=_link(parsed, "@previous"),
        is_unproven="@unproven" in parsed.rows,
        artefacts={
            name.removeprefix("sha256-"): size
            for name, size in parsed.sizes_under(f"{paths.state}/artefacts").items()
        },
        leftovers=tuple(fields[0] for fields in parsed.rows.get("@leftover", [])),
        parts={path: int(kibibytes or 0) * 1024 for path, kibibytes in parsed.rows.get("@part", [])},
        servers=_servers(processes),
        orphans=_orphans(processes),
        listener=_listener(parsed),
        blobs=_blobs(parsed),
        models=_models(parsed),
        agents=parsed.sizes_under(str(agents)),
        health=_last_health(parsed),
    )


def _last_health(reply: _Reply) -> LastHealth | None:
    """The beginning of `last.json`; None for one that says nothing, which is for its next run to mend."""
    told = _LAST_HEALTH.match(reply.first("@health"))
    if told is None:
        return None
    try:
        started = datetime.fromisoformat(told["started"])
    except ValueError:
        return None
    return LastHealth(state=told["state"], started=started) if started.tzinfo is not None else None


def _link(reply: _Reply, name: str) -> str | None:
    """The release that a link of ours names, or the whole target where that is none."""
    target = reply.first(name)
    release = target.removeprefix("releases/")
    return (target if "/" in release else release) or None


def _systemd(reply: _Reply) -> SystemdFacts | None:
    shown = reply.sections.get("@units")
    if shown is None:
        return None
    # `systemctl show` of several units: an empty line between two.
    blocks = [
        dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        for text in "\n".join(shown).split("\n\n")
    ]
    foreign = reply.rows.get("@foreign", [["", "", ""]])[0]
    users = {values["Id"]: values.get("User", "") for values in blocks if values["LoadState"] != "not-found"}
    lines = [line.split(":") for line in reply.sections.get("@accounts", [])]
    return SystemdFacts(
        units={values["Id"]: _unit(values) for values in blocks},
        files=_own_files(reply),
        user=users.get("ollama.service"),
        account=_account(reply, lines),
        account_is_ours="@our_account" in reply.rows,
        gpu_groups=tuple(name for name in ("render", "video") if any(line[0] == name for line in lines)),
        foreign_program=foreign[0] or None,
        foreign_version=foreign[1] or None,
        foreign_stamp=foreign[2] or None,
        is_replaced="@replaced" in reply.rows,
        environment=next(
            (
                assignments(values.get("Environment", ""))
                for values in blocks
                if values["Id"] == "ollama.service"
            ),
            {},
        ),
        environment_files=tuple(fields[0] for fields in reply.rows.get("@environment_file", [])),
        is_leased="@lease" in reply.rows,
        store=reply.first("@store") or None,
        addresses=_addresses(reply),
    )


def _own_files(reply: _Reply) -> dict[str, FileFact]:
    """Whatever was read that is no release's and no model's."""
    paths = reply.paths
    others = tuple(f"{directory}/" for directory in (paths.releases, paths.models))
    return {
        path: FileFact(
            text=data.decode(errors="replace"), mode=reply.stats[path].mode, owner=reply.stats[path].owner
        )
        for path, data in reply.files.items()
        if path.startswith("/") and not path.startswith(others)
    }


def _cron(reply: _Reply) -> CronFacts | None:
    told = reply.rows.get("@cron")
    if told is None:
        return None
    daemon, refused = told[0]
    return CronFacts(
        user=reply.stats["/proc/self"].owner,
        daemon=daemon or None,
        is_refused=bool(refused),
        # Somebody may have put a tab into it.
        lines=tuple("\t".join(fields) for fields in reply.rows.get("@cron_line", [])),
        files=_own_files(reply),
        addresses=_addresses(reply),
    )


def _addresses(reply: _Reply) -> SecretFact | None:
    stat = reply.stats.get(f"{reply.paths.state}/health/notify.urls")
    if stat is None:
        return None
    return SecretFact(sha256=reply.first("@addresses"), mode=stat.mode, owner=stat.owner)


def _account(reply: _Reply, lines: list[list[str]]) -> Account | None:
    """The account that was asked about: passwd(5) has seven fields, the sixth is its home."""
    name, groups = reply.rows["@account"][0]
    home = next((line[5] for line in lines if len(line) == 7 and line[0] == name), None)
    return Account(name=name, home=home, groups=tuple(groups.split())) if home is not None else None


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
    answers = {key: data.decode(errors="replace") for key, data in reply.under("gpu").items()}
    for key, code in ended.items():
        if code == _TIMED_OUT:
            return GpuReading(problem=Problem.HANGS, said="nvidia-smi did not answer")
        if code:
            return GpuReading(problem=problem_of(code), said=answers.get(key, ""))
    return GpuReading(gpus=parse_nvidia_smi(answers["gpus"], answers["processes"]))


def _disks(reply: _Reply) -> dict[str, Disk]:
    """A line of df(1) for each of our directories, in their order, below its head.

    A device or a mount point may hold spaces: the column with `%` tells where the numbers end.
    """
    _, *lines = reply.sections.get("@df", []) or [""]
    directories = reply.rows["@paths"][0]
    found = [_DF_LINE.fullmatch(line) for line in lines]
    if len(found) != len(directories):
        return {}
    inodes = [line.split() for line in reply.sections.get("@inodes", [])]
    if len(inodes) != len(directories):
        inodes = [["0", "0"]] * len(directories)
    modes: dict[str, str] = dict(reply.rows.get("@mount", []))
    return {
        directory: Disk(
            available_bytes=int(line["available"]) * 1024,
            mount=line["mount"],
            free_inodes=int(free) if int(total) else None,
            is_read_only=modes.get(line["mount"]) == "ro",
        )
        for directory, line, (total, free) in zip(directories, found, inodes, strict=True)
        if line is not None
    }


def _blobs(reply: _Reply) -> dict[str, Blob]:
    """Sizes, and the first four bytes of all of them in one word."""
    heads = reply.first("@blob_heads")
    blobs = {}
    for name, size in reply.sizes_under(reply.paths.blobs).items():
        if not name.startswith("sha256-"):
            continue
        head, heads = heads[: min(size, 4)], heads[min(size, 4) :]
        owner = reply.stats[f"{reply.paths.blobs}/{name}"].owner
        blobs[name.removeprefix("sha256-")] = Blob(size_bytes=size, is_gguf=head == "GGUF", owner=owner)
    if heads:
        raise ValueError("the blobs changed while they were looked at")
    return blobs


def _releases(reply: _Reply) -> dict[str, str]:
    """The sha256 of its archive for each release, `""` for one that is not what was unpacked."""
    found = _unpacked(reply)
    programs = {fields[0]: fields[1] for fields in reply.rows.get("@program", [])}
    releases = {}
    for path, data in reply.under(reply.paths.releases).items():
        if not path.endswith("/release.json"):
            continue
        name = path.removesuffix("/release.json")
        record = _json_object(data) or {}
        bytes_found, program = found[name].size_bytes, record.get("program_sha256")
        is_whole = record.get("bytes", bytes_found) == bytes_found
        is_unchanged = program is None or programs.get(name, program) == program
        sha256 = str(record.get("archive_sha256", ""))
        # Without its mark no unit starts from it.
        is_marked = reply.files.get(f"{reply.paths.releases}/{name}/release.env") == render_mark(sha256)
        releases[name] = sha256 if is_whole and is_unchanged and is_marked else ""
    return releases


def _unpacked(reply: _Reply) -> dict[str, Unpacked]:
    """What was unpacked of each release, and when: its record is the last file that is written."""
    sizes: dict[str, int] = {}
    times: dict[str, int] = {}
    for line in reply.sections.get("@release_files", []):
        size, modified, path = line.split(" ", 2)
        name, _, file = path.partition("/")
        if file == "release.json":
            times[name] = int(modified)
        else:
            sizes[name] = sizes.get(name, 0) + int(size)
    return {name: Unpacked(size_bytes=sizes.get(name, 0), at=at) for name, at in times.items()}


def _listener(reply: _Reply) -> Listener | None:
    for fields in reply.rows.get("@listener", []):
        pid, command = fields[0], fields[1] if len(fields) > 1 else ""
        return Listener(pid=None if pid == "-" else int(pid), command=command.strip())
    return None


def _processes(
    reply: _Reply, root: PurePosixPath, main_pid: int | None
) -> dict[int, tuple[int, ServerProcess]]:
    """Every process with our mark, and the unit's, by pid, with its parent's pid."""
    times = (line.split() for line in reply.sections.get("@accounts", []))
    boot_time = next((float(words[1]) for words in times if words[:1] == ["btime"]), 0.0)
    found = {}
    for pid, told in sorted(_told_processes(reply).items()):
        command = tuple(told["cmdline"])
        environment = dict(line.split("=", 1) for line in told["environ"] if "=" in line)
        # proc(5): fields 3, 4 and 22 are state, parent and start time in clock ticks since boot; the name in
        # field 2 may hold spaces.
        fields = "".join(told["stat"]).rpartition(")")[2].split()
        is_ours = environment.get("OLLAMA_FLEET_ROOT") == str(root) or pid == main_pid
        if not is_ours or len(fields) < 20 or fields[0] == "Z":
            continue
        process = ProcessId(pid=pid, create_time=boot_time + float(fields[19]) / _TICKS_PER_SECOND)
        found[pid] = (
            int(fields[1]),
            ServerProcess(process=process, command=command, environment=environment),
        )
    return found


def _told_processes(reply: _Reply) -> dict[int, dict[str, list[str]]]:
    """The values of each process's files by pid."""
    found: dict[int, dict[str, list[str]]] = {}
    for line in reply.sections.get("@processes", []):
        path, _, value = line.partition(":")
        _, _, pid, file = path.split("/")
        told = found.setdefault(int(pid), {"cmdline": [], "environ": [], "stat": []})
        told[file].append(value.replace("\1", "\n"))
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
    blobs = reply.under(reply.paths.blobs)
    layers = {name.removeprefix("sha256-"): data for name, data in blobs.items()}
    models = {}
    for path, data in reply.under(f"{reply.paths.models}/manifests/registry.ollama.ai/library").items():
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
