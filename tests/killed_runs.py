"""What a run of the tests leaves when it is killed: the next run that needs the room takes it away."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from testbed.hosts import FleetBusy, alone_in


def name_of_run(prefix: str) -> str:
    """The prefix of this process's own directory, by which others see whether it still runs."""
    return f"{prefix}{os.getpid()}-"


def remove_killed_runs(prefix: str, take_down: Callable[[Path], object]) -> None:
    """Removes what is left of runs whose process has ended; `take_down` ends what files alone do not hold.

    The workers of a parallel run find the same ones: the first to come removes one, and the others go on.
    """
    for directory in Path(tempfile.gettempdir()).glob(f"{prefix}*-*"):
        pid = directory.name.removeprefix(prefix).partition("-")[0]
        with suppress(FleetBusy, FileNotFoundError):
            if directory.stat().st_uid != os.getuid() or Path("/proc", pid).exists():
                continue
            with alone_in(directory):
                take_down(directory)
                shutil.rmtree(directory, ignore_errors=True)
