"""Which process serves here, and what systemd or /proc says of it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from healthchecks.host_view import Process
from healthchecks.judgement import Look

_ASKED = "LoadState,ActiveState,SubState,Result,NRestarts,MainPID,ExecMainStatus"

# `start` is an alias (cmd/cmd.go of Ollama).
_SERVES = ("serve", "start")
# The runner is its own program in old and in new releases, and `ollama runner` in between. llama.cpp has a
# `llama-server` too, which people run by themselves: Ollama's lies in its library.
_OLD_RUNNER, _NEW_RUNNER = "ollama_llama_server", "ollama/llama-server"


@dataclass(frozen=True)
class Service:
    """`pid` is None where no server runs. `told` is what systemd says, empty with the process backend."""

    pid: int | None
    told: Mapping[str, str]

    @property
    def restarts(self) -> int | None:
        """How often systemd started it anew by itself since somebody last started it."""
        counted = self.told.get("NRestarts", "")
        return int(counted) if counted.isdigit() else None


def find_service(look: Look) -> Service:
    """Ask for the service once a run.

    Raises:
        OSError: systemd could not be asked.
        ValueError: it answered with an error.
    """
    return look.once(
        "service", lambda: _ask_systemd(look) if look.config.backend == "systemd" else _find(look)
    )


def is_server(process: Process) -> bool:
    """Whether it is an `ollama serve`; the simulated one is a script, its interpreter stands before it."""
    return any(
        posixpath.basename(word) == "ollama" and following in _SERVES
        for word, following in zip(process.command, process.command[1:])
    )


def is_runner(process: Process) -> bool:
    """Whether it holds a model for some server."""
    if not process.command:
        return False
    name, *rest = process.command
    if posixpath.basename(name) == "ollama":
        return rest[:1] == ["runner"]
    return posixpath.basename(name) == _OLD_RUNNER or name.endswith(f"/{_NEW_RUNNER}")


def descendants(processes: Iterable[Process], pid: int) -> frozenset[int]:
    """`pid` and every process below it."""
    children: dict[int, list[int]] = {}
    for process in processes:
        children.setdefault(process.parent_pid, []).append(process.pid)
    found, todo = {pid}, [pid]
    while todo:
        new = [child for child in children.get(todo.pop(), ()) if child not in found]
        found.update(new)
        todo.extend(new)
    return frozenset(found)


def _ask_systemd(look: Look) -> Service:
    argv = ("systemctl", "show", look.config.unit, f"--property={_ASKED}")
    ran = look.host.run(argv, look.deadline_seconds)
    if ran.exit_code:
        raise ValueError(f"`systemctl show` ended with {ran.exit_code}: {ran.stderr.strip()[:200]}")
    told = dict(line.split("=", 1) for line in ran.stdout.splitlines() if "=" in line)
    pid = told.get("MainPID", "0")
    return Service(int(pid) if pid.isdigit() and pid != "0" else None, told)


def _find(look: Look) -> Service:
    """The server that carries our mark: a file with its pid could name a stranger."""
    ours = [
        process.pid
        for process in look.processes()
        if is_server(process) and process.environment.get("OLLAMA_FLEET_ROOT") == look.config.root
    ]
    return Service(min(ours) if ours else None, {})
