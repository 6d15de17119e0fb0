"""What `./fleet demo` deploys from: an embedded mirror, pins of its own and an inventory of one host.

Everything lies under one directory, is the same in every run and is made again over what a killed run left.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import random
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from testbed.archive import make_release_archive, pack_real_release
from testbed.mirror import MirrorRepo, start_mirror

VERSION = "0.17.5"
SERVER_REPO = "modelscope/ollama-linux"
WEIGHTS_REPO = "qwen/Qwen2-7B-Instruct-GGUF"
WEIGHTS_FILE = "qwen2-7b-instruct-q5_k_m.gguf"
WEIGHTS_REVISION = "master"
_ARCHITECTURES = {"aarch64": "arm64", "arm64": "arm64"}


class UnusableBinary(Exception):
    """`OLLAMA_BIN` names no Ollama that says its version."""


class DemoRunning(Exception):
    """Another demo uses the same directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSite:
    """The files that a deploy needs, and the mirror that serves while the context lasts."""

    directory: Path
    inventory: Path
    pins: Path
    endpoint: str
    server: Server
    notes: tuple[str, ...]


def demo_directory() -> Path:
    """`$XDG_STATE_HOME/ollama-fleet/demo`, `~/.local/state` where it is not set (XDG base directories)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local/state"
    return base / "ollama-fleet/demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The Ollama that the site offers, and the model that suits it."""

    version: str
    real_binary: Path | None
    model: str


def chosen_server() -> Server:
    """The simulated Ollama; the real one that `OLLAMA_BIN` names, if it does. Raises UnusableBinary.

    A real server gets the model `canary`: under the big model's Modelfile its threads would wait for each
    other (see the canary's card).
    """
    given = os.environ.get("OLLAMA_BIN", "")
    if not given:
        return Server(version=VERSION, real_binary=None, model="myqwen2")
    binary = Path(given).resolve()
    return Server(version=version_of(binary), real_binary=binary, model="canary")


def version_of(binary: Path) -> str:
    """What `ollama --version` says of itself while it reaches no server (recorded on 0.17.5)."""
    with tempfile.TemporaryDirectory() as home:
        # Port 9 is discard(9): nobody answers there with another server's version.
        environment = {"HOME": home, "PATH": os.defpath, "OLLAMA_HOST": "127.0.0.1:9"}
        try:
            done = subprocess.run(
                [binary, "--version"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UnusableBinary(f"{binary}: {error}") from error
    said = done.stdout + done.stderr
    found = re.search(r"version is v?(\S+)", said)
    if found is None or "simulated" in said:
        raise UnusableBinary(f"{binary} --version: {said.strip() or 'it said nothing'}")
    return found[1]


def embedded_repos(directory: Path, canary: Path, server: Server) -> Sequence[MirrorRepo]:
    """The server's archive, packed into `directory`, and the weights (the canary's bytes)."""
    target = directory / archive_name()
    if server.real_binary is not None:
        archive = pack_real_release(target, server.real_binary)
    else:
        archive = make_release_archive(
            target,
            version=server.version,
            compression="tar.zst",
            binary=Path(__file__).with_name("ollama.py"),
            python=sys.executable,
        )
    return (
        MirrorRepo(repo=SERVER_REPO, revisions={f"v{server.version}": {archive.name: archive}}),
        MirrorRepo(repo=WEIGHTS_REPO, revisions={WEIGHTS_REVISION: {WEIGHTS_FILE: canary}}),
    )


@contextmanager
def demo_site(directory: Path, canary: Path) -> Iterator[DemoSite]:
    """Make the site and serve its mirror. Raises DemoRunning when another demo holds the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with _held(directory.with_name("demo.lock")):
        server = chosen_server()
        repos = embedded_repos(directory / "mirror", canary, server)
        with start_mirror(repos) as mirror:
            pins = directory / "pins.toml"
            _write(pins, render_pins(repos))
            inventory = directory / "inventory.ini"
            write_inventory(inventory, _port_of(inventory) or free_port(), server)
            size_bytes = canary.stat().st_size
            real = server.real_binary
            yield DemoSite(
                directory=directory,
                inventory=inventory,
                pins=pins,
                endpoint=mirror.url,
                server=server,
                notes=(
                    f"mirror: {mirror.url} (embedded, no ModelScope)",
                    f"mirror: `{WEIGHTS_FILE}` is really the canary, a model of {size_bytes:,} bytes",
                    f"server: {'a simulated' if real is None else 'a real'} Ollama {server.version}",
                ),
            )


def write_inventory(path: Path, port: int, server: Server) -> None:
    """One host, everything below the inventory's own directory."""
    root = shlex.quote(str(path.parent / "host"))
    text = (
        "# Written by `./fleet demo`: one host without root and GPU.\n"
        "[demo]\n"
        "localhost ansible_connection=local\n\n"
        "[demo:vars]\n"
        "ollama_service=process\n"
        "ollama_gpu=none\n"
        f"ollama_models={server.model}\n"
        f"ollama_version={server.version}\n"
        f"ollama_host=127.0.0.1:{port}\n"
        f"ollama_root={root}\n"
        # Where cron runs it would check a demo that is long over.
        "ollama_health_every=off\n"
    )
    _write(path, text)


def free_port() -> int:
    """A loopback port that nobody listens on now, and that no outgoing connection will be given.

    Ports from 32768 on are the kernel's to hand out (`ip_local_port_range`, ip(7)): one of these can be taken
    between choosing and listening. So can one that another worker of the tests chooses at that moment: each
    of them has a sixteenth.
    """
    ports = range(20000, 32000)
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        ports = ports[int(worker.removeprefix("gw")) % 16 :: 16]
    while True:
        port = random.choice(ports)  # noqa: S311 - no secret
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


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
            # Opened just before its holder removed it: that file locks nobody out any more.
            if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                raise DemoRunning(str(lock))
        except FileNotFoundError:
            raise DemoRunning(str(lock)) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            # The parent that only the demo had a reason to make.
            with suppress(OSError):
                lock.parent.rmdir()
