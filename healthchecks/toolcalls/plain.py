"""Rules 2 to 12 and 28: a reply that came in one piece."""

from __future__ import annotations

from typing import Any

from healthchecks.toolcalls.asked import Asked
from healthchecks.toolcalls.calls import check_calls
from healthchecks.toolcalls.exchange import INTEROP, MUST, Reply
from healthchecks.toolcalls.findings import Findings, show
from healthchecks.toolcalls.known import NO_FINAL_MESSAGE, ZERO_TIME_SECONDS, KnownFault, ends_in_repetition
from healthchecks.toolcalls.leaks import check_content
from healthchecks.toolcalls.turn import (
    check_finish_word,
    check_identity,
    check_outcome,
    check_usage,
    first_choice,
    is_integer,
    look_beside,
    make_reply,
    reasoning_of,
)


def check_plain(completion: Any, asked: Asked, found: Findings) -> Reply | None:
    """Check a decoded reply; None when it holds no message."""
    found.looked_at(2)
    if not isinstance(completion, dict):
        found.add(2, MUST, "body", f"the reply is {show(completion)}, not an object")
        return None
    if completion.get("object") != "chat.completion":
        found.add(2, MUST, "object", "`object` is {}".format(show(completion.get("object"))))
    usage = completion.get("usage")
    choices = completion.get("choices")
    choice = first_choice(choices, "choices", asked, found)
    if choice is None and isinstance(choices, list) and choices and isinstance(choices[0], dict):
        found.add(4, INTEROP, "choices", "no choice has the index 0")
        choice = choices[0]
    known = None if choice is None else _no_final_message(completion, choice, asked)
    check_identity(completion, "", asked, found, known)
    check_usage(usage, "usage", found, known)
    if choice is None:
        return None
    finish, message = choice.get("finish_reason"), choice.get("message")
    check_finish_word(finish, "choices[0].finish_reason", found, known)
    if not isinstance(message, dict):
        found.add(4, MUST, "choices[0].message", f"the message is {show(message)}, not an object")
        return None
    content = _check_message(message, asked, found, known)
    where = "choices[0].message.tool_calls"
    entries = _call_entries(message, where, found)
    calls = check_calls(entries, where, from_stream=False, finish_reason=finish, asked=asked, found=found)
    malformed = bool(message.get("tool_calls")) and not calls
    check_outcome(content, calls, look_beside(message), finish, usage, asked, found, malformed=malformed)
    return make_reply(content, calls, finish, usage)


def _no_final_message(completion: dict[str, Any], choice: dict[str, Any], asked: Asked) -> KnownFault | None:
    """What a reply of Ollama looks like that its guard against repetition ended.

    Nothing is counted, there is no reason to finish, and the text ends in what was repeated; or there is
    nothing at all, where tools were sent and what came might have been a call.
    """
    message, usage = choice.get("message"), completion.get("usage")
    if not isinstance(message, dict) or not isinstance(usage, dict):
        return None
    counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens", "total_tokens")]
    if counts != [0, 0, 0] or choice.get("finish_reason") is not None or message.get("tool_calls"):
        return None
    content = message.get("content")
    text = content if isinstance(content, str) else ""
    if message.get("role") == "assistant":
        repeats = ends_in_repetition(text or reasoning_of(message))
    else:
        unset = (completion.get("created"), completion.get("model"), message.get("role"), content)
        repeats = unset == (ZERO_TIME_SECONDS, "", "", "") and asked.tools != {}
    return NO_FINAL_MESSAGE if repeats else None


def _check_message(
    message: dict[str, Any], asked: Asked, found: Findings, known: KnownFault | None
) -> str | None:
    """Rules 6, 7, 10 and 30; returns the text. `known` explains an empty role."""
    found.looked_at(6, 7, 10)
    where = "choices[0].message."
    if message.get("role") != "assistant":
        found.add(6, MUST, where + "role", "the role is {}".format(show(message.get("role"))), known)
    if message.get("function_call") is not None and not asked.legacy_functions:
        found.add(10, INTEROP, where + "function_call", "the legacy `function_call` is used")
    content = message.get("content")
    if "content" not in message:
        found.add(7, MUST, where + "content", "`content` is absent")
    elif content is not None and not isinstance(content, str):
        found.add(7, MUST, where + "content", f"`content` is {show(content)}, not a string or null")
    text = content if isinstance(content, str) else None
    check_content([] if text is None else [text], where + "content", asked, found)
    return text


def _call_entries(message: dict[str, Any], where: str, found: Findings) -> list[Any]:
    """Rules 8 and 28."""
    found.looked_at(8)
    entries = message.get("tool_calls")
    if entries is None:
        return []
    if not isinstance(entries, list) or not entries:
        what = "an empty list" if entries == [] else show(entries)
        found.add(8, INTEROP, where, f"`tool_calls` is {what}; without calls it is absent")
        return []
    for position, entry in enumerate(entries):
        if isinstance(entry, dict) and "index" in entry:
            found.looked_at(28)
            index = entry["index"]
            if not is_integer(index) or index != position:
                at = f"{where}[{position}].index"
                found.add(28, INTEROP, at, f"the index of call {position} is {show(index)}")
    return entries
