"""The files that a host with systemd gets from us: unit, drop-in, scripts and timers, each signed.

The signature, the sha256 of the rest in a comment, tells a file that we wrote with other settings from one
that was edited by hand: the first is replaced, the second only on request.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from enum import Enum
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2

from deploy.desired import Desired, GpuKind, HostFile
from deploy.facts import HostFacts
from deploy.server_plan import ACCOUNT, MARK_NAME, Release, server_environment

TEMPLATES = Path(__file__).with_name("templates")

UNIT = "ollama.service"
LOAD_UNIT = "ollama-fleet-load.service"
BOOT_UNIT = "ollama-fleet-boot.service"
LEASE_UNIT = "ollama-fleet-lease.service"
LEASE_TIMER = "ollama-fleet-lease.timer"
HEALTH_UNIT = "ollama-fleet-health.service"
HEALTH_TIMER = "ollama-fleet-health.timer"
ENABLED_UNITS = (UNIT, BOOT_UNIT)
"""What systemd starts at every boot; `LOAD_UNIT` comes with the server, the lease's timer with a lease."""

OUR_UNITS = (LOAD_UNIT, BOOT_UNIT, LEASE_UNIT, LEASE_TIMER, HEALTH_UNIT, HEALTH_TIMER)

HOUR_MINUTES, DAY_MINUTES = 60, 1440
_LONGEST_DELAY_SECONDS = 300

_SIGNED = "# Written by ollama-fleet; edits are drift, and kept until told otherwise. sha256 of the rest: "
_SIGNATURE = re.compile(f"^{re.escape(_SIGNED)}(?P<sha256>[0-9a-f]{{64}})\n", re.MULTILINE)
_JINJA = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    auto_reload=False,  # or each of a thousand hosts would look whether the files have changed
    autoescape=False,  # noqa: S701 - unit files are no HTML; `quoted` is their escaping
)


class Hand(Enum):
    """Who wrote a file."""

    OURS = "ours"
    OTHER = "other"


