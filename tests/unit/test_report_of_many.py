"""Many hosts told at once: readable at four and at two hundred, on a terminal and in a log."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deploy import report as reports
from deploy.board import Board, shortened
from deploy.errors import CommandFailed, VerifyFailed
from deploy.outcomes import HostOutcome, Outcome
from deploy.report import Report

SECONDS = 20.0


class Terminal:
    """A pseudo terminal of 30 lines and 100 columns, and all that was written to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        # rich measures the terminal of the process, which a test has not.
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("LINES", "30")
        monkeypatch.setenv("TERM", "xterm")
        self.stdout = os.fdopen(slave, "w", encoding="utf-8")
        self._data = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self.master, 65536)
            except OSError:
                return
            if not piece:
                return
            self._data += piece

    def close(self) -> None:
        self.stdout.close()
        # Or it would go on reading what is written to the next test's terminal, whose number is the same.
        self._reader.join(SECONDS)
        assert not self._reader.is_alive()
        os.close(self.master)

    @property
    def text(self) -> str:
        return self._data.decode(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.text, re.DOTALL)):
            assert time.monotonic() < deadline, f"{pattern!r} was not drawn: {self.text[-2000:]!r}"
            threading.Event().wait(0.02)
        return found

    def screens(self) -> list[list[str]]:
        """What stood on the screen each time that it was drawn, as lines without their colours."""
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\x00", self.text)
        blocks = re.split("\x00(?:\r?\x00)+", plain)
        return [
            [line for line in block.replace("\x00", "").split("\r\n") if line.strip()] for block in blocks
        ]


@contextmanager
def at_work(report: Report, hosts: int, running: int) -> Iterator[None]:
    """A run over so many hosts of which some work: `h0` longest."""
    report.begin(hosts)
    report("batch_started", None, number=2, of=5, hosts=[f"h{n}" for n in range(hosts)])
    for number in range(running):
        report("host_started", f"h{number}", batch=2)
        report("step_started", f"h{number}", phase="service", step="StartServer", subject="release 0.17.7")
    yield
    report.close()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setattr(reports, "DRAW_SECONDS", 0.02)
    made = Terminal(monkeypatch)
    yield made
    made.close()


def test_four_hosts_have_a_line_each_and_one_for_all(terminal: Terminal) -> None:
    report = Report(as_json=False, stdout=terminal.stdout, stderr=io.StringIO())
    with at_work(report, 4, 4):
        terminal.wait_for(r"batch 2 of 5 · 0 of 4 hosts done, 0 failed")
    drawn = max(terminal.screens(), key=len)
    assert sum("service: StartServer release 0.17.7" in line for line in drawn) == 4
    assert "more" not in terminal.text
    # The steps themselves are no lines: they would push everything off the screen.
    assert "h0: service" not in terminal.text


def test_two_hundred_hosts_are_a_dozen_lines_and_the_rest_is_summed_up(terminal: Terminal) -> None:
    report = Report(as_json=False, stdout=terminal.stdout, stderr=io.StringIO())
    with at_work(report, 200, 38):
        for number in range(37):
            report(
                "host_done",
                f"x{number}",
                outcome="failed" if number == 5 else "changed",
                steps_done=3,
                seconds=1.0,
            )
        terminal.wait_for(r"… and 27 more.*batch 2 of 5 · 37 of 200 hosts done, 1 failed")
    drawn = max(
        (screen for screen in terminal.screens() if any("27 more" in line for line in screen)), key=len
    )
    shown = [line for line in drawn if re.match(r"h\d+ ", line)]
    assert [line.split()[0] for line in shown] == [f"h{number}" for number in range(11)]
    assert all(len(line) <= 100 for line in drawn)
    # What became of each host is said once, above the board.
    assert terminal.text.count("x5: failed, 3 steps") == 1


