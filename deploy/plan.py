"""From what a host should be and what was observed to the smallest set of changes: a pure function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from deploy.desired import Artefact, Desired, DesiredModel, DesiredServer, ServiceBackend
from deploy.facts import HostFacts, StoredModel
from deploy.fit_plan import Running, fit_notes
from deploy.preflight import check_disks, check_port, check_preconditions, check_writable
from deploy.process_plan import process_steps
from deploy.rollback import check_confirmed, check_previous
from deploy.schedule_plan import schedule_notes, schedule_steps, without_schedule
from deploy.server_plan import Release, choose_release
from deploy.steps import (
    CreateModel,
    Difference,
    EnableUnits,
    EndLease,
    FetchArchive,
    FetchWeights,
    LoadModel,
    Phase,
    PromoteModel,
    RemoveCandidate,
    RemoveLeftovers,
    RestoreModel,
    StartServer,
    Step,
    StopServer,
    TakeLease,
    UnpackRelease,
    VerifyModel,
    phase_of,
    subject_of,
)
from deploy.systemd_plan import systemd_steps

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
    """`service`: release switch, stop and start; the models are loaded after a start.

    A lease that it takes is ended with it: nothing after it would.
    """
    return phase_of(step) is Phase.SERVICE or isinstance(step, EndLease)


def only_create(step: Step) -> bool:
    """`create`: candidate, verification, promotion."""
    return phase_of(step) in (Phase.MODEL, Phase.VERIFY, Phase.PROMOTE)


def only_schedule(step: Step) -> bool:
    """`schedule`: the health agent, and the timer or the line in a crontab that starts it."""
    return phase_of(step) is Phase.SCHEDULE


def plan(desired: Desired, facts: HostFacts, selection: Selection = everything) -> Plan:
    """The steps of one host; none when it is as desired.

    Raises designed errors for what can be known to fail before anything is changed: no archive for the
    architecture, the port taken, a disk that is read-only, it or the GPU memory too small, a phase whose
    precondition another phase makes.
    """
    steps = tuple(_steps(desired, facts, choose_release(desired, facts)))
    selected = tuple(step for step in steps if selection(step))
    check_preconditions(desired, steps, selected)
    if _confirms_unproven(steps, selected):
        check_confirmed(desired, facts)
    check_port(desired, facts, selected)
    check_writable(desired, facts, selected)
    check_disks(desired, facts, selected)
    created = {step.model.name for step in selected if isinstance(step, CreateModel)}
    created |= {step.model for step in selected if isinstance(step, FetchWeights)}
    stops = any(isinstance(step, StopServer) for step in selected)
    notes = fit_notes(desired, facts, created, Running.STOPPED if stops else Running.KEPT)
    if any(phase_of(step) is Phase.SCHEDULE for step in selected):
        notes += schedule_notes(desired, facts)
    if selection in (everything, only_schedule):
        notes += without_schedule(desired, facts)
    return Plan(host=desired.host, steps=selected, notes=notes)


def _confirms_unproven(steps: Sequence[Step], selected: Sequence[Step]) -> bool:
    """A single phase would end the lease of a run that was cut, and leave out the proof that it waits for."""
    left_out = [step for step in steps if step not in selected]
    return any(isinstance(step, EndLease) for step in selected) and any(
        isinstance(step, VerifyModel) for step in left_out
    )


def model_differences(stored: StoredModel | None, model: DesiredModel) -> tuple[Difference, ...]:
    """What of a stored model is not as desired: weights, template, parameters, system and other layers."""
    if stored is None:
        return (Difference(what=f"model {model.name}", actual=None, desired="present"),)
    found = []
    wanted = model.stored or _as_stored(model)
    if stored.model_sha256 != wanted.model_sha256:
        actual, value = _digest(stored.model_sha256), _digest(wanted.model_sha256)
        found.append(Difference(what="weights", actual=actual, desired=value))
    if stored.template != wanted.template:
        found.append(_template_difference(stored.template, wanted.template))
    for name in sorted({*stored.parameters, *wanted.parameters}):
        parameter, other = stored.parameters.get(name), wanted.parameters.get(name)
        if parameter != other:
            found.append(Difference(what=f"PARAMETER {name}", actual=parameter, desired=other))
    if (stored.system or None) != (wanted.system or None):
        found.append(Difference(what="SYSTEM", actual=stored.system, desired=wanted.system))
    for kind in sorted({*stored.other_layers} ^ {*wanted.other_layers}):
        there, here = ("present", None) if kind in stored.other_layers else (None, "present")
        found.append(Difference(what=f"layer {kind}", actual=there, desired=here))
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


def _steps(desired: Desired, facts: HostFacts, release: Release) -> Iterator[Step]:
    models = [
        _ModelPlan(model, facts, desired.server)
        for model in desired.models
        if _is_planned(model, desired, facts)
    ]
    archive = release.archive
    unpacks = archive is not None and facts.releases.get(release.name) != archive.sha256

    if facts.leftovers:
        yield RemoveLeftovers(reason="an earlier run was cut short", paths=facts.leftovers)
    if archive is not None and unpacks and not _is_on_host(archive, facts):
        yield FetchArchive(reason=f"release {release.name} is not on the host", artefact=archive)
    placed: set[str] = set()
    for item in models:
        weights = item.model.weights
        # Two models on the same weights: the first one's file gets into the store and serves the other too.
        if item.needs_weights and weights.sha256 not in placed and not _is_on_host(weights, facts):
            yield FetchWeights(
                reason="the weights are not on the host", model=item.model.name, artefact=weights
            )
        placed.add(weights.sha256)
    if archive is not None and unpacks:
        reason = "damaged" if release.name in facts.releases else "not on the host"
        yield UnpackRelease(reason=reason, version=release.name, artefact=archive)
    service = tuple(_with_models(step, desired, models) for step in _service_steps(desired, facts, release))
    leases = any(isinstance(step, TakeLease) for step in service)
    is_leased = facts.systemd is not None and facts.systemd.is_leased
    # Without a lease nothing would take a server back that a start of the host brings up unproven.
    waits = () if leases or is_leased else tuple(step for step in service if isinstance(step, EnableUnits))
    yield from (step for step in service if step not in waits)
    starts = any(isinstance(step, StartServer) for step in service)
    promoted = _manifests(desired, models)
    if is_leased and promoted:
        # The lease of the run that was cut need not know of these.
        yield TakeLease(reason="until the new models are verified", files=promoted)
    for item in models:
        if starts and not item.differences:
            yield LoadModel(reason="the server was started anew", name=item.model.name, phase=Phase.SERVICE)
    is_unproven = desired.server.backend is ServiceBackend.PROCESS and facts.is_unproven
    proofs = tuple(_model_steps(models, facts, proves_all=starts or is_leased or is_unproven))
    yield from (step for step in proofs if phase_of(step) is not Phase.PROMOTE)
    # Before the promotion: what is promoted serves after the next start too.
    yield from waits
    yield from (step for step in proofs if phase_of(step) is Phase.PROMOTE)
    if is_leased or leases:
        yield EndLease(reason="what runs now is verified")
    for item in models:
        if item.differences:
            reason = "promoted" if item.model.stored is None else "brought back"
            yield LoadModel(reason=reason, name=item.model.name, phase=Phase.PROMOTE)
    yield from schedule_steps(desired, facts, release)


def _with_models(step: Step, desired: Desired, models: Sequence[_ModelPlan]) -> Step:
    """A model that is promoted on a release goes back with it: it was proven on no other."""
    if not isinstance(step, TakeLease):
        return step
    return replace(step, files=(*step.files, *_manifests(desired, models)))


def _manifests(desired: Desired, models: Sequence[_ModelPlan]) -> tuple[str, ...]:
    """What the names of the models that are promoted stand for."""
    promoted = [item.model.name for item in models if item.differences]
    tags = ("latest", "previous", "candidate")
    return tuple(str(desired.paths.manifest(name, tag)) for name in promoted for tag in tags)


def _service_steps(desired: Desired, facts: HostFacts, release: Release) -> Iterator[Step]:
    match desired.server.backend:
        case ServiceBackend.PROCESS:
            return process_steps(desired, facts, release)
        case ServiceBackend.SYSTEMD:
            return systemd_steps(desired, facts, release)


def _is_on_host(artefact: Artefact, facts: HostFacts) -> bool:
    name = PurePosixPath(artefact.file).name
    return facts.artefacts.get(f"{artefact.sha256}/{name}") == artefact.size_bytes


def _model_steps(models: Sequence[_ModelPlan], facts: HostFacts, *, proves_all: bool) -> Iterator[Step]:
    """Phase by phase over all models: nothing is promoted before every candidate has passed."""
    for item in models:
        if item.differences and item.model.stored is None:
            yield CreateModel(
                reason="; ".join(map(str, item.differences)), differences=item.differences, model=item.model
            )
    for item in models:
        if item.differences:
            tag = "candidate" if item.model.stored is None else "previous"
            yield VerifyModel(reason="nothing is promoted unproven", model=item.model, tag=tag)
        elif proves_all:
            yield VerifyModel(reason="its server is not verified yet", model=item.model, tag="latest")
    for item in models:
        if item.differences and item.model.stored is not None:
            check_previous(item.model, facts)
            yield RestoreModel(
                reason="; ".join(map(str, item.differences)),
                differences=item.differences,
                model=item.model,
                other_weights=item.has_other_weights,
            )
        elif item.differences:
            yield PromoteModel(
                reason="verified",
                model=item.model,
                keeps_previous=item.is_another,
                other_weights=item.has_other_weights,
            )
        elif f"{item.name}:candidate" in facts.models:
            yield RemoveCandidate(reason="an earlier run was cut short", name=item.model.name)


def _is_planned(model: DesiredModel, desired: Desired, facts: HostFacts) -> bool:
    """Whoever goes back makes no model: one that the host has not is left out."""
    return desired.server.release is None or f"{model.name.lower()}:latest" in facts.models


class _ModelPlan:
    """One model's desired and actual side by side."""

    def __init__(self, model: DesiredModel, facts: HostFacts, server: DesiredServer) -> None:
        self.model = model
        self.name = model.name.lower()
        stored = facts.models.get(f"{self.name}:latest")
        # Whoever goes back makes no model: what is served is proven as it is stored.
        as_stored = server.release is not None
        differences = [] if as_stored and model.stored is None else list(model_differences(stored, model))
        # Healing damaged weights makes the same model again: `previous` stays what it was.
        self.is_another = stored is not None and bool(differences)
        self.has_other_weights = any(difference.what == "weights" for difference in differences)
        blob = facts.blobs.get(model.weights.sha256)
        healthy = blob is not None and blob.is_gguf and blob.size_bytes == model.weights.size_bytes
        if not healthy and not differences and not as_stored:
            actual = None if blob is None else f"{blob.size_bytes} bytes{'' if blob.is_gguf else ', no GGUF'}"
            wanted = f"{model.weights.size_bytes} bytes"
            differences.append(Difference(what="weights in the store", actual=actual, desired=wanted))
        self.differences = tuple(differences)
        self.needs_weights = bool(differences) and not healthy and not as_stored


def _as_stored(model: DesiredModel) -> StoredModel:
    """What the store has of a model that was made as desired."""
    return StoredModel(
        model_sha256=model.weights.sha256,
        template=model.modelfile.template,
        parameters=model.modelfile.parameters,
        system=model.modelfile.system,
    )


def _template_difference(actual: str | None, desired: str | None) -> Difference:
    """The first line that differs, since a whole template says nothing to a reader."""
    if actual is None or desired is None:
        told = (None if text is None else "present" for text in (actual, desired))
        return Difference(what="TEMPLATE", actual=next(told), desired=next(told))
    old, new = actual.splitlines(), desired.splitlines()
    number = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
    if number is None:
        number = min(len(old), len(new))

    def line(lines: list[str]) -> str | None:
        return lines[number] if number < len(lines) else None

    return Difference(what=f"TEMPLATE line {number + 1}", actual=line(old), desired=line(new))


def _digest(sha256: str | None) -> str | None:
    return None if sha256 is None else f"sha256:{sha256}"
