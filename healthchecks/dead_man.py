"""The dead man's switch: somebody elsewhere who gives the alarm when this host no longer says that it lives.

The protocol is that of https://healthchecks.io/docs/http_api/. A ping says which switch it is for, by its
address, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import Callable
from urllib.parse import urlsplit, urlunsplit

import requests

from healthchecks.addresses import Ping
from healthchecks.answers import Beginning
from healthchecks.retries import Tell, ask_again, tell_all

START_SECONDS = 4.0
END_SECONDS = 12.0
"""With retries: a start that is lost costs a figure, an end that is lost an alarm at night."""

_TIMEOUT_SECONDS = 3.0
_HEADERS = {"User-Agent": "ollama-fleet"}
_HOOKS = {"response": Beginning(1024)}


class Signal(str, Enum):
    """What is told of a run."""

    START = "/start"
    SUCCESS = ""
    FAIL = "/fail"


def send_pings(
    pings: Sequence[Ping],
    signal: Signal,
    *,
    seconds: float = END_SECONDS,
    pause: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Tell them all at the same time. Returns a sentence for each that did not hear."""

    def tell(ping: Ping) -> Tell:
        url = signal_url(ping.url, signal)
        return lambda until: ask_again(partial(_ask, url), bool, until, pause)

    failed = tell_all({ping.name: tell(ping) for ping in pings}, seconds)
    return [f"{name}: {why}" for name, why in failed.items()]


def signal_url(url: str, signal: Signal) -> str:
    """`/start` and `/fail` end the path, before any query."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + signal.value))


def _ask(url: str) -> str:
    """Nothing, or in a few words without the address why it was not heard."""
    try:
        with requests.get(url, timeout=_TIMEOUT_SECONDS, headers=_HEADERS, hooks=_HOOKS) as answer:
            # With HTTP 200 too they say that there is no such switch, or that it was told too often.
            said = answer.text[:40]
            if not answer.ok:
                return f"HTTP {answer.status_code}"
            return said if said in ("OK (not found)", "OK (rate limited)") else ""
    except requests.RequestException as problem:
        return type(problem).__name__
