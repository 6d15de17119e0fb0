"""What plain replies and streams have in common: rules 3, 5, 9, 11 and 12, and the `Reply` itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from healthchecks.toolcalls.asked import Asked
from healthchecks.toolcalls.exchange import INTEROP, MUST, WARN, Call, Reply
from healthchecks.toolcalls.findings import Findings, show
from healthchecks.toolcalls.known import SWALLOWED, KnownFault

_FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")


def is_integer(value: Any) -> bool:
    """JSON true and false are integers to Python, not to anybody else."""
    return isinstance(value, int) and not isinstance(value, bool)


def error_of(value: Any) -> Any:
    """The error that stands in place of a reply, whoever's form it has; None where there is none.

    OpenAI's is `{"error": ...}`; vLLM had `{"object": "error", "message": ...}`, and FastAPI, on which many
    servers stand, says `{"detail": ...}`. What has choices is a reply, unless its `error` says something.
    """
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    if error or (error is not None and "choices" not in value):
        return error
    if "choices" in value:
        return None
    if value.get("object") == "error":
        return value
    if "object" in value:
        return None
    told = [value.get(key) for key in ("detail", "message", "msg")]
    return next((text for text in told if text and isinstance(text, (str, list))), None)


def check_identity(
    completion: dict[str, Any],
    where: str,
    asked: Asked,
    found: Findings,
    known: KnownFault | None = None,
) -> None:
    """Rule 3 for a whole reply or the first chunk of a stream; `known` explains an empty model."""
    found.looked_at(3)
    id_, created, model = completion.get("id"), completion.get("created"), completion.get("model")
    if not isinstance(id_, str) or not id_:
        found.add(3, MUST, where + "id", f"the id is {show(id_)}, not a non-empty string")
    if not is_integer(created):
        found.add(3, MUST, where + "created", f"`created` is {show(created)}, not an integer")
    if not isinstance(model, str):
        found.add(3, MUST, where + "model", f"the model is {show(model)}, not a string")
    elif asked.model is not None and model != asked.model:
        reason = f"the model is {show(model)}, asked for was {show(asked.model)}"
        severity = WARN if _is_a_fuller_name(model, asked.model) else INTEROP
        found.add(3, severity, where + "model", reason, None if model else known)


def _is_a_fuller_name(one: str, other: str) -> bool:
    """As `gpt-4o-2024-08-06` is for `gpt-4o`, `qwen:latest` for `qwen` and `openai/gpt-4o` for `gpt-4o`."""
    short, long = sorted((one, other), key=len)
    behind, before = long[len(short) :], long[: -len(short) or None]
    named_on = long.startswith(short) and behind[:1] in ("-", ":", "@")
    return bool(short) and (named_on or (long.endswith(short) and before.endswith("/")))


def first_choice(choices: Any, where: str, asked: Asked, found: Findings) -> dict[str, Any] | None:
    """Rule 4; the choice that the other rules look at: the one of index 0, None where there is none of it.

    Where `n` was sent the others are not looked at; where nobody knows, that there are any is a warning.
    """
    found.looked_at(4)
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        found.add(4, MUST, where, "`choices` is not a list that begins with an object")
        return None
    given = [choice.get("index") if isinstance(choice, dict) else None for choice in choices]
    indices = [index for index in given if isinstance(index, int) and is_integer(index)]
    are_numbered = len(set(indices)) == len(choices) and min(indices) >= 0
    others = are_numbered and max(indices) > 0
    if others and asked.choices is None:
        found.add(4, WARN, where, "there are several choices; whether `n` was sent is not known")
    if others and (asked.choices is None or max(indices) < asked.choices):
        return choices[indices.index(0)] if 0 in indices else None
    if len(choices) > (asked.choices or 1):
        found.add(4, INTEROP, where, f"there are {len(choices)} choices")
    if not is_integer(given[0]) or given[0] != 0:
        found.add(4, INTEROP, where + "[0].index", f"the index of the choice is {show(given[0])}")
    return choices[0]


def check_finish_word(word: Any, where: str, found: Findings, known: KnownFault | None = None) -> None:
    """Rule 5."""
    found.looked_at(5)
    if word not in _FINISH_REASONS:
        found.add(5, MUST, where, f"the finish reason is {show(word)}", known)


def check_usage(usage: Any, where: str, found: Findings, known: KnownFault | None = None) -> None:
    """Rule 11."""
    found.looked_at(11)
    if not isinstance(usage, dict):
        found.add(11, INTEROP, where, f"the usage is {show(usage)}, not an object")
        return
    counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens", "total_tokens")]
    if not all(is_integer(count) for count in counts):
        reason = "prompt, completion and total tokens are {}, {} and {}".format(*map(show, counts))
        found.add(11, INTEROP, where, reason)
        return
    prompt, completion, total = (int(count or 0) for count in counts)
    if min(prompt, total) < 0:
        found.add(11, INTEROP, where, f"{prompt} and {total} tokens are no counts")
    if total != prompt + completion:
        found.add(11, INTEROP, where, f"{prompt} + {completion} tokens are not {total}")
    if completion <= 0:
        found.add(11, INTEROP, where, "no completion tokens were counted", known)


@dataclass(frozen=True)
class Beside:
    """What a message has beside text and calls: another `answer` (refusal, legacy call, audio), thoughts."""

    answer: bool
    reasoning: bool


def reasoning_of(message: Mapping[str, Any]) -> str:
    """The thoughts of a message or a delta, as Ollama sends them."""
    reasoning = message.get("reasoning")
    return reasoning if isinstance(reasoning, str) else ""


def look_beside(message: Mapping[str, Any]) -> Beside:
    """Of a message or a delta."""
    reasoning = any(message.get(key) for key in ("reasoning_content", "reasoning", "thinking"))
    other_form = bool(message.get("content")) and not isinstance(message["content"], str)
    answer = other_form or any(message.get(key) for key in ("refusal", "function_call", "audio"))
    return Beside(answer, reasoning)


def check_outcome(
    content: str | None,
    calls: tuple[Call, ...],
    beside: Beside,
    finish: Any,
    usage: Any,
    asked: Asked,
    found: Findings,
    *,
    malformed: bool,
) -> None:
    """Rules 9 and 12: what came, against the finish reason and against what was billed.

    Args:
        malformed: something came where calls stand that is none; other rules have said so.
    """
    if finish in _FINISH_REASONS:
        found.looked_at(9)
    if calls and finish in ("stop", "function_call", "content_filter"):
        severity = WARN if asked.forces_a_call else INTEROP
        found.add(9, severity, "finish_reason", f"calls came, and the finish reason is {show(finish)}")
    if finish == "tool_calls" and not calls and not malformed:
        found.add(9, INTEROP, "finish_reason", "the finish reason is `tool_calls`, and no call came")
    something = bool(calls) or malformed or bool(content and content.strip()) or beside.answer
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if something or is_integer(tokens):
        found.looked_at(12)
    if not something and is_integer(tokens) and int(tokens or 0) > 0 and finish != "content_filter":
        # Cut by max_tokens inside a call, a server has nothing to show; that it says `length` is right.
        severity = WARN if finish == "length" or beside.reasoning else INTEROP
        reason = f"{tokens} completion tokens were counted, and there is neither text nor a call"
        known = SWALLOWED if asked.tools and finish == "stop" and severity != WARN else None
        found.add(12, severity, "content", reason, known)


def make_reply(content: str | None, calls: tuple[Call, ...], finish: Any, usage: Any) -> Reply:
    """The turn, with the message to append to the history."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [_history_call(call) for call in calls]
    return Reply(
        content=content,
        calls=calls,
        finish_reason=finish if isinstance(finish, str) else None,
        usage=usage if isinstance(usage, dict) else None,
        message=message,
    )


def _history_call(call: Call) -> dict[str, Any]:
    arguments = call.raw_arguments if isinstance(call.raw_arguments, str) else json.dumps(call.raw_arguments)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
