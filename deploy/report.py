"""What a run tells: one JSON event a line, plain lines, or progress on a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TextIO

from deploy.board import DETAILS, LINES_AT_MOST, Board
from deploy.errors import FleetError, error_fields, render_error
from deploy.journal import render_entry_line
from deploy.outcomes import HostOutcome, Outcome, count_outcomes
from deploy.recap import render_recap

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.progress import Progress, TaskID

PROGRESS_SECONDS = 1.0
DRAW_SECONDS = 0.25
TELL_SECONDS = 10.0
# More hosts than that at once are told by what became of them, not by each of their steps.
HOSTS_IN_FULL = 20
NAMES_AT_MOST = 6
WORDS_AT_LEAST = 24
# How long a reader who stands still (`| less`) is waited for in a signal's handler, and in a hurry.
HEARD_SECONDS = 0.5
HURRY_SECONDS = 2.0
_MIB = 1024 * 1024
# Of a summary's numbers: said otherwise, or by the other numbers; and what goes without saying.
_ELSEWHERE = ("seconds", "ok")
_UNSAID = {"skipped": 0}


# Control characters but tab and line feed.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


Given = ParamSpec("Given")


def _in_turn(write: Callable[Concatenate[Report, Given], None]) -> Callable[Concatenate[Report, Given], None]:
    """A method that writes: one thread at a time, and nobody has to read."""

    @wraps(write)
    def in_turn(report: Report, /, *args: Given.args, **kwargs: Given.kwargs) -> None:
        report._tell(partial(write, report, *args, **kwargs))  # noqa: SLF001 - it is a method's body

    return in_turn


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
        self._hurries = False
        self._is_left = False
        self._last_progress: dict[str, float] = {}
        self._plans: dict[str, str | None] = {}
        self._ended = False
        self._bars = None if as_json or not self._stdout.isatty() else _Bars(self._stdout)
        self._board: Board | None = None
        self._screen: _Screen | None = None
        self._closed = threading.Event()
        self._is_paused = False
        self.started = time.monotonic()

    def __call__(self, event: str, host: str | None, **fields: Any) -> None:
        self._hear(event, host, fields)

    @_in_turn
    def _hear(self, event: str, host: str | None, fields: Mapping[str, Any]) -> None:
        # After a second Ctrl-C a thread may still run: the summary stays the last event.
        if self._ended or (event == "progress" and not self._is_due(host, fields)):
            return
        if self._board is not None:
            self._board.hear(event, host, fields)
        if self._json:
            self._write_json({"event": event, **({"host": host} if host else {}), **fields})
        elif self._board is not None and host is not None and event in DETAILS:
            return
        elif event == "progress" and self._bars is not None:
            self._bars.show(host or "", fields)
        else:
            render = _LINES.get(event)
            if event == "plan":
                # Hundreds of hosts have the same steps: one of them shows them.
                first = self._plans.setdefault(_step_lines(fields), host)
                fields = {**fields, "same_as": first if first != host else None}
            line = render(fields) if render is not None else None
            if line is not None:
                self._clear()
                prefix = f"{host}: " if host else ""
                self._print("\n".join(prefix + part for part in line.splitlines()))

    def begin(self, hosts: int) -> None:
        """From now on so many hosts are worked on: on a terminal, or where they are many, by a board."""
        if self._json or self._board is not None or hosts < 2:
            return
        if self._bars is None and hosts <= HOSTS_IN_FULL:
            return
        with self._lock:
            self._board = Board(hosts=hosts, now=time.monotonic)
            self._screen = _Screen(self._stdout) if self._bars is not None else None
        threading.Thread(target=self._keep_telling, daemon=True).start()

    def _keep_telling(self) -> None:
        while not self._closed.wait(TELL_SECONDS if self._screen is None else DRAW_SECONDS):
            self._tell_progress()

    @_in_turn
    def _tell_progress(self) -> None:
        if self._board is None or self._is_paused:
            return
        if self._screen is None:
            self._print(f"{self._board.total()}, {len(self._board.running)} at work")
        else:
            self._screen.draw(self._board)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is drawn while a person is asked for something."""
        self._pause()
        try:
            yield
        finally:
            self._is_paused = False

    @_in_turn
    def _pause(self) -> None:
        self._clear()
        self._is_paused = True

    def _clear(self) -> None:
        """Make room for lines: what was drawn on the terminal comes again below them."""
        if self._bars is not None:
            self._bars.clear()
        if self._screen is not None:
            self._screen.clear()

    @_in_turn
    def say(self, text: str) -> None:
        """Words for people only; never on standard output with `--json`."""
        self._clear()
        print(visible(text), file=self._stderr if self._json else self._stdout, flush=True)

    def text(self, event: str, text: str, **fields: Any) -> None:
        """A whole text as it is, without a prefix; with `--json` the field `text` of one event."""
        if self._json:
            self(event, None, **fields, text=text)
            return
        self._write(text)

    @_in_turn
    def _write(self, text: str) -> None:
        self._stdout.write(text)
        self._stdout.flush()

    def error(self, error: FleetError) -> None:
        """A designed error: to standard error, and as an event with `--json`.

        Its hint names the inventory that was given: the next command is about the same hosts.
        """
        if self._inventory is not None and error.hint is not None:
            error.hint = _naming(self._inventory, error.hint)
        self._write_error(error)

    @_in_turn
    def _write_error(self, error: FleetError) -> None:
        if self._json:
            self._write_json({"event": "error", **error_fields(error)})
        self._clear()
        print(visible(render_error(error)), file=self._stderr, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table for people; with `--json` the rows were events already."""
        if not self._json and rows:
            self._table(title, columns, rows)

    @_in_turn
    def _table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        rows = [[visible(cell.replace("\n", " ")) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
        if self._stdout.isatty():
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text

            console = Console(file=self._stdout)
            # The last column is the one of many words. Cut host names would say nothing: lines then.
            if sum(widths[:-1]) + min(widths[-1], WORDS_AT_LEAST) + 3 * len(widths) + 1 <= console.width:
                table = Table(title=title, title_justify="left")
                for column in columns[:-1]:
                    table.add_column(column, no_wrap=True)
                table.add_column(columns[-1])
                for row in rows:
                    # As it is: `[/tmp]` in a reason would be taken for markup, and for a mistake in it.
                    table.add_row(*map(Text, row))
                console.print(table)
                return
        lines = [title]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [columns, *rows]
        ]
        self._print("\n".join(lines))

    def summary(self, outcomes: Sequence[HostOutcome], **more: Any) -> None:
        """The last event of every run."""
        found = count_outcomes(outcomes)
        kinds = (Outcome.CHANGED, Outcome.FAILED, Outcome.UNREACHABLE)
        counts = {"hosts": len(outcomes), **{str(kind): found[kind] for kind in kinds}}
        self.close()
        self("summary", None, **counts, **more, seconds=round(time.monotonic() - self.started, 2))
        self._ended = True

    def recap(self, outcomes: Sequence[HostOutcome]) -> None:
        """A line for every host; one alone has had its line."""
        self.close()
        if len(outcomes) > 1:
            self.table("recap", *render_recap(outcomes))

    @_in_turn
    def close(self) -> None:
        """Take progress off the terminal."""
        self._closed.set()
        self._clear()
        self._board = self._screen = None

    def say_at_once(self, text: str) -> None:
        """`say` in a signal's handler, which waits for no lock and no reader: it may hold the one itself.

        Where somebody stands still it is written to standard error as it is.
        """
        saying = threading.Thread(target=self.say, args=(text,), daemon=True)
        saying.start()
        saying.join(HEARD_SECONDS)
        with contextlib.suppress(OSError):
            if saying.is_alive() and select.select([], [2], [], 0)[1]:
                os.write(2, f"{visible(text)}\n".encode())

    def hurry(self) -> None:
        """From now on a reader who stands still is waited for once, and told nothing more."""
        self._hurries = True

    def _tell(self, write: Callable[[], None]) -> None:
        if not self._hurries:
            self._tell_in_turn(write)
        elif not self._is_left:
            telling = threading.Thread(target=self._tell_in_turn, args=(write,), daemon=True)
            telling.start()
            telling.join(HURRY_SECONDS)
            self._is_left = telling.is_alive()

    def _tell_in_turn(self, write: Callable[[], None]) -> None:
        with self._lock:
            try:
                write()
            except OSError:
                for stream in (self._stdout, self._stderr):
                    _turn_away(stream)

    def _print(self, text: str) -> None:
        print(visible(text), file=self._stdout, flush=True)

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


def visible(text: str) -> str:
    """Words of hosts, servers and mirrors; what a terminal would obey is escaped."""
    return _OBEYED.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


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


class _Screen:
    """The board on a terminal: drawn over itself, gone when the work is done."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout
        self._live: Live | None = None

    def draw(self, board: Board) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text

        if self._live is None:
            # Drawn by us alone: a thread of rich's would write between our lines.
            self._live = Live(
                console=Console(file=self._stdout),
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        # The last line stays free for the cursor, one is the total.
        room = max(1, min(LINES_AT_MOST, self._live.console.height - 2))
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
        table.add_column(no_wrap=True, justify="right", min_width=5)
        # A long name takes the half at most: a narrow terminal has room for the step and the time too.
        for line in board.lines(room, self._live.console.width // 2):
            table.add_row(*map(Text, line))
        self._live.update(Group(table, Text(board.total(), no_wrap=True, overflow="ellipsis")), refresh=True)

    def clear(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _plan(fields: Mapping[str, Any]) -> str:
    steps, same_as = len(fields["steps"]), fields["same_as"]
    if steps == 0:
        lines = ["nothing to change"]
    elif steps > 1 and same_as is not None:
        lines = [f"the same {steps} steps as {same_as}"]
    else:
        lines = [f"{_count(steps, 'step')}:", _step_lines(fields)]
    lines += [f"  {note}" for note in fields.get("notes", ())]
    return "\n".join(lines)


def _step_lines(fields: Mapping[str, Any]) -> str:
    steps = fields["steps"]
    return "\n".join(f"  {s['phase']:<8} {s['step']:<16} {s['subject']} ({s['reason']})" for s in steps)


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
    told = {
        name: value for name, value in fields.items() if name not in _ELSEWHERE and value != _UNSAID.get(name)
    }
    words = [f"{name.replace('_', ' ')} {value}" for name, value in told.items()]
    return f"{', '.join(words)}, in {fields['seconds']:.1f} s"


def _batch_started(fields: Mapping[str, Any]) -> str | None:
    if fields["of"] == 1:
        return None
    hosts = fields["hosts"]
    names = ", ".join(hosts if len(hosts) <= NAMES_AT_MOST else [*hosts[:NAMES_AT_MOST], "..."])
    return f"batch {fields['number']} of {fields['of']}: {_count(len(hosts), 'host')} ({names})"


def _batch_done(fields: Mapping[str, Any]) -> str | None:
    if fields["of"] == 1:
        return None
    failed, unreachable = fields["failed"], fields["unreachable"]
    return f"batch {fields['number']} of {fields['of']} done: {failed} failed, {unreachable} unreachable"


def _stopped(fields: Mapping[str, Any]) -> str:
    where = f"before batch {fields['batch']} of {fields['of']}"
    return f"stopped {where}: {fields['reason']}; {_count(fields['hosts'], 'host')} not touched"


def _host_done(fields: Mapping[str, Any]) -> str:
    if "reason" in fields:
        return f"{fields['outcome']}: {fields['reason']}"
    return f"{fields['outcome']}, {_count(fields['steps_done'], 'step')}, {fields['seconds']:.1f} s"


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
    "soak": lambda f: f"  watched for {f['left_seconds']:.0f} s more before it is confirmed",
    "survey_started": lambda f: f"looking at {_count(f['hosts'], 'host')} before the first batch",
    "batch_started": _batch_started,
    "batch_done": _batch_done,
    "rollout_stopped": _stopped,
    "host_done": _host_done,
    "summary": _summary,
}
