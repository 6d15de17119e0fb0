"""Runs a program with a deadline that holds even where the program cannot be killed."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KILL_SECONDS = 1.0


@dataclass(frozen=True)
class Ran:
    """A program that ended by itself; `exit_code` is negative where a signal ended it."""

    exit_code: int
    stdout: str
    stderr: str = ""


def run_child(argv: Sequence[str], deadline_seconds: float, env: Mapping[str, str] | None = None) -> Ran:
    """Run it in `/`, without standard input.

    Raises:
        FileNotFoundError: there is no such program.
        TimeoutError: it did not end in time. A process that waits inside the kernel does not even end when it
            is killed: it is left behind.
    """
    process = subprocess.Popen(
        argv, cwd="/", env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        stdout, stderr = process.communicate(timeout=deadline_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=KILL_SECONDS)
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        raise TimeoutError(f"`{argv[0]}` did not answer within {deadline_seconds:g} s") from None
    return Ran(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
