"""The real binding against a scripted driver, and a scripted `nvidia-smi`: no GPU is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from console.gpu import read_adapters
from console.gpu_checks import read_by_nvidia_smi
from deploy import nvml
from deploy.errors import GpuUnusable, ProbeFailed
from deploy.gpu import GpuProcess, GpuReading, Mig, Problem, check_gpus
from deploy.local import LocalTransport
from healthchecks import nvml as health_nvml
from tests.contract.scripted_nvml import build_library, smi

__all__ = ["smi"]

HERE = Path(__file__).parent / "nvml"
PROJECT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
A10 = "NVIDIA A10,24576,512,6000"
# nvidia-smi 580.159.04; so it says too where the module is loaded and /dev/nvidia* is missing.
MODULE_MISSES = """\
NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest \
NVIDIA driver is installed and running."""
LIBRARY_MISSES = """\
NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the NVIDIA Display \
Driver is properly installed and present in your system.
Please also try adding directory that contains libnvidia-ml.so to your system PATH."""
UUID = "GPU-00000000-0000-0000-0000-000000000000"
RUNNER = "/opt/ollama/releases/0.17.5/bin/ollama"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a freshly built `libnvidia-ml.so.1`."""
    return build_library(tmp_path_factory.mktemp("nvml"))


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
    assert (gpu.index, gpu.name, gpu.uuid, gpu.driver) == (0, "NVIDIA A10", UUID, "550.54.15")
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
        (Mig.INSTANCE, "MIG-00000000-0000-0000-0000-000000000000"),
        (Mig.INSTANCE, "MIG-00000000-0000-0000-0000-000000000002"),
    ]
    assert instances[0].memory_free_bytes == 24576 // 4 * MIB


