"""One request to an OpenAI-compatible server, its raw answer kept and judged."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from healthchecks.toolcalls import INTEROP, MUST, Exchange, Finding, Reply, judge
from healthchecks.wire import send
from healthchecks.withheld import WHY_WITHHELD, WITHHELD, is_secret, tells_key


@dataclass(frozen=True)
class Endpoint:
    """Where to send: `url` with or without `/v1`, `key` for a bearer token.

    `server`, as in "ollama/0.17.5", lets the judge know that version's known faults; without it every rule
    is absolute.
    """

    url: str
    model: str
    key: str | None = None
    server: str | None = None

    @property
    def chat_url(self) -> str:
        """The address of chat completions; `/v1` is added unless the path ends in a version already."""
        root = self.url.rstrip("/")
        return (root if re.search(r"/v\d+$", root) else root + "/v1") + "/chat/completions"


@dataclass(frozen=True)
class Answered:
    """`reply` is None where no reply could be read; `error` says why the answer is not whole."""

    exchange: Exchange
    findings: tuple[Finding, ...]
    reply: Reply | None
    error: str | None


def ask(endpoint: Endpoint, request: Mapping[str, Any], deadline_seconds: float) -> Answered:
    """Send `request`, the JSON body, and judge what comes back; an answer that is not whole is a finding."""
    started = time.time()
    clock = time.monotonic()
    answer = send("POST", endpoint.chat_url, request, deadline_seconds=deadline_seconds, key=endpoint.key)
    exchange = Exchange(
        request,
        answer.status,
        answer.headers,
        answer.body,
        started_seconds=round(started, 3),
        seconds=round(time.monotonic() - clock, 3),
        error=answer.error,
    )
    if answer.status is None:
        nothing = Finding(1, MUST, "the whole answer", answer.error or "no answer")
        return Answered(exchange, (nothing,), None, answer.error)
    # Whoever asks for a proof wants to know what is lost, be it an old acquaintance.
    verdict = judge(exchange, server=endpoint.server, excuses_losses=False)
    key = endpoint.key
    if key is not None and is_secret(key) and tells_key(key, verdict):
        exchange = dataclasses.replace(exchange, body=WITHHELD, error=WHY_WITHHELD)
        verdict = judge(exchange, server=endpoint.server, excuses_losses=False)
    if exchange.error is None:
        return Answered(exchange, verdict.findings, verdict.reply, None)
    cut = Finding(47, INTEROP, "the whole answer", exchange.error)
    return Answered(exchange, (*verdict.findings, cut), None, exchange.error)
