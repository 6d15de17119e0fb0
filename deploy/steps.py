"""The changes that a plan is made of, each with its reason; mypy names every place that must know one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from deploy.desired import AgentFile, Artefact, DesiredModel, HostFile
from deploy.facts import ServerProcess


class Phase(StrEnum):
    """The parts of a deploy, in their order."""

    FETCH = "fetch"
    INSTALL = "install"
    SERVICE = "service"
    MODEL = "model"
    VERIFY = "verify"
    PROMOTE = "promote"
    SCHEDULE = "schedule"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not as desired; None means absent."""

    what: str
    actual: Any
    desired: Any

    def __str__(self) -> str:
        return f"{self.what} is {_shown(self.actual)}, desired {_shown(self.desired)}"


def _shown(value: Any) -> str:
    return "absent" if value is None else f"`{value}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    reason: str
    differences: tuple[Difference, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveLeftovers(_Step):
    """Temporary files of runs that were cut short."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchArchive(_Step):
    """The server's archive, verified, onto the host."""

    artefact: Artefact


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchWeights(_Step):
    """A model's weights, verified, onto the host."""

    model: str
    artefact: Artefact


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackRelease(_Step):
    """The archive into a release directory of its own."""

    version: str
    artefact: Artefact


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeAccount(_Step):
    """The account that the server runs under, in these groups."""

    name: str
    home: str
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteFile(_Step):
    """A file of ours that is absent or was written with other settings."""

    file: HostFile
    phase: Phase = Phase.SERVICE


@dataclass(frozen=True, slots=True, kw_only=True)
class OverwriteFile(_Step):
    """A file in our place that another hand wrote or edited: replaced only on request, with a backup."""

    file: HostFile
    backup: PurePosixPath
    phase: Phase = Phase.SERVICE


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeLease(_Step):
    """From here on the host goes back by itself to what it serves now, unless the lease is ended."""

    files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnableUnits(_Step):
    """Units that must start by themselves at every boot."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndLease(_Step):
    """What runs now is confirmed: it stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopServer(_Step):
    """A server of ours that must not run (any more, or beside another one)."""

    server: ServerProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchRelease(_Step):
    """`current` to another release; to none where `version` is that of an adopted server."""

    previous: str | None
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveDamagedBlob(_Step):
    """Weights in the store that are no GGUF: from 0.24.0 on a server panics on them at every start."""

    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartServer(_Step):
    """Start `ollama serve` with exactly this environment and wait until it answers with the right version.

    `account` is whom systemd runs it as, None where we start it ourselves.
    """

    version: str
    environment: Mapping[str, str]
    account: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateModel(_Step):
    """Place the weights and create `NAME:candidate`."""

    model: DesiredModel


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyModel(_Step):
    """GPU truth and the tool calls of one model name."""

    model: DesiredModel
    tag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteModel(_Step):
    """Copy `latest` to `previous`, the candidate to `latest`, remove the candidate.

    With `other_weights` than `latest` had, `previous` has a runner of its own.
    """

    model: DesiredModel
    keeps_previous: bool
    other_weights: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreModel(_Step):
    """`latest` and `previous` change places: the model before is served again, and one can go forward."""

    model: DesiredModel
    other_weights: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveCandidate(_Step):
    """A candidate that a cut run left behind."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadModel(_Step):
    """Load `NAME:latest`, so that the first user does not wait for it.

    It belongs to the phase that made it necessary: a start of the server, or a promotion.
    """

    name: str
    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallAgent(_Step):
    """The one-file health agent onto the host, in place of another one."""

    agent: AgentFile


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTimer(_Step):
    """The timer of the health checks, at every boot and from now on."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteCrontab(_Step):
    """Our line in a user's own crontab, in place of those that end with `mark`; all others stay.

    `backup` is where lines go that another hand has edited: replaced only on request.
    """

    user: str
    line: str
    mark: str
    backup: PurePosixPath | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSchedule(_Step):
    """The host checks itself no more: what starts it, and what it runs; the results stay.

    `mark` ends our line in the crontab, None where a timer is stopped.
    """

    paths: tuple[PurePosixPath, ...]
    mark: str | None = None


Step = (
    RemoveLeftovers
    | FetchArchive
    | FetchWeights
    | UnpackRelease
    | MakeAccount
    | WriteFile
    | OverwriteFile
    | TakeLease
    | EnableUnits
    | EndLease
    | StopServer
    | SwitchRelease
    | RemoveDamagedBlob
    | StartServer
    | CreateModel
    | VerifyModel
    | PromoteModel
    | RestoreModel
    | RemoveCandidate
    | LoadModel
    | InstallAgent
    | StartTimer
    | WriteCrontab
    | StopSchedule
)

PHASES: dict[type, Phase] = {
    RemoveLeftovers: Phase.FETCH,
    FetchArchive: Phase.FETCH,
    FetchWeights: Phase.FETCH,
    UnpackRelease: Phase.INSTALL,
    MakeAccount: Phase.SERVICE,
    TakeLease: Phase.SERVICE,
    EnableUnits: Phase.SERVICE,
    EndLease: Phase.PROMOTE,
    StopServer: Phase.SERVICE,
    SwitchRelease: Phase.SERVICE,
    RemoveDamagedBlob: Phase.SERVICE,
    StartServer: Phase.SERVICE,
    CreateModel: Phase.MODEL,
    VerifyModel: Phase.VERIFY,
    PromoteModel: Phase.PROMOTE,
    RestoreModel: Phase.PROMOTE,
    RemoveCandidate: Phase.PROMOTE,
    InstallAgent: Phase.SCHEDULE,
    StartTimer: Phase.SCHEDULE,
    WriteCrontab: Phase.SCHEDULE,
    StopSchedule: Phase.SCHEDULE,
}


def phase_of(step: Step) -> Phase:
    """The phase a step belongs to."""
    if isinstance(step, LoadModel | WriteFile | OverwriteFile):
        return step.phase
    return PHASES[type(step)]


def overwrites(step: Step) -> bool:
    """Whether it replaces what another hand has edited: only on request."""
    return isinstance(step, OverwriteFile) or (isinstance(step, WriteCrontab) and step.backup is not None)


def subject_of(step: Step) -> str:  # noqa: PLR0911 - one short arm for each kind of step
    """What the step changes, in a few words."""
    match step:
        case RemoveLeftovers():
            return f"{len(step.paths)} leftover{'s' if len(step.paths) != 1 else ''} of a cut run"
        case FetchArchive():
            return step.artefact.file
        case FetchWeights():
            return f"{step.artefact.file} for {step.model}"
        case UnpackRelease() | SwitchRelease() | StartServer():
            return f"release {step.version}"
        case RemoveDamagedBlob():
            return f"blob sha256-{step.sha256[:12]}"
        case MakeAccount():
            return f"account {step.name}"
        case WriteFile() | OverwriteFile():
            return str(step.file.path)
        case TakeLease() | EndLease():
            return "rollback lease"
        case EnableUnits():
            return ", ".join(step.names)
        case StopServer():
            return f"pid {step.server.process.pid}"
        case CreateModel():
            return f"{step.model.name}:candidate"
        case VerifyModel():
            return f"{step.model.name}:{step.tag}"
        case PromoteModel() | RestoreModel():
            return f"{step.model.name}:latest"
        case RemoveCandidate():
            return f"{step.name}:candidate"
        case LoadModel():
            return f"{step.name}:latest"
        case InstallAgent():
            return f"health agent {step.agent.name.removesuffix('.pex')}"
        case StartTimer():
            return step.name
        case WriteCrontab():
            return f"crontab of {step.user}"
        case StopSchedule():
            return "health timer" if step.mark is None else "health checks by cron"
