"""What a host should be: plain values, read from the inventory, `models.toml` and `pins.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import PurePosixPath

from deploy.facts import ProcessId, StoredModel
from deploy.fit import ModelShape

ADOPTED = "adopted"
"""The name of the release that another hand installed: a unit with a binary of its own."""


class ServiceBackend(StrEnum):
    """Who runs `ollama serve`."""

    PROCESS = "process"
    SYSTEMD = "systemd"


class GpuKind(StrEnum):
    """What the host must compute on."""

    NVIDIA = "nvidia"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """One file of a ModelScope repository, pinned: these bytes or none.

    `sha256` is 64 lower-case hex digits without a prefix. `local_path` is set for what the project itself
    contains (the canary): it is read from there, never from the mirror.
    """

    repo: str
    revision: str
    file: str
    size_bytes: int
    sha256: str
    local_path: str | None = None

    @property
    def digest(self) -> str:
        """As Ollama and the reports write it."""
        return f"sha256:{self.sha256}"

    @property
    def place(self) -> PurePosixPath:
        """Its path below a directory of verified files, on a host or in a cache."""
        return PurePosixPath(f"sha256-{self.sha256}", PurePosixPath(self.file).name)


ParameterValue = int | float | str | bool | list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelfile:
    """A rendered Modelfile, parsed: what `POST /api/create` is given.

    `text` is the whole file as `./fleet render` prints it; `parameters` has typed values (`stop` is a list).
    """

    text: str
    template: str
    parameters: Mapping[str, ParameterValue]
    system: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredModel:
    """A model to be served as `name:latest`; `shape` is known where its weights lie on this machine.

    `cases` is "core" or "extended": which cases of the smoke suite prove it.
    `stored` is what the host keeps of it as `name:previous`, to go back to: nothing is made then.
    """

    name: str
    weights: Artefact
    modelfile: Modelfile
    uses_tools: bool
    shape: ModelShape | None = None
    cases: str = "extended"
    stored: StoredModel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredServer:
    """The Ollama release and the environment its process must run with.

    `archives` maps an architecture (`amd64`, `arm64`) to the pinned archive of this version. `release` names
    one that is on the host and needs none, to go back to. `retired` are processes that must not be the server
    any more: those that a restart found.
    """

    version: str
    archives: Mapping[str, Artefact]
    environment: Mapping[str, str]
    backend: ServiceBackend
    release: str | None = None
    retired: tuple[ProcessId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFile:
    """The health agent as one file of this machine: what a host with Python is given."""

    local_path: str
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """On a host. It tells the content: a file gets it only when all its bytes have come."""
        return f"{self.sha256[:16]}.pex"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """That a host checks itself, by timer or by cron.

    `agents` are those that this machine has, by architecture (`amd64`, `arm64`); where there is none, the one
    that is on the host stays. `textfile_dir` is where node_exporter looks for metrics, None for where
    Debian has it look. `addresses` are those who are notified, as `notify.urls` has them, None where the
    host's own file stays; whoever has them may write to these people, so nothing shows them.
    """

    every_minutes: int
    textfile_dir: PurePosixPath | None = None
    addresses: str | None = field(default=None, repr=False)
    toolkit_version: str = ""
    agents: Mapping[str, AgentFile] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFile:
    """A file that is ours on a host. `mode` is that of chmod(1), in octal digits."""

    path: PurePosixPath
    text: str = field(repr=False)
    mode: str = "644"


@dataclass(frozen=True, kw_only=True)
class HostPaths:
    """Where everything lies on a host, under one root (`/` for a provisioned host).

    Each path is put together once, since a plan asks for some of them dozens of times.
    """

    root: PurePosixPath
    models_dir: PurePosixPath

    @cached_property
    def releases(self) -> PurePosixPath:
        return self.root / "opt/ollama/releases"

    @cached_property
    def current(self) -> PurePosixPath:
        return self.root / "opt/ollama/current"

    @cached_property
    def previous(self) -> PurePosixPath:
        """Links to the release that `current` was before: what `rollback` goes to."""
        return self.root / "opt/ollama/previous"

    @cached_property
    def units(self) -> PurePosixPath:
        return self.root / "etc/systemd/system"

    @cached_property
    def unit(self) -> PurePosixPath:
        return self.units / "ollama.service"

    @cached_property
    def drop_in(self) -> PurePosixPath:
        return self.units / "ollama.service.d/50-fleet.conf"

    @cached_property
    def modules_load(self) -> PurePosixPath:
        """Read at every boot: modules-load.d(5)."""
        return self.root / "etc/modules-load.d/ollama-fleet.conf"

    @cached_property
    def programs(self) -> PurePosixPath:
        """Our scripts on the host."""
        return self.root / "usr/local/lib/ollama-fleet"

    @cached_property
    def state(self) -> PurePosixPath:
        return self.root / "var/lib/ollama-fleet"

    @cached_property
    def lease_program(self) -> PurePosixPath:
        return self.programs / "lease"

    @cached_property
    def account_record(self) -> PurePosixPath:
        """Names the account that we made, where we did."""
        return self.state / "account"

    @cached_property
    def adopted_record(self) -> PurePosixPath:
        """How an adopted server was before us, where it did not run or no boot started it."""
        return self.state / "adopted"

    @cached_property
    def backups(self) -> PurePosixPath:
        """Files of other hands that were overwritten on request."""
        return self.state / "backups"

    @cached_property
    def artefacts(self) -> PurePosixPath:
        """Verified files, named `sha256-<hex>`; a file gets its name only after its sha256 agreed."""
        return self.state / "artefacts"

    @cached_property
    def lock(self) -> PurePosixPath:
        return self.state / "lock"

    @cached_property
    def journal(self) -> PurePosixPath:
        """Who changed what on this host, and when."""
        return self.state / "journal.jsonl"

    @cached_property
    def baselines(self) -> PurePosixPath:
        """What the models did when they were promoted: deploy/baselines.py."""
        return self.state / "baselines.json"

    @cached_property
    def agents(self) -> PurePosixPath:
        """The health agent, named by its content."""
        return self.programs / "agent"

    @cached_property
    def health_program(self) -> PurePosixPath:
        """What the timer runs: the agent where it can run, else what a POSIX shell can check."""
        return self.programs / "health"

    @cached_property
    def cron_program(self) -> PurePosixPath:
        """What cron runs on a host without systemd: the health program, with what the unit would give it."""
        return self.programs / "health-cron"

    @cached_property
    def cron_log(self) -> PurePosixPath:
        """What the runs by cron say, where there is no journal."""
        return self.log.with_name("health.log")

    @cached_property
    def health(self) -> PurePosixPath:
        """Of the health checks: `config.json`, `last.json`, `history.jsonl`, and what the agent unpacks.

        The messages that wait to be sent are there too.
        """
        return self.state / "health"

    @cached_property
    def addresses(self) -> PurePosixPath:
        """Who is notified: secrets, which only root may read."""
        return self.health / "notify.urls"

    @cached_property
    def server_home(self) -> PurePosixPath:
        """HOME of the server: it panics without one (measured on 0.17.5)."""
        return self.state / "home"

    @cached_property
    def unproven(self) -> PurePosixPath:
        """There as long as a server that we have started ourselves is not proven: it has no lease."""
        return self.state / "unproven"

    @cached_property
    def log(self) -> PurePosixPath:
        return self.root / "var/log/ollama-fleet/ollama.log"

    def artefact(self, artefact: Artefact) -> PurePosixPath:
        """Where a verified file lies."""
        return self.artefacts / artefact.place

    def release(self, name: str) -> PurePosixPath:
        return self.releases / name

    def manifest(self, model: str, tag: str) -> PurePosixPath:
        """What a model's name stands for: Ollama's `manifest/paths.go`."""
        return self.models_dir / "manifests/registry.ollama.ai/library" / model / tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Where a host's SSH server is. `port` and `user` are None where `~/.ssh/config` decides.

    `key_file` is the private key that is offered first. `known_hosts` is the file beside the inventory, which
    need not exist.
    """

    address: str
    port: int | None
    user: str | None
    key_file: str | None = None
    known_hosts: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a change goes through a fleet: in which batches, and how many hosts may fail before it stops.

    `batch` are counts or percentages of hosts ("1", "25%"), one batch after the other, the last repeated.
    """

    batch: tuple[str, ...] = ("100%",)
    max_failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """Everything the plan of one host is made from, beside its facts.

    `variables` of the inventory that are not ours never get here. `health` is None where the host
    is not to check itself.
    """

    host: str
    connection: str
    paths: HostPaths
    server: DesiredServer
    models: tuple[DesiredModel, ...]
    gpu: GpuKind
    login: Login | None = None
    pace: Pace = Pace()
    health: Health | None = None

    @property
    def port(self) -> int:
        return int(self.server.environment["OLLAMA_HOST"].rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"http://{self.server.environment['OLLAMA_HOST']}"
