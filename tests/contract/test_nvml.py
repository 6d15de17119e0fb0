"""The real binding against a scripted driver, and a scripted `nvidia-smi`: no GPU is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from console.gpu import read_adapters, read_by_nvidia_smi
from deploy import nvml
from deploy.errors import GpuUnusable, ProbeFailed
from deploy.gpu import GpuProcess, GpuReading, Mig, Problem, check_gpus
from deploy.local import LocalTransport

HERE = Path(__file__).parent / "nvml"
PROJECT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
A10 = "NVIDIA A10,24576,512,6000"
RUNNER = "/opt/ollama/releases/0.17.5/bin/ollama"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a freshly built `libnvidia-ml.so.1`."""
    if shutil.which("gcc") is None:
        reason = (
            "gcc is not installed, and the scripted NVML driver is built with it: apt install gcc libc6-dev"
        )
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    directory = tmp_path_factory.mktemp("nvml")
    built = directory / "libnvidia-ml.so.1"
    command = ["gcc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(built)]
    subprocess.run([*command, str(HERE / "scripted_nvml.c")], check=True)
    return directory


@pytest.fixture
def driver(library: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The scripted driver with one GPU; tests change its script."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("SCRIPTED_NVML_GPUS", A10)
    return monkeypatch


def test_memory_driver_and_processes_come_through_the_real_binding(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_PROCESSES", f"0,4242,5900,{RUNNER};0,77,-,-")
    reading = nvml.read_gpus()
    assert reading.problem is None, reading.said
    [gpu] = reading.gpus
    assert (gpu.index, gpu.name, gpu.uuid, gpu.driver) == (0, "NVIDIA A10", "GPU-00000000", "550.54.15")
    assert gpu.memory_total_bytes == 24576 * MIB
    assert gpu.memory_used_bytes == 6000 * MIB
    assert gpu.memory_free_bytes == (24576 - 512 - 6000) * MIB
    assert gpu.mig is Mig.OFF
    assert gpu.processes == (
        GpuProcess(pid=4242, name=RUNNER, memory_used_bytes=5900 * MIB),
        GpuProcess(pid=77, name="", memory_used_bytes=None),
    )


def test_each_gpu_has_its_own_memory_and_processes(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_GPUS", f"{A10};NVIDIA L4,23034,400,0")
    driver.setenv("SCRIPTED_NVML_PROCESSES", f"1,9,100,{RUNNER}")
    first, second = nvml.read_gpus().gpus
    assert (first.processes, second.name) == ((), "NVIDIA L4")
    assert second.memory_free_bytes == (23034 - 400) * MIB
    assert [process.pid for process in second.processes] == [9]


def test_a_driver_without_the_second_memory_call_is_asked_the_first_one(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_OLD", "1")
    [gpu] = nvml.read_gpus().gpus
    assert gpu.memory_used_bytes == (512 + 6000) * MIB
    assert gpu.memory_free_bytes == (24576 - 512 - 6000) * MIB


def test_a_number_that_a_gpu_does_not_tell_is_none_and_no_failure(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_MEMORY", "3")
    reading = nvml.read_gpus()
    assert reading.problem is None
    assert reading.gpus[0].memory_total_bytes is None
    assert reading.gpus[0].memory_free_bytes is None


def test_a_split_gpu_is_told_with_its_instances(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_MIG", "0")
    whole, *instances = nvml.read_gpus().gpus
    assert whole.mig is Mig.SPLIT
    assert [(item.mig, item.uuid) for item in instances] == [
        (Mig.INSTANCE, "MIG-00000000-0"),
        (Mig.INSTANCE, "MIG-00000000-2"),
    ]
    assert instances[0].memory_free_bytes == 24576 // 4 * MIB


@pytest.mark.parametrize(
    ("code", "problem", "hint"),
    [
        ("9", Problem.NOT_LOADED, "modprobe nvidia"),
        ("18", Problem.VERSION_MISMATCH, "reboot"),
        ("4", Problem.NO_PERMISSION, "/dev/nvidia"),
        ("999", Problem.OTHER, "nvidia-smi"),
    ],
)
def test_what_init_refuses_is_named_with_the_next_step(
    driver: pytest.MonkeyPatch, code: str, problem: Problem, hint: str
) -> None:
    driver.setenv("SCRIPTED_NVML_INIT", code)
    reading = nvml.read_gpus()
    assert (reading.gpus, reading.problem) == ((), problem)
    with pytest.raises(GpuUnusable) as caught:
        check_gpus("gpu01", reading, ())
    assert hint in str(caught.value)
    assert "ollama_gpu=none" in str(caught.value)


def test_without_a_library_no_driver_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file of that name that is no library hides one that this machine may have.
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    reading = nvml.read_gpus()
    assert (reading.gpus, reading.problem) == ((), Problem.NO_LIBRARY)


def test_a_driver_without_any_gpu_is_a_problem_where_one_is_needed(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_GPUS", "")
    reading = nvml.read_gpus()
    assert (reading.gpus, reading.problem) == ((), None)
    with pytest.raises(GpuUnusable, match="no GPU was found"):
        check_gpus("gpu01", reading, ())


def test_a_lost_gpu_is_a_problem_and_the_others_are_still_told(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_GPUS", f"{A10};{A10}")
    driver.setenv("SCRIPTED_NVML_LOST", "0")
    reading = nvml.read_gpus()
    assert [gpu.index for gpu in reading.gpus] == [1]
    assert reading.problem is Problem.GPU_LOST
    assert reading.said == "GPU 0: GPU is lost"


@pytest.mark.parametrize("where", ["init", "memory"])
def test_a_driver_that_hangs_costs_the_deadline_and_nothing_stays(
    driver: pytest.MonkeyPatch, where: str
) -> None:
    driver.setenv("SCRIPTED_NVML_HANG", where)
    reading = nvml.read_gpus(deadline_seconds=1.0)
    assert (reading.problem, reading.said) == (Problem.HANGS, "no answer within 1 s")
    left = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    assert not [words for words in left if "healthchecks.nvml" in words]


def test_a_driver_that_crashes_takes_only_its_own_process_along(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_CRASH", "1")
    reading = nvml.read_gpus()
    assert reading.problem is Problem.OTHER
    assert "ended with -6" in reading.said


def run_task(tmp_path: Path, settings: str) -> tuple[int, list[dict[str, Any]]]:
    inventory = tmp_path / "inventory.ini"
    inventory.write_text(f"gpu01 ansible_connection=local ollama_service=process {settings}\n")
    command = [sys.executable, str(PROJECT), "gpu", "--json", "--inventory", str(inventory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_task_tells_every_gpu_and_ends_well(driver: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, [told, summary] = run_task(tmp_path, "ollama_gpu=nvidia")
    assert code == 0
    assert (told["event"], told["host"], told["problem"]) == ("gpu", "gpu01", None)
    assert told["gpus"][0]["memory_free_bytes"] == (24576 - 512 - 6000) * MIB
    assert (summary["event"], summary["gpus"], summary["failed"]) == ("summary", 1, 0)


@pytest.mark.parametrize(("settings", "expected"), [("ollama_gpu=nvidia", 2), ("ollama_gpu=none", 0)])
def test_no_gpu_is_a_failure_unless_none_is_wanted(
    driver: pytest.MonkeyPatch, tmp_path: Path, settings: str, expected: int
) -> None:
    driver.setenv("SCRIPTED_NVML_INIT", "9")
    code, events = run_task(tmp_path, settings)
    assert code == expected
    assert ("GpuUnusable" in [event.get("kind") for event in events]) == (expected == 2)
    assert events[0]["problem"] == "the driver is not loaded"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The scripted `nvidia-smi`, first in PATH."""
    shutil.copy(HERE / "nvidia-smi", tmp_path / "nvidia-smi")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return monkeypatch


def test_nvidia_smi_answers_both_questions(smi: pytest.MonkeyPatch) -> None:
    smi.setenv("SCRIPTED_SMI_GPUS", "0, GPU-1, 550.54.15, 24576, 6000, 18064, [N/A], NVIDIA A10\n")
    smi.setenv("SCRIPTED_SMI_PROCESSES", f"GPU-1, 4242, 5900, {RUNNER}\n")
    reading = read_by_nvidia_smi(LocalTransport("gpu01"))
    assert reading.problem is None, reading.said
    assert reading.gpus[0].memory_free_bytes == 18064 * MIB
    assert reading.gpus[0].processes == (GpuProcess(pid=4242, name=RUNNER, memory_used_bytes=5900 * MIB),)


@pytest.mark.parametrize(
    ("code", "says", "problem"),
    [
        (
            "9",
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
            Problem.NOT_LOADED,
        ),
        ("18", "Failed to initialize NVML: Driver/library version mismatch", Problem.VERSION_MISMATCH),
        ("6", "No devices were found", Problem.NO_GPU),
        ("255", "Failed to initialize NVML: Unknown Error", Problem.OTHER),
    ],
)
def test_nvidia_smi_fails_with_the_numbers_of_nvml(
    smi: pytest.MonkeyPatch, code: str, says: str, problem: Problem
) -> None:
    smi.setenv("SCRIPTED_SMI_EXIT", code)
    smi.setenv("SCRIPTED_SMI_SAYS", says)
    reading = read_by_nvidia_smi(LocalTransport("gpu01"))
    assert (reading.gpus, reading.problem, reading.said) == ((), problem, says)


def test_nvidia_smi_that_hangs_costs_the_deadline(smi: pytest.MonkeyPatch) -> None:
    smi.setenv("SCRIPTED_SMI_HANG", "1")
    smi.setattr("console.gpu.DEADLINE_SECONDS", 0.5)
    reading = read_by_nvidia_smi(LocalTransport("gpu01"))
    assert (reading.problem, reading.said) == (Problem.HANGS, "no answer within 0.5 s")


def test_prose_instead_of_csv_is_refused(smi: pytest.MonkeyPatch) -> None:
    smi.setenv("SCRIPTED_SMI_GPUS", "Unable to determine the device handle for GPU 0000:04:00.0\n")
    with pytest.raises(ProbeFailed, match="Unable to determine"):
        read_by_nvidia_smi(LocalTransport("gpu01"))


def test_without_nvidia_smi_no_driver_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sh").symlink_to(shutil.which("sh") or "/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_by_nvidia_smi(LocalTransport("gpu01")).problem is Problem.NO_LIBRARY


def test_an_amd_host_is_told_that_only_nvidia_is_supported(tmp_path: Path) -> None:
    for number, (kind, vendor) in enumerate(
        [("0x030000", "0x1002"), ("0x020000", "0x10de"), ("0x060000", "0x8086")]
    ):
        device = tmp_path / f"bus/pci/devices/0000:0{number}:00.0"
        device.mkdir(parents=True)
        (device / "class").write_text(f"{kind}\n")
        (device / "vendor").write_text(f"{vendor}\n")
    adapters = read_adapters(LocalTransport("gpu01"), str(tmp_path))
    assert adapters == ("amd",)
    with pytest.raises(GpuUnusable, match="AMD GPU, and only `nvidia` is supported"):
        check_gpus("gpu01", GpuReading(problem=Problem.NO_LIBRARY), adapters)


def test_a_machine_without_pci_has_no_adapters(tmp_path: Path) -> None:
    assert read_adapters(LocalTransport("gpu01"), str(tmp_path)) == ()
