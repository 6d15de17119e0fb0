"""What was observed on a host, by one probe: plain values, no opinion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from deploy.gpu import GpuReading


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same pid.

    `create_time` is in seconds since the epoch, as `psutil.Process.create_time` computes it.
    """

    pid: int
    create_time: float

    def same_as(self, other: ProcessId) -> bool:
        """`/proc/stat` btime moves with the clock: two seconds of difference are the same start."""
        return self.pid == other.pid and abs(self.create_time - other.create_time) < 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProcess:
    """A running `ollama serve` that carries our mark (`OLLAMA_FLEET_ROOT`) in its environment."""

    process: ProcessId
    command: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Who listens on the port that Ollama should have; `pid` is None where we may not see it."""

    pid: int | None
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system below a directory of ours (of its nearest existing parent).

    `free_inodes` is None where there is no limit to them, as on btrfs.
    """

    mount: str
    available_bytes: int
    free_inodes: int | None = None
    is_read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A file of the model store, known by the digest in its name only: no server ever verifies one."""

    size_bytes: int
    is_gguf: bool
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """A release directory, and when it was unpacked: seconds since the epoch by the host's clock."""

    size_bytes: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A manifest of the model store with the small layers read.

    `model_sha256` is the weights' layer, `model_bytes` its size as the manifest tells it. The manifest's own
    digest is not kept: it depends on the store's path (measured on 0.17.5 and 0.24.0), so it says nothing
    across hosts.
    """

    model_sha256: str | None
    template: str | None
    parameters: Mapping[str, Any]
    system: str | None = None
    other_layers: tuple[str, ...] = ()
    model_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitState:
    """What systemd says of one unit: org.freedesktop.systemd1(5), `systemctl show`.

    `main_pid` is None where nothing runs. `drop_ins` are all that are read, in the order in which they are.
    """

    load_state: str
    active_state: str
    enabled: str
    result: str = "success"
    main_pid: int | None = None
    restarts: int = 0
    fragment: str | None = None
    drop_ins: tuple[str, ...] = ()

    @property
    def exists(self) -> bool:
        return self.load_state != "not-found"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFact:
    """A file that is ours or in the way: its text, its mode in octal digits as stat(1) says it, its owner."""

    text: str
    mode: str
    owner: str = "root"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretFact:
    """A file whose text never leaves the host, by its sha256, mode and owner."""

    sha256: str
    mode: str
    owner: str = "root"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The account that the server runs under; `groups` by name."""

    name: str
    home: str
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemdFacts:
    """What a host with systemd says of the service.

    `units` has every unit of ours by name. `files` maps absolute paths to files of ours, to the unit and to
    its drop-ins. `user` is whom the unit runs as, `""` for root and None without a unit; `account` that user,
    or `ollama` where there is no unit. `gpu_groups` are those of `render` and `video` that exist.
    `foreign_program` is what a unit without our signature executes, `foreign_version` what that program says
    of itself, `foreign_stamp` which file it is: inode, size and time of the last change of any kind, which no
    program can set; `is_replaced`: that unit has taken the place of ours. `account_is_ours`: it was made by
    us. `environment` is what systemd read of every `Environment=`, `environment_files` are those that are
    there. `is_leased`: a switch that was not confirmed yet. `store` is where the model store really lies,
    links followed; None where that is not known. `addresses` is the file of those who are notified, None
    where there is none.
    """

    units: Mapping[str, UnitState] = field(default_factory=dict)
    files: Mapping[str, FileFact] = field(default_factory=dict)
    user: str | None = None
    account: Account | None = None
    account_is_ours: bool = False
    gpu_groups: tuple[str, ...] = ()
    foreign_program: str | None = None
    foreign_version: str | None = None
    foreign_stamp: str | None = None
    is_replaced: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    environment_files: tuple[str, ...] = ()
    is_leased: bool = False
    store: str | None = None
    addresses: SecretFact | None = None

    @property
    def adopted_program(self) -> str | None:
        """What a unit executes that was there before us and stays as it is; None where the unit is ours."""
        return None if self.is_replaced else self.foreign_program

    @property
    def unit(self) -> UnitState:
        """The server's."""
        absent = UnitState(load_state="not-found", active_state="inactive", enabled="")
        return self.units.get("ollama.service", absent)


@dataclass(frozen=True, slots=True, kw_only=True)
class CronFacts:
    """What a host that systemd does not run says of cron, and of what we have it run.

    `user` is whose crontab it is: that of the user who asks. `daemon` is the cron daemon that runs, None
    where we see none. `is_refused`: crontab(1) does not let this user in. `lines` are ours, and never another
    one: a crontab may hold what is nobody's to see. `files` and `addresses` are as in SystemdFacts.
    """

    user: str
    daemon: str | None = None
    is_refused: bool = False
    lines: tuple[str, ...] = ()
    files: Mapping[str, FileFact] = field(default_factory=dict)
    addresses: SecretFact | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LastHealth:
    """How the last run of the host's own checks ended: `pass`, `warn`, `fail` or `unknown`; when it began."""

    state: str
    started: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """One probe's reply. Absent things are absent from the mappings, never an error.

    `releases` maps a version to the sha256 of the archive it was unpacked from, `""` where the directory is
    not what was unpacked; `unpacked` has the same names. `current` is the version it links to, or the whole
    target where that is no release of ours. `artefacts` maps `<sha256>/<file name>` of a verified file to its
    size. `models` maps `name:tag` in lower case. `leftovers` are temporary files and directories of runs that
    were cut short, `parts` the bytes on disk of what was fetched or copied in part, by its path after
    `sha256-`, to go on from.
    `orphans` are runners whose server was killed: they live on, idle, with their memory (measured on 0.17.5).
    `is_unproven` where a server that we have started ourselves was never proven: the run was cut.
    `gpus` is None where nobody asked. `previous` is the release that `current` was before. `store_owner` owns
    the model store, None where there is none. `agents` maps the file names of health agents to their sizes.
    `systemd` is None where systemd does not run the host, `cron` where it is to or there is no crontab(1).
    `health` is None where the host has not checked itself yet, or this user may not see it.
    """

    architecture: str
    kernel: str
    user_id: int
    boot_id: str
    tools: Mapping[str, str]
    disks: Mapping[str, Disk] = field(default_factory=dict)
    releases: Mapping[str, str] = field(default_factory=dict)
    unpacked: Mapping[str, Unpacked] = field(default_factory=dict)
    current: str | None = None
    previous: str | None = None
    artefacts: Mapping[str, int] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()
    parts: Mapping[str, int] = field(default_factory=dict)
    servers: tuple[ServerProcess, ...] = ()
    orphans: tuple[ServerProcess, ...] = ()
    is_unproven: bool = False
    listener: Listener | None = None
    blobs: Mapping[str, Blob] = field(default_factory=dict)
    models: Mapping[str, StoredModel] = field(default_factory=dict)
    gpus: GpuReading | None = None
    store_owner: str | None = None
    agents: Mapping[str, int] = field(default_factory=dict)
    systemd: SystemdFacts | None = None
    cron: CronFacts | None = None
    health: LastHealth | None = None
