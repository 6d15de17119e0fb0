"""The task `logs`: what the servers wrote, and who changed what on the hosts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from console.changes import exit_code, outcome_of_error
from console.run import Run
from console.selected import SelectedHost, selected_hosts
from deploy import commands
from deploy.commands import Argv, shown_command
from deploy.desired import ServiceBackend
from deploy.errors import CommandFailed, ExitCode, FleetError, UsageError, errors_of
from deploy.fleet import each
from deploy.journal import parse_entries
from deploy.outcomes import HostOutcome, Outcome

Line = tuple[str, Mapping[str, Any]]
"""An event and its fields: the hosts are asked at once and told one after the other."""

UNITS = ("ollama.service", "ollama-fleet-*")
"""The server's and ours; journalctl knows a pattern's units by what they have written: journalctl(1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be shown: the last lines of the log, or with `journal` the last entries of the journal."""

    lines: int
    since: str | None
    follow: bool
    journal: bool


def show_logs(run: Run, wanted: Wanted) -> ExitCode:
    """`logs`. With `follow` it ends when every host's log has ended, or with Ctrl-C."""
    if wanted.lines < 0 or (wanted.journal and (wanted.follow or wanted.since)):
        raise UsageError(
            sentence="`logs` cannot mean that",
            cause="`--lines` counts from 0; `--journal` goes neither with `--follow` nor with `--since`",
            unchanged="everything",
            hint="./fleet logs --journal --lines 20",
        )
    hosts = selected_hosts(run)
    if wanted.follow:
        # All at once, whatever `--forks` says: none of them ends by itself.
        outcomes = each(hosts, lambda host: _told(run, host, lambda: _follow(run, host, wanted)), len(hosts))
    else:
        lines: dict[str, Sequence[Line]] = {}

        def read(host: SelectedHost) -> HostOutcome:
            return _told(run, host, lambda: lines.update({host.name: _read(host, wanted)}))

        outcomes = each(hosts, read, run.forks)
        for host in hosts:
            for event, fields in lines.get(host.name, ()):
                run.report(event, host.name, **fields)
    run.report.summary(outcomes)
    return exit_code(outcomes)


def _told(run: Run, host: SelectedHost, work: Callable[[], None]) -> HostOutcome:
    try:
        with errors_of(host.name):
            work()
    except FleetError as error:
        run.report.error(error)
        return HostOutcome(host=host.name, outcome=outcome_of_error(error), error=error)
    return HostOutcome(host=host.name, outcome=Outcome.OK)


def _read(host: SelectedHost, wanted: Wanted) -> Sequence[Line]:
    if wanted.journal:
        text = _output(host, commands.read_entries(host.paths.journal, wanted.lines))
        return [("journal", {"entry": entry}) for entry in parse_entries(text)]
    if not _has_journald(host) and not host.transport().exists(host.paths.log):
        return [("note", {"text": f"there is no log yet: {host.paths.log}"})]
    text = _output(host, _command(host, wanted)).removesuffix("\n")
    return [("log", {"line": line}) for line in text.split("\n")] if text else []


def _follow(run: Run, host: SelectedHost, wanted: Wanted) -> None:
    channel = host.transport().open_channel(commands.follow(_command(host, wanted)))
    last = ""
    try:
        while line := channel.read_line(threading.TIMEOUT_MAX):
            last = line[1:]
            run.report("log", host.name, line=last)
    finally:
        channel.close()
    raise CommandFailed(
        sentence=f"the log of `{host.name}` cannot be followed any longer",
        cause=f"the command that reads it ended, or the connection did; the last line was: {last}",
        hint=f"./fleet logs --limit {host.name}",
    )


def _has_journald(host: SelectedHost) -> bool:
    return host.settings.service is ServiceBackend.SYSTEMD


def _command(host: SelectedHost, wanted: Wanted) -> Argv:
    """What prints the last lines of a host's log; with `follow` it does not end."""
    if _has_journald(host):
        more = [f"--since={wanted.since}"] if wanted.since else []
        return commands.unit_journal(UNITS, wanted.lines, *more, *(["--follow"] if wanted.follow else []))
    if wanted.since:
        raise UsageError(
            sentence="`--since` is for hosts with `ollama_service=systemd`",
            cause=f"{host.paths.log} is a file: its lines are not found by their time",
            unchanged="everything",
            hint=f"./fleet logs --limit {host.name} --lines 1000",
        )
    reader = commands.tail_and_wait if wanted.follow else commands.tail
    return reader(host.paths.log, wanted.lines)


def _output(host: SelectedHost, argv: Argv) -> str:
    done = host.transport().run(argv)
    if done.exit_code != 0:
        raise CommandFailed(
            sentence=f"`{shown_command(argv)}` did not end well", host=host.name, cause=done.last_words
        )
    return done.stdout.decode(errors="replace")
