"""GPU memory in the plan: told in numbers, refused before anything is copied."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploy.desired import Desired, GpuKind
from deploy.errors import DoesNotFit, GpuUnusable
from deploy.facts import Blob, HostFacts, StoredModel
from deploy.fit import ModelShape
from deploy.gpu import Gpu, GpuProcess, GpuReading, Problem
from deploy.plan import only_install, plan, render_plan
from tests.unit.test_plan import DESIRED, EMPTY, MODEL, WEIGHTS

GIB = 1024**3
SHAPE = ModelShape(cache_values_per_token=28 * 4 * 256, context_length=32768)
BIG = replace(WEIGHTS, size_bytes=5 * GIB)
MODELFILE = replace(MODEL.modelfile, parameters={"num_ctx": 8192})
WANTED = replace(
    DESIRED, gpu=GpuKind.NVIDIA, models=(replace(MODEL, weights=BIG, modelfile=MODELFILE, shape=SHAPE),)
)
RUNNER = str(DESIRED.paths.releases / "0.17.5/bin/ollama")


def host(free_gib: float, held_gib: float = 0) -> HostFacts:
    gpu = Gpu(
        index=0,
        name="NVIDIA A10",
        uuid="GPU-a",
        memory_total_bytes=24 * GIB,
        memory_used_bytes=0,
        memory_free_bytes=int(free_gib * GIB),
        driver="550.54.15",
        processes=(GpuProcess(pid=1, name=RUNNER, memory_used_bytes=int(held_gib * GIB)),),
    )
    return replace(EMPTY, gpus=GpuReading(gpus=(gpu,)))


def test_the_numbers_stand_in_the_plan() -> None:
    [note] = plan(WANTED, host(20)).notes
    assert "5.00 GiB weights + 448 MiB KV cache (8192 tokens x 1, f16)" in note
    assert note.endswith("GPU 0 has 20.00 GiB free: fits beside what is served")
    assert render_plan(plan(WANTED, host(20)))["notes"] == [note]


@pytest.mark.fault(26)
def test_what_does_not_fit_is_refused_before_anything_is_copied() -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan(WANTED, host(4))
    assert caught.value.host == "h1"
    assert caught.value.unchanged == "everything; nothing was copied"


def test_the_plan_says_that_the_served_one_is_unloaded() -> None:
    served = StoredModel(model_sha256="f" * 64, template="t", parameters={"num_ctx": 8192})
    facts = replace(
        host(2, held_gib=6.5),
        models={"myqwen2:latest": served},
        blobs={"f" * 64: Blob(size_bytes=5 * GIB, is_gguf=True)},
    )
    [note] = plan(WANTED, facts).notes
    assert note.endswith("held by what is served: the served one is unloaded during verify")


@pytest.mark.parametrize(
    ("wanted", "facts"),
    [(replace(WANTED, gpu=GpuKind.NONE), host(1)), (WANTED, replace(EMPTY, gpus=None))],
    ids=["no GPU is wanted", "nobody asked"],
)
def test_without_a_gpu_to_fit_into_nothing_is_said(wanted: Desired, facts: HostFacts) -> None:
    assert plan(wanted, facts).notes == ()


def test_a_task_that_copies_no_weights_says_nothing() -> None:
    assert plan(WANTED, host(1), only_install).notes == ()


def test_unknown_weights_are_no_reason_to_refuse() -> None:
    [note] = plan(replace(WANTED, models=(replace(WANTED.models[0], shape=None),)), host(1)).notes
    assert "not predicted" in note


@pytest.mark.parametrize("reading", [GpuReading(problem=Problem.NOT_LOADED), GpuReading()])
def test_a_model_for_a_gpu_is_refused_where_none_works(reading: GpuReading) -> None:
    with pytest.raises(GpuUnusable, match="`ollama_gpu=nvidia`"):
        plan(WANTED, replace(EMPTY, gpus=reading))