def test_an_error_and_the_recap_stand_above_and_after_the_board(terminal: Terminal) -> None:
    report = Report(as_json=False, stdout=terminal.stdout, stderr=terminal.stdout)
    outcomes = [HostOutcome(host=f"h{n}", outcome=Outcome.OK) for n in range(4)]
    with at_work(report, 4, 4):
        terminal.wait_for(r"of 4 hosts done")
        report.error(VerifyFailed(sentence="`m:latest` did not pass", host="h1"))
        terminal.wait_for(r"did not pass.*of 4 hosts done")
        report.recap(outcomes)
        report.summary(outcomes)
    terminal.wait_for(r"recap.*h3.*hosts 4, changed 0")
    assert "hosts done" not in terminal.text.rpartition("recap")[2]


def test_nothing_is_drawn_over_a_question(terminal: Terminal) -> None:
    report = Report(as_json=False, stdout=terminal.stdout, stderr=io.StringIO())
    with at_work(report, 4, 4):
        terminal.wait_for(r"of 4 hosts done")
        with report.paused():
            terminal.stdout.write("password: ")
            terminal.stdout.flush()
            report._tell_progress()
            assert report._screen is not None
            assert report._screen._live is None
        terminal.wait_for(r"password: .*of 4 hosts done")


def test_a_reason_with_square_brackets_is_no_markup(terminal: Terminal) -> None:
    report = Report(as_json=False, stdout=terminal.stdout, stderr=io.StringIO())
    reason = "`[bold]` and [/tmp/x] are words"
    report.recap([HostOutcome(host=f"h{n}", outcome=Outcome.SKIPPED, reason=reason) for n in range(2)])
    terminal.wait_for(re.escape(reason))


def test_a_log_of_many_hosts_has_their_ends_and_how_far_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "TELL_SECONDS", 0.02)
    stdout = io.StringIO()
    report = Report(as_json=False, stdout=stdout, stderr=io.StringIO())
    with at_work(report, 200, 38):
        report("host_done", "h0", outcome="changed", steps_done=3, seconds=1.0)
        deadline = time.monotonic() + SECONDS
        while "1 of 200 hosts done" not in stdout.getvalue():
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)
    lines = stdout.getvalue().splitlines()
    assert "h0: changed, 3 steps, 1.0 s" in lines
    assert "batch 2 of 5 · 1 of 200 hosts done, 0 failed, 37 at work" in lines
    assert not any("StartServer" in line for line in lines)


def test_a_log_of_a_few_hosts_has_every_step() -> None:
    stdout = io.StringIO()
    report = Report(as_json=False, stdout=stdout, stderr=io.StringIO())
    with at_work(report, 20, 3):
        pass
    assert stdout.getvalue().count("service: StartServer release 0.17.7") == 3


def test_json_has_every_event_of_two_hundred_hosts() -> None:
    stdout = io.StringIO()
    report = Report(as_json=True, stdout=stdout, stderr=io.StringIO())
    with at_work(report, 200, 200):
        pass
    told = [json.loads(line)["event"] for line in stdout.getvalue().splitlines()]
    assert (told.count("step_started"), told.count("batch_started")) == (200, 1)


def test_long_names_lose_what_they_share() -> None:
    names = [f"gpu-node-of-the-north-{number:03}.example.org" for number in (1, 2)]
    assert shortened(names, 20) == ["…h-001.example.org", "…h-002.example.org"]
    assert shortened(["gpu", *names], 12) == ["gpu", "…h-001.exam…", "…h-002.exam…"]
    assert shortened(names[:1], 10) == ["gpu-node-…"]
    assert shortened(names, 60) == names


def test_a_board_knows_what_a_host_does_and_for_how_long() -> None:
    clock = [100.0]
    board = Board(hosts=3, now=lambda: clock[0])
    board.hear("survey_started", None, {"hosts": 3})
    assert board.total() == "before the first batch · 0 of 3 hosts done, 0 failed"
    for host in ("a", "b"):
        board.hear("host_started", host, {})
    board.hear("surveyed", "a", {"steps": 0})
    board.hear("surveyed", "b", {"steps": 4})
    clock[0] = 112.4
    assert board.lines() == [("a", "nothing to change, checking what it serves", "12 s")]
    board.hear("host_done", "a", {"outcome": "unreachable"})
    board.hear("batch_started", None, {"number": 1, "of": 2, "hosts": ["b"]})
    board.hear("host_started", "b", {"batch": 1})
    board.hear("step_started", "b", {"phase": "fetch", "step": "FetchWeights", "subject": "m"})
    board.hear("progress", "b", {"bytes": 45, "total_bytes": 100})
    assert board.lines() == [("b", "fetch: FetchWeights m, 45 %", "0 s")]
    assert board.total() == "batch 1 of 2 · 1 of 3 hosts done, 0 failed, 1 unreachable"
    board.hear("soak", "b", {"seconds": 20.0, "left_seconds": 18.2})
    assert board.lines()[0][1] == "watched until it has been up for 20 s"


