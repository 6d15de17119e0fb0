"""Goes through the lines of an inventory file and collects its groups, its hosts and every problem."""

from __future__ import annotations

import os
import re
from pathlib import Path

from deploy.errors import InventoryError
from deploy.inventory_graph import Graph, Variable
from deploy.inventory_keys import closest, mistyped_key
from deploy.inventory_lines import LineRefused, parse_host_line, parse_variable_line

_SECTION = re.compile(r"^\[([^:\]\s]+)(?::(\w+))?\]\s*(?:#.*)?$")
_CHILD = re.compile(r"^([^:\]\s]+)\s*(?:#.*)?$")
_KINDS = ("hosts", "children", "vars")


def read_lines(path: Path) -> list[str]:
    """The lines of the file, bytes that are no UTF-8 as lone surrogates. Raises InventoryError."""
    where = str(path)
    if path.suffix == ".toml":
        raise InventoryError(
            sentence="a `.toml` inventory is not read", path=where, hint="write it in Ansible's INI format"
        )
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        hint = "name the file with --inventory FILE"
        raise InventoryError(sentence=f"the inventory `{where}` does not exist", hint=hint) from error
    except IsADirectoryError as error:
        hint = "name one INI file with --inventory FILE"
        raise InventoryError(sentence=f"the inventory `{where}` is a directory", hint=hint) from error
    except OSError as error:
        hint = f"look at the rights with: ls -l {where}"
        raise InventoryError(
            sentence=f"the inventory `{where}` cannot be read", cause=str(error), hint=hint
        ) from error
    if data.startswith(b"#!") and os.access(path, os.X_OK):
        hint = f"save what it prints in INI format, or if it is a plain inventory: chmod -x {where}"
        raise InventoryError(
            sentence=f"the inventory `{where}` is a script, and scripts are not run", hint=hint
        )
    if data.startswith(b"$ANSIBLE_VAULT") and data.isascii():
        hint = f"decrypt it with: ansible-vault decrypt {where}"
        raise InventoryError(sentence=f"the inventory `{where}` is encrypted", hint=hint)
    return data.decode("utf-8", "surrogateescape").splitlines()


def unread_directories(path: Path) -> list[InventoryError]:
    """Variables in files beside the inventory, which Ansible would add: an error each, never silence."""
    return [
        InventoryError(
            sentence=f"the directory `{name}/` beside the inventory is not read yet",
            path=str(path.parent / name),
            hint="move its variables into [group:vars] sections or host lines, then move it away",
        )
        for name in ("group_vars", "host_vars")
        if (path.parent / name).is_dir()
    ]


class InventoryReader:
    """Goes through the lines once, collecting problems instead of stopping at the first.

    `readable` turns false with a line that Ansible, too, would refuse.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.graph = Graph()
        self.problems: list[InventoryError] = []
        self.readable = True
        self._group = "ungrouped"
        self._kind: str | None = "hosts"  # None below a section that could not be read
        self._line = 0
        self._orphan_vars: dict[str, int] = {}  # [name:vars] read before the group is known: its line
        self._awaited: dict[str, list[tuple[str, int]]] = {}  # child groups not yet known: parents and lines

    def read(self, lines: list[str]) -> None:
        """Takes in the whole file; `graph` and `problems` are the result."""
        for self._line, raw in enumerate(lines, start=1):
            line = raw.strip()
            if line and line[0] not in ";#":
                self._attempt(line)
        known = set(self.graph.groups) - self._orphan_vars.keys() - self._awaited.keys()
        for name, number in self._orphan_vars.items():
            self._refuse(f"section `[{name}:vars]` is for an undefined group", _guess(name, known), number)
        for name, parents in self._awaited.items():
            for parent, number in parents:
                sentence = f"`[{parent}:children]` includes undefined group `{name}`"
                self._refuse(sentence, _guess(name, known), number)
        if self.readable:
            try:
                self.graph.reconcile()
            except LineRefused as error:
                self._refuse(str(error), error.hint, error.line)

    def _refuse(self, sentence: str, hint: str | None, line: int | None = None) -> None:
        self.readable = False
        self._report(sentence, hint, line)

    def _report(self, sentence: str, hint: str | None, line: int | None = None) -> None:
        problem = InventoryError(sentence=sentence, path=self.path, line=line or self._line, hint=hint)
        self.problems.append(problem)

    def _attempt(self, line: str) -> None:
        try:
            _check_utf8(line if self._kind == "vars" else line.partition("#")[0])
            if section := _SECTION.match(line):
                self._enter(section[1], section[2] or "hosts")
            elif line.startswith("[") and line.endswith("]"):
                self._kind = None
                raise LineRefused(
                    f"`{line}` is no section",
                    hint="write [group], [group:children] or [group:vars], without spaces",
                )
            elif self._kind == "hosts":
                self._read_hosts(line)
            elif self._kind == "vars":
                key, value = parse_variable_line(line)
                self._check_key(key)
                self.graph.set_variable(self._group, key, Variable(value, self._line))
            elif self._kind == "children":
                self._read_child(line)
        except LineRefused as error:
            self._refuse(str(error), error.hint, error.line)

    def _enter(self, name: str, kind: str) -> None:
        self._group, self._kind = name, kind if kind in _KINDS else None
        if kind == "vars" and name not in self.graph.groups and name not in self._awaited:
            self._orphan_vars[name] = self._line
        self.graph.add_group(name)
        if kind != "vars":
            self._orphan_vars.pop(name, None)
            for parent, line in self._awaited.pop(name, []):
                self._add_child(parent, name, line)
        if self._kind is None:
            meant = closest(kind, set(_KINDS))
            raise LineRefused(
                f"section `[{name}:{kind}]` has an unknown type",
                hint=f"did you mean `[{name}:{meant}]`?"
                if meant
                else "the types are hosts, children and vars",
            )

    def _read_hosts(self, line: str) -> None:
        names, port, variables = parse_host_line(line)
        for key in variables:
            self._check_key(key)
        for name in names:
            self.graph.add_host(name, self._group, port, self._line)
            for key, value in variables.items():
                self.graph.set_variable(name, key, Variable(value, self._line))

    def _read_child(self, line: str) -> None:
        match = _CHILD.match(line)
        if not match:
            raise LineRefused(
                f"`{line}` is no group name", hint="write one group a line, without spaces or colons"
            )
        name = match[1]
        if name in self.graph.groups:
            self._add_child(self._group, name, self._line)
        else:
            self._awaited.setdefault(name, []).append((self._group, self._line))

    def _add_child(self, parent: str, child: str, line: int) -> None:
        try:
            if child == "all":
                raise LineRefused(
                    "group `all` holds every group and cannot be a child", hint="remove this line"
                )
            self.graph.add_child(parent, child)
        except LineRefused as error:
            self._refuse(str(error), error.hint, line)

    def _check_key(self, key: str) -> None:
        mistyped, meant = mistyped_key(key)
        if mistyped:
            self._report(f"unknown key `{key}`", f"did you mean `{meant}`?" if meant else "remove it")


def _guess(name: str, known: set[str]) -> str:
    meant = closest(name, known)
    return f"did you mean `{meant}`?" if meant else f"define it with a section [{name}]"


def _check_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = text.encode("utf-8", "replace").decode()
        raise LineRefused(f"the line is not UTF-8: `{shown}`", hint="save the file as UTF-8") from error
