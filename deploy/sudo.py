"""The password for `sudo`: asked once a run, kept in memory, given to standard input and to nothing else."""

from __future__ import annotations

import getpass
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from deploy.errors import CommandFailed

VARIABLE = "FLEET_SUDO_PASSWORD"


class SudoPassword:
    """One answer for all hosts of a run, whichever of them asks first.

    `while_asking` is entered while the person types: what is drawn on the terminal must keep away from it.
    """

    while_asking: Callable[[], AbstractContextManager[None]] = staticmethod(nullcontext)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: str | None = None

    def ask(self, host: str) -> str:
        """From the environment variable, else from the person on the terminal. Raises CommandFailed."""
        with self._lock:
            if self._known is None:
                # Taken out: no process that we start inherits it.
                self._known = os.environ.pop(VARIABLE, None)
            if self._known is None:
                self._known = self._ask_person(host)
            return self._known

    def _ask_person(self, host: str) -> str:
        if not os.isatty(0):
            raise CommandFailed(
                sentence=f"`sudo` on `{host}` wants a password",
                host=host,
                cause="there is no terminal to ask on",
                unchanged="everything",
                hint=f"set {VARIABLE}, or allow the user NOPASSWD in the host's sudoers",
            )
        with self.while_asking():
            return getpass.getpass(f"password for sudo on {host} (and on every other host that asks): ")
