"""What any NVIDIA driver must answer, and that its library and its `nvidia-smi` tell one truth.

Asked of the scripted driver, and with `FLEET_REAL_NVML=1` of this machine's own: a fake that answers
otherwise than the real one proves nothing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

from console.gpu_checks import read_by_nvidia_smi
from deploy import commands, nvml
from deploy.gpu import Gpu, GpuProcess, GpuReading
from deploy.local import LocalTransport
from deploy.probe import PROBE_SCRIPT, parse_reply
from healthchecks import nvml as health_nvml
from tests.contract.card_drivers import DRIVERS, CardDriver, RealDriver, ScriptedDriver
from tests.contract.scripted_nvml import build_library, smi

__all__ = ["smi"]

MIB = 1024 * 1024
HELD_MIB = 8192
# The driver's own part of a process, its context: about 500 MiB on an H100.
CONTEXT_AT_MOST_MIB = 2048


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CardDriver:
    """Each driver in turn, with a card that nobody of ours uses."""
    if request.param == "real":
        return RealDriver()
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("smi")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(build_library(tmp_path_factory.mktemp("nvml"))))
    made = ScriptedDriver(monkeypatch)
    made.tell()
    return made


def read_by_probe(root: Path) -> GpuReading:
    argv = commands.probe(PurePosixPath(root), PurePosixPath(root / "models"), 1, "nvidia")
    done = subprocess.run(argv, input=PROBE_SCRIPT.read_bytes(), capture_output=True, check=True)
    reading = parse_reply(done.stdout, PurePosixPath(root)).gpus
    assert reading is not None
    return reading


def processes_of(gpu: Gpu, pid: int) -> Sequence[GpuProcess]:
    return [process for process in gpu.processes if process.pid == pid]


def test_a_card_says_which_one_it_is(driver: CardDriver) -> None:
    reading = health_nvml.read_gpus(20)
    assert (reading.code, reading.said) == (None, "")
    assert re.fullmatch(r"\d{3,}\.\d+(\.\d+)?", reading.driver or "")
    assert re.fullmatch(r"\d+\.\d", reading.cuda or "")
    assert [gpu.index for gpu in reading.gpus if gpu.mig != "instance"] == list(range(len(reading.gpus)))
    for gpu in reading.gpus:
        assert gpu.name.strip() == gpu.name != ""
        assert re.fullmatch(r"GPU(-[0-9a-f]+){5}", gpu.uuid), gpu.uuid
        assert re.fullmatch(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.0", gpu.pci or ""), gpu.pci
        assert gpu.driver == reading.driver


def test_a_cards_memory_adds_up(driver: CardDriver) -> None:
    gpus = nvml.read_gpus().gpus
    assert gpus
    for gpu in gpus:
        assert gpu.memory_total_bytes is not None
        assert gpu.memory_used_bytes is not None
        assert gpu.memory_free_bytes is not None
        reserved = gpu.memory_total_bytes - gpu.memory_used_bytes - gpu.memory_free_bytes
        assert 0 <= reserved < gpu.memory_total_bytes / 20


def test_a_cards_health_is_told_in_the_units_that_the_checks_expect(driver: CardDriver) -> None:
    gpus = health_nvml.read_gpus(20).gpus
    assert gpus
    for gpu in gpus:
        assert gpu.temperature_celsius is not None
        assert 5 < gpu.temperature_celsius < 110
        assert gpu.slowdown_celsius is None or 70 < gpu.slowdown_celsius < 130
        assert gpu.utilization_percent is None or 0 <= gpu.utilization_percent <= 100
        assert gpu.throttle is not None
        assert isinstance(gpu.persistence, bool)
        assert gpu.lists_processes


def test_the_library_and_nvidia_smi_and_the_probe_tell_one_truth(driver: CardDriver, tmp_path: Path) -> None:
    # A card that nobody uses may be asleep, and takes memory as it is woken.
    with driver.hold(HELD_MIB):
        by_library = nvml.read_gpus()
        by_program = read_by_nvidia_smi(LocalTransport("box"))
        by_probe = read_by_probe(tmp_path)
    assert by_library.problem is by_program.problem is by_probe.problem is None
    assert by_program.gpus == by_probe.gpus
    for one, other in zip(by_library.gpus, by_program.gpus, strict=True):
        assert (one.index, one.name, one.uuid, one.driver, one.mig) == (
            other.index, other.name, other.uuid, other.driver, other.mig,
        )  # fmt: skip
        for size, told in (
            (one.memory_total_bytes, other.memory_total_bytes),
            (one.memory_used_bytes, other.memory_used_bytes),
            (one.memory_free_bytes, other.memory_free_bytes),
        ):
            # nvidia-smi tells whole MiB.
            assert size is not None
            assert told is not None
            assert abs(size - told) <= MIB
        assert sorted(one.processes, key=lambda process: process.pid) == sorted(
            other.processes, key=lambda process: process.pid
        )


def test_a_process_that_holds_memory_is_named_with_its_bytes_and_gone_when_it_ends(
    driver: CardDriver,
) -> None:
    with driver.hold(HELD_MIB) as pid:
        [card, *_] = nvml.read_gpus().gpus
        [listed, *_] = read_by_nvidia_smi(LocalTransport("box")).gpus
    assert card.memory_used_bytes is not None
    assert card.memory_used_bytes >= HELD_MIB * MIB
    for gpu in (card, listed):
        [process] = processes_of(gpu, pid)
        assert process.memory_used_bytes is not None
        assert HELD_MIB <= process.memory_used_bytes / MIB < HELD_MIB + CONTEXT_AT_MOST_MIB
        assert "python" in PurePosixPath(process.name).name
    for gpu in (*nvml.read_gpus().gpus, *read_by_nvidia_smi(LocalTransport("box")).gpus):
        assert processes_of(gpu, pid) == []


def test_the_deploy_and_the_checks_read_the_same(driver: CardDriver) -> None:
    with driver.hold(HELD_MIB):
        planned, checked = nvml.read_gpus(), health_nvml.read_gpus(20)
    assert [(gpu.uuid, gpu.memory_used_bytes) for gpu in planned.gpus] == [
        (gpu.uuid, gpu.memory_used_bytes) for gpu in checked.gpus
    ]
