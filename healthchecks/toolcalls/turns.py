"""One exchange of a conversation, read: what the rules of conversations look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from healthchecks.toolcalls.asked import Asked
from healthchecks.toolcalls.exchange import Exchange, Reply
from healthchecks.toolcalls.strict_json import parse_body, spelled

Meaning = tuple[Any, Any]
"""A call without its id and the spelling of its JSON: name and arguments."""


@dataclass(frozen=True)
class Turn:
    """The exchange `number`, counted from 1; `reply` is None where there is none to look at."""

    number: int
    exchange: Exchange
    asked: Asked
    reply: Reply | None

    def place(self, where: str) -> str:
        """`where` for a finding about this exchange."""
        return f"exchange {self.number}: {where}"

    @property
    def request(self) -> Mapping[str, Any]:
        return self.exchange.request

    @property
    def was_refused(self) -> bool:
        status = self.exchange.status
        return status is not None and 400 <= status < 500

    @cached_property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        """Those of the request that are objects."""
        return [message for message in list_of(self.request.get("messages")) if isinstance(message, dict)]

    @cached_property
    def meaning(self) -> list[Meaning]:
        """The calls of the reply."""
        calls = self.reply.calls if self.reply is not None else ()
        return [
            (call.name, call.raw_arguments if call.arguments is None else call.arguments) for call in calls
        ]

    @cached_property
    def error_object(self) -> Any:
        return error_object(self.exchange)

    @property
    def error_says(self) -> str:
        return error_says(self.error_object)


def error_object(exchange: Exchange) -> Any:
    """The value of `error` in a JSON reply; None where there is no such thing."""
    try:
        value = parse_body(exchange.body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value.get("error") if isinstance(value, dict) else None


def error_says(error: Any) -> str:
    """The text of such a value."""
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def list_of(value: Any) -> list[Any]:
    """What is no list counts as an empty one."""
    return value if isinstance(value, list) else []


def request_without(turn: Turn, *keys: str) -> str:
    """The request, spelled, less these keys: equal for requests that differ in nothing else."""
    return spelled({key: value for key, value in turn.request.items() if key not in keys})


def calls_of(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The calls in an assistant's message of the history."""
    return [call for call in list_of(message.get("tool_calls")) if isinstance(call, dict)]


def meaning_of(call: Mapping[str, Any]) -> Meaning:
    """Of a call in the history."""
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = parse_body(arguments)
        except (ValueError, RecursionError):
            return function.get("name"), arguments
    return function.get("name"), arguments


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, whether a string or parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = [part.get("text") for part in list_of(content) if isinstance(part, dict)]
    return "\n".join(part for part in parts if isinstance(part, str))
