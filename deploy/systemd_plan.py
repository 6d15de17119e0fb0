"""The service steps of a host that systemd runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from deploy.desired import ADOPTED, Desired, GpuKind, HostFile
from deploy.errors import ServiceError, UsageError
from deploy.facts import FileFact, HostFacts, ServerProcess, SystemdFacts
from deploy.foreign_settings import adopted_store, check_drop_ins, check_settings
from deploy.server_plan import (
    ACCOUNT,
    ACCOUNT_HOME,
    MARK_NAME,
    Release,
    damaged_blobs,
    environment_differences,
    hidden_gpus,
    previous_release,
    replaced_program,
    retired_process,
    server_environment,
)
from deploy.steps import (
    Difference,
    EnableUnits,
    MakeAccount,
    OverwriteFile,
    StartServer,
    Step,
    StopServer,
    SwitchRelease,
    TakeLease,
    WriteFile,
)
from deploy.units import (
    BOOT_UNIT,
    ENABLED_UNITS,
    LOAD_UNIT,
    Hand,
    host_files,
    load_unit,
    server_files,
    user_of,
    written_by,
)

_ROOT_ID = 0
_NOT_OWNED = "a server that does not own its blobs fails to create models (measured on 0.24.0)"


def systemd_steps(desired: Desired, facts: HostFacts, release: Release) -> Iterator[Step]:
    """Account, files, lease, switch, restart: none of them on a host that is as desired.

    Raises UsageError or ServiceError for what no step of ours can mend: systemd does not run this host, no
    rights, a masked unit, settings of another drop-in, a store that belongs to somebody else.
    """
    found = _check_host(desired, facts)
    yield from _account(desired, facts, found)
    yield from write_steps(desired, found.files, host_files(desired))
    files = server_files(desired, facts, release)
    changed = tuple(write_steps(desired, found.files, files))
    loader = load_unit(desired, facts, release)
    environment = server_environment(desired, facts, release)
    check_settings(desired, found, environment)
    server, differences = _server(found, facts, environment, release)
    differences += hidden_gpus(desired, server, environment) if server is not None else ()
    differences += retired_process(server, desired) if server is not None else ()
    differences += tuple(
        Difference(what=step.file.path.name, actual=step.reason, desired="that of the inventory")
        for step in changed
        if server is not None
    )
    switch = _switch(facts, release)
    # A stopped server has no settings to go back to, but the release that the next boot would start.
    was_there = server is not None or _has_release(facts)
    takes_lease = was_there and not found.is_leased and (bool(differences) or switch is not None)
    # Before there is a lease: without it a restart of the host would not end one.
    first = (BOOT_UNIT,) if takes_lease or found.is_leased else ()
    yield from _enable(found, first)
    if takes_lease:
        yield TakeLease(
            reason="until the new server is verified",
            files=tuple(str(file.path) for file in (*files, loader)),
        )
    yield from _record_of_before(desired, found)
    yield from changed
    yield from write_steps(desired, found.files, (loader,))
    if switch is not None:
        yield switch
    for other in (*facts.servers, *facts.orphans):
        if other.process.pid != found.unit.main_pid:
            yield StopServer(reason="it runs beside the unit's server", server=other)
    if server is None or differences:
        yield from damaged_blobs(desired, facts)
        reason = "; ".join(map(str, differences)) if server is not None else _why_not_running(found)
        yield StartServer(
            reason=reason,
            differences=differences,
            version=release.name,
            environment=environment,
            account=user_of(facts),
        )
    # Last: a server whose directories a first start has yet to make would fail at the next boot.
    yield from _enable(found, tuple(name for name in ENABLED_UNITS if name not in first))


def _enable(found: SystemdFacts, names: tuple[str, ...]) -> Iterator[EnableUnits]:
    disabled = tuple(name for name in names if not is_enabled(found, name))
    if disabled:
        yield EnableUnits(reason="not started at boot", names=disabled)


def main_server(facts: HostFacts) -> ServerProcess | None:
    """The process that systemd runs for the unit."""
    pid = facts.systemd.unit.main_pid if facts.systemd is not None else None
    return next((server for server in facts.servers if server.process.pid == pid), None)


def _check_host(desired: Desired, facts: HostFacts) -> SystemdFacts:
    host, found = desired.host, facts.systemd
    if found is None:
        raise UsageError(
            sentence=f"systemd does not run `{host}`",
            host=host,
            cause="there is no /run/systemd/system; containers and notebooks are usual",
            unchanged="everything",
            hint="set `ollama_service=process` for this host in the inventory",
        )
    if facts.user_id != _ROOT_ID:
        raise UsageError(
            sentence=f"`ollama_service=systemd` needs root on `{host}`",
            host=host,
            cause=f"the commands run as user {facts.user_id}",
            unchanged="everything",
            hint="sudo ./fleet, or set `ollama_service=process` for this host in the inventory",
        )
    if found.unit.load_state == "masked":
        raise ServiceError(
            sentence="the unit `ollama.service` is masked",
            host=host,
            unchanged="everything",
            hint="systemctl unmask ollama.service",
        )
    check_drop_ins(desired, found)
    _check_store(desired, facts, found)
    return found


def _check_store(desired: Desired, facts: HostFacts, found: SystemdFacts) -> None:
    user, store = user_of(facts), desired.paths.models_dir
    if facts.store_owner not in (None, user):
        raise ServiceError(
            sentence=f"the model store `{store}` belongs to another account than the server's",
            host=desired.host,
            expected=user,
            actual=facts.store_owner,
            cause=_NOT_OWNED,
            unchanged="everything",
            hint="set `ollama_models_dir` to a directory of its own; where all of it is Ollama's: "
            f"{_owning(found)}chown -R {user}: {store}",
        )
    _check_weights(desired, facts, user)
    was_ours = facts.current is not None or facts.previous is not None
    if found.adopted_program is None or was_ours:
        return
    actual = adopted_store(found, main_server(facts))
    if actual != str(store):
        raise ServiceError(
            sentence=f"the server that would be adopted keeps its models in `{actual}`",
            host=desired.host,
            expected=str(store),
            actual=actual,
            cause="its models would be gone from the API",
            unchanged="everything",
            hint=f"set `ollama_models_dir={actual}` for `{desired.host}` in the inventory",
        )


def _check_weights(desired: Desired, facts: HostFacts, user: str) -> None:
    """Somebody has copied them there as another account. root may do with them as it likes."""
    blobs = {model.weights.sha256: facts.blobs.get(model.weights.sha256) for model in desired.models}
    for sha256, blob in sorted(blobs.items()):
        if user != "root" and blob is not None and blob.owner not in (None, user):
            path = desired.paths.models_dir / "blobs" / f"sha256-{sha256}"
            raise ServiceError(
                sentence=f"the weights `{path}` belong to another account than the server's",
                host=desired.host,
                expected=user,
                actual=blob.owner,
                cause=_NOT_OWNED,
                unchanged="everything",
                hint=f"chown {user}: {path}",
            )


def _owning(found: SystemdFacts) -> str:
    """What makes the account that is to own the store, where somebody has removed it."""
    if found.account is not None:
        return ""
    return f"systemd-sysusers --inline 'u {ACCOUNT} - \"Ollama\" {ACCOUNT_HOME}'; "


def _account(desired: Desired, facts: HostFacts, found: SystemdFacts) -> Iterator[Step]:
    if user_of(facts) == "root":
        return
    account = found.account
    groups = found.gpu_groups if desired.gpu is GpuKind.NVIDIA else ()
    missing = tuple(name for name in groups if account is None or name not in account.groups)
    if account is not None and not missing:
        return
    name = account.name if account is not None else ACCOUNT
    home = account.home if account is not None else ACCOUNT_HOME
    actual = None if account is None else ", ".join(account.groups)
    difference = Difference(what=f"account {name}", actual=actual, desired=", ".join((name, *groups)))
    yield MakeAccount(reason=str(difference), differences=(difference,), name=name, home=home, groups=missing)


def write_steps(
    desired: Desired, found: Mapping[str, FileFact], files: tuple[HostFile, ...], owner: str = "root"
) -> Iterator[WriteFile | OverwriteFile]:
    """For each file that is not as it should be; one that another hand has edited is told apart."""
    for file in files:
        fact = found.get(str(file.path))
        if fact is None:
            yield WriteFile(reason="absent", file=file)
        elif fact.text != file.text:
            differences = line_differences(fact.text, file.text)
            if written_by(fact.text) is Hand.OURS:
                yield WriteFile(reason="other settings", differences=differences, file=file)
            else:
                reason = "edited by hand: " + "; ".join(map(str, differences))
                # The name tells the content: the same edit is kept once, however often it is made.
                digest = hashlib.sha256(fact.text.encode()).hexdigest()[:12]
                backup = desired.paths.backups / f"{file.path.name}.{digest}"
                yield OverwriteFile(reason=reason, differences=differences, file=file, backup=backup)
        else:
            # A script that root runs and another account may change is that account's way to root.
            actual, wanted = {"mode": fact.mode, "owner": fact.owner}, {"mode": file.mode, "owner": owner}
            differences = tuple(
                Difference(what=what, actual=actual[what], desired=wanted[what])
                for what in wanted
                if actual[what] != wanted[what]
            )
            if differences:
                yield WriteFile(reason="; ".join(map(str, differences)), differences=differences, file=file)


def line_differences(actual: str, desired: str) -> tuple[Difference, ...]:
    """The lines that only one of two files has; comments say nothing."""

    def lines(text: str) -> list[str]:
        found = (line.strip() for line in text.splitlines())
        return [line for line in found if line and not line.startswith("#")]

    old, new = lines(actual), lines(desired)
    gone = tuple(Difference(what="line", actual=line, desired=None) for line in old if line not in new)
    come = tuple(Difference(what="line", actual=None, desired=line) for line in new if line not in old)
    return gone + come or (Difference(what="text", actual="other comments or order", desired="ours"),)


def _server(
    found: SystemdFacts, facts: HostFacts, environment: dict[str, str], release: Release
) -> tuple[ServerProcess | None, tuple[Difference, ...]]:
    """The unit's running server and what of it is not as desired."""
    server = main_server(facts)
    if server is None or found.unit.active_state not in ("active", "reloading"):
        return None, ()
    differences = environment_differences(server.environment, environment)
    differences += replaced_program(server, facts, release)
    names = {sha256: name for name, sha256 in facts.releases.items()} | {release.mark: release.name}
    return server, tuple(_by_name(names, difference) for difference in differences)


