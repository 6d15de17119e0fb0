"""What the judge needs to know of a request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from healthchecks.toolcalls.template_tokens import TEMPLATE_TOKEN

_TALK_OF_ESCAPES = re.compile(r"escap|encod|entit|mojibake|latin-?1", re.IGNORECASE)
_LONG_INTEGER = re.compile(r"(?<![\d.])-?\d{16,300}(?![\d.])")


@dataclass(frozen=True)
class Tool:
    """A declared function. `parameters` is its JSON schema; None when it has none: no arguments."""

    name: str
    parameters: Any
    strict: bool


@dataclass(frozen=True)
class Asked:
    """A request. `stream`, `include_usage`, `tools` and `choices` are None when they are not known.

    `text` is that of all messages, `question` that of the last message of the user.
    """

    model: str | None
    stream: bool | None
    include_usage: bool | None
    usage_in_every_chunk: bool
    tools: Mapping[str, Tool] | None
    legacy_functions: bool
    forces_a_call: bool
    choices: int | None
    call_ids: frozenset[str]
    text: str
    question: str

    @cached_property
    def long_integers(self) -> Mapping[float, frozenset[int]]:
        """The integers of the conversation that a float64 may not hold, by the float64 nearest to them."""
        nearest: dict[float, set[int]] = {}
        for digits in _LONG_INTEGER.findall(self.text):
            nearest.setdefault(float(digits), set()).add(int(digits))
        return {value: frozenset(integers) for value, integers in nearest.items()}

    @cached_property
    def template_tokens(self) -> frozenset[str]:
        """Those that the conversation holds, and may hold again."""
        return frozenset(TEMPLATE_TOKEN.findall(self.text))

    @cached_property
    def speaks_of_escapes(self) -> bool:
        """Whether an escaped text may be just what somebody asked for."""
        return _TALK_OF_ESCAPES.search(self.text) is not None


def parse_request(request: Mapping[str, Any], tools: Sequence[Any] | None = None) -> Asked:
    """Read the JSON body of a request; what is not of the expected type counts as not sent.

    Args:
        request: the body, empty when it is not known.
        tools: those to take where the body has no `tools`.
    """
    model = request.get("model")
    options = request.get("stream_options")
    options = options if isinstance(options, dict) else {}
    choice = request.get("tool_choice")
    n = request.get("n")
    messages = [message for message in _list(request.get("messages")) if isinstance(message, dict)]
    known_n = n if isinstance(n, int) and n > 1 else 1
    return Asked(
        model=model if isinstance(model, str) else None,
        stream=request.get("stream") is True if request else None,
        include_usage=options.get("include_usage") is True if request else None,
        usage_in_every_chunk=options.get("continuous_usage_stats") is True,  # vLLM's
        tools=_declared(request, tools),
        legacy_functions=bool(request.get("functions")),
        forces_a_call=isinstance(choice, dict) or choice == "required",
        choices=known_n if request else None,
        call_ids=frozenset(_call_ids(messages)),
        text="\n".join(_texts(messages)),
        question="\n".join(_texts([m for m in messages if m.get("role") == "user"][-1:])),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _declared(request: Mapping[str, Any], tools: Sequence[Any] | None) -> dict[str, Tool] | None:
    if "tools" in request:
        return _tools(_list(request["tools"]))
    if tools is not None:
        return _tools(tools)
    return {} if request else None


def _tools(declared: Sequence[Any]) -> dict[str, Tool]:
    found: dict[str, Tool] = {}
    for entry in declared:
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
