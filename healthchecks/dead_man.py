"""The dead man's switch: somebody elsewhere who gives the alarm when this host no longer says that it lives.

The protocol is that of https://healthchecks.io/docs/http_api/. A ping says which switch it is for, by its
address, and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from enum import Enum
from typing import Callable
from urllib.parse import urlsplit, urlunsplit

import requests

from healthchecks.addresses import Ping

START_SECONDS = 4.0
END_SECONDS = 12.0
"""With retries: a start that is lost costs a figure, an end that is lost an alarm at night."""

_TIMEOUT_SECONDS = 3.0


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
    failed = {ping.name: f"no answer within {seconds:g} s" for ping in pings}
    until = time.monotonic() + seconds

    def tell(ping: Ping) -> None:
        failed[ping.name] = _tell(signal_url(ping.url, signal), until, pause)

    threads = [threading.Thread(target=tell, args=(ping,), daemon=True) for ping in pings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return [f"{name}: {why}" for name, why in failed.items() if why]


def signal_url(url: str, signal: Signal) -> str:
    """`/start` and `/fail` end the path, before any query."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + signal.value))


def _tell(url: str, until: float, pause: Callable[[float], None]) -> str:
    import tenacity

    why: str = tenacity.Retrying(
        retry=tenacity.retry_if_result(bool),
        wait=tenacity.wait_exponential_jitter(initial=0.3, max=3.0),
        stop=tenacity.stop_before_delay(max(0.0, until - time.monotonic())),
        sleep=pause,
        retry_error_callback=lambda state: state.outcome.result() if state.outcome is not None else None,
    )(_ask, url)
    return why


def _ask(url: str) -> str:
    """Nothing, or in a few words without the address why it was not heard."""
    try:
        with requests.get(url, timeout=_TIMEOUT_SECONDS, headers={"User-Agent": "ollama-fleet"}) as answer:
            # With HTTP 200 too they say that there is no such switch, or that it was told too often.
            said = answer.text[:40]
            if not answer.ok:
                return f"HTTP {answer.status_code}"
            return said if said in ("OK (not found)", "OK (rate limited)") else ""
    except requests.RequestException as problem:
        return type(problem).__name__
