"""What a practice fleet has made on this machine, written before it is made: so it can be taken away."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from testbed.hosts_machine import MachineRefused
from testbed.hosts_network import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """One process and no later one with its number: proc_pid_stat(5), `starttime` in ticks of this boot."""

    pid: int
    start_ticks: int
    boot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecord:
    """A host as `down` must know it; `leader` is the process above all of its processes."""

    name: str
    number: int
    kind: str
    leader: ProcessId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that is made or about to be made. `cached` are files outside the fleet's directory."""

    network: Network | None = None
    hosts: tuple[HostRecord, ...] = ()
    cached: tuple[str, ...] = ()


def state_file(directory: Path) -> Path:
    """Where the state of the fleet in `directory` lies."""
    return directory / "state.json"


def write_state(directory: Path, state: State) -> None:
    """Old or new, never half."""
    content: dict[str, Any] = {
        "network": state.network and {"prefix": state.network.prefix, "subnet": str(state.network.subnet)},
        "hosts": [
            {
                "name": host.name,
                "number": host.number,
                "kind": host.kind,
                "leader": host.leader
                and {name: getattr(host.leader, name) for name in ("pid", "start_ticks", "boot_id")},
            }
            for host in state.hosts
        ],
        "cached": list(state.cached),
    }
    write_file(state_file(directory), json.dumps(content, indent=1) + "\n")


def read_state(directory: Path) -> State | None:
    """None where there is no fleet."""
    path = state_file(directory)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as problem:
        raise MachineRefused(
            sentence=f"`{path}` says no more what was made on this machine",
            cause=str(problem),
            hint=f"end what `ps`, `ip link` and `findmnt` show of it by hand; then rm -r {directory}",
        ) from problem
    network = content["network"]
    return State(
        network=network and Network(prefix=network["prefix"], subnet=IPv4Network(network["subnet"])),
        hosts=tuple(
            HostRecord(**{**host, "leader": host["leader"] and ProcessId(**host["leader"])})
            for host in content["hosts"]
        ),
        cached=tuple(content["cached"]),
    )


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """By rename, and on the disk before that."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def identify(pid: int) -> ProcessId | None:
    """The process that has this number now; None where it has ended, reaped or not."""
    try:
        fields: Sequence[str] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX":
        return None
    return ProcessId(pid=pid, start_ticks=int(fields[19]), boot_id=boot_id())


def boot_id() -> str:
    """Another one after every start of this machine: random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def is_alive(process: ProcessId | None) -> bool:
    """Whether this very process runs."""
    return process is not None and identify(process.pid) == process