def render_signed(text: str) -> str:
    """The text with its signature, below a `#!` line if there is one."""
    first, rest = text.split("\n", 1) if text.startswith("#!") else ("", text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    line = f"{_SIGNED}{sha256}\n"
    return f"{first}\n{line}{rest}" if first else line + rest


def written_by(text: str) -> Hand:
    """Ours is a file that is as some version of us wrote it."""
    found = _SIGNATURE.search(text)
    if found is None:
        return Hand.OTHER
    rest = text[: found.start()] + text[found.end() :]
    return Hand.OURS if hashlib.sha256(rest.encode()).hexdigest() == found["sha256"] else Hand.OTHER


def quoted(text: str) -> str:
    """A value as one word in a unit file: systemd.syntax(7) for quotes, systemd.unit(5) for `%`."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def user_of(facts: HostFacts) -> str:
    """Whom the server runs as: another hand's unit decides for itself, `root` where it names nobody.

    What somebody has edited into a unit of ours does not count: it is drift.
    """
    found = facts.systemd
    if found is None or found.adopted_program is None:
        return ACCOUNT
    return found.user or "root"


def server_files(desired: Desired, facts: HostFacts, release: Release) -> tuple[HostFile, ...]:
    """The files that the server's process depends on: a change needs a restart."""
    paths = desired.paths
    drop_in = render_file(paths.drop_in, "50-fleet.conf.j2", **_drop_in_values(desired, facts, release))
    if not _has_own_unit(facts):
        # Another hand's unit is adopted as it is.
        return (drop_in,)
    return (render_file(paths.unit, "ollama.service.j2", current=paths.current, user=ACCOUNT), drop_in)


def _has_own_unit(facts: HostFacts) -> bool:
    return facts.systemd is None or facts.systemd.adopted_program is None


def host_files(desired: Desired) -> tuple[HostFile, ...]:
    """The files that no release and no setting of the server changes: scripts, and what ends a lease."""
    paths = desired.paths
    files = [render_file(paths.programs / name, f"{name}.sh", mode="755") for name in ("lease", "load")]
    files += [render_file(paths.units / name, name) for name in (LEASE_UNIT, LEASE_TIMER, BOOT_UNIT)]
    if desired.gpu is GpuKind.NVIDIA:
        text = "# Before the server starts: later, CUDA finds no device and the CPU computes.\nnvidia-uvm\n"
        files.append(HostFile(path=paths.modules_load, text=render_signed(text)))
    return tuple(files)


def load_unit(desired: Desired, facts: HostFacts, release: Release) -> HostFile:
    """The oneshot that loads the models with the server's own binary; it goes back with the server."""
    paths = desired.paths
    adopted = facts.systemd.adopted_program if facts.systemd is not None and release.is_adopted else None
    environment = server_environment(desired, facts, release)
    return render_file(
        paths.units / LOAD_UNIT,
        "ollama-fleet-load.service.j2",
        load=paths.programs / "load",
        binary=adopted or paths.current / "bin/ollama",
        models=" ".join(f"{model.name}:latest" for model in desired.models),
        user=user_of(facts),
        environment=[quoted(f"{name}={environment[name]}") for name in ("HOME", "OLLAMA_HOST", "PATH")],
    )


def health_arguments(desired: Desired) -> tuple[str, ...]:
    """What `health.sh` must know of the host, after its action."""
    return (
        *(desired.host, str(desired.paths.root), str(desired.paths.models_dir)),
        *(desired.server.environment["OLLAMA_HOST"], str(desired.server.backend), str(desired.gpu)),
        *(model.name for model in desired.models),
    )


def health_program(desired: Desired) -> HostFile:
    """What the timer runs; `./fleet health` sends it along, for hosts that have it not or another one."""
    return render_file(desired.paths.health_program, "health.sh", mode="755")


def health_files(desired: Desired, every_minutes: int) -> tuple[HostFile, ...]:
    """What has the host check itself: the program, its unit and its timer."""
    paths = desired.paths
    return (
        health_program(desired),
        render_file(
            paths.units / HEALTH_UNIT,
            "ollama-fleet-health.service.j2",
            program=paths.health_program,
            # systemd.service(5): a `$` would be a variable.
            arguments=[quoted(word).replace("$", "$$") for word in health_arguments(desired)],
        ),
        render_file(
            paths.units / HEALTH_TIMER,
            "ollama-fleet-health.timer.j2",
            every=period_text(every_minutes),
            calendar=calendar_of(every_minutes),
            delay_seconds=min(every_minutes * 12, _LONGEST_DELAY_SECONDS),
        ),
    )


def calendar_of(every_minutes: int) -> str:
    """systemd.time(7) for a period that divides an hour or a day."""
    if every_minutes < HOUR_MINUTES:
        return f"*:0/{every_minutes}"
    return "daily" if every_minutes == DAY_MINUTES else f"0/{every_minutes // HOUR_MINUTES}:00"


def period_text(every_minutes: int) -> str:
    """As the inventory says it."""
    if every_minutes < HOUR_MINUTES:
        return f"{every_minutes}m"
    return "1d" if every_minutes == DAY_MINUTES else f"{every_minutes // HOUR_MINUTES}h"


def _drop_in_values(desired: Desired, facts: HostFacts, release: Release) -> dict[str, Any]:
    paths = desired.paths
    environment = server_environment(desired, facts, release)
    if not release.is_adopted:
        # It comes with the release itself, by EnvironmentFile.
        del environment[MARK_NAME]
    writable = dict.fromkeys([environment["HOME"], str(paths.models_dir)])
    if facts.systemd is not None and facts.systemd.store is not None:
        # systemd 252 follows no link in a path below another one that may be written to.
        writable[facts.systemd.store] = None
    below_home = any(path.startswith(("/home/", "/root", "/run/user/")) for path in writable)
    address = environment["OLLAMA_HOST"].rpartition(":")[0]
    return {
        "gpu": desired.gpu is GpuKind.NVIDIA,
        "own_unit": _has_own_unit(facts),
        "release": not release.is_adopted,
        "current": paths.current,
        "load_unit": LOAD_UNIT,
        "environment": [quoted(f"{name}={value}") for name, value in sorted(environment.items())],
        "below_home": below_home,
        "writable": [quoted(path) for path in writable],
        "loopback": address in ("127.0.0.1", "[::1]", "localhost"),
    }


def render_file(path: PurePosixPath, template: str, mode: str = "644", **values: object) -> HostFile:
    """A template of ours with these values, signed."""
    text = _rendered(template, values) if values else _the_same_everywhere(template)
    return HostFile(path=path, text=text, mode=mode)


@cache
def _the_same_everywhere(template: str) -> str:
    return _rendered(template, {})


def _rendered(template: str, values: Mapping[str, object]) -> str:
    return render_signed(_JINJA.get_template(template).render(values))
