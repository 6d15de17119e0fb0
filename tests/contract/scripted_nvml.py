"""The scripted driver of `nvml/scripted_nvml.c`, built for whoever asks it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "nvml/scripted_nvml.c"
SMI = Path(__file__).parent / "nvml/nvidia-smi"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The scripted `nvidia-smi`, first in PATH."""
    shutil.copy(SMI, tmp_path / "nvidia-smi")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return monkeypatch


def build_library(directory: Path) -> Path:
    """Build `libnvidia-ml.so.1` into `directory`, for LD_LIBRARY_PATH; skips without gcc, fails in CI."""
    if shutil.which("gcc") is None:
        reason = (
            "gcc is not installed, and the scripted NVML driver is built with it: apt install gcc libc6-dev"
        )
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    built = directory / "libnvidia-ml.so.1"
    command = ["gcc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(built)]
    subprocess.run([*command, str(SOURCE)], check=True)
    return directory
