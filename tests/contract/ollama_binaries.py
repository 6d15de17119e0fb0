"""The simulated Ollama as a program, and the real one that `OLLAMA_BIN` names: as a server and a client."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from testbed import ollama

SIMULATED = Path(ollama.__file__)
BINARIES = [SIMULATED, *(Path(path) for path in [os.environ.get("OLLAMA_BIN", "")] if path)]
"""What a test of both is parametrized with."""

NOBODY_LISTENS = "127.0.0.1:9"


@dataclass(frozen=True, slots=True)
class Server:
    """A served binary. `address` is its OLLAMA_HOST; `log` grows while it runs."""

    binary: Path
    address: str
    models: Path
    log: Path

    @property
    def url(self) -> str:
        """Where its API is."""
        return f"http://{self.address}"


def free_address() -> str:
    """An address that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def serve(binary: Path, state: Path, address: str, **settings: str) -> Iterator[Server]:
    """Serve with its state below `state`, OLLAMA_KEEP_ALIVE=-1; it may not answer yet."""
    state.mkdir(exist_ok=True)
    server = Server(binary, address, state / "models", state / "serve.log")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(state),
        "OLLAMA_HOST": address,
        "OLLAMA_MODELS": str(server.models),
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_GO_TEMPLATE": "1",
        **settings,
    }
    with server.log.open("wb") as log:
        process = subprocess.Popen([binary, "serve"], env=environment, stdout=log, stderr=log)
    try:
        yield server
    finally:
        process.terminate()
        process.wait(20)


def ask(binary: Path, address: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run one of the client's verbs with an empty standard input."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "OLLAMA_HOST": address, **settings}
    return subprocess.run(
        [binary, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def wait_ready(server: Server, deadline_seconds: float = 60) -> None:
    """Wait until it answers its own client. Raises AssertionError with its log."""
    deadline = time.monotonic() + deadline_seconds
    while ask(server.binary, server.address, "ps").returncode:
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.02)


def environment_with(tools: Mapping[str, str], directory: Path) -> str:
    """A PATH whose first directory holds these scripts, by name."""
    directory.mkdir(exist_ok=True)
    for name, text in tools.items():
        (directory / name).write_text(f"#!/bin/sh\n{text}\n")
        (directory / name).chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"
