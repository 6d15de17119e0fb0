"""Back to what served before a run whose step failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from deploy import commands, services, systemd
from deploy.apply import Site, start, stop_servers, swap_with_previous, wait_until_ready
from deploy.desired import ADOPTED, ServiceBackend
from deploy.errors import FleetError, HostLocked, HostUnreachable, designed_error
from deploy.facts import HostFacts
from deploy.ollama_api import OllamaApi
from deploy.plan import Plan
from deploy.steps import (
    CreateModel,
    EndLease,
    PromoteModel,
    RestoreModel,
    StartServer,
    Step,
    StopServer,
    SwitchRelease,
    TakeLease,
)
from deploy.systemd_plan import is_enabled, main_server
from deploy.units import ENABLED_UNITS, UNIT

DEFAULT_ADDRESS = "127.0.0.1:11434"
"""Where a server listens whose environment does not say: Ollama's `envconfig/config.go`."""


def go_back(
    site: Site, before: HostFacts, todo: Plan, error: FleetError, *, done: Sequence[Step] = ()
) -> str:
    """Bring back what served before a failed run; returns what was left unchanged, in words.

    What a run has confirmed stays: a release, and the models that were proven on it.
    """
    if any(isinstance(step, EndLease) for step in done):
        return error.unchanged or "what was verified and confirmed serves on"
    said = []
    try:
        now = site.probe()
        touches = any(isinstance(step, SwitchRelease | StopServer | StartServer) for step in todo.steps)
        if touches or (now.systemd is not None and now.systemd.is_leased):
            if now.servers and not before.servers:
                # It is stopped next; one that does not even answer is stopped all the same.
                with suppress(FleetError):
                    _delete_candidates(site, todo)
            said.append(_SERVE_AS_BEFORE[site.desired.server.backend](site, before, now))
        if any(isinstance(step, PromoteModel) for step in todo.steps):
            said.append(_serve_models_as_before(site, before, todo))
        if any(isinstance(step, RestoreModel) for step in todo.steps):
            said.append(_swap_back(site, before, todo))
        if any(isinstance(step, CreateModel) for step in todo.steps):
            said.append(_drop_candidates(site, todo))
    except Exception as failure:  # noqa: BLE001 - the first error is the one to tell
        second = designed_error(failure)
        why = f" ({second.cause})" if second.cause else ""
        if isinstance(second, HostLocked):
            # It is another deploy's host now, a lease that is left there too.
            said.append(f"nothing was taken back: {second.sentence}")
        elif any(isinstance(step, TakeLease) for step in done) and _may_go_back(site):
            said.append("the host goes back by itself, when its lease runs out or at its next start")
        else:
            said.append(f"going back failed too: {second.sentence}{why}{_how_to_see(site)}")
    kept = "; ".join(part for part in said if part)
    # What could not be reached says nothing of what was done before.
    first = None if done and isinstance(error, HostUnreachable) else error.unchanged
    return "; ".join(part for part in (first, kept) if part) or "what was served before"


def _may_go_back(site: Site) -> bool:
    """A lease that cannot be asked for may be there; one that was taken back and failed has no timer."""
    try:
        return systemd.runs_out(site.transport)
    except FleetError:
        return True


def _how_to_see(site: Site) -> str:
    if site.desired.server.backend is not ServiceBackend.SYSTEMD:
        return ""
    return f"; on the host: journalctl -u {UNIT} -n 20"


def _start_as_before(site: Site, before: HostFacts, now: HostFacts) -> str:
    paths = site.desired.paths
    if now.current != before.current:
        site.transport.run(commands.switch_current(paths, before.current, before.previous))
    served = before.servers[0] if before.servers else None
    binary = services.binary_of(served) if served is not None else None
    version = binary.parent.parent.name if binary is not None else "of an unknown origin"
    if served is not None and any(item.process.same_as(served.process) for item in now.servers):
        return f"release {version} serves on (pid {served.process.pid})"
    for server in now.servers:
        services.stop_server(site.transport, server.process)
    said = "no server ran before and none runs now"
    if served is not None and binary is not None:
        again = StartServer(reason="as before", version=version, environment=served.environment)
        start(_with_settings(site, served.environment), again, None)
        said = f"release {version} serves again, as before"
    if not before.is_unproven:
        services.confirm_server(site.transport, paths)
    return said


