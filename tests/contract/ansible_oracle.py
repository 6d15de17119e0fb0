"""Answers what `ansible-inventory --list` would print, without starting Ansible anew for every file.

A script, run with the interpreter of the test environment. One JSON request a line on stdin:
`{"path": FILE, "patterns": [PATTERN, ...]}`; one reply a line on stdout: `{"refused": TEXT}`, or
`{"list": {...}, "hosts": [[NAME, ...] | null, ...], "groups": {HOST: [GROUP, ...]}}` with the hosts of every
pattern, null for one that Ansible refuses or ignores.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, MutableSet
from pathlib import Path
from typing import Any

os.environ["ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED"] = "1"
os.environ["ANSIBLE_HOST_PATTERN_MISMATCH"] = "error"
os.environ["ANSIBLE_DEPRECATION_WARNINGS"] = "0"
os.environ.setdefault("LC_ALL", "C.UTF-8")

from ansible.cli.inventory import InventoryCLI  # type: ignore[import-untyped]
from ansible.inventory import group as group_module  # type: ignore[import-untyped]
from ansible.inventory.manager import InventoryManager  # type: ignore[import-untyped]
from ansible.parsing.dataloader import DataLoader  # type: ignore[import-untyped]
from ansible.utils.display import Display  # type: ignore[import-untyped]
from ansible.vars.manager import VariableManager  # type: ignore[import-untyped]


class OrderedSet(MutableSet[Any]):
    """Stands in for `set` where Ansible walks the groups: its order there is that of memory addresses."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._items = dict.fromkeys(items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Any:
        return iter(list(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def add(self, value: Any) -> None:
        self._items[value] = None

    def discard(self, value: Any) -> None:
        self._items.pop(value, None)

    def update(self, items: Iterable[Any]) -> None:
        self._items.update(dict.fromkeys(items))

    def difference_update(self, items: Iterable[Any]) -> None:
        for item in list(items):
            self.discard(item)

    def copy(self) -> OrderedSet:
        return OrderedSet(self._items)


def main() -> None:
    """Serves until stdin ends."""
    group_module.set = OrderedSet
    Display.display = lambda *_args, **_keywords: None
    cli = InventoryCLI(["ansible-inventory", "--list"])
    cli.parse()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = answer(cli, request["path"], request["patterns"])
        except Exception as error:  # noqa: BLE001 - any exception of Ansible is its refusal
            reply = {"refused": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def answer(cli: InventoryCLI, path: str, patterns: list[str]) -> dict[str, Any]:
    """Reads the inventory as the command does and prints it through the command's own code."""
    cli.loader = DataLoader()
    cli.loader.set_basedir(str(Path(path).parent))
    cli.inventory = InventoryManager(loader=cli.loader, sources=[path])
    cli.vm = VariableManager(
        loader=cli.loader, inventory=cli.inventory, version_info=cli.version_info(gitinfo=False)
    )
    text = cli.dump(cli.json_inventory(cli.inventory.groups["all"]))
    listing = json.loads(text.encode("utf-8", "replace"))  # as its display writes what is no character
    return {
        "list": listing,
        "hosts": [hosts_of(cli.inventory, pattern) for pattern in patterns],
        "groups": {name: host.get_magic_vars()["group_names"] for name, host in cli.inventory.hosts.items()},
    }


def hosts_of(inventory: InventoryManager, pattern: str) -> list[str] | None:
    """What `--limit` leaves of all hosts; the implicit localhost, which no file names, counts as nothing."""
    try:
        if any(host.implicit for host in inventory.get_hosts(pattern)):
            return None
        inventory.subset(pattern)
        return [host.name for host in inventory.get_hosts("all")]
    except Exception:  # noqa: BLE001 - any exception of Ansible is its refusal
        return None
    finally:
        inventory.subset(None)


if __name__ == "__main__":
    main()
