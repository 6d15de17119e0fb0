"""The official client in two versions: the one of this environment, and the last 1.x in one of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
REQUIREMENTS = PROJECT / "requirements/openai1.txt"
ENVIRONMENT = PROJECT / ".venv-openai1"


class NotInstalledError(Exception):
    """The environment could not be made: no index, no disk."""


def openai1_python(caller: Mapping[str, str]) -> Path:
    """The Python that has the 1.x, made once and kept beside the project.

    Args:
        caller: the environment of whoever runs the tests, whose pip settings say where packages come from.

    Raises:
        NotInstalledError: with pip's last words.
    """
    python, made_from = ENVIRONMENT / "bin/python", ENVIRONMENT / "made-from.txt"
    with ENVIRONMENT.with_name(f"{ENVIRONMENT.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made_from.exists() and made_from.read_bytes() == REQUIREMENTS.read_bytes():
            return python
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        settings = {name: value for name, value in caller.items() if not name.startswith("PYTHON")}
        _run([sys.executable, "-m", "venv", str(ENVIRONMENT)], settings)
        install = ["install", "--quiet", "--no-input", "--disable-pip-version-check", "--require-hashes"]
        install += ["--only-binary", ":all:", "--requirement", str(REQUIREMENTS)]
        _run([str(python), "-m", "pip", *install], settings)
        # Last: without it nothing counts as installed.
        shutil.copyfile(REQUIREMENTS, made_from)
    return python


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, env=dict(environment), cwd=os.path.sep, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise NotInstalledError("; ".join(said[-3:]))
