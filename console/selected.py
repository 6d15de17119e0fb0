"""The hosts that a task selects, for what needs the inventory only: neither models nor pins."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from console.run import Run, transport_to
from deploy.compose import login_of, select_hosts
from deploy.desired import HostPaths
from deploy.settings import HostSettings, load_settings, parse_data_home
from deploy.transport import Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedHost:
    """A host of the inventory."""

    name: str
    settings: HostSettings

    @property
    def paths(self) -> HostPaths:
        return HostPaths(root=self.settings.root, models_dir=self.settings.models_dir)

    def transport(self) -> Transport:
        """How it is reached. Raises InventoryError for a key file that cannot be read."""
        return transport_to(self.name, login_of(self.settings), self.settings.root)


def selected_hosts(run: Run) -> tuple[SelectedHost, ...]:
    """In the inventory's order. Raises UsageError for none, InputErrors for what cannot be read."""
    data_home = parse_data_home(os.environ, PurePosixPath(Path.home()))
    path = run.sources.inventory
    inventory, settings = load_settings(path, data_home=data_home)
    return tuple(
        SelectedHost(name=host.name, settings=settings[host.name])
        for host in select_hosts(inventory, path, run.limit)
    )
