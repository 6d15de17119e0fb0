"""The environment of the peers: built once from locked requirements, under the cache directory."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from console.pin import cache_directory
from deploy.errors import CommandFailed
from testbed.hosts_machine import Tell

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)", re.MULTILINE)


def peers_environment(tell: Tell) -> Path:
    """The environment's directory, named by what it is made of. Raises CommandFailed without an index."""
    made_of = f"{sys.version}\n{REQUIREMENTS.read_text()}"
    directory = cache_directory() / f"peers-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "complete").exists():
            tell(f"building the environment of the peers in {directory} (up to a minute)")
            shutil.rmtree(directory, ignore_errors=True)
            _call([sys.executable, "-m", "venv", str(directory)])
            pip = [str(directory / "bin/python"), "-m", "pip", "install", "--quiet", "--no-input"]
            _call([*pip, "--require-hashes", "--only-binary", ":all:", "-r", str(REQUIREMENTS)])
            (directory / "complete").touch()
    return directory


def pinned_versions(requirements: str) -> Mapping[str, str]:
    """The versions of a locked file, by name; of two for different Pythons the last one."""
    return {found["name"]: found["version"] for found in _PIN.finditer(requirements)}


def _call(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(
            sentence="the environment of the `peers` could not be built",
            cause="\n".join((done.stderr or done.stdout).strip().splitlines()[-5:]),
            unchanged="everything",
            hint="name a package index that this machine reaches in PIP_INDEX_URL, or a directory of "
            "wheels in PIP_FIND_LINKS with PIP_NO_INDEX=1, and run it again",
        )
