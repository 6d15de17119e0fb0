"""Rules 58 to 60 and 62: does a reply keep to what its request says?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from healthchecks.toolcalls.exchange import BEHAVIOURAL, INTEROP, Exchange
from healthchecks.toolcalls.findings import Findings, names, show
from healthchecks.toolcalls.known import LENGTH_OVERWRITTEN, TOOL_CHOICE_IGNORED
from healthchecks.toolcalls.turn import is_integer
from healthchecks.toolcalls.turns import Turn, error_object, error_says, list_of

_SPEAKS_OF_TOOL_CHOICE = re.compile(r"tool[ _]?choice", re.IGNORECASE)
# A wrong key (401) or an unknown model (404) is no answer to what the request says.
REFUSALS_OF_TOOL_CHOICE = (400, 422, 501)


def is_rightly_refused(turn: Turn) -> bool:
    """Is an error what this request had to get, or could: nobody could answer it, or its `expect` says so?"""
    if refuses_tool_choice(turn.exchange):
        return True
    due = list_of((turn.exchange.expect or {}).get("error"))
    malformed = bool(turn.request) and not isinstance(turn.request.get("messages"), list)
    return turn.was_refused and (turn.exchange.status in due or malformed)


def refuses_tool_choice(exchange: Exchange) -> bool:
    """Does the server say that it cannot do what `tool_choice` asks for?"""
    return (
        "tool_choice" in exchange.request
        and exchange.status in REFUSALS_OF_TOOL_CHOICE
        and _SPEAKS_OF_TOOL_CHOICE.search(error_says(error_object(exchange))) is not None
    )


def check_obeyed(turns: Sequence[Turn], found: Findings) -> None:
    """Each exchange by itself."""
    for turn in turns:
        _check_refusal(turn, found)
        if turn.request and turn.reply is not None:
            _check_no_tools(turn, found)
            _check_cut(turn, found)
        if turn.asked.tools:
            _check_tool_choice(turn, found)


def _check_refusal(turn: Turn, found: Findings) -> None:
    """Rule 60: whatever was refused, and why: the form of it, and what the exchange's `expect` demands."""
    status, expect = turn.exchange.status, turn.exchange.expect or {}
    if status is None:
        return
    due = [given for given in list_of(expect.get("error")) if is_integer(given)]
    if due:
        found.looked_at(60)
        if status not in due:
            reason = f"the status is {status}, due was {' or '.join(map(str, due))}"
            found.add(60, INTEROP, turn.place("status"), reason)
    if status < 400 or turn.exchange.error is not None:
        return
    found.looked_at(60)
    error = turn.error_object
    if not isinstance(error, dict):
        reason = f"the reply of status {status} is no JSON object with an object `error`"
        found.add(60, INTEROP, turn.place("body"), reason)
        return
    lacking = [key for key in ("message", "type") if not isinstance(error.get(key), str) or not error[key]]
    if lacking:
        reason = f"the error object has no text in {names(lacking)}"
        found.add(60, INTEROP, turn.place("error"), reason)


def _check_no_tools(turn: Turn, found: Findings) -> None:
    """Rule 58."""
    if turn.asked.tools != {} or turn.asked.legacy_functions or turn.reply is None:
        return
    found.looked_at(58)
    if turn.reply.calls:
        reason = f"no tools were sent, and a call of {show(turn.reply.calls[0].name)} came"
        found.add(58, BEHAVIOURAL, turn.place("tool_calls"), reason)


def _check_tool_choice(turn: Turn, found: Findings) -> None:
    """Rule 59, where the request has tools."""
    choice = turn.request.get("tool_choice")
    name = _chosen_name(choice)
    if choice not in ("none", "required") and name is None:
        return
    if refuses_tool_choice(turn.exchange):
        found.looked_at(59)
    reply = turn.reply
    # What was cut may have had a call to come.
    if reply is None or (choice != "none" and not reply.calls and reply.finish_reason == "length"):
        return
    found.looked_at(59)
    called = [call.name for call in reply.calls]
    reason = None
    if choice == "none" and called:
        reason = f"`tool_choice` is `none`, and a call of {show(called[0])} came"
    elif choice != "none" and not called:
        reason = f"`tool_choice` demands a call{'' if name is None else ' of ' + show(name)}, and none came"
    elif name is not None and any(other != name for other in called):
        others = [str(other) for other in called if other != name]
        reason = f"`tool_choice` names {show(name)}, and a call of {show(others[0])} came"
    if reason is not None:
        found.add(59, INTEROP, turn.place("tool_calls"), reason, TOOL_CHOICE_IGNORED)


def _chosen_name(choice: Any) -> str | None:
    """Of `{"type": "function", "function": {"name": ...}}`."""
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _check_cut(turn: Turn, found: Findings) -> None:
    """Rule 62: of a reply with calls whose tokens reached `max_tokens`, or whose finish reason says so."""
    reply = turn.reply
    limit: Any = turn.request.get("max_completion_tokens")
    limit = turn.request.get("max_tokens") if limit is None else limit
    if reply is None or not reply.calls:
        return
    if reply.finish_reason == "length":
        found.looked_at(62)
        return
    tokens = (reply.usage or {}).get("completion_tokens")
    if not is_integer(limit) or not is_integer(tokens) or limit <= 0:
        return
    found.looked_at(62)
    if tokens >= limit:
        whole = all(call.arguments is not None for call in reply.calls)
        reason = (
            f"{tokens} tokens of at most {limit} came, and the finish reason is {show(reply.finish_reason)}"
            f"{'' if whole else ', though the arguments of a call are cut'}"
        )
        known = LENGTH_OVERWRITTEN if whole and reply.finish_reason == "tool_calls" else None
        found.add(62, INTEROP, turn.place("finish_reason"), reason, known)
