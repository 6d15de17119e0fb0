"""What a run tells: one JSON event a line, plain lines, or progress on a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from deploy.errors import FleetError, error_fields, render_error
from deploy.journal import render_entry_line
from deploy.outcomes import HostOutcome

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PROGRESS_SECONDS = 1.0
_MIB = 1024 * 1024


class Report:
    """Receives every event of a run (`deploy.outcomes.Events`); safe to call from many threads.

    With `as_json` each event is one line on standard output and nothing else is; otherwise standard output
    gets words for people, with a progress bar where it is a terminal. A reader that goes away (`| head -1`, a
    closed terminal) never stops the work: the rest is told to nobody.
    """

    def __init__(
        self,
        *,
        as_json: bool,
        inventory: str | None = None,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self._stdout = _forgiving(stdout or sys.stdout)
        self._stderr = _forgiving(stderr or sys.stderr)
        self._json = as_json
        self._inventory = inventory
        self._lock = threading.RLock()
        self._last_progress: dict[str, float] = {}
        self._ended = False
        self._bars = None if as_json or not self._stdout.isatty() else _Bars(self._stdout)
        self.started = time.monotonic()

    def __call__(self, event: str, host: str | None, **fields: Any) -> None:
        with self._lock, self._without_reader():
            # After a second Ctrl-C a thread may still run: the summary stays the last event.
            if self._ended or (event == "progress" and not self._is_due(host, fields)):
                return
            if self._json:
                self._write_json({"event": event, **({"host": host} if host else {}), **fields})
            elif event == "progress" and self._bars is not None:
                self._bars.show(host or "", fields)
            else:
                render = _LINES.get(event)
                line = render(fields) if render is not None else None
                if line is not None:
                    if self._bars is not None:
                        self._bars.clear()
                    prefix = f"{host}: " if host else ""
                    self._print("\n".join(prefix + part for part in line.splitlines()))

    def say(self, text: str) -> None:
        """Words for people only; never on standard output with `--json`."""
        with self._lock, self._without_reader():
            print(text, file=self._stderr if self._json else self._stdout, flush=True)

    def text(self, event: str, text: str, **fields: Any) -> None:
        """A whole text as it is, without a prefix; with `--json` the field `text` of one event."""
        if self._json:
            self(event, None, **fields, text=text)
            return
        with self._lock, self._without_reader():
            self._stdout.write(text)
            self._stdout.flush()

    def error(self, error: FleetError) -> None:
        """A designed error: to standard error, and as an event with `--json`.

        Its hint names the inventory that was given: the next command is about the same hosts.
        """
        if self._inventory is not None and error.hint is not None:
            error.hint = _naming(self._inventory, error.hint)
        with self._lock, self._without_reader():
            if self._json:
                self._write_json({"event": "error", **error_fields(error)})
            print(render_error(error), file=self._stderr, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table for people; with `--json` the rows were events already."""
        if self._json or not rows:
            return
        with self._lock, self._without_reader():
            self._table(title, columns, rows)

    def _table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if self._stdout.isatty():
            from rich.console import Console
            from rich.table import Table

            table = Table(title=title, title_justify="left")
            for column in columns:
                table.add_column(column)
            for row in rows:
                table.add_row(*row)
            Console(file=self._stdout).print(table)
            return
        widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
        lines = [title]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [columns, *rows]
        ]
        self._print("\n".join(lines))

    def summary(self, outcomes: Sequence[HostOutcome], **more: Any) -> None:
        """The last event of every run."""
        counts = {
            "hosts": len(outcomes),
            "changed": sum(1 for outcome in outcomes if outcome.outcome == "changed"),
            "failed": sum(1 for outcome in outcomes if outcome.outcome == "failed"),
            "unreachable": sum(1 for outcome in outcomes if outcome.outcome == "unreachable"),
        }
        self.close()
        self("summary", None, **counts, **more, seconds=round(time.monotonic() - self.started, 2))
        self._ended = True

    def close(self) -> None:
        """Take progress bars off the terminal."""
        if self._bars is not None:
            with self._lock, self._without_reader():
                self._bars.clear()

    @contextlib.contextmanager
    def _without_reader(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            for stream in (self._stdout, self._stderr):
                _turn_away(stream)

    def _print(self, text: str) -> None:
        print(text, file=self._stdout, flush=True)

    def _write_json(self, event: Mapping[str, Any]) -> None:
        print(render_json(event, self._stdout), file=self._stdout, flush=True)

    def _is_due(self, host: str | None, fields: Mapping[str, Any]) -> bool:
        """A terminal is redrawn at every event; lines and JSON come once a second, and at the end."""
        if self._bars is not None:
            return True
        key, now = f"{host} {fields.get('file')}", time.monotonic()
        ended = fields.get("bytes") == fields.get("total_bytes")
        if not ended and now - self._last_progress.get(key, now - 2 * PROGRESS_SECONDS) < PROGRESS_SECONDS:
            return False
        self._last_progress[key] = now
        return True


def _naming(inventory: str, hint: str) -> str:
    given = f" --inventory {shlex.quote(inventory)}"
    if given in hint:
        return hint
    return hint.replace(" --limit ", f"{given} --limit ").replace("./fleet trust ", f"./fleet trust{given} ")


def _forgiving(stream: TextIO | None) -> TextIO:
    """The stream itself; nowhere where the caller closed it (`>&-`). What it cannot spell is escaped."""
    if stream is None:
        return Path(os.devnull).open("w")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def render_json(value: object, stream: TextIO, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON as this stream can spell it: where that is not Unicode (`LC_ALL=C`), JSON's own escapes.

    Those of Python's `backslashreplace` (x and two digits) are none of them.
    """
    spells_all = (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")
    return json.dumps(value, ensure_ascii=not spells_all, indent=indent, sort_keys=sort_keys)


def _turn_away(stream: TextIO) -> None:
    """Let a stream that cannot be written to end in nothing, its unwritten rest too; a good one stays."""
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Bars:
    """rich's progress bars, one a file, made only when the first byte moves."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def show(self, host: str, fields: Mapping[str, Any]) -> None:
        progress = self._progress or self._make()
        key = f"{host} {fields['file']}"
        words = f"{host}: {fields.get('doing', '')} {fields['file']}"
        if key not in self._tasks:
            self._tasks[key] = progress.add_task(words, total=None)
        progress.update(
            self._tasks[key], description=words, completed=fields["bytes"], total=fields.get("total_bytes")
        )

    def clear(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._tasks = None, {}

    def _make(self) -> Progress:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = self._console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._progress.start()
        return self._progress

    def _console(self) -> Console:
        from rich.console import Console

        return Console(file=self._stdout)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _plan(fields: Mapping[str, Any]) -> str:
    if not fields["steps"]:
        return "nothing to change"
    lines = [f"{_count(len(fields['steps']), 'step')}:"]
    lines += [f"  {s['phase']:<8} {s['step']:<16} {s['subject']} ({s['reason']})" for s in fields["steps"]]
    lines += [f"  {note}" for note in fields.get("notes", ())]
    return "\n".join(lines)


def _progress_line(fields: Mapping[str, Any]) -> str:
    total = fields.get("total_bytes")
    text = f"  {fields.get('doing', '')} {fields['file']}: {fields['bytes'] / _MIB:.1f} MiB"
    if total:
        text += f" of {total / _MIB:.1f} MiB"
    if fields.get("bytes_per_second"):
        text += f", {fields['bytes_per_second'] / _MIB:.1f} MiB/s"
    if fields.get("eta_seconds"):
        text += f", {fields['eta_seconds']:.0f} s left"
    return text


def _case(fields: Mapping[str, Any]) -> str:
    verdict = "passed" if fields["passed"] else "FAILED"
    run = f", run {fields['run']}" if fields.get("run", 1) > 1 else ""
    lines = [f"  {fields['case']:<18} {fields['mode']:<7} {verdict}  {fields['seconds']:.2f} s{run}"]
    lines += [
        f"    rule {f['rule']} ({f['severity']}) {f['where']}: {f['reason']}"
        for f in fields.get("findings", ())
        if f["severity"] != "warn"
    ]
    if fields.get("error"):
        lines.append(f"    {fields['error']}")
    return "\n".join(lines)


def _rates(fields: Mapping[str, Any]) -> str | None:
    """The rules that were not always met; all of them are in the event, and in the table of several runs."""

    def said(rate: Mapping[str, Any]) -> str:
        low, high = 100 * rate["low"], 100 * rate["high"]
        return f"{rate['successes']} of {rate['trials']} ({low:.0f} to {high:.0f} %)"

    parts = [f"rule {rate['rule']}: {said(rate)}" for rate in fields["rules"] if rate["share"] < 1]
    if fields["schema_accuracy"]["trials"]:
        parts.insert(0, f"good calls: {said(fields['schema_accuracy'])}")
    return f"  {'; '.join(parts)}" if parts else None


def _command(fields: Mapping[str, Any]) -> str:
    said = [part.rstrip("\n") for part in (fields["stdout"], fields["stderr"]) if part]
    return "\n".join([*said, f"exit code {fields['exit_code']}, {fields['seconds']:.1f} s"])


def _summary(fields: Mapping[str, Any]) -> str:
    words = [f"{name.replace('_', ' ')} {value}" for name, value in fields.items() if name != "seconds"]
    return f"{', '.join(words)}, in {fields['seconds']:.1f} s"


_LINES: Mapping[str, Callable[[Mapping[str, Any]], str | None]] = {
    "plan": _plan,
    "step_started": lambda f: f"{f['phase']}: {f['step']} {f['subject']}",
    "progress": _progress_line,
    "blob": lambda f: f"  weights of {f['model']} {f['how']} in the store, sha256 verified",
    "case": _case,
    "check": lambda f: f"  {f['name']}: {f['reason']}",
    "rates": _rates,
    "note": lambda f: str(f["text"]),
    "log": lambda f: str(f["line"]),
    "journal": lambda f: render_entry_line(f["entry"]),
    "command": _command,
    "pruned": lambda f: f"{f['freed_bytes'] / _MIB:.1f} MiB freed",
    "host_done": lambda f: f"{f['outcome']}, {_count(f['steps_done'], 'step')}, {f['seconds']:.1f} s",
    "summary": _summary,
}
