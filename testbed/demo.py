"""What `./fleet demo` deploys from: an embedded mirror, pins of its own and an inventory of one host.

Everything lies under one directory, is the same in every run and is made again over what a killed run left.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.archive import make_release_archive
from testbed.mirror import MirrorRepo, start_mirror

VERSION = "0.17.5"
SERVER_REPO = "modelscope/ollama-linux"
WEIGHTS_REPO = "qwen/Qwen2-7B-Instruct-GGUF"
WEIGHTS_FILE = "qwen2-7b-instruct-q5_k_m.gguf"
WEIGHTS_REVISION = "master"
MODEL = "myqwen2"
_ARCHITECTURES = {"aarch64": "arm64", "arm64": "arm64"}


class DemoRunning(Exception):
    """Another demo uses the same directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSite:
    """The files that a deploy needs, and the mirror that serves while the context lasts."""

    directory: Path
    inventory: Path
    pins: Path
    endpoint: str
    notes: tuple[str, ...]


def demo_directory() -> Path:
    """`$XDG_STATE_HOME/ollama-fleet/demo`, `~/.local/state` where it is not set (XDG base directories)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local/state"
    return base / "ollama-fleet/demo"


def embedded_repos(directory: Path, canary: Path) -> Sequence[MirrorRepo]:
    """The server's archive (the simulated Ollama, packed into `directory`) and the weights (the canary)."""
    archive = make_release_archive(
        directory / archive_name(),
        version=VERSION,
        compression="tar.zst",
        binary=Path(__file__).with_name("ollama.py"),
        python=sys.executable,
    )
    return (
        MirrorRepo(repo=SERVER_REPO, revisions={f"v{VERSION}": {archive.name: archive}}),
        MirrorRepo(repo=WEIGHTS_REPO, revisions={WEIGHTS_REVISION: {WEIGHTS_FILE: canary}}),
    )


@contextmanager
def demo_site(directory: Path, canary: Path) -> Iterator[DemoSite]:
    """Make the site and serve its mirror. Raises DemoRunning when another demo holds the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with _held(directory.with_name("demo.lock")):
        repos = embedded_repos(directory / "mirror", canary)
        with start_mirror(repos) as mirror:
            pins = directory / "pins.toml"
            _write(pins, render_pins(repos))
            inventory = directory / "inventory.ini"
            write_inventory(inventory, _port_of(inventory) or free_port())
            size_bytes = canary.stat().st_size
            yield DemoSite(
                directory=directory,
                inventory=inventory,
                pins=pins,
                endpoint=mirror.url,
                notes=(
                    f"mirror: {mirror.url} (embedded, no ModelScope)",
                    f"mirror: `{WEIGHTS_FILE}` is really the canary, a model of {size_bytes:,} bytes",
                    f"server: a simulated Ollama {VERSION}",
                ),
            )


def write_inventory(path: Path, port: int) -> None:
    """One host, everything below the inventory's own directory."""
    root = shlex.quote(str(path.parent / "host"))
    text = (
        "# Written by `./fleet demo`: one host without root and GPU.\n"
        "[demo]\n"
        "localhost ansible_connection=local\n\n"
        "[demo:vars]\n"
        "ollama_service=process\n"
        "ollama_gpu=none\n"
        f"ollama_models={MODEL}\n"
        f"ollama_version={VERSION}\n"
        f"ollama_host=127.0.0.1:{port}\n"
        f"ollama_root={root}\n"
    )
    _write(path, text)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def archive_name() -> str:
    """As the mirror names the archive for this machine."""
    return f"ollama-linux-{_ARCHITECTURES.get(platform.machine(), 'amd64')}.tar.zst"


def _port_of(inventory: Path) -> int | None:
    """The port of an earlier run: its server may still be listening there, and is ours to converge."""
    try:
        found = re.search(r"^ollama_host=127\.0\.0\.1:(\d+)$", inventory.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def render_pins(repos: Sequence[MirrorRepo]) -> str:
    """Pins read from the very files that the mirror serves."""
    lines = ["# Written by `./fleet demo` from the files of its own mirror."]
    for repo in repos:
        for revision, files in repo.revisions.items():
            for name, content in files.items():
                data = content if isinstance(content, bytes) else content.read_bytes()
                kind = "server" if repo.repo == SERVER_REPO else "weights"
                lines += ["", f"[[{kind}]]"]
                if kind == "server":
                    architecture = _ARCHITECTURES.get(platform.machine(), "amd64")
                    lines += [f'version = "{revision.removeprefix("v")}"', f'architecture = "{architecture}"']
                else:
                    lines += [f'repo = "{repo.repo}"']
                lines += [f'revision = "{revision}"', f'file = "{name}"', f"size_bytes = {len(data)}"]
                lines += [f'sha256 = "{hashlib.sha256(data).hexdigest()}"']
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)


@contextmanager
def _held(lock: Path) -> Iterator[None]:
    """The kernel frees it with the process, so a killed demo never blocks the next one."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoRunning(str(lock)) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