def _revert_unit(site: Site, before: HostFacts, now: HostFacts) -> str:
    """The host's own way back: the one that the lease's timer would take."""
    served, serves = main_server(before), main_server(now)
    if now.systemd is not None and now.systemd.is_leased:
        name = systemd.revert(site.transport, site.desired, "a step of the deploy failed")
        # What runs may be that of a run that was cut: only the lease knows what there was before it.
        may_rest = served is None or (before.systemd is not None and before.systemd.is_leased)
        found = site.probe().systemd
        if may_rest and found is not None and found.unit.active_state == "inactive":
            return f"release {name} is current again and its server stopped, as before"
        wait_until_ready(site if served is None else _with_settings(site, served.environment))
        return f"release {name} serves again, as before"
    if served is not None and serves is not None and serves.process.same_as(served.process):
        return f"release {before.current or ADOPTED} serves on (pid {served.process.pid})"
    if served is not None:
        return ""
    _end_first_server(site, before, now)
    return "no server ran before and none runs now"


def _end_first_server(site: Site, before: HostFacts, now: HostFacts) -> None:
    """Nor does it run after the next start of the host: nothing of it is proven."""
    was, found = before.systemd, now.systemd
    if found is None or not found.unit.exists:
        return
    enabled = (name for name in ENABLED_UNITS if is_enabled(found, name))
    ours = tuple(name for name in enabled if was is None or not is_enabled(was, name))
    if ours:
        systemd.disable_units(site.transport, ours)
    stop_servers(site)


def _with_settings(site: Site, environment: Mapping[str, str]) -> Site:
    """The same host as it was: another port is where it is awaited then."""
    settings = {"OLLAMA_HOST": DEFAULT_ADDRESS, **environment}
    server = replace(site.desired.server, environment=settings)
    return replace(site, desired=replace(site.desired, server=server))


_SERVE_AS_BEFORE = {ServiceBackend.PROCESS: _start_as_before, ServiceBackend.SYSTEMD: _revert_unit}


def _serve_models_as_before(site: Site, before: HostFacts, todo: Plan) -> str:
    """A model that was promoted goes with the server that it was proven on."""
    now = site.probe()
    back = []
    for step in todo.steps:
        if not isinstance(step, PromoteModel) or not step.keeps_previous:
            continue
        latest, previous = f"{step.model.name.lower()}:latest", f"{step.model.name.lower()}:previous"
        was = before.models.get(latest)
        if was is not None and now.models.get(latest) != was and now.models.get(previous) == was:
            with site.transport.http_url(site.desired.url) as url:
                OllamaApi(site.host, url).copy(previous, latest)
            back.append(f"`{latest}` is again the one that was there before")
    return "; ".join(back)


def _swap_back(site: Site, before: HostFacts, todo: Plan) -> str:
    """What `rollback` has swapped, as a whole or in part, is what it was; loaded again, as it was."""
    served = []
    names = [step.model.name for step in todo.steps if isinstance(step, RestoreModel)]
    with site.transport.http_url(site.desired.url) as url:
        api = OllamaApi(site.host, url)
        for name in names if site.probe().servers else ():
            was, now = before.models[f"{name.lower()}:latest"], site.probe().models
            if now.get(f"{name.lower()}:latest") != was:
                if now.get(f"{name.lower()}:previous") == was:
                    swap_with_previous(api, name)
                else:
                    api.copy(f"{name}:candidate", f"{name}:latest")
            api.delete(f"{name}:candidate")
            # Verified under this name: the runner would go on under it.
            api.unload(f"{name}:previous")
            api.load(f"{name}:latest")
            served.append(f"`{name}:latest` is the one that was there before")
    return "; ".join(served)


def _delete_candidates(site: Site, todo: Plan) -> None:
    with site.transport.http_url(site.desired.url) as url:
        api = OllamaApi(site.host, url)
        for step in todo.steps:
            if isinstance(step, CreateModel):
                api.unload(f"{step.model.name}:candidate")
                api.delete(f"{step.model.name}:candidate")


def _drop_candidates(site: Site, todo: Plan) -> str:
    served = []
    with site.transport.http_url(site.desired.url) as url:
        api = OllamaApi(site.host, url)
        for step in todo.steps:
            if isinstance(step, CreateModel) and site.probe().servers:
                # Or the runner would go on under the deleted name for as long as it lives.
                api.unload(f"{step.model.name}:candidate")
                api.delete(f"{step.model.name}:candidate")
                if f"{step.model.name.lower()}:latest" in site.probe().models:
                    # Two names of the same weights share a runner (seen on 0.17.5 and 0.24.0): it is gone.
                    served.append(f"`{step.model.name}:latest` is the one that was there before")
                    try:
                        api.load(f"{step.model.name}:latest")
                    except FleetError as error:
                        # Its weights may be what was wrong.
                        served.append(f"{error.sentence}: {error.cause}")
    return "; ".join(served)
