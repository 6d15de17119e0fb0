"""One invocation: its sources, its hosts, its report."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath

from console.pace import AskedPace
from console.paths import MODELFILES, PROJECT
from deploy.compose import Sources, compose
from deploy.desired import Artefact, Desired, GpuKind, Login
from deploy.errors import NotAnArtefact, UsageError
from deploy.fit import ModelShape
from deploy.local import LocalTransport
from deploy.report import Report
from deploy.sudo import SudoPassword
from deploy.transport import Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Where an invocation reads from and whom it tells."""

    report: Report
    sources: Sources
    limit: str | None
    forks: int
    stop_requested: threading.Event
    endpoint: str | None = None
    database: Path | None = None
    overwrite: bool = False
    soak_seconds: float = 0.0
    pace: AskedPace = field(default_factory=AskedPace)

    def __post_init__(self) -> None:
        if self.forks < 1:
            raise UsageError(
                sentence=f"`--forks {self.forks}` works on no host",
                expected="at least 1",
                actual=str(self.forks),
                unchanged="everything",
                hint="leave it out for 10 hosts at once",
            )
        if self.soak_seconds < 0:
            raise UsageError(
                sentence=f"`--soak {self.soak_seconds:g}` is no time",
                expected="at least 0 seconds",
                actual=f"{self.soak_seconds:g}",
                unchanged="everything",
                hint="--soak 0 confirms a new server as soon as it is verified",
            )

    def hosts(self) -> tuple[Desired, ...]:
        """The desired state of every selected host. Raises InputErrors with all problems at once."""
        return tuple(self.pace.over(_with_shapes(desired)) for desired in compose(self.sources, self.limit))


def _with_shapes(desired: Desired) -> Desired:
    """The shapes of the models whose weights lie on this machine; only a GPU host needs them."""
    if desired.gpu is not GpuKind.NVIDIA:
        return desired
    models = tuple(replace(model, shape=_shape(desired, model.weights)) for model in desired.models)
    return replace(desired, models=models)


def _shape(desired: Desired, weights: Artefact) -> ModelShape | None:
    from console.pin import cache_directory

    places = [cache_directory() / weights.place]
    if weights.local_path is not None:
        places = [Path(weights.local_path)]
    elif desired.connection == "local":
        places.append(Path(desired.paths.artefact(weights)))
        places.append(Path(desired.paths.models_dir, "blobs", f"sha256-{weights.sha256}"))
    for path in places:
        with contextlib.suppress(OSError, NotAnArtefact):
            if path.stat().st_size == weights.size_bytes:
                return _read_shape(path)
    return None


@cache
def _read_shape(path: Path) -> ModelShape:
    from deploy.gguf_header import read_header

    return read_header(path).shape


def make_sources(inventory: str | None, pins: str | None) -> Sources:
    """The inventory given, else `inventory.ini` here, else the project's; pins beside it come first."""
    chosen = inventory_path(inventory)
    beside = chosen.parent / "pins.toml"
    default = beside if beside.exists() else MODELFILES / "pins.toml"
    return Sources(inventory=chosen, modelfiles=MODELFILES, pins=Path(pins) if pins else default)


def inventory_path(given: str | None) -> Path:
    """The inventory that a task reads."""
    if given is not None:
        return Path(given)
    here = Path("inventory.ini")
    return here if here.exists() else PROJECT / "inventory.ini"


_TRANSPORTS: dict[tuple[str, Login, PurePosixPath], Transport] = {}
_OPENING = threading.Lock()
_SUDO_PASSWORD = SudoPassword()


def transport_for(desired: Desired) -> Transport:
    """How a host is reached."""
    return transport_to(desired.host, desired.login, desired.paths.root)


def transport_to(host: str, login: Login | None, root: PurePosixPath) -> Transport:
    """How a host is reached; over SSH by one connection for the whole run, opened when it is first used."""
    if login is None:
        return LocalTransport(host)
    with _OPENING:
        key = (host, login, root)
        if key not in _TRANSPORTS:
            _TRANSPORTS[key] = _ssh_transport(host, login, root)
        return _TRANSPORTS[key]


def _ssh_transport(host: str, login: Login, root: PurePosixPath) -> Transport:
    # Fabric takes a while to load, which a run without SSH need not wait for.
    from deploy.ssh import Rights, SshTransport
    from deploy.ssh_connection import SshTarget

    target = SshTarget(
        host=host,
        address=login.address,
        port=login.port,
        user=login.user,
        key_file=login.key_file,
        known_hosts=Path(login.known_hosts) if login.known_hosts else None,
    )
    # Below another root everything belongs to the user who logs in.
    rights = Rights.ROOT if root == PurePosixPath("/") else Rights.LOGIN
    transport = SshTransport(target, rights, _SUDO_PASSWORD)
    atexit.register(transport.close)
    return transport


def is_terminal() -> bool:
    """Whether a person can be asked."""
    return os.isatty(0) and os.isatty(1)


def may_change(report: Report, *, yes: bool) -> bool:
    """Whether the changes just shown may be made: `--yes` says so, or a person on a terminal."""
    if yes:
        return True
    if not is_terminal():
        report.say("nothing was changed: there is no terminal to ask on; give --yes to make these changes")
        return False
    report.say("make these changes? [y/N]")
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        return False


def refused_binary(cause: Exception) -> UsageError:
    """`OLLAMA_BIN` is the only variable that chooses a real server for the testbed."""
    return UsageError(
        sentence="`OLLAMA_BIN` names no usable Ollama",
        cause=str(cause),
        unchanged="everything",
        hint="give the path of a real `bin/ollama`, or unset it for the simulated one",
    )
