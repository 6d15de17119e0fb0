"""What `fleet` starts once its environment stands: Invoke with our tasks, under our name.

`python PROJECT task` runs this file with PROJECT first in `sys.path`. The working directory stays the user's,
so that relative paths on the command line mean what they say.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from invoke import Collection, Exit, ParseError, ParserContext, Program

import tasks
from console.version import VERSION
from deploy.errors import ExitCode, UsageError, designed_error, render_error

FLUSH_SECONDS = 1.0


@contextmanager
def _usage_errors(argv: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (ParseError, ValueError) as error:
        # Invoke lets the ValueError of `--forks=many` through.
        sentence = str(error) if isinstance(error, ParseError) else f"a flag takes a number: {error}"
        # Invoke's words for a task that does not exist.
        sentence = re.sub(r"^No idea what '(.*)' is!$", r"there is no task or flag `\1`", sentence)
        if isinstance(error, ParseError) and (twice := given_twice(argv, error.context)) is not None:
            # Invoke takes the second value for a task.
            sentence = f"`--{twice}` was given twice"
        hint = "`./fleet --list` names the tasks, `./fleet TASK --help` its flags"
        raise refused(UsageError(sentence=sentence, hint=hint), argv) from error


def given_twice(argv: Sequence[str], context: ParserContext | None) -> str | None:
    """The flag that takes one value and has two; `-l` and `--limit` are the same one."""
    flags = context.flags if context is not None else {}
    words = [word.partition("=")[0] for word in argv]
    given = Counter(
        flags[word].name for word in words if word in flags and flags[word].kind not in (bool, list)
    )
    return next((name.replace("_", "-") for name, times in given.items() if times > 1), None)


def refused(error: UsageError, argv: Sequence[str]) -> Exit:
    """How a command line ends that cannot be meant: with `--json` the last event is a summary as ever."""
    words = argv[: argv.index("--")] if "--" in argv else argv
    if "--json" not in words:
        return Exit(render_error(error), code=error.exit_code)
    from deploy.report import Report

    report = Report(as_json=True)
    report.error(error)
    report.summary(())
    return Exit(code=error.exit_code)


class Fleet(Program):
    """Invoke's program with the errors and exit codes of ours."""

    def parse_tasks(self) -> None:
        """Raises `Exit` with code 1 and a designed error for a task or a flag that does not exist."""
        with _usage_errors(self.argv):
            super().parse_tasks()

    def parse_cleanup(self) -> None:
        """The same for `--help TASK`."""
        with _usage_errors(self.argv):
            super().parse_cleanup()

    def execute(self) -> None:
        """Ends with 130 after Ctrl-C; Invoke itself would end with 1."""
        if signal.getsignal(signal.SIGINT) is end_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            super().execute()
        except KeyboardInterrupt:
            # Whoever reads may stand still, while a thread of ours is in the middle of telling something.
            flushing = threading.Thread(target=sys.stdout.flush, daemon=True)
            flushing.start()
            flushing.join(FLUSH_SECONDS)
            # At once: the interpreter's own end would wait for a thread that is in the middle of a step.
            os._exit(ExitCode.INTERRUPTED)


def end_at_once(_number: int, _frame: object) -> None:
    """Ctrl-C while the command line is read: nothing was begun, and Invoke would end with 1."""
    os._exit(ExitCode.INTERRUPTED)


def help_wanted(argv: list[str]) -> list[str]:
    """`TASK ... --help` as `--help TASK`: otherwise a missing positional argument would swallow the flag."""
    words = argv[: argv.index("--")] if "--" in argv else argv
    if words and not words[0].startswith("-") and {"-h", "--help"} & set(words[1:]):
        return ["--help", words[0]]
    return argv


# Invoke has no optional positional argument: its name, and what these tasks act on when no word is given.
FIRST_WORDS = {"service": ("action", "converge"), "render": ("model", "myqwen2")}


def with_first_word(argv: list[str]) -> list[str]:
    """`service --json` as `service converge --json`, `render --model canary` as it stands."""
    task, *words = argv or [""]
    if task not in FIRST_WORDS or (words and not words[0].startswith("-")):
        return argv
    name, first = FIRST_WORDS[task]
    flags = (f"--{name}", f"-{name[0]}")
    return argv if any(word.partition("=")[0] in flags for word in words) else [task, first, *words]


def with_question(argv: list[str]) -> list[str]:
    """`chat [flags] TEXT` as `chat [flags] --prompt=TEXT`."""
    if argv[:1] != ["chat"]:
        return argv
    from console.chat_argv import with_prompt_flag

    return with_prompt_flag(argv)


def check_command(argv: list[str]) -> None:
    """Ends with a designed error for a command of `run` that is not quoted."""
    if argv[:1] != ["run"]:
        return
    from console.run_argv import check_run_words

    try:
        check_run_words(argv)
    except UsageError as error:
        end = refused(error, argv)
        if end.message:
            print(end.message, file=sys.stderr)
        raise SystemExit(end.code) from None


def main() -> None:
    """Runs the tasks named in `sys.argv`; never returns without `SystemExit` when one fails."""
    # Most of a start is imports, which leave little to collect: looking for it so often takes a tenth of it.
    gc.set_threshold(50_000)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
    argv = help_wanted(sys.argv[1:])
    check_command(argv)
    # Invoke turns bytecode off unless told otherwise, and every lazy import would be compiled anew.
    pyc = [] if sys.dont_write_bytecode else ["--write-pyc"]
    namespace = Collection.from_module(tasks)
    program = Fleet(name="ollama-fleet", binary="./fleet", version=VERSION, namespace=namespace)
    try:
        try:
            program.run(["fleet", *pyc, *with_first_word(with_question(argv))])
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
            # Or the interpreter would look through every object before it ends: 0.12 s of a deploy.
            gc.freeze()
    except OSError as error:
        # Standard output takes nothing any more: without this the interpreter would try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        ended = error.__context__
        code: object = ended.code if isinstance(ended, SystemExit) else ExitCode.DONE
        if not isinstance(error, BrokenPipeError):
            # For `./fleet --list | head -1` the reader has what it wanted; a full disk is a failure.
            print(render_error(designed_error(error)), file=sys.stderr)
            code = code or ExitCode.FAILED
        raise SystemExit(code) from None


if __name__ == "__main__":
    main()
