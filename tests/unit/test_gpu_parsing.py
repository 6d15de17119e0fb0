"""The CSV of `nvidia-smi`, the listing of adapters, and what is made of a reading."""

from __future__ import annotations

import pytest

from deploy.errors import ExitCode, GpuUnusable, ProbeFailed
from deploy.gpu import (
    Gpu,
    GpuProcess,
    GpuReading,
    Mig,
    Problem,
    check_gpus,
    parse_adapters,
    parse_nvidia_smi,
    problem_of,
    render_gpu,
    size_text,
)
from healthchecks import nvml
from tests.unit.recorded_gpu import RECORDED

MIB = 1024 * 1024
TWO = """\
0, GPU-a, 550.54.15, 24576, 1, 24217, [N/A], NVIDIA A10
1, GPU-b, 550.54.15, 81559, 3, 81008, Disabled, NVIDIA H100 80GB HBM3, revised
"""


def test_memory_is_read_as_mebibytes_and_names_may_have_commas() -> None:
    first, second = parse_nvidia_smi(TWO, "")
    assert first == Gpu(
        index=0,
        name="NVIDIA A10",
        uuid="GPU-a",
        memory_total_bytes=24576 * MIB,
        memory_used_bytes=1 * MIB,
        memory_free_bytes=24217 * MIB,
        driver="550.54.15",
    )
    assert second.name == "NVIDIA H100 80GB HBM3, revised"


def test_processes_belong_to_the_gpu_whose_uuid_they_carry() -> None:
    processes = "GPU-b, 42, 5900, /opt/a, b/ollama\nGPU-b, 43, [N/A], [Not Found]\nGPU-z, 1, 1, x\n"
    first, second = parse_nvidia_smi(TWO, processes)
    assert first.processes == ()
    assert second.processes == (
        GpuProcess(pid=42, name="/opt/a, b/ollama", memory_used_bytes=5900 * MIB),
        GpuProcess(pid=43, name="[Not Found]", memory_used_bytes=None),
    )


@pytest.mark.parametrize(
    "word", ["[N/A]", "[Not Supported]", "[Insufficient Permissions]", "[Unknown Error]"]
)
def test_a_field_in_brackets_is_not_known(word: str) -> None:
    [gpu] = parse_nvidia_smi(f"0, GPU-a, 550.54.15, {word}, {word}, {word}, {word}, NVIDIA A10\n", "")
    assert (gpu.memory_total_bytes, gpu.memory_used_bytes, gpu.memory_free_bytes) == (None, None, None)


def test_nvidia_smi_of_a_real_card_tells_what_its_library_tells_rounded_up_to_mebibytes() -> None:
    [told] = parse_nvidia_smi(RECORDED["nvidia_smi_gpus"], RECORDED["nvidia_smi_processes"])
    reading = nvml.parse_reading(RECORDED["nvml"])
    [card] = reading.gpus
    assert (told.index, told.name, told.uuid, told.driver, told.mig) == (
        card.index, card.name, card.uuid, reading.driver, Mig.OFF,
    )  # fmt: skip
    for size, exact in (
        (told.memory_total_bytes, card.memory_total_bytes),
        (told.memory_used_bytes, card.memory_used_bytes),
        (told.memory_free_bytes, card.memory_free_bytes),
    ):
        assert size is not None
        assert exact is not None
        assert 0 <= size - exact < MIB
    assert [(one.pid, one.name, one.memory_used_bytes) for one in told.processes] == [
        (one.pid, one.name, one.memory_used_bytes) for one in card.processes
    ]


def test_a_gpu_in_mig_mode_is_split() -> None:
    [gpu] = parse_nvidia_smi("0, GPU-a, 550.54.15, 81559, 3, 81008, Enabled, NVIDIA H100\n", "")
    assert gpu.mig is Mig.SPLIT


@pytest.mark.parametrize(
    "prose", ["No devices were found\n", "", "\n", "WARNING: infoROM is corrupted at gpu 0000:04:00.0\n"]
)
def test_prose_that_lists_nothing_is_no_gpu(prose: str) -> None:
    assert parse_nvidia_smi(prose, prose) == ()


@pytest.mark.parametrize(
    "line",
    [
        "0, GPU-a, 550.54.15, 24576, 1, 24217, [N/A]",
        "zero, GPU-a, 550.54.15, 24576, 1, 24217, [N/A], NVIDIA A10",
        "0, GPU-a, 550.54.15, 24576 MiB, 1, 24217, [N/A], NVIDIA A10",
        "0, GPU-a, 550.54.15, -1, 1, 24217, [N/A], NVIDIA A10",
    ],
)
def test_a_line_that_answers_another_question_is_refused_with_the_line(line: str) -> None:
    with pytest.raises(ProbeFailed) as caught:
        parse_nvidia_smi(line, "")
    assert line in str(caught.value)


def test_adapters_are_told_by_vendor() -> None:
    listing = "0000:01:00.0 0x10de\n0000:02:00.0 0x1002\n0000:03:00.0 0x1a03\ncut"
    assert parse_adapters(listing) == ("nvidia", "amd", "0x1a03")


@pytest.mark.parametrize(
    ("code", "problem"), [(9, Problem.NOT_LOADED), (12, Problem.NO_LIBRARY), (18, Problem.VERSION_MISMATCH)]
)
def test_codes_of_nvml_and_nvidia_smi_mean_the_same(code: int, problem: Problem) -> None:
    assert problem_of(code) is problem


def test_an_unknown_code_is_an_error_all_the_same() -> None:
    assert problem_of(999) is Problem.OTHER


def test_a_gpu_that_works_is_enough() -> None:
    check_gpus("gpu01", GpuReading(gpus=parse_nvidia_smi(TWO, "")), ("nvidia",))


@pytest.mark.parametrize("problem", list(Problem))
def test_every_problem_has_a_hint_and_the_way_out(problem: Problem) -> None:
    with pytest.raises(GpuUnusable) as caught:
        check_gpus("gpu01", GpuReading(problem=problem, said="words"), ())
    error = caught.value
    assert error.exit_code is ExitCode.FAILED
    assert (error.cause, error.unchanged) == ("words", "everything")
    assert error.hint is not None
    assert error.hint.endswith("; or set `ollama_gpu=none` for `gpu01` in the inventory")


def test_an_amd_adapter_beside_an_nvidia_one_is_not_to_blame() -> None:
    with pytest.raises(GpuUnusable, match="`ollama_gpu=nvidia`, and the driver is not loaded"):
        check_gpus("gpu01", GpuReading(problem=Problem.NOT_LOADED), ("amd", "nvidia"))


def test_the_json_form_has_plain_values() -> None:
    gpu = parse_nvidia_smi(TWO, "GPU-a, 42, 5900, ollama\n")[0]
    assert render_gpu(gpu) == {
        "index": 0,
        "name": "NVIDIA A10",
        "uuid": "GPU-a",
        "memory_total_bytes": 24576 * MIB,
        "memory_used_bytes": MIB,
        "memory_free_bytes": 24217 * MIB,
        "driver": "550.54.15",
        "mig": "off",
        "processes": [{"pid": 42, "name": "ollama", "memory_used_bytes": 5900 * MIB}],
    }


def test_sizes_for_people() -> None:
    assert [size_text(size) for size in (None, 0, 448 * MIB, 1024 * MIB)] == [
        "n/a",
        "0 MiB",
        "448 MiB",
        "1.00 GiB",
    ]
