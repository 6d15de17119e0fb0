"""How fast the judge is on one core: recorded plain replies a second, megabytes of stream a second."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from deploy.report import Report
from healthchecks.toolcalls import Exchange, judge
from tests.unit.toolcalls_captures import captures

REPLIES_A_SECOND = 2000
MEGABYTES_A_SECOND = 10
SECONDS = 3.0
STREAM_BYTES = 8_000_000
CASES = ("0.17.5/scripted/plain_text", "0.24.0/scripted/plain_text_no_tools", "0.24.0/scripted/one_call")
MEGABYTE = 1_000_000


def run(report: Report) -> int:
    """Print both figures, in seconds of this process's own CPU time; 2 where one is below its target."""
    replies = [capture.exchange for capture in captures() if b'"chat.completion"' in capture.exchange.body]
    streams = [_longer(_streamed(case)) for case in CASES]
    plain = _rounds_a_second(replies) * len(replies)
    size = sum(len(exchange.body) for exchange in streams) / MEGABYTE
    stream = _rounds_a_second(streams) * size
    report.say(
        f"plain replies: {plain:,.0f} a second, at least {REPLIES_A_SECOND:,} ({len(replies)} recorded)"
    )
    report.say(
        f"streams: {stream:.1f} MB a second, at least {MEGABYTES_A_SECOND} ({size:.1f} MB in {len(streams)})"
    )
    report.say(f"CPU time of one core; this machine has {os.cpu_count()}")
    return 0 if plain >= REPLIES_A_SECOND and stream >= MEGABYTES_A_SECOND else 2


def _rounds_a_second(exchanges: Sequence[Exchange]) -> float:
    """How often all of them can be judged."""
    began = time.process_time()
    rounds = 0
    while time.process_time() - began < SECONDS:
        for exchange in exchanges:
            judge(exchange, server="ollama/0.17.5")
        rounds += 1
    return rounds / (time.process_time() - began)


def _streamed(case: str) -> Exchange:
    return next(capture.exchange for capture in captures() if capture.name == f"{case}/v1-stream-usage")


def _longer(exchange: Exchange) -> Exchange:
    """The same stream with its first event, a piece of text or a call, many times over."""
    first, _, rest = exchange.body.partition(b"\n\n")
    body = b"\n\n".join([first] * (STREAM_BYTES // len(first))) + b"\n\n" + rest
    return Exchange(exchange.request, exchange.status, exchange.headers, body)
