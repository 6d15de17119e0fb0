"""The drivers that must keep the one contract: the scripted one, and this machine's own.

`FLEET_REAL_NVML=1` has the contract asked of the real driver as well: for a machine that has a card.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

HOLD_MEMORY = Path(__file__).parent / "nvml/hold_memory.py"
REAL = os.environ.get("FLEET_REAL_NVML") == "1"
DRIVERS = ("scripted", "real") if REAL else ("scripted",)
"""What a test of the contract is parametrized with."""


class CardDriver(Protocol):
    """A driver, asked by its library and by `nvidia-smi` alike."""

    def hold(self, mib: int) -> AbstractContextManager[int]:
        """A process holds so much of the first card while the context lasts; its pid."""


class RealDriver:
    """The driver of this machine. Whoever else uses the card may do so."""

    @contextmanager
    def hold(self, mib: int) -> Iterator[int]:
        with subprocess.Popen(
            [sys.executable, HOLD_MEMORY, str(mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            said = holder.stdout.readline()
            assert said == "held\n", f"the holder of GPU memory ended: {holder.wait()}"
            yield holder.pid
            holder.stdin.close()


@dataclass(frozen=True, slots=True)
class ScriptedDriver:
    """The library and the `nvidia-smi` of the tests, told the same card. Both are installed already.

    The MiB are those of a real one under driver 580.159.04.
    """

    script: pytest.MonkeyPatch

    NAME = "NVIDIA H100 80GB HBM3"
    UUID = "GPU-00000000-0000-0000-0000-000000000000"
    TOTAL, RESERVED, CONTEXT = 81559, 480, 518

    def tell(self, held: Sequence[tuple[int, int]] = ()) -> None:
        """The card, and the processes on it as (pid, MiB)."""
        used = sum(mib for _, mib in held)
        free = self.TOTAL - self.RESERVED - used
        python = os.path.realpath(sys.executable)
        self.script.setenv("SCRIPTED_NVML_GPUS", f"{self.NAME},{self.TOTAL},{self.RESERVED},{used}")
        self.script.setenv("SCRIPTED_NVML_MIG", "-1")
        self.script.setenv(
            "SCRIPTED_NVML_PROCESSES", ";".join(f"0,{pid},{mib},{python}" for pid, mib in held)
        )
        self.script.setenv(
            "SCRIPTED_SMI_GPUS",
            f"0, {self.UUID}, 550.54.15, {self.TOTAL}, {used}, {free}, Disabled, {self.NAME}\n",
        )
        self.script.setenv(
            "SCRIPTED_SMI_PROCESSES",
            "".join(f"{self.UUID}, {pid}, {mib}, {python}\n" for pid, mib in held),
        )

    @contextmanager
    def hold(self, mib: int) -> Iterator[int]:
        self.tell([(os.getpid(), mib + self.CONTEXT)])
        yield os.getpid()
        self.tell()
