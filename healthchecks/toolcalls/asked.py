"""What the judge needs to know of a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tool:
    """A declared function. `parameters` is its JSON schema; None when it has none: no arguments."""

    name: str
    parameters: Any
    strict: bool


@dataclass(frozen=True)
class Asked:
    """A request. `stream`, `include_usage` and `tools` are None when the request is not known."""

    model: str | None
    stream: bool | None
    include_usage: bool | None
    tools: Mapping[str, Tool] | None
    forces_a_call: bool
    choices: int
    call_ids: frozenset[str]
    text: str


def parse_request(request: Mapping[str, Any]) -> Asked:
    """Read the JSON body of a request; what is not of the expected type counts as not sent."""
    model = request.get("model")
    options = request.get("stream_options")
    choice = request.get("tool_choice")
    n = request.get("n")
    messages = [message for message in _list(request.get("messages")) if isinstance(message, dict)]
    return Asked(
        model=model if isinstance(model, str) else None,
        stream=request.get("stream") is True if request else None,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True if request else None,
        tools=_tools(request.get("tools")) if request else None,
        forces_a_call=isinstance(choice, dict) or choice == "required",
        choices=n if isinstance(n, int) and n > 1 else 1,
        call_ids=frozenset(_call_ids(messages)),
        text="\n".join(_texts(messages)),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _tools(declared: Any) -> dict[str, Tool]:
    found: dict[str, Tool] = {}
    for entry in _list(declared):
        function = entry.get("function") if isinstance(entry, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(function, dict) and isinstance(name, str):
            found.setdefault(name, Tool(name, function.get("parameters"), function.get("strict") is True))
    return found


def _call_ids(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        for call in _list(message.get("tool_calls")):
            if isinstance(call, dict) and isinstance(call.get("id"), str):
                yield call["id"]


def _texts(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        for part in _list(content):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]
