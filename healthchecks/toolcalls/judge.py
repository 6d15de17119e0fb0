"""The judge: one exchange in, one verdict out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from healthchecks.toolcalls.asked import Asked, parse_request
from healthchecks.toolcalls.exchange import INTEROP, MUST, Exchange, Reply, Verdict
from healthchecks.toolcalls.findings import Findings, error_text, printable, show
from healthchecks.toolcalls.known import NO_FINAL_CHUNK
from healthchecks.toolcalls.plain import check_plain
from healthchecks.toolcalls.sse import looks_like_events
from healthchecks.toolcalls.stream import check_stream
from healthchecks.toolcalls.strict_json import parse_body
from healthchecks.toolcalls.turn import error_of

MAX_BODY_BYTES = 32 * 1024 * 1024


def judge(
    exchange: Exchange,
    *,
    server: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    excuses_losses: bool = True,
) -> Verdict:
    """Judge one exchange by the rules of scope EXCHANGE; raises nothing, whatever the bytes.

    `server`, such as "ollama/0.17.5", turns the faults known for that version into warnings; without it every
    rule is absolute. The version is never guessed from the reply. `tools` are those of a request that is not
    known, or does not say. A body above `max_body_bytes` is not read. Without `excuses_losses` a fault by
    which something of the reply is lost stays one, known or not.
    """
    found = Findings(server, excuses_losses=excuses_losses)
    reply = None
    try:
        if len(exchange.body) <= max_body_bytes:
            reply = _judge(exchange, parse_request(exchange.request, tools), found)
        else:
            reason = f"the reply has {len(exchange.body)} bytes; no more than {max_body_bytes} are read"
            found.add(1, MUST, "body", reason)
    except RecursionError:
        found.add(1, MUST, "body", "the reply is nested too deeply to be read")
    return Verdict(found.all(), found.not_judged(), reply)


def _judge(exchange: Exchange, asked: Asked, found: Findings) -> Reply | None:
    text = exchange.body.decode("utf-8", "replace")
    streamed = looks_like_events(text)
    value, not_json = (None, "") if streamed else _parse(text)
    if _failed(exchange.status, value, text, found):
        return None
    if text.encode("utf-8") != exchange.body:
        found.add(25, INTEROP, "body", "the reply is not UTF-8")
    if not_json:
        # Neither an event stream nor JSON, an HTML page perhaps: whichever was asked for, it is not that.
        rule, severity = (31, INTEROP) if asked.stream else (1, MUST)
        # Where the text may have been a call, Ollama holds it back, and loses all of it.
        lost = asked.stream and exchange.status == 200 and not exchange.body and asked.tools != {}
        reason = f"the reply is neither events nor JSON ({not_json}): {show(text.strip())}"
        found.add(rule, severity, "body", reason, NO_FINAL_CHUNK if lost else None)
        return None
    if asked.stream is True and not streamed:
        found.add(31, INTEROP, "body", "a stream was asked for and one JSON value came")
    if asked.stream is False and streamed:
        found.add(1, MUST, "body", "an event stream came and none was asked for")
    _check_head(exchange, found, streamed=streamed)
    return check_stream(text, asked, found) if streamed else check_plain(value, asked, found)


def _parse(text: str) -> tuple[Any, str]:
    """The JSON value of a text, or why it is not JSON."""
    try:
        return parse_body(text), ""
    except ValueError as problem:
        return None, printable(str(problem))


def _failed(status: int | None, value: Any, text: str, found: Findings) -> bool:
    """Rule 1 for the status and rule 47 for an error in place of the reply; nothing else is judged then.

    An error reply is plain JSON even where a stream was asked for.
    """
    error = error_of(value)
    if status is not None and status != 200:
        says = show(text.strip()) if error is None else error_text(error)
        found.add(1, MUST, "status", f"the status is {status}: {says}")
        return True
    if error is not None:
        found.add(47, INTEROP, "body", f"an error takes the place of the reply: {error_text(error)}")
    return error is not None


def _check_head(exchange: Exchange, found: Findings, *, streamed: bool) -> None:
    """The content type: rule 1 for a plain reply, rule 31 for a stream. The status was good."""
    if exchange.status is not None and (streamed or exchange.headers is not None):
        found.looked_at(1)
    if exchange.headers is None:
        return
    given = _content_type(exchange.headers)
    if streamed:
        found.looked_at(31)
        if given != "text/event-stream":
            found.add(31, INTEROP, "headers.content-type", f"the content type of the stream is {show(given)}")
    elif given != "application/json":
        found.add(1, MUST, "headers.content-type", f"the content type is {show(given)}, not application/json")


def _content_type(headers: Mapping[str, str]) -> str:
    for name, value in headers.items():
        if name.lower() == "content-type":
            return value.split(";")[0].strip().lower()
    return "absent"
