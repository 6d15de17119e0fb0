"""What the judge is given (an exchange) and what it gives back (a verdict)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MUST = "must"  # the OpenAI types demand it
INTEROP = "interop"  # the test suites of clients and servers demand it
BEHAVIOURAL = "behavioural"  # the model's doing: score it over several runs
WARN = "warn"  # worth knowing, fails nothing


@dataclass(frozen=True)
class Exchange:
    """One request to `/v1/chat/completions` and the raw reply.

    `request` is the JSON body that was sent (model, messages, tools, stream, stream_options, ...), empty when
    not known. `status` and `headers` (names in any case) are None when not known. What needs the unknown is
    not judged. `body` is the whole reply as it came, server-sent events included.

    `started_seconds` is when the request was sent, on any clock that all exchanges of a conversation share;
    `seconds` how long the answer took. `error` says why the answer is not whole: no connection, a deadline.
    `expect` is what must come back, in the form of a case's `expect` (`case.schema.json`).
    """

    request: Mapping[str, Any]
    status: int | None
    headers: Mapping[str, str] | None
    body: bytes
    started_seconds: float | None = None
    seconds: float | None = None
    error: str | None = None
    expect: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Finding:
    """One broken rule.

    `severity` is "must", "interop", "behavioural" or "warn". `where` is a path into the reply, such as
    `choices[0].message.tool_calls[1].id` or `events[3].choices[0].delta.role`; for what shows only when a
    stream is put together, into the message that results: `tool_calls[1].function.name`. `known` names the
    known fault of the server version that the caller stated ("ollama#17485"), which is then a "warn".
    """

    rule: int
    severity: str
    where: str
    reason: str
    known: str | None = None


@dataclass(frozen=True)
class Call:
    """One tool call as the reply has it; only `arguments` is decoded, None when it is not a JSON object."""

    id: Any
    name: Any
    raw_arguments: Any
    arguments: Mapping[str, Any] | None
    index: Any


@dataclass(frozen=True)
class Reply:
    """The assistant's turn, put together from a plain reply or from the deltas of a stream.

    `message` is the assistant message to append to the history before the tool results.
    """

    content: str | None
    calls: tuple[Call, ...]
    finish_reason: str | None
    usage: Mapping[str, Any] | None
    message: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """All that was found.

    `not_judged` lists the rules for which this exchange held nothing, or not enough, to look at: they did not
    pass. `reply` is None when no assistant turn could be read.
    """

    findings: tuple[Finding, ...]
    not_judged: tuple[int, ...]
    reply: Reply | None

    @property
    def ok(self) -> bool:
        """True when nothing above "warn" was found."""
        return all(finding.severity == WARN for finding in self.findings)