def _by_name(names: Mapping[str, str], difference: Difference) -> Difference:
    """A release is known by its name; its mark says nothing to a reader."""
    if difference.what != MARK_NAME:
        return difference
    actual = names.get(difference.actual, difference.actual)
    desired = names.get(difference.desired, difference.desired)
    if desired == ADOPTED and str(actual).startswith(f"{ADOPTED}-"):
        actual = f"{ADOPTED}, from a program that was replaced since"
    return Difference(what="running release", actual=actual, desired=desired)


def _switch(facts: HostFacts, release: Release) -> SwitchRelease | None:
    wanted = None if release.is_adopted else release.name
    if facts.current == wanted:
        return None
    change = Difference(what="current release", actual=facts.current, desired=wanted)
    is_foreign = facts.systemd is not None and facts.systemd.adopted_program is not None
    previous = ADOPTED if is_foreign and facts.current is None else previous_release(facts)
    return SwitchRelease(reason=str(change), differences=(change,), previous=previous, version=release.name)


def _record_of_before(desired: Desired, found: SystemdFacts) -> Iterator[WriteFile]:
    """A server that is adopted will run, at every boot: what it did before is kept for `remove`.

    Written before the first of our files that tell an adopted host from one that is not.
    """
    unit, paths = found.unit, desired.paths
    is_ours = any(str(path) in found.files for path in (paths.drop_in, paths.units / LOAD_UNIT))
    if found.adopted_program is None or is_ours:
        return
    active = "active" if unit.active_state in ("active", "reloading", "activating") else "inactive"
    if (active, unit.enabled) != ("active", "enabled"):
        text = f"{active} {unit.enabled}\n"
        yield WriteFile(reason="how it is before us", file=HostFile(path=paths.adopted_record, text=text))


def _has_release(facts: HostFacts) -> bool:
    """Whether there is one that a start of the unit would run."""
    if facts.current is not None:
        return facts.current in facts.releases
    return facts.systemd is not None and facts.systemd.adopted_program is not None


def is_enabled(found: SystemdFacts, name: str) -> bool:
    """Whether systemd starts the unit by itself."""
    unit = found.units.get(name)
    return unit is not None and unit.enabled == "enabled"


def _why_not_running(found: SystemdFacts) -> str:
    unit = found.unit
    if not unit.exists:
        return "there is no unit"
    return f"the unit is {unit.active_state}" + (f" ({unit.result})" if unit.result != "success" else "")
