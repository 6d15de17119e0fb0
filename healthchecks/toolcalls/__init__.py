"""Judges the replies of an OpenAI-compatible `/v1/chat/completions`, tool calls above all.

`judge(Exchange(...))` is pure: bytes in, a `Verdict` out, never an exception, no clock and no network.
`RULES` says what each rule asks and where it comes from.
"""

from __future__ import annotations

from healthchecks.toolcalls.exchange import (
    BEHAVIOURAL,
    INTEROP,
    MUST,
    WARN,
    Call,
    Exchange,
    Finding,
    Reply,
    Verdict,
)
from healthchecks.toolcalls.judge import MAX_BODY_BYTES, judge
from healthchecks.toolcalls.rules import RULES, Rule, Scope

__all__ = [
    "BEHAVIOURAL",
    "INTEROP",
    "MAX_BODY_BYTES",
    "MUST",
    "RULES",
    "WARN",
    "Call",
    "Exchange",
    "Finding",
    "Reply",
    "Rule",
    "Scope",
    "Verdict",
    "judge",
]