@pytest.mark.parametrize(("width", "drawn"), [(120, True), (80, False), (40, False)])
def test_a_recap_names_every_host_in_full_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: Terminal, width: int, drawn: bool
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    names = [f"gpu-node-{n}.production.example.com" for n in (101, 102)]
    reason = "batch 3 of 3 was not begun: 1 failed, at most 0"
    Report(as_json=False, stdout=terminal.stdout, stderr=io.StringIO()).recap(
        [HostOutcome(host=name, outcome=Outcome.SKIPPED, reason=reason) for name in names]
    )
    for name in names:
        terminal.wait_for(f"{re.escape(name)}.* skipped ")
    assert ("\u2503" in terminal.text) == drawn


def test_a_long_name_leaves_room_for_the_step_and_the_time(
    monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    report = Report(as_json=False, stdout=terminal.stdout, stderr=io.StringIO())
    report.begin(2)
    report("host_started", "gpu-node-101.rack7.production.example.com", batch=1)
    terminal.wait_for(r"gpu-node-101\S*\u2026 +looking \S* +\d+ s")
    report.close()


def test_what_a_terminal_would_obey_is_shown_and_not_done() -> None:
    out, err = io.StringIO(), io.StringIO()
    report = Report(as_json=False, stdout=out, stderr=err)
    hostile = "\x1b[2J\x1b]0;owned\x07\rfake01"
    report.table("health", ["host", "said"], [["gpu01", f"{hostile}\nfake01  pass"]])
    report("note", "gpu01", text=hostile)
    report.error(CommandFailed(sentence=f"`{hostile}` failed"))
    told = out.getvalue() + err.getvalue()
    assert not [c for c in told if c != "\n" and not c.isprintable()]
    assert not [line for line in out.getvalue().splitlines() if line.startswith("fake01")]
    assert told.count(r"\x1b[2J\x1b]0;owned\x07") == 3


def test_hosts_with_the_same_steps_say_so_and_only_the_first_one_shows_them() -> None:
    def step(reason: str) -> dict[str, str]:
        return {"phase": "service", "step": "StartServer", "subject": "release 0.17.5", "reason": reason}

    out = io.StringIO()
    report = Report(as_json=False, stdout=out)
    both, note = [step("a setting"), step("the unit is inactive")], "fits: 12.0 GiB free"
    report("plan", "gpu01", steps=both, notes=[])
    report("plan", "gpu02", steps=both, notes=[note])
    report("plan", "gpu03", steps=both[:1], notes=[])
    report("plan", "gpu04", steps=[], notes=[])
    report("plan", "gpu05", steps=[], notes=[])
    assert out.getvalue().splitlines() == [
        "gpu01: 2 steps:",
        "gpu01:   service  StartServer      release 0.17.5 (a setting)",
        "gpu01:   service  StartServer      release 0.17.5 (the unit is inactive)",
        "gpu02: the same 2 steps as gpu01",
        f"gpu02:   {note}",
        "gpu03: 1 step:",
        "gpu03:   service  StartServer      release 0.17.5 (a setting)",
        "gpu04: nothing to change",
        "gpu05: nothing to change",
    ]


def test_with_json_every_host_has_its_own_steps() -> None:
    out = io.StringIO()
    report = Report(as_json=True, stdout=out, stderr=io.StringIO())
    steps = [{"phase": "fetch", "step": "FetchArchive", "subject": "a", "reason": "b"}] * 2
    for host in ("gpu01", "gpu02"):
        report("plan", host, steps=steps, notes=[])
    told = list(map(json.loads, out.getvalue().splitlines()))
    assert told == [
        {"event": "plan", "host": host, "steps": steps, "notes": []} for host in ("gpu01", "gpu02")
    ]
