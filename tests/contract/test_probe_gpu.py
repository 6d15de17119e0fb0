"""The probe asks `nvidia-smi` where a GPU is wanted, and only there."""

from __future__ import annotations

import subprocess
from pathlib import Path, PurePosixPath

import pytest

from deploy import commands
from deploy.facts import HostFacts
from deploy.gpu import GpuReading, Problem
from deploy.probe import PROBE_SCRIPT, parse_reply
from tests.contract.scripted_nvml import smi

__all__ = ["smi"]


def probe(root: Path, gpu: str) -> HostFacts:
    argv = commands.probe(PurePosixPath(root), PurePosixPath(root / "models"), 1, gpu)
    done = subprocess.run(argv, input=PROBE_SCRIPT.read_bytes(), capture_output=True, check=True)
    assert done.stderr == b""
    return parse_reply(done.stdout, PurePosixPath(root))


def test_gpus_and_their_processes_are_facts(smi: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi.setenv("SCRIPTED_SMI_GPUS", "0, GPU-1, 550.54.15, 24576, 6000, 18064, [N/A], NVIDIA A10\n")
    smi.setenv("SCRIPTED_SMI_PROCESSES", "GPU-1, 4242, 5900, ollama\n")
    reading = probe(tmp_path, "nvidia").gpus
    assert reading is not None
    assert reading.gpus[0].memory_free_bytes == 18064 * 1024**2
    assert [process.pid for process in reading.gpus[0].processes] == [4242]


def test_a_driver_that_fails_is_a_fact(smi: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi.setenv("SCRIPTED_SMI_EXIT", "18")
    smi.setenv("SCRIPTED_SMI_SAYS", "Failed to initialize NVML: Driver/library version mismatch")
    assert probe(tmp_path, "nvidia").gpus == GpuReading(
        problem=Problem.VERSION_MISMATCH, said="Failed to initialize NVML: Driver/library version mismatch"
    )


def test_nobody_is_asked_where_no_gpu_is_wanted(smi: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi.setenv("SCRIPTED_SMI_EXIT", "9")
    assert probe(tmp_path, "none").gpus is None