@pytest.mark.parametrize(
    ("code", "problem", "hint"),
    [
        ("9", Problem.NOT_LOADED, "modprobe nvidia"),
        ("9", Problem.NOT_LOADED, "/dev/nvidia* is missing"),
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


@pytest.mark.fault(28)
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


# ---- what the health checks ask beside
def test_a_card_tells_its_health_through_the_real_binding(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_PROCESSES", f"0,4242,5900,{RUNNER}")
    reading = health_nvml.read_gpus(20)
    assert (reading.code, reading.driver, reading.cuda) == (None, "550.54.15", "12.4")
    [gpu] = reading.gpus
    assert (gpu.pci, gpu.temperature_celsius, gpu.slowdown_celsius) == ("00000000:17:00.0", 41, 90)
    assert (gpu.throttle, gpu.persistence, gpu.utilization_percent) == (0, True, 0)
    assert (gpu.ecc_volatile, gpu.ecc_aggregate) == (0, 0)
    assert (gpu.remapped_pending, gpu.remapped_failed, gpu.retired_pending) == (False, False, None)
    assert gpu.processes == (health_nvml.GpuProcess(4242, RUNNER, 5900 * MIB),)


def test_a_driver_before_510_is_asked_for_its_processes_by_the_call_that_it_has(
    driver: pytest.MonkeyPatch,
) -> None:
    driver.setenv("SCRIPTED_NVML_OLD", "1")
    driver.setenv("SCRIPTED_NVML_PROCESSES", f"0,4242,5900,{RUNNER}")
    driver.setenv("SCRIPTED_NVML_GRAPHICS", "0,80,300,Xorg")
    reading = health_nvml.read_gpus(20)
    [gpu] = reading.gpus
    assert reading.code is None
    assert (gpu.processes, gpu.lists_processes) == (
        (health_nvml.GpuProcess(4242, RUNNER, 5900 * MIB),),
        True,
    )
    assert gpu.graphics_bytes == 300 * MIB


def test_an_odd_answer_about_a_cards_health_does_not_hide_the_card(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_HEALTH", "0:slowdown=-999,persistence=-25")
    reading = health_nvml.read_gpus(20)
    [gpu] = reading.gpus
    assert reading.code is None
    assert (gpu.slowdown_celsius, gpu.persistence, gpu.temperature_celsius) == (None, None, 41)


def test_a_list_of_processes_that_is_refused_is_not_an_empty_one(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_LISTS", "4")
    [gpu] = health_nvml.read_gpus(20).gpus
    assert (gpu.processes, gpu.lists_processes, gpu.graphics_bytes) == ((), False, None)


def test_memory_of_processes_that_draw_is_summed_once(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_PROCESSES", f"0,4242,5900,{RUNNER}")
    driver.setenv("SCRIPTED_NVML_GRAPHICS", f"0,80,300,Xorg;0,81,50,-;0,4242,5900,{RUNNER}")
    [gpu] = health_nvml.read_gpus(20).gpus
    assert gpu.graphics_bytes == 350 * MIB


def test_each_card_has_its_own_health(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_GPUS", ";".join([A10] * 8))
    driver.setenv(
        "SCRIPTED_NVML_HEALTH",
        "3:temperature=93,throttle=72,utilization=99,persistence=0;"
        "5:ecc=2,ecc_life=7,pending=1,failed=1,retired=1;6:temperature=-,slowdown=-,ecc=-,pending=-",
    )
    gpus = health_nvml.read_gpus(20).gpus
    assert [gpu.index for gpu in gpus] == list(range(8))
    hot, broken, old = gpus[3], gpus[5], gpus[6]
    assert (hot.temperature_celsius, hot.throttle, hot.persistence) == (93, 72, False)
    assert (broken.ecc_volatile, broken.ecc_aggregate, broken.retired_pending) == (2, 7, True)
    assert (broken.remapped_pending, broken.remapped_failed) == (True, True)
    assert (old.temperature_celsius, old.slowdown_celsius, old.ecc_volatile) == (None, None, None)
    assert (old.remapped_pending, old.ecc_aggregate) == (None, 0)
    assert gpus[0].temperature_celsius == 41


@pytest.mark.parametrize("count", [1, 4, 8])
def test_all_gpus_of_a_host_are_told(driver: pytest.MonkeyPatch, count: int) -> None:
    driver.setenv("SCRIPTED_NVML_GPUS", ";".join([A10] * count))
    assert [gpu.uuid for gpu in health_nvml.read_gpus(20).gpus] == [f"{UUID[:-1]}{n}" for n in range(count)]


def test_an_instance_of_a_split_card_has_memory_and_no_health(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_MIG", "0")
    whole, *instances = health_nvml.read_gpus(20).gpus
    assert (whole.mig, whole.temperature_celsius) == ("split", 41)
    assert [(one.mig, one.temperature_celsius) for one in instances] == [("instance", None)] * 2


@pytest.mark.parametrize("where", ["init", "memory", "temperature"])
def test_a_driver_that_hangs_is_told_to_the_checks(driver: pytest.MonkeyPatch, where: str) -> None:
    driver.setenv("SCRIPTED_NVML_HANG", where)
    reading = health_nvml.read_gpus(1.0)
    assert (reading.code, reading.said) == (health_nvml.HANGS, "no answer within 1 s")


@pytest.mark.parametrize("code", [9, 18, 4, 999])
def test_what_init_refuses_is_told_with_its_number(driver: pytest.MonkeyPatch, code: int) -> None:
    driver.setenv("SCRIPTED_NVML_INIT", str(code))
    reading = health_nvml.read_gpus(20)
    assert (reading.gpus, reading.code) == ((), code)
    assert reading.said.startswith("nvmlInit: ")


def test_a_lost_card_is_told_to_the_checks_beside_the_others(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_GPUS", f"{A10};{A10};{A10};{A10}")
    driver.setenv("SCRIPTED_NVML_LOST", "2")
    reading = health_nvml.read_gpus(20)
    assert [gpu.index for gpu in reading.gpus] == [0, 1, 3]
    assert (reading.code, reading.said) == (15, "GPU 2: GPU is lost")


def test_a_driver_that_crashes_is_broken_for_the_checks(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("SCRIPTED_NVML_CRASH", "1")
    reading = health_nvml.read_gpus(20)
    assert (reading.gpus, reading.code) == ((), health_nvml.BROKEN)


def run_task(tmp_path: Path, settings: str) -> tuple[int, list[dict[str, Any]]]:
    inventory = tmp_path / "inventory.ini"
    inventory.write_text(f"gpu01 ansible_connection=local ollama_service=process {settings}\n")
    command = [sys.executable, str(PROJECT), "gpu", "--json", "--inventory", str(inventory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_task_tells_every_gpu_and_ends_well(driver: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, [told, *checks, summary] = run_task(tmp_path, "ollama_gpu=nvidia")
    assert code == 0
    assert {one["event"] for one in checks} == {"gpu_check"}
    assert [(one["check"], one["state"]) for one in checks[:2]] == [("gpu", "pass"), ("gpu_truth", "unknown")]
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
            MODULE_MISSES,
            Problem.NOT_LOADED,
        ),
        ("18", "Failed to initialize NVML: Driver/library version mismatch", Problem.VERSION_MISMATCH),
        # These in the words of nvidia-smi 580.159.04.
        ("4", "Failed to initialize NVML: Insufficient Permissions", Problem.NO_PERMISSION),
        ("6", "No devices were found", Problem.NO_GPU),
        (
            "12",
            LIBRARY_MISSES,
            Problem.NO_LIBRARY,
        ),
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


@pytest.mark.fault(28)
def test_nvidia_smi_that_hangs_costs_the_deadline(smi: pytest.MonkeyPatch) -> None:
    smi.setenv("SCRIPTED_SMI_HANG", "1")
    reading = read_by_nvidia_smi(LocalTransport("gpu01"), 0.5)
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
