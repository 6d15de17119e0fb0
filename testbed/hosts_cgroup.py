"""The cgroup of a practice host: what keeps its processes apart from another's, and finds all of them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def cgroup_name(host: str) -> str:
    """A directory of ours, or where systemd runs this machine the name of a slice."""
    return f"fleet-testbed-{host}"


def make_cgroup(host: str, pid: int) -> None:
    """Put the process into the host's cgroup, below which nspawn makes those of itself and of the host.

    In the hierarchy by which systemd tells services apart: cgroup2, on old machines `name=systemd`. Where
    there is none nothing is made.
    """
    found = [point for point, kind, _ in _hierarchies() if kind == "cgroup2"]
    found += [point for point, _, options in _hierarchies() if "name=systemd" in options]
    if found:
        directory = found[0] / cgroup_name(host)
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.procs").write_text(str(pid))


def processes_in_cgroup(host: str) -> list[int]:
    """All processes of the host and its nspawn, zombies left out: cgroups(7), `/proc/PID/cgroup`."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            lines = (directory / "cgroup").read_text().splitlines()
            names = {part.removesuffix(".slice") for line in lines for part in line.split("/")[1:]}
            state = (directory / "stat").read_text().rpartition(")")[2].split()[0]
            if cgroup_name(host) in names and state not in "ZX":
                found.append(int(directory.name))
    return found


def remove_cgroup(host: str) -> None:
    """With what the host's systemd made below it, in every hierarchy that nspawn used."""
    for point, _, _ in _hierarchies():
        for directory, _, _ in os.walk(point / cgroup_name(host), topdown=False):
            with suppress(OSError):
                Path(directory).rmdir()


def _hierarchies() -> list[tuple[Path, str, list[str]]]:
    """Mount point, type and options of each: cgroups(7)."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [(Path(mount[1]), mount[2], mount[3].split(",")) for mount in mounts if "cgroup" in mount[2]]
