"""The parse stage: inventory, models and pins become the desired state of each selected host."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deploy.desired import Artefact, Desired, DesiredModel, DesiredServer, Health, HostPaths, Login, Pace
from deploy.errors import FleetError, InputErrors, InventoryError, PinError, UsageError, render_error
from deploy.inventory import Inventory, InventoryHost
from deploy.models import ModelSpec, desired_model, parse_models
from deploy.notify_file import read_notify_file
from deploy.pins import Pins, check_deployable, parse_pins
from deploy.settings import Connection, HostSettings, load_settings, parse_data_home

_ARCHITECTURES = ("amd64", "arm64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The files that say what is desired."""

    inventory: Path
    modelfiles: Path
    pins: Path


def compose(sources: Sources, limit: str | None) -> tuple[Desired, ...]:
    """What each host that `limit` selects should be, in the inventory's order.

    Raises InputErrors with every problem of all files at once.
    """
    problems: list[FleetError] = []
    hosts: tuple[InventoryHost, ...] = ()
    models: Mapping[str, ModelSpec] = {}
    pins: Pins | None = None
    settings: dict[str, HostSettings] = {}
    with _collected(problems):
        # A mistake on a host that is not selected today is a mistake all the same.
        data_home = parse_data_home(os.environ, PurePosixPath(Path.home()))
        inventory, settings = load_settings(sources.inventory, data_home=data_home)
        hosts = select_hosts(inventory, sources.inventory, limit)
    with _collected(problems):
        models = parse_models(sources.modelfiles)
    with _collected(problems):
        shipped = sources.modelfiles / "pins.toml"
        pins = parse_pins(sources.pins, sources.modelfiles)
        if sources.pins != shipped:
            pins = pins.over(parse_pins(shipped))
    if problems or pins is None:
        raise _all(problems)
    rendered: dict[str, DesiredModel] = {}
    for name in dict.fromkeys(name for host in hosts for name in settings[host.name].models):
        with _collected(problems):
            rendered[name] = desired_model(name, models, pins, sources.modelfiles)
    desired = []
    for host in hosts:
        with _collected(problems):
            desired.append(_desired(host.name, settings[host.name], pins, rendered))
    if problems:
        raise _all(problems)
    return tuple(desired)


def select_hosts(inventory: Inventory, path: Path, limit: str | None) -> tuple[InventoryHost, ...]:
    """The hosts of the inventory at `path` that `limit` selects. Raises UsageError for none."""
    hosts = inventory.select(limit)
    if not hosts:
        chosen = f"`--limit {limit}` selects" if limit else f"`{path}` names"
        raise UsageError(
            sentence=f"{chosen} no host",
            unchanged="everything",
            hint=f"./fleet inventory --list --inventory {path}",
        )
    return hosts


def _desired(host: str, settings: HostSettings, pins: Pins, rendered: Mapping[str, DesiredModel]) -> Desired:
    archives: dict[str, Artefact] = {}
    version = settings.version
    missing: PinError | None = None
    for architecture in _ARCHITECTURES:
        try:
            pinned = pins.server(version, architecture)
        except PinError as error:
            missing = missing or error
            continue
        # Without a wanted version the newest pinned one counts: of one version for all architectures.
        version = pinned.version
        archives[architecture] = pinned.archive
    if not archives and missing is not None:
        raise missing
    assert version is not None
    check_deployable(version)
    return Desired(
        host=host,
        connection=settings.connection,
        paths=HostPaths(
            root=PurePosixPath(settings.root), models_dir=PurePosixPath(settings.environment["OLLAMA_MODELS"])
        ),
        server=DesiredServer(
            version=version,
            archives=archives,
            environment=dict(settings.environment),
            backend=settings.service,
        ),
        models=tuple(rendered[name] for name in settings.models if name in rendered),
        gpu=settings.gpu,
        health=_health(settings),
        login=login_of(settings),
        pace=Pace(batch=settings.batch, max_failures=settings.max_failures),
    )


def _health(settings: HostSettings) -> Health | None:
    minutes = settings.health_every_minutes
    if minutes is None:
        return None
    return Health(
        every_minutes=minutes, textfile_dir=settings.textfile_dir, addresses=read_notify_file(settings)
    )


def login_of(settings: HostSettings) -> Login | None:
    """Where to log in; None for this machine. Raises InventoryError for a key file that cannot be read."""
    if settings.connection is Connection.LOCAL:
        return None
    return Login(
        address=settings.address,
        port=settings.port,
        user=settings.user,
        key_file=_key_file(settings),
        known_hosts=str(known_hosts_beside(settings.inventory)),
    )


def known_hosts_beside(inventory: str) -> Path:
    """The file in which a team keeps its hosts' keys, if it is there."""
    return Path(inventory).absolute().parent / "known_hosts"


def _key_file(settings: HostSettings) -> str | None:
    if settings.key_file is None:
        return None
    # As Ansible's ssh connection reads it: `~` is expanded, the rest is seen from the working directory.
    path = Path(os.path.expanduser(settings.key_file))  # noqa: PTH111 - `~nobody-we-know` stays as it is
    try:
        with path.open("rb"):
            return str(path)
    except OSError as error:
        raise InventoryError(
            sentence=f"the key file `{settings.key_file}` cannot be read",
            path=settings.inventory,
            line=settings.key_file_line,
            cause=error.strerror,
            unchanged="everything",
            hint=f"ls -l {shlex.quote(str(path))}",
        ) from error


@contextmanager
def _collected(problems: list[FleetError]) -> Iterator[None]:
    try:
        yield
    except InputErrors as error:
        problems.extend(error.problems)
    except FleetError as error:
        problems.append(error)


def _all(problems: Iterable[FleetError]) -> InputErrors:
    """Two hosts of one group share a mistake: it is told once."""
    told = {render_error(problem): problem for problem in problems}
    return InputErrors(sentence="the input cannot be used", problems=tuple(told.values()))
