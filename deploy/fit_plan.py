"""What a plan says of GPU memory before anything is copied."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from enum import Enum

from deploy.desired import Desired, DesiredModel, GpuKind
from deploy.facts import HostFacts
from deploy.fit import MemoryNeed, cache_settings, check_fit, fit, memory_need, rooms
from deploy.gpu import Mig, check_gpus


class Running(Enum):
    """What becomes of the servers that run now, before a candidate is created."""

    KEPT = "kept"
    STOPPED = "stopped"


def fit_notes(
    desired: Desired, facts: HostFacts, names: Collection[str], running: Running
) -> tuple[str, ...]:
    """One line for each model in `names`, which will be created; () where no GPU is wanted, or nobody asked.

    Raises DoesNotFit for a model that would not fit alone, GpuUnusable where no GPU works.
    """
    reading = facts.gpus
    if desired.gpu is not GpuKind.NVIDIA or reading is None or not names:
        return ()
    if not reading.gpus:
        # Verify would find it too, after gigabytes were copied.
        check_gpus(desired.host, reading, adapters=())
    environment = desired.server.environment
    space = rooms(reading.gpus, environment, str(desired.paths.releases))
    if running is Running.STOPPED:
        space = tuple(
            replace(room, free_bytes=room.free_bytes + room.held_bytes, held_bytes=0) for room in space
        )
    total_bytes = sum(gpu.memory_total_bytes or 0 for gpu in reading.gpus if gpu.mig is not Mig.SPLIT)
    notes = []
    for model in desired.models:
        if model.name not in names:
            continue
        if model.shape is None:
            notes.append(f"{model.name}: GPU memory not predicted, its weights are not on this machine yet")
            continue
        settings = cache_settings(
            model.shape, model.modelfile.parameters, environment, desired.server.version, total_bytes
        )
        need = memory_need(model.name, model.weights.size_bytes, model.shape, settings)
        served = () if running is Running.STOPPED else tuple(_served(desired, facts, model, total_bytes))
        found = fit(need, served, space, model.shape)
        check_fit(desired.host, found)
        notes.append(str(found))
    return tuple(notes)


def _served(
    desired: Desired, facts: HostFacts, candidate: DesiredModel, total_bytes: int
) -> Iterator[MemoryNeed]:
    """What is served now, but for the candidate's own weights: one runner serves both then."""
    for model in desired.models:
        stored = facts.models.get(f"{model.name.lower()}:latest")
        blob = facts.blobs.get(stored.model_sha256 or "") if stored is not None else None
        if stored is None or blob is None or model.shape is None:
            continue
        if stored.model_sha256 != candidate.weights.sha256:
            settings = cache_settings(
                model.shape,
                stored.parameters,
                desired.server.environment,
                desired.server.version,
                total_bytes,
            )
            yield memory_need(model.name, blob.size_bytes, model.shape, settings)
