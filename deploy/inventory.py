"""Reads an Ansible INI inventory and says what `ansible-inventory --list` would say of it.

The format is that of ansible-core 2.19's `ini` plugin; what it accepts is accepted with the same result, what
it refuses is refused. On top of that a mistyped key of ours is refused, see `inventory_keys`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.errors import InputErrors, InventoryError
from deploy.inventory_graph import Graph, HostNode, Variable
from deploy.inventory_keys import NEVER_SHOWN
from deploy.inventory_lines import BytesText
from deploy.inventory_reader import InventoryReader, read_lines, unread_directories
from deploy.limit import select_names


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryHost:
    """A host with every variable it sees, merged as in Ansible's hostvars.

    `groups` are sorted and leave out `all`. `lines` says where the winning value of a variable was written,
    `line` where the host is named first.
    """

    name: str
    groups: tuple[str, ...]
    variables: Mapping[str, Any]
    line: int = 1
    lines: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryGroup:
    """A group: its direct hosts and child groups in the order of the file, `members` at any depth."""

    name: str
    hosts: tuple[str, ...]
    children: tuple[str, ...]
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """A whole inventory; `hosts` and `groups` in the order in which the file first names them."""

    path: str
    hosts: Mapping[str, InventoryHost]
    groups: Mapping[str, InventoryGroup]

    def select(self, pattern: str | None) -> tuple[InventoryHost, ...]:
        """The hosts that Ansible's `--limit` pattern means, in Ansible's order; None means all.

        The order is the one of `all`: that of a pattern's parts says nothing, and the canary stays first.
        Raises InventoryError where a part of the pattern matches nothing.
        """
        members = {name: group.members for name, group in self.groups.items()}
        names = select_names("all", self.hosts, members)
        if pattern is not None:
            chosen = set(select_names(pattern, self.hosts, members))
            names = tuple(name for name in names if name in chosen)
        return tuple(self.hosts[name] for name in names)


def parse_inventory(path: Path) -> Inventory:
    """Reads the file. Raises InputErrors with every problem of it, in the order of its lines."""
    inventory, problems = read_inventory(path)
    if inventory is None or problems:
        sentence = f"`{path}` has {len(problems)} problem(s)"
        raise InputErrors(sentence=sentence, path=str(path), problems=tuple(problems))
    return inventory


def read_inventory(path: Path) -> tuple[Inventory | None, list[InventoryError]]:
    """The problems of the file, and what it says where they leave that clear (a mistyped key, for one)."""
    try:
        lines = read_lines(path)
    except InventoryError as error:
        return None, [error]
    reader = InventoryReader(str(path))
    reader.read(lines)
    problems = sorted(reader.problems, key=lambda problem: problem.line or 0) + unread_directories(path)
    return _freeze(reader.graph, str(path)) if reader.readable else None, problems


def render_list(inventory: Inventory, limit: str | None = None) -> dict[str, Any]:
    """What `ansible-inventory --list [--limit ...]` prints, as JSON values, without its `profile` entry.

    Raises InventoryError for a limit that matches nothing.
    """
    hosts = inventory.select(None)
    if limit is not None:
        chosen = {host.name for host in inventory.select(limit)}
        hosts = tuple(host for host in hosts if host.name in chosen)
    names = {host.name for host in hosts}
    result: dict[str, Any] = {}
    for group in inventory.groups.values():
        members = [name for name in group.hosts if name in names]
        entry: dict[str, Any] = {"children": list(group.children)} if group.children else {}
        if members and group.name != "all":
            entry["hosts"] = members
        if entry:
            result[group.name] = entry
    result["_meta"] = {
        "hostvars": {host.name: _json(dict(host.variables)) for host in hosts if host.variables}
    }
    shown: dict[str, Any] = _json(result)
    return shown


def _json(value: Any) -> Any:
    if isinstance(value, str):
        # What is no character prints as `?` in Ansible.
        text = value.encode("utf-8", "replace").decode()
        return {"__ansible_unsafe": text} if isinstance(value, BytesText) else text
    if isinstance(value, dict):
        return {
            _json(key) if isinstance(key, str) else json.dumps(key): _json(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_json(item) for item in value]
    return value


def _freeze(graph: Graph, path: str) -> Inventory:
    groups = {
        name: InventoryGroup(
            name=name,
            hosts=tuple(host.name for host in group.hosts),
            children=tuple(child.name for child in group.children),
            members=tuple(host.name for host in group.all_hosts()),
        )
        for name, group in graph.groups.items()
    }
    hosts = {name: _freeze_host(host, graph.merged_variables(host)) for name, host in graph.hosts.items()}
    return Inventory(path=path, hosts=hosts, groups=groups)


def _freeze_host(host: HostNode, merged: Mapping[str, Variable]) -> InventoryHost:
    kept = {key: variable for key, variable in merged.items() if key not in NEVER_SHOWN}
    return InventoryHost(
        name=host.name,
        groups=tuple(sorted(group.name for group in host.groups if group.name != "all")),
        variables={key: variable.value for key, variable in kept.items()},
        line=host.line,
        lines={key: variable.line for key, variable in kept.items()},
    )
