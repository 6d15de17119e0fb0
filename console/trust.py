"""`trust`: show the host keys that nobody has seen yet, ask, and remember them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from console.changes import outcome_of_error
from console.run import inventory_path, is_terminal
from deploy.compose import known_hosts_beside
from deploy.errors import ExitCode, FleetError, UsageError, errors_of
from deploy.host_keys import HostKey, KnownHosts
from deploy.outcomes import HostOutcome, Outcome
from deploy.report import Report
from deploy.settings import Connection, load_settings, parse_data_home
from deploy.ssh_connection import SshTarget, untrusted_keys

_JUMPS_AT_MOST = 8


def trust_asking(report: Report, inventory: str | None, pattern: str, *, yes: bool) -> ExitCode:
    """Trust every selected host, its jump hosts first. A key that changed is an error and stays one."""
    outcomes = []
    path = inventory_path(inventory)
    known = KnownHosts(beside_inventory=known_hosts_beside(str(path)))
    for target in _targets(path, pattern, known):
        try:
            with errors_of(target.host):
                outcome = _trust(report, target, yes=yes)
        except FleetError as error:
            report.error(error)
            outcome = HostOutcome(host=target.host, outcome=outcome_of_error(error), error=error)
        outcomes.append(outcome)
    report.summary(outcomes, known_hosts=str(known.kept))
    refused = any(outcome.outcome is Outcome.SKIPPED for outcome in outcomes)
    codes = [outcome.exit_code for outcome in outcomes]
    return max([*codes, ExitCode.USAGE if refused else ExitCode.DONE])


def _targets(path: Path, pattern: str, known: KnownHosts) -> tuple[SshTarget, ...]:
    data_home = parse_data_home(os.environ, PurePosixPath(Path.home()))
    inventory, settings = load_settings(path, data_home=data_home)
    chosen = {host.name: settings[host.name] for host in inventory.select(pattern)}
    if not chosen:
        raise UsageError(
            sentence=f"`{pattern}` selects no host",
            unchanged="everything",
            hint=f"./fleet inventory --list --inventory {path}",
        )
    return tuple(
        SshTarget(
            host=name,
            address=host.address,
            port=host.port,
            user=host.user,
            known_hosts=known.beside_inventory,
        )
        for name, host in chosen.items()
        if host.connection is Connection.SSH
    )


def _trust(report: Report, target: SshTarget, *, yes: bool) -> HostOutcome:
    added = 0
    for _ in range(_JUMPS_AT_MOST):
        keys = untrusted_keys(target)
        if not keys:
            break
        _show(report, target, keys)
        if not _agreed(report, yes=yes):
            return HostOutcome(host=target.host, outcome=Outcome.SKIPPED, steps_done=added)
        path = target.known.add(keys)
        added += len(keys)
        report("note", target.host, text=f"{keys[0].name} is trusted from now on: {path}")
    if not added:
        report("note", target.host, text="its host key is known and is the one that it offers")
    return HostOutcome(host=target.host, outcome=Outcome.CHANGED if added else Outcome.OK, steps_done=added)


def _show(report: Report, target: SshTarget, keys: Sequence[HostKey]) -> None:
    rows = [{"kind": key.kind, "fingerprint": key.fingerprint} for key in keys]
    report("host_keys", target.host, name=keys[0].name, keys=rows)
    report.say(f"{target.host}: {keys[0].name} is not known; it offers")
    for key in keys:
        report.say(f"  {key.fingerprint}  ({key.kind})")
    report.say("compare with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on that host")


def _agreed(report: Report, *, yes: bool) -> bool:
    if yes:
        return True
    if not is_terminal():
        report.say("nothing was added: there is no terminal to ask on; give --yes to trust these keys")
        return False
    report.say("trust this host? [y/N]")
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        return False
