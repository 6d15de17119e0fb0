"""The talk of `chat`: a line from the terminal, an answer, the next line."""

from __future__ import annotations

import contextlib
import sys

from console.chat_session import ChatSession
from console.chat_view import ChatView
from deploy.errors import FleetError
from deploy.report import Report

COMMANDS = "/tools shows the functions, /reset begins anew, /exit or Ctrl-D ends, Ctrl-C ends an answer"


def talk(session: ChatSession, report: Report, *, as_json: bool) -> int:
    """Question and answer until the end of input; the number of questions."""
    with contextlib.suppress(ImportError):  # a Python without it reads lines without their editing
        import readline  # noqa: F401
    session.view.note(COMMANDS)
    asked = 0
    while True:
        try:
            line = _read_line(session.view, as_json=as_json)
            if line == "/exit":
                return asked
            if line.startswith("/"):
                _obey(line, session)
            elif line:
                asked += 1
                session.ask(line)
        except EOFError:
            return asked
        except KeyboardInterrupt:
            session.view.note("(stopped; this question is forgotten)")
        except FleetError as error:
            # Told; the next question may do better.
            report.error(error)


def _read_line(view: ChatView, *, as_json: bool) -> str:
    """One line; "" after Ctrl-C, which forgets what was typed. Raises EOFError."""
    plain = as_json or not sys.stdout.isatty()
    try:
        if plain:
            print(view.prompt(for_readline=False), end="", file=sys.stderr, flush=True)
        return clean(input("" if plain else view.prompt(for_readline="readline" in sys.modules))).strip()
    except (EOFError, KeyboardInterrupt) as ended:
        print(file=sys.stderr)
        if isinstance(ended, EOFError):
            raise
        return ""
    finally:
        view.end_input()


def _obey(line: str, session: ChatSession) -> None:
    if line == "/reset":
        session.reset()
        session.view.note("(everything before is forgotten)")
    elif line != "/tools":
        session.view.note(f"`{line}` is no command: {COMMANDS}")
    elif session.tools is None:
        session.view.note("no functions: begin with --tools weather or --tools database")
    else:
        for tool in session.tools.declared:
            function = tool["function"]
            arguments = ", ".join(function["parameters"]["properties"])
            session.view.note(f"{function['name']}({arguments}): {function['description']}")


def clean(text: str) -> str:
    """Bytes that were no UTF-8 came as lone surrogates, which no JSON may hold."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
