"""Nothing gets its name before its bytes are on the disk: all renames of a deploy, seen by strace(1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from tests.hosts.site import HostSite, broken, forget_connections, until

CALLS = (
    "rename,renameat,renameat2,fsync,fdatasync,sync,syncfs,write,pwrite64,sendfile,copy_file_range,ftruncate"
)
TRACE = "/root/trace"
OURS = (
    "/etc/systemd/system",
    "/opt/ollama",
    "/usr/local/lib/ollama-fleet",
    "/usr/share/ollama",
    "/var/lib/ollama-fleet",
)
RENAMES = {
    "/etc/systemd/system/ollama.service",
    "/etc/systemd/system/ollama.service.d/50-fleet.conf",
    "/etc/systemd/system/ollama-fleet-load.service",
    "/etc/systemd/system/ollama-fleet-lease.timer",
    "/usr/local/lib/ollama-fleet/lease",
    "/opt/ollama/releases/0.17.5",
    "/opt/ollama/releases/0.17.6",
    "/opt/ollama/current",
    "/opt/ollama/previous",
    "/var/lib/ollama-fleet/lease",
    "/var/lib/ollama-fleet/lease.old",
}
"""What must be among the renames, or the trace has missed something."""

_LINE = re.compile(r"^(?P<pid>\d+) +(?P<text>.*)$")
_CALL = re.compile(r"^(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
_FILE = re.compile(r"\d+<(?P<path>/[^>]*)>")
_NAMES = re.compile(r'"(?P<path>[^"]*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A system call that succeeded; `began` and `ended` are line numbers of the trace."""

    name: str
    arguments: str
    began: int
    ended: int

    @property
    def file(self) -> str:
        """The file that it writes or syncs; empty for a socket or a pipe."""
        # The first descriptor; copy_file_range(2) writes to the second one.
        word = self.arguments.split(", ")[2 if self.name == "copy_file_range" else 0]
        found = _FILE.match(word)
        return found["path"] if found is not None else ""

    @property
    def names(self) -> list[str]:
        return [found["path"] for found in _NAMES.finditer(self.arguments)]


def parse_trace(text: str) -> Iterator[Call]:
    """The calls of `strace -f -y -o`; one that another process interrupted stands on two lines: strace(1)."""
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(text.splitlines()):
        found = _LINE.match(line)
        if found is None:
            continue
        pid, said = found["pid"], found["text"]
        began = number
        if said.endswith("<unfinished ...>"):
            begun[pid] = (number, said.removesuffix("<unfinished ...>").rstrip())
            continue
        if said.startswith("<... ") and pid in begun:
            began, start = begun.pop(pid)
            said = start + said.partition(" resumed>")[2]
        call = _CALL.match(said)
        if call is not None and int(call["result"]) >= 0:
            yield Call(name=call["name"], arguments=call["arguments"], began=began, ended=number)


def unsafe_renames(calls: list[Call]) -> list[str]:
    """Of the renames of ours, those before whose files are synced, or whose directory is not synced after."""
    found = []
    for rename in calls:
        if not rename.name.startswith("rename") or not rename.names[-1].startswith(OURS):
            continue
        source, target = rename.names
        for path, written in last_writes(calls, source, rename.began).items():
            if not synced(calls, path, written, rename.began):
                found.append(f"{path} is not synced before it becomes {target}")
        directory = str(PurePosixPath(target).parent)
        following = [call.began for call in calls if call.began > rename.ended and is_next(call, target)]
        if not synced(calls, directory, rename.ended, min(following, default=len(calls) + 10**9)):
            found.append(f"{directory} is not synced after {target} got its name")
    return found


def is_next(call: Call, target: str) -> bool:
    """The next rename of another file of ours: the order of the two must hold on the disk too."""
    return call.name.startswith("rename") and call.names[-1].startswith(OURS) and call.names[-1] != target


def last_writes(calls: list[Call], source: str, before: int) -> dict[str, int]:
    """When each file that has this name or lies below it was last written."""
    return {
        call.file: call.ended
        for call in calls
        if call.ended < before
        and (call.file == source or call.file.startswith(f"{source}/"))
        and not call.name.endswith("sync")
    }


def synced(calls: list[Call], path: str, after: int, before: int) -> bool:
    return any(
        (call.name in ("fsync", "fdatasync") and call.file == path) or call.name in ("sync", "syncfs")
        for call in calls
        if after < call.began and call.ended < before
    )


def test_every_rename_of_a_deploy_and_of_the_way_back_is_between_two_syncs(site: HostSite) -> None:
    forget_connections()
    site.sh(
        f"systemd-run --quiet --unit=trace strace -f -y -s 0 -e trace={CALLS} -o {TRACE}"
        " -p $(systemctl show -P MainPID ssh)"
    )
    until("strace is attached", lambda: "attached" in site.sh("journalctl -u trace -o cat"))
    assert site.deploy().error is None
    site.add_release("0.17.6", broken(site, "python=\n", "python=\nexit 2\n"))
    site.version = "0.17.6"
    assert site.deploy().error is not None
    forget_connections()
    site.sh("systemctl stop trace")
    calls = list(parse_trace((site.host.root / TRACE.removeprefix("/")).read_text(errors="replace")))
    renamed = {call.names[-1] for call in calls if call.name.startswith("rename")}
    assert RENAMES - renamed == set()
    assert any("/blobs/sha256-" in name for name in renamed)
    assert unsafe_renames(calls) == []
