"""What runs of the health checks leave on a host: the last report whole, a line each of the last 2,000.

However a run is cut, there is the report before or the new one, and a line that was cut short is taken away
by the next run.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from healthchecks.health_report import HealthReport, parse_report, render_report

RUNS_KEPT = 2_000
_SLACK = 200
"""So many lines more may stand there: the file is written anew once in so many runs."""


def write_last(path: Path, report: HealthReport) -> None:
    """By rename; raises OSError."""
    replace_file(path, (json.dumps(render_report(report)) + "\n").encode())


def read_last(path: Path) -> HealthReport | None:
    """None where there is none, or none that this version reads."""
    try:
        return parse_report(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def append_history(path: Path, report: HealthReport) -> None:
    """One line at the end; what is older than the last 2,000 goes in due time. Raises OSError."""
    line = (json.dumps(history_entry(report)) + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with open(descriptor, "r+b") as file:  # noqa: PTH123 - made with its mode
        file.truncate(_end_of_last_line(file.read()))
        file.seek(0, os.SEEK_END)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    lines = path.read_bytes().splitlines(keepends=True)
    if len(lines) > RUNS_KEPT + _SLACK:
        replace_file(path, b"".join(lines[-RUNS_KEPT:]))


def history_entry(report: HealthReport) -> dict[str, Any]:
    """What a line tells: the states, why they are no pass, and the facts, without the evidence."""
    return {
        "started": report.started,
        "seconds": report.seconds,
        "state": report.state.value,
        "checks": {result.check: result.state.value for result in report.checks},
        "facts": dict(report.facts),
    }


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """The last 2,000 runs, the oldest first; a line that is none is left out."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines[-RUNS_KEPT:]:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _end_of_last_line(text: bytes) -> int:
    return text.rfind(b"\n") + 1


def replace_file(path: Path, content: bytes) -> None:
    """The old content or the new one, whatever cuts it. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - made with its mode
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
