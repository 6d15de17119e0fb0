"""Recorded good replies as values that a test can take apart, break and put together again."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from healthchecks.toolcalls import Exchange

CAPTURES = Path(__file__).parents[1] / "captures"
SCRIPTED = ("one_call", "two_calls_parallel", "three_calls_mixed_tools", "text_before_call", "plain_text")
REAL = "0.32.15/v1_real_tool_call"
# Of 0.17.5 where nothing else is said.
CASES = (*SCRIPTED, *(f"0.24.0/{case}" for case in SCRIPTED), REAL)
DONE = "[DONE]"


@cache
def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


def captured(case: str, *, stream: bool) -> dict[str, Any]:
    """The recorded exchange of a case, tools filled in; a streamed one has usage."""
    version, _, name = case.rpartition("/")
    directory = CAPTURES / (version or "0.17.5")
    if case == REAL:
        suffix = "stream_usage" if stream else "no_stream"
        exchange = copy.deepcopy(_read(directory / "http" / f"{name}_{suffix}.json"))
    else:
        document = copy.deepcopy(_read(directory / "scripted" / f"{name}.json"))
        variant = "v1-stream-usage" if stream else "v1"
        exchange = next(entry for entry in document["exchanges"] if entry["variant"] == variant)
    body = exchange["request"]["body"]
    if body.get("tools") == "@../tools.json":
        body["tools"] = copy.deepcopy(_read(directory / "tools.json"))
    found: dict[str, Any] = exchange
    return found


@dataclass
class GoodReply:
    """One exchange. `events` holds the chunks of a stream and DONE; `plain` the body of a plain reply."""

    case: str
    request: dict[str, Any]
    plain: dict[str, Any] | None
    events: list[Any] | None
    status: int | None = 200
    headers: dict[str, str] | None = field(default_factory=dict)
    raw: bytes | None = None
    started_seconds: float | None = None
    seconds: float | None = None
    expect: dict[str, Any] | None = None

    @property
    def streamed(self) -> bool:
        return self.events is not None

    @property
    def chunks(self) -> list[dict[str, Any]]:
        assert self.events is not None
        return [event for event in self.events if isinstance(event, dict)]

    @property
    def deltas(self) -> list[dict[str, Any]]:
        return [chunk["choices"][0]["delta"] for chunk in self.chunks if chunk["choices"]]

    @property
    def message(self) -> dict[str, Any]:
        """Where role, content and calls stand: the message, or the first delta."""
        if self.plain is None:
            return self.deltas[0]
        message: dict[str, Any] = self.plain["choices"][0]["message"]
        return message

    @property
    def ending(self) -> dict[str, Any]:
        """The choice that has the finish reason."""
        choices = (
            self.plain["choices"] if self.plain else [c["choices"][0] for c in self.chunks if c["choices"]]
        )
        found: dict[str, Any] = next(choice for choice in choices if choice["finish_reason"])
        return found

    @property
    def usage(self) -> dict[str, Any]:
        whole: dict[str, Any] = self.plain or self.chunks[-1]
        found: dict[str, Any] = whole["usage"]
        return found

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Ollama sends each call whole, in one delta."""
        holders = self.deltas if self.plain is None else [self.message]
        return [call for holder in holders for call in holder.get("tool_calls") or []]

    def give(self, name: str, arguments: Any) -> None:
        """Make the first call one of `name`; `arguments` is a text, or a value to encode."""
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        self.calls[0]["function"] = {"name": name, "arguments": text}

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.events is None:
            return json.dumps(self.plain).encode()
        texts = (event if isinstance(event, str) else json.dumps(event) for event in self.events)
        return "".join(f"data: {text}\n\n" for text in texts).encode()

    def exchange(self) -> Exchange:
        return Exchange(
            self.request,
            self.status,
            self.headers,
            self.body(),
            started_seconds=self.started_seconds,
            seconds=self.seconds,
            expect=self.expect,
        )


def recorded(case: str, *, stream: bool) -> GoodReply:
    """As Ollama sent it."""
    exchange = captured(case, stream=stream)
    request, response = exchange["request"]["body"], exchange["response"]
    if not stream:
        return GoodReply(case, request, response["body"], None, headers=response["headers"])
    texts = [line.removeprefix("data: ") for line in response["events"]]
    events = [text if text == DONE else json.loads(text) for text in texts]
    return GoodReply(case, request, None, events, headers=response["headers"])


def faultless(case: str, *, stream: bool) -> GoodReply:
    """The same without what Ollama before 0.32.6 has in every delta: nothing fires, not even a warning."""
    reply = recorded(case, stream=stream)
    if stream:
        for number, delta in enumerate(reply.deltas):
            if number:
                delta.pop("role", None)
            if not delta.get("content"):
                delta.pop("content", None)
    return reply
