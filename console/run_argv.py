"""`run` takes its command as one word: an unquoted one is refused before half of it runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from deploy.errors import UsageError

_WITHOUT_VALUE = ("--json", "-j", "--yes", "-y")


def check_run_words(argv: Sequence[str]) -> None:
    """Raises UsageError for `run ls -la`, of which Invoke would make `ls` and `--limit a`.

    After the command only long flags may follow, as in `run uptime --yes`.
    """
    if list(argv[:1]) != ["run"]:
        return
    command: str | None = None
    rest = list(argv[1:])
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") and command is None:
            command = word
        elif not word.startswith("--") and command is not None:
            raise UsageError(
                sentence=f"`{word}` stands after the command `{command}`",
                cause="a command of several words is given as one, in quotes",
                unchanged="everything",
                hint=f"./fleet run {shlex.quote(f'{command} {word} ...')}",
            )
        elif _takes_next(word) and rest:
            rest.pop(0)


def _takes_next(flag: str) -> bool:
    attached = "=" in flag or (not flag.startswith("--") and len(flag) > 2)
    return not attached and flag not in _WITHOUT_VALUE
