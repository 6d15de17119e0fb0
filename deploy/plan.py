"""From what a host should be and what was observed to the smallest set of changes: a pure function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from deploy.desired import Artefact, Desired, DesiredModel, ServiceBackend
from deploy.errors import PinError, UsageError
from deploy.facts import HostFacts, ServerProcess, StoredModel
from deploy.fit_plan import Running, fit_notes
from deploy.preflight import check_disks, check_port, check_preconditions
from deploy.steps import (
    CreateModel,
    Difference,
    FetchArchive,
    FetchWeights,
    LoadModel,
    Phase,
    PromoteModel,
    RemoveCandidate,
    RemoveDamagedBlob,
    RemoveLeftovers,
    StartServer,
    Step,
    StopServer,
    SwitchRelease,
    UnpackRelease,
    VerifyModel,
    phase_of,
    subject_of,
)

ARCHITECTURES: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64"}
"""`uname -m` to the word in the archives' names."""

SERVER_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Selection = Callable[[Step], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The changes of one host in the order in which they are made; `notes` change nothing."""

    host: str
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.steps


def everything(_step: Step) -> bool:
    """`deploy`."""
    return True


def only_install(step: Step) -> bool:
    """`install`: the archive and its release directory."""
    return isinstance(step, RemoveLeftovers | FetchArchive | UnpackRelease)


def only_download(step: Step) -> bool:
    """`download`: the weights."""
    return isinstance(step, FetchWeights)


def only_service(step: Step) -> bool:
    """`service`: release switch, stop and start; the models are loaded after a start."""
    return phase_of(step) is Phase.SERVICE


def only_create(step: Step) -> bool:
    """`create`: candidate, verification, promotion."""
    return phase_of(step) in (Phase.MODEL, Phase.VERIFY, Phase.PROMOTE)


def plan(desired: Desired, facts: HostFacts, selection: Selection = everything) -> Plan:
    """The steps of one host; none when it is as desired.

    Raises designed errors for what can be known to fail before anything is changed: no archive for the
    architecture, the port taken, the disk or the GPU memory too small, a phase whose precondition another
    phase makes.
    """
    if desired.server.backend is not ServiceBackend.PROCESS:
        raise UsageError(
            sentence=f"`ollama_service={desired.server.backend}` cannot be deployed by this release",
            host=desired.host,
            unchanged="everything",
            hint="set `ollama_service=process` for this host in the inventory",
        )
    archive = _archive(desired, facts)
    steps = tuple(_steps(desired, facts, archive))
    selected = tuple(step for step in steps if selection(step))
    check_preconditions(desired, steps, selected)
    check_port(desired, facts, selected)
    check_disks(desired, facts, selected)
    created = {step.model.name for step in selected if isinstance(step, CreateModel)}
    created |= {step.model for step in selected if isinstance(step, FetchWeights)}
    stops = any(isinstance(step, StopServer) for step in selected)
    notes = fit_notes(desired, facts, created, Running.STOPPED if stops else Running.KEPT)
    return Plan(host=desired.host, steps=selected, notes=notes)


def server_environment(desired: Desired, archive: Artefact) -> dict[str, str]:
    """The whole environment of the server: the inventory's settings and the marks we know it by."""
    return {
        **desired.server.environment,
        "HOME": str(desired.paths.server_home),
        "PATH": SERVER_PATH,
        "OLLAMA_FLEET_ROOT": str(desired.paths.root),
        "OLLAMA_FLEET_RELEASE": archive.sha256,
    }


def model_differences(stored: StoredModel | None, model: DesiredModel) -> tuple[Difference, ...]:
    """What of a stored model is not as desired: weights, template, parameters, system and other layers."""
    if stored is None:
        return (Difference(what=f"model {model.name}", actual=None, desired="present"),)
    found = []
    if stored.model_sha256 != model.weights.sha256:
        found.append(
            Difference(what="weights", actual=_digest(stored.model_sha256), desired=model.weights.digest)
        )
    if stored.template != model.modelfile.template:
        found.append(_template_difference(stored.template, model.modelfile.template))
    wanted = model.modelfile.parameters
    for name in sorted({*stored.parameters, *wanted}):
        actual, value = stored.parameters.get(name), wanted.get(name)
        if actual != value:
            found.append(Difference(what=f"PARAMETER {name}", actual=actual, desired=value))
    if (stored.system or None) != (model.modelfile.system or None):
        found.append(Difference(what="SYSTEM", actual=stored.system, desired=model.modelfile.system))
    found += [
        Difference(what=f"layer {kind}", actual="present", desired=None) for kind in stored.other_layers
    ]
    return tuple(found)


def render_plan(plan: Plan) -> dict[str, Any]:
    """The stable JSON form: see `docs/plan.md`."""
    return {
        "host": plan.host,
        "notes": list(plan.notes),
        "steps": [
            {
                "phase": str(phase_of(step)),
                "step": type(step).__name__,
                "subject": subject_of(step),
                "reason": step.reason,
                "differences": [
                    {"what": item.what, "actual": item.actual, "desired": item.desired}
                    for item in step.differences
                ],
                **(
                    {"bytes": step.artefact.size_bytes}
                    if isinstance(step, FetchArchive | FetchWeights)
                    else {}
                ),
            }
            for step in plan.steps
        ],
    }


def _archive(desired: Desired, facts: HostFacts) -> Artefact:
    architecture = ARCHITECTURES.get(facts.architecture, facts.architecture)
    archive = desired.server.archives.get(architecture)
    if archive is None:
        known = ", ".join(f"`{name}`" for name in sorted(desired.server.archives)) or "none"
        raise PinError(
            sentence=f"no archive of Ollama {desired.server.version} is pinned for `{architecture}`",
            host=desired.host,
            cause=f"pinned architectures: {known}; the ModelScope mirror usually holds amd64 only",
            unchanged="everything",
            hint="./fleet pin",
        )
    return archive


def _steps(desired: Desired, facts: HostFacts, archive: Artefact) -> Iterator[Step]:
    version = desired.server.version
    models = [_ModelPlan(model, facts) for model in desired.models]
    unpacks = facts.releases.get(version) != archive.sha256

    if facts.leftovers:
        yield RemoveLeftovers(reason="an earlier run was cut short", paths=facts.leftovers)
    if unpacks and not _is_on_host(archive, facts):
        yield FetchArchive(reason=f"release {version} is not on the host", artefact=archive)
    placed: set[str] = set()
    for item in models:
        weights = item.model.weights
        # Two models on the same weights: the first one's file gets into the store and serves the other too.
        if item.needs_weights and weights.sha256 not in placed and not _is_on_host(weights, facts):
            yield FetchWeights(
                reason="the weights are not on the host", model=item.model.name, artefact=weights
            )
        placed.add(weights.sha256)
    if unpacks:
        reason = {None: "not on the host", "": "damaged"}.get(
            facts.releases.get(version), "unpacked from another archive"
        )
        yield UnpackRelease(reason=reason, version=version, artefact=archive)
    service = tuple(_service_steps(desired, facts, archive))
    yield from service
    starts = any(isinstance(step, StartServer) for step in service)
    for item in models:
        if starts and not item.differences:
            yield LoadModel(reason="the server was started anew", name=item.model.name, phase=Phase.SERVICE)
    yield from _model_steps(models, facts, starts=starts)


def _is_on_host(artefact: Artefact, facts: HostFacts) -> bool:
    name = PurePosixPath(artefact.file).name
    return facts.artefacts.get(f"{artefact.sha256}/{name}") == artefact.size_bytes


def _model_steps(models: Sequence[_ModelPlan], facts: HostFacts, *, starts: bool) -> Iterator[Step]:
    """Phase by phase over all models: nothing is promoted before every candidate has passed."""
    for item in models:
        if item.differences:
            yield CreateModel(
                reason="; ".join(map(str, item.differences)), differences=item.differences, model=item.model
            )
    for item in models:
        if item.differences:
            yield VerifyModel(reason="nothing is promoted unproven", model=item.model, tag="candidate")
        elif starts:
            yield VerifyModel(reason="the server was started anew", model=item.model, tag="latest")
    for item in models:
        if item.differences:
            yield PromoteModel(reason="verified", model=item.model, keeps_previous=item.is_another)
        elif f"{item.name}:candidate" in facts.models:
            yield RemoveCandidate(reason="an earlier run was cut short", name=item.model.name)
    for item in models:
        if item.differences:
            yield LoadModel(reason="promoted", name=item.model.name, phase=Phase.PROMOTE)


class _ModelPlan:
    """One model's desired and actual side by side."""

    def __init__(self, model: DesiredModel, facts: HostFacts) -> None:
        self.model = model
        self.name = model.name.lower()
        stored = facts.models.get(f"{self.name}:latest")
        differences = list(model_differences(stored, model))
        # Healing damaged weights makes the same model again: `previous` stays what it was.
        self.is_another = stored is not None and bool(differences)
        blob = facts.blobs.get(model.weights.sha256)
        healthy = blob is not None and blob.is_gguf and blob.size_bytes == model.weights.size_bytes
        if not healthy and not differences:
            actual = None if blob is None else f"{blob.size_bytes} bytes{'' if blob.is_gguf else ', no GGUF'}"
            wanted = f"{model.weights.size_bytes} bytes"
            differences.append(Difference(what="weights in the store", actual=actual, desired=wanted))
        self.differences = tuple(differences)
        self.needs_weights = bool(differences) and not healthy


def _service_steps(desired: Desired, facts: HostFacts, archive: Artefact) -> Iterator[Step]:
    version = desired.server.version
    environment = server_environment(desired, archive)
    keep, differences = _kept_server(desired, facts, environment)
    if keep is not None and facts.releases.get(version) != archive.sha256:
        # Its binary is replaced: it could start no runner any more (measured on 0.17.5 and 0.24.0).
        differences = [Difference(what="release directory", actual="replaced", desired="that of the server")]
        keep = None
    if facts.current != version:
        change = Difference(what="current release", actual=facts.current, desired=version)
        yield SwitchRelease(
            reason=str(change), differences=(change,), previous=facts.current, version=version
        )
    for server in facts.servers:
        if server is not keep:
            reason = "; ".join(map(str, differences)) or "a second server on the same store"
            yield StopServer(reason=reason, server=server)
    for runner in facts.orphans:
        yield StopServer(reason="a runner whose server is gone keeps its memory", server=runner)
    if keep is not None:
        return
    damaged = {
        model.weights.sha256
        for model in desired.models
        if (blob := facts.blobs.get(model.weights.sha256)) is not None and not blob.is_gguf
    }
    for sha256 in sorted(damaged):
        yield RemoveDamagedBlob(reason="these bytes are no GGUF", sha256=sha256)
    reason = "; ".join(map(str, differences)) if facts.servers else "not running"
    yield StartServer(reason=reason, differences=tuple(differences), version=version, environment=environment)


def _kept_server(
    desired: Desired, facts: HostFacts, environment: Mapping[str, str]
) -> tuple[ServerProcess | None, list[Difference]]:
    """The running server that is exactly as desired, else the differences of the first one."""
    first: list[Difference] | None = None
    for server in facts.servers:
        differences = _server_differences(desired, server, environment)
        if not differences:
            return server, []
        first = first if first is not None else differences
    return None, first or []


def _server_differences(
    desired: Desired, server: ServerProcess, environment: Mapping[str, str]
) -> list[Difference]:
    found = []
    binary = str(desired.paths.release(desired.server.version) / "bin/ollama")
    if binary not in server.command:
        running = next((word for word in server.command if word.endswith("/bin/ollama")), None)
        name = PurePosixPath(running).parent.parent.name if running else None
        found.append(Difference(what="running release", actual=name, desired=desired.server.version))
    names = {*environment, *(name for name in server.environment if name.startswith("OLLAMA_"))}
    for name in sorted(names):
        actual, wanted = server.environment.get(name), environment.get(name)
        if actual != wanted:
            found.append(Difference(what=name, actual=actual, desired=wanted))
    return found


def _template_difference(actual: str | None, desired: str) -> Difference:
    """The first line that differs, since a whole template says nothing to a reader."""
    if actual is None:
        return Difference(what="TEMPLATE", actual=None, desired="present")
    old, new = actual.splitlines(), desired.splitlines()
    number = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
    if number is None:
        number = min(len(old), len(new))

    def line(lines: list[str]) -> str | None:
        return lines[number] if number < len(lines) else None

    return Difference(what=f"TEMPLATE line {number + 1}", actual=line(old), desired=line(new))


def _digest(sha256: str | None) -> str | None:
    return None if sha256 is None else f"sha256:{sha256}"
