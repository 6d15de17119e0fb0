"""What `chat` shows: the conversation in the colours of the OpenAI cookbook, or plain, or as events."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from deploy.report import Report

# As `pretty_print_conversation` of the OpenAI cookbook, which the article uses (ECMA-48 SGR numbers).
COLOURS = {"system": 31, "user": 32, "assistant": 34, "function": 35}
RESET = "\x1b[0m"
# What a model or a database says must not drive the terminal.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_CONTROLS.update({ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""})


def wants_colour(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Only on a terminal that knows colours, and not with NO_COLOR (https://no-color.org)."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def printable(text: str) -> str:
    """`text` with control characters as escapes, line breaks and tabs as they are."""
    return text.translate(_CONTROLS)


def paint(role: str, text: str, *, colour: bool) -> str:
    """`text` in the colour of `role`."""
    return f"\x1b[{COLOURS[role]}m{text}{RESET}" if colour else text


def render_turn(role: str, text: str, *, colour: bool, name: str = "") -> str:
    """One turn: `user: Hello`, or with a function's name `function (ask_database): [('X',)]`."""
    who = f"{role} ({printable(name)})" if name else role
    return paint(role, f"{who}: {printable(text)}", colour=colour) + "\n"


class ChatView:
    """Writes to the report's standard output; with `--json` every turn is an event instead."""

    def __init__(self, report: Report, host: str, *, as_json: bool, stdout: TextIO) -> None:
        self._report, self._host, self._json = report, host, as_json
        self._colour = not as_json and wants_colour(stdout, os.environ)

    def begin(self, words: str, **fields: Any) -> None:
        """Whom one talks to, with what."""
        self._event("chat", **fields)
        self.note(words)

    def turn(self, role: str, text: str, name: str = "") -> None:
        """A whole turn of the system, the user or a function."""
        self._event("message", role=role, **({"name": name} if name else {}), content=text)
        self._write(render_turn(role, text, colour=self._colour, name=name))

    def call(self, name: str, arguments: str) -> None:
        """A call that the model makes; the event comes with the whole message."""
        self._write(render_turn("assistant", f"{name}({arguments})", colour=self._colour))

    @contextmanager
    def answering(self) -> Iterator[Callable[[str], None]]:
        """Gives the function for the pieces of an answer; ends its line and its colour whatever happens."""
        begun = False

        def tell(piece: str) -> None:
            nonlocal begun
            self._event("delta", text=piece)
            start = "" if begun else self._start("assistant") + "assistant: "
            begun = True
            self._write(start + printable(piece))

        try:
            yield tell
        finally:
            if begun:
                self._write((RESET if self._colour else "") + "\n")

    def answered(self, message: Mapping[str, Any], **fields: Any) -> None:
        """The whole message of the assistant, as it goes into the history."""
        self._event("message", **message, **fields)

    def hint(self, text: str, **fields: Any) -> None:
        """What the judge finds wrong with a reply that one can read all the same."""
        self._event("finding", **fields)
        self.note(f"hint: {text}")

    def note(self, text: str) -> None:
        """A line for people."""
        self._report.say(printable(text))

    def prompt(self, *, for_readline: bool) -> str:
        """`user: `; what is typed after it has its colour. readline is told what takes no room."""
        start = self._start("user")
        return f"\x01{start}\x02user: " if start and for_readline else f"{start}user: "

    def end_input(self) -> None:
        """Back to the terminal's own colour."""
        if self._colour:
            self._write(RESET)

    def _start(self, role: str) -> str:
        return f"\x1b[{COLOURS[role]}m" if self._colour else ""

    def _write(self, text: str) -> None:
        if not self._json:
            self._report.text("text", text)

    def _event(self, event: str, **fields: Any) -> None:
        if self._json:
            self._report(event, self._host, **fields)
