"""Groups and hosts while an inventory is read: who belongs to whom, and whose value wins.

The rules are those of ansible-core 2.19 (`inventory/data.py`, `group.py`, `host.py`), oddities included: a
name that is both a group and a host means the group, a port counts only where its host is named first, and a
host of `ungrouped` can vanish from every group when that is itself a child.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deploy.inventory_lines import LineRefused


class Variable(NamedTuple):
    """A value and the line (from 1) that gave it."""

    value: Any
    line: int


@dataclass(eq=False, slots=True)
class GroupNode:
    """A group; `hosts` and `children` are its direct members in the order of the file."""

    name: str
    depth: int = 0
    priority: int = 1
    hosts: dict[HostNode, None] = field(default_factory=dict)
    children: list[GroupNode] = field(default_factory=list)
    parents: list[GroupNode] = field(default_factory=list)
    variables: dict[str, Variable] = field(default_factory=dict)

    def ancestors(self) -> list[GroupNode]:
        """All groups above, each once."""
        return _reachable(self.parents, up=True)

    def all_hosts(self) -> list[HostNode]:
        """Hosts of this group and of those below, level by level, each once."""
        groups = [self, *_reachable(self.children, up=False)]
        return list(dict.fromkeys(host for group in groups for host in group.hosts))


@dataclass(eq=False, slots=True)
class HostNode:
    """A host; `groups` are those it belongs to, at any distance."""

    name: str
    line: int
    groups: list[GroupNode] = field(default_factory=list)
    variables: dict[str, Variable] = field(default_factory=dict)

    def join(self, groups: list[GroupNode]) -> None:
        """Adds what is missing."""
        self.groups += [group for group in groups if group not in self.groups]

    def leave(self, group: GroupNode) -> None:
        """Leaves the group, and those above it that no other group of the host leads to."""
        if group not in self.groups:
            return
        self.groups.remove(group)
        for above in group.ancestors():
            if above.name != "all" and not any(above in other.ancestors() for other in self.groups):
                self.leave(above)


def _reachable(first: list[GroupNode], *, up: bool) -> list[GroupNode]:
    found = dict.fromkeys(first)
    level = list(found)
    while level:
        following = dict.fromkeys(
            near for group in level for near in (group.parents if up else group.children) if near not in found
        )
        found |= following
        level = list(following)
    return list(found)


class Graph:
    """All groups and hosts, in the order in which they were first named."""

    def __init__(self) -> None:
        self.groups: dict[str, GroupNode] = {}
        self.hosts: dict[str, HostNode] = {}
        self.add_group("all")
        self.add_group("ungrouped")
        self.add_child("all", "ungrouped")

    def add_group(self, name: str) -> None:
        """Adds an empty group unless it is there."""
        self.groups.setdefault(name, GroupNode(name))

    def add_host(self, name: str, group: str, port: int | None, line: int) -> None:
        """Adds a host to a known group; the port counts for a new host only."""
        if name not in self.hosts:
            self.hosts[name] = HostNode(name, line)
            if port:
                self.hosts[name].variables["ansible_port"] = Variable(port, line)
        self._add_member(self.groups[group], self.hosts[name])

    def add_child(self, parent: str, child: str) -> None:
        """Puts the known group, else the known host, `child` into `parent`. Raises LineRefused for a loop."""
        group = self.groups[parent]
        if child in self.groups:
            self._add_child_group(group, self.groups[child])
        else:
            self._add_member(group, self.hosts[child])

    def set_variable(self, name: str, key: str, variable: Variable) -> None:
        """Sets it on the group of that name, else on the host. Raises LineRefused for a bad priority."""
        group = self.groups.get(name)
        if group is None:
            self.hosts[name].variables[key] = variable
        elif key == "ansible_group_priority":
            try:
                group.priority = int(variable.value)
            except (TypeError, ValueError, OverflowError) as error:
                raise LineRefused(f"`ansible_group_priority` is not a number: `{variable.value}`") from error
        else:
            group.variables[key] = variable

    def reconcile(self) -> None:
        """Puts every group below `all` and every lonely host into `ungrouped`. Raises LineRefused."""
        for group in self.groups.values():
            if group.name != "all" and not group.parents:
                self.add_child("all", group.name)
        top, ungrouped = self.groups["all"], self.groups["ungrouped"]
        for host in self.hosts.values():
            if ungrouped in host.groups:
                if set(host.groups) - {top, ungrouped} and host in ungrouped.hosts:
                    del ungrouped.hosts[host]
                    host.leave(ungrouped)
            elif set(host.groups) <= {top}:
                try:
                    self.add_child("ungrouped", host.name)
                except LineRefused as error:
                    raise LineRefused(
                        f"host `{host.name}` has the name of a group: {error}", line=host.line
                    ) from error

    def merged_variables(self, host: HostNode) -> dict[str, Variable]:
        """Values as the host sees them: of `all`, then groups by depth, priority and name, then its own."""
        merged = dict(self.groups["all"].variables)
        groups = (group for group in host.groups if group.name != "all")
        for group in sorted(groups, key=lambda group: (group.depth, group.priority, group.name)):
            merged |= group.variables
        return merged | host.variables

    @staticmethod
    def _add_member(group: GroupNode, host: HostNode) -> None:
        if host not in group.hosts:
            group.hosts[host] = None
            host.join([*group.ancestors(), group])

    @staticmethod
    def _add_child_group(parent: GroupNode, child: GroupNode) -> None:
        if parent is child:
            raise LineRefused(f"group `{child.name}` is its own child", hint="remove this line")
        if child in parent.children:
            return
        above = [*parent.ancestors(), parent]
        if child in above:
            raise LineRefused(
                f"group `{child.name}` as a child of `{parent.name}` makes a loop",
                hint="remove one of the two lines",
            )
        known = child.ancestors()
        parent.children.append(child)
        child.parents.append(parent)
        _sink(child, parent.depth + 1)
        for host in child.all_hosts():
            host.join([group for group in above if group not in known])


def _sink(group: GroupNode, depth: int) -> None:
    """Moves the group, and those below it, at least that far down."""
    waiting = [(group, depth)]
    while waiting:
        group, depth = waiting.pop()
        if group.depth < depth:
            group.depth = depth
            waiting += [(child, depth + 1) for child in group.children]
