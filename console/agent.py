"""The health agent as one file: built once on this machine, from locked packages and the checks themselves.

Its name in the cache is that of its recipe, so that other checks or packages are another file. A host needs
no network for it: everything is inside, for every Python from 3.9 to 3.14.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from console.paths import PROJECT
from console.pin import cache_directory
from deploy.desired import AgentFile
from deploy.errors import AgentNotBuilt, UsageError

PYTHONS = ("39", "310", "311", "312", "313", "314")
PLATFORMS: Mapping[str, str] = {"amd64": "manylinux2014_x86_64", "arm64": "manylinux2014_aarch64"}
"""By the word in the archives' names; the oldest glibc that the wheels are built for."""

ENTRY = "healthchecks.agent:main"
_PACKED = ("*.py", "*.json", "*.sql")
_REQUIREMENTS = PROJECT / "requirements"
_BUILD_SECONDS = 900.0


def cached_agents() -> dict[str, AgentFile]:
    """The agents of the present recipe that this machine has already, by architecture."""
    found = {}
    for architecture in PLATFORMS:
        path = _place(architecture)
        if path.is_file():
            found[architecture] = describe_agent(path)
    return found


def make_agents(architectures: Iterable[str], tell: Callable[[str], None]) -> dict[str, AgentFile]:
    """The agents for these architectures; those that are not in the cache are built.

    Raises AgentNotBuilt: the package index does not answer, or has not what is locked.
    """
    made = {}
    for architecture in architectures:
        path = _place(architecture)
        if not path.is_file():
            tell(f"building the health agent for {architecture} (a minute or two, once)")
            _build(architecture, path)
        made[architecture] = describe_agent(path)
    return made


def given_agent(path: Path, architectures: Iterable[str]) -> None:
    """Keeps a file that was built elsewhere as the agent of its architecture. Raises UsageError."""
    architecture = next((name for name in architectures if path.name.endswith(f"-{name}.pex")), None)
    if architecture is None or not path.is_file():
        raise UsageError(
            sentence=f"`--agent {path}` is no agent for these hosts",
            unchanged="everything",
            hint=f"give the `{recipe()}-amd64.pex` that ./fleet schedule leaves in {_directory()} "
            "on a machine with a package index",
        )
    place = _place(architecture)
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_suffix(".part")
    shutil.copyfile(path, part)
    part.replace(place)


def describe_agent(path: Path) -> AgentFile:
    """What a plan must know of the file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return AgentFile(local_path=str(path), size_bytes=path.stat().st_size, sha256=sha256)


@cache
def recipe() -> str:
    """16 hex digits of everything that the agent is made of."""
    digest = hashlib.sha256(repr((PYTHONS, sorted(PLATFORMS.items()), ENTRY, _options())).encode())
    files = [*(_REQUIREMENTS / name for name in ("agent.in", "agent.txt", "pex.txt")), *packed_files()]
    for path in files:
        text = path.read_bytes()
        digest.update(f"{path.relative_to(PROJECT)} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:16]


def packed_files() -> list[Path]:
    """The files of the checks that the agent holds."""
    room = PROJECT / "healthchecks"
    return sorted(path for pattern in _PACKED for path in room.rglob(pattern))


def _directory() -> Path:
    return cache_directory() / "agents"


def _place(architecture: str) -> Path:
    return _directory() / f"{recipe()}-{architecture}.pex"


def _platforms(architecture: str) -> tuple[str, ...]:
    return tuple(f"--platform={PLATFORMS[architecture]}-cp-{python}-cp{python}" for python in PYTHONS)


def _options() -> tuple[str, ...]:
    """Measured beside the other layouts of pex: a start takes a third of the CPU, and 10 MB less memory."""
    return (
        *("--venv", "--venv-site-packages-copies", "--no-build"),
        *("--python-shebang", "/usr/bin/env python3", "--entry-point", ENTRY),
    )


def _build(architecture: str, target: Path) -> None:
    """By one process at a time: another one waits and finds it done."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_file():
            return
        with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as name:
            work = Path(name)
            packages = _fetch_packages(architecture, work)
            for path in packed_files():
                staged = work / "sources" / path.relative_to(PROJECT)
                staged.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, staged)
            from_packages = (
                "--pex-repository",
                str(packages),
                "--requirement",
                str(_REQUIREMENTS / "agent.in"),
            )
            sources = ("--sources-directory", str(work / "sources"))
            _pack((*from_packages, *_platforms(architecture), *sources, *_options()), target, work)
        for old in target.parent.glob(f"*-{architecture}.pex"):
            if old not in (target, packages):
                old.unlink(missing_ok=True)


def packages_name(architecture: str) -> str:
    """The name of the file that holds what is locked now."""
    locked = [_REQUIREMENTS / "agent.txt", _REQUIREMENTS / "pex.txt"]
    digest = hashlib.sha256(
        repr(_platforms(architecture)).encode() + b"".join(p.read_bytes() for p in locked)
    )
    return f"packages-{digest.hexdigest()[:16]}-{architecture}.pex"


def _fetch_packages(architecture: str, work: Path) -> Path:
    """The locked packages in a file of their own: other checks need no package index then."""
    packages = _directory() / packages_name(architecture)
    if not packages.is_file() or not _packer().is_dir():
        pip = (
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--require-hashes",
            "--only-binary",
            ":all:",
        )
        _run((*pip, "--target", str(work / "packer"), "-r", str(_REQUIREMENTS / "pex.txt")), work)
        shutil.rmtree(_packer(), ignore_errors=True)
        (work / "packer").rename(_packer())
        wanted = ("--requirement", str(_REQUIREMENTS / "agent.txt"), "--no-build", "--use-pip-config")
        _pack((*wanted, *_platforms(architecture)), packages, work)
    return packages


def _packer() -> Path:
    return _directory() / "packer"


def _pack(options: Sequence[str], target: Path, work: Path) -> None:
    """By rename."""
    built = work / "built.pex"
    root = ("--pex-root", str(work / "root"), "--output-file", str(built))
    _run((sys.executable, "-m", "pex", *options, *root), work, _packer())
    built.chmod(0o644)
    built.replace(target)


def _run(argv: tuple[str, ...], work: Path, path: Path | None = None) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PEX_", "PYTHON"))
    }
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    # Where it would put packages is decided here; from where it takes them is the user's to say.
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER"):
        environment.pop(name, None)
    try:
        done = subprocess.run(
            argv, env=environment, cwd=work, capture_output=True, timeout=_BUILD_SECONDS, check=False
        )
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        if done.returncode == 0:
            return
    except subprocess.TimeoutExpired:
        said = [f"no end within {_BUILD_SECONDS:g} s"]
    raise AgentNotBuilt(
        sentence="the health `agent` could not be built",
        cause="\n".join(said[-4:]),
        unchanged="the hosts, and what checks them now",
        hint="a package index that does not answer is usual: PIP_INDEX_URL names another; "
        "or ./fleet schedule --agent FILE with one that was built elsewhere",
    )
