"""Rules 14 and 51 to 54: what a server makes of a history with calls and their results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from healthchecks.toolcalls.exchange import BEHAVIOURAL, INTEROP, WARN
from healthchecks.toolcalls.findings import Findings, show
from healthchecks.toolcalls.strict_json import parse_body, spelled
from healthchecks.toolcalls.turns import Meaning, Turn, calls_of, meaning_of, text_of

MOST_FAILED_ROUNDS = 5

_OF_CONTENT = re.compile(r"\bcontent\b(?!-type|[- ](?:filter|policy|length))", re.IGNORECASE)
_OF_PARTS = re.compile(r"\bcontent\b|\barray\b|\bparts?\b|\bstring\b", re.IGNORECASE)
_OF_RESULTS = re.compile(
    r"tool_call_id|\brole\W{1,3}tool\b|\btool (?:message|result|role)|\btool_results?\b", re.IGNORECASE
)
_ERROR_TEXT = re.compile(
    r"\s*(?:\W{0,3}(?:error|exception|traceback)\b|(?:\w+ ){0,3}failed (?:with|to|:))", re.IGNORECASE
)


def check_history(turns: Sequence[Turn], found: Findings) -> None:
    """Each exchange with what came before it."""
    _check_ids(turns, found)
    _check_acceptance(turns, found)
    for turn in turns:
        if turn.reply is not None:
            _check_after_results(turn, found)


def _check_ids(turns: Sequence[Turn], found: Findings) -> None:
    """Rule 14 from one exchange to the next, where the client did not keep the ids in its history."""
    seen: dict[str, int] = {}
    before: Turn | None = None
    for turn in turns:
        if before is None or not _continues(before, turn):
            seen = {}
        before = turn
        for call in turn.reply.calls if turn.reply is not None else ():
            if not isinstance(call.id, str) or not call.id:
                continue
            earlier = seen.setdefault(call.id, turn.number)
            if earlier != turn.number and call.id not in turn.asked.call_ids:
                reason = f"the id {show(call.id)} is that of a call of exchange {earlier}"
                found.add(14, INTEROP, turn.place("tool_calls"), reason)


def _continues(earlier: Turn, later: Turn) -> bool:
    """Does the history of `later` begin with that of `earlier`, and go on?"""
    count = len(earlier.messages)
    return 0 < count < len(later.messages) and later.messages[:count] == earlier.messages


@dataclass(frozen=True)
class _Form:
    """How a history spells what may be spelled in two ways."""

    null_content: bool
    text_results: bool
    part_results: bool


def _check_acceptance(turns: Sequence[Turn], found: Findings) -> None:
    """Rules 51 and 52. A refusal is laid to one of them where it names it, or where the other form passed."""
    accepted: dict[str, set[_Form]] = {}
    refused: list[tuple[Turn, _Form, str]] = []
    for turn in turns:
        form = _form_of(turn)
        if form is None or turn.exchange.status is None:
            continue
        if turn.exchange.status == 200:
            accepted.setdefault(_normal(turn), set()).add(form)
        elif turn.exchange.status >= 400:
            refused.append((turn, form, _normal(turn)))
    forms = {form for known in accepted.values() for form in known}
    if any(form.null_content for form in forms):
        found.looked_at(51)
    if any(form.text_results for form in forms) and any(form.part_results for form in forms):
        found.looked_at(52)
    for turn, form, normal in refused:
        rule = _blamed(turn, form, accepted.get(normal, set()))
        if rule is not None:
            what = "calls and `content: null`" if rule == 51 else "tool results"
            says = show(turn.error_says) if turn.error_says else "nothing"
            reason = f"the status is {turn.exchange.status} for a history with {what}; the error says {says}"
            found.add(rule, INTEROP, turn.place("status"), reason)


def _form_of(turn: Turn) -> _Form | None:
    """None for a history without calls, and for one in which the client made a mistake."""
    has_calls = any(calls_of(message) for message in turn.messages)
    if not has_calls or not _are_answered(turn.messages) or not all(map(_has_content, turn.messages)):
        return None
    results = [message.get("content") for message in turn.messages if message.get("role") == "tool"]
    return _Form(
        null_content=any(calls_of(message) and message.get("content") is None for message in turn.messages),
        text_results=any(isinstance(content, str) for content in results),
        part_results=any(isinstance(content, list) for content in results),
    )


def _has_content(message: Mapping[str, Any]) -> bool:
    """A text or parts; null beside calls only."""
    content = message.get("content")
    if isinstance(content, list):
        return all(isinstance(part, dict) for part in content)
    return isinstance(content, str) or (content is None and bool(calls_of(message)))


def _are_answered(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Is every call answered once, by its id, before anybody speaks again?"""
    open_ids: list[Any] = []
    for message in messages:
        if message.get("role") == "tool":
            if message.get("tool_call_id") not in open_ids:
                return False
            open_ids.remove(message["tool_call_id"])
        elif open_ids:
            return False
        else:
            open_ids = [call.get("id") for call in calls_of(message)]
    return not open_ids


def _normal(turn: Turn) -> str:
    """The request with every content as a string, however it was spelled and delivered."""
    request = {key: value for key, value in turn.request.items() if key not in ("stream", "stream_options")}
    return spelled({**request, "messages": [{**m, "content": text_of(m)} for m in turn.messages]})


def _blamed(turn: Turn, form: _Form, passed: set[_Form]) -> int | None:
    if any(form.null_content and not other.null_content for other in passed):
        return 51
    if any(form.part_results and not other.part_results for other in passed):
        return 52
    says = turn.error_says
    if form.null_content and not form.part_results and _OF_CONTENT.search(says):
        return 51
    if _OF_RESULTS.search(says) and (form.text_results or form.part_results):
        return 52
    if form.part_results and not form.null_content and _OF_PARTS.search(says):
        return 52
    return None


def _check_after_results(turn: Turn, found: Findings) -> None:
    """Rules 53 and 54, as far as no `expect` is needed: is a call that was answered made again?"""
    answered = _answered_last(turn.messages)
    if not answered:
        return
    failed = [meaning for meaning, error in answered if error]
    if failed:
        found.looked_at(54)
    if len(failed) < len(answered):
        found.looked_at(53)
    for name, arguments in turn.meaning:
        meaning = (name, arguments)
        if meaning in failed:
            reason = f"the call of {show(name)} that failed comes again as it was"
            found.add(54, BEHAVIOURAL, turn.place("tool_calls"), reason)
        elif any(meaning == other for other, _ in answered):
            # Without arguments the next result may be another: the next page, the time.
            severity = BEHAVIOURAL if arguments else WARN
            reason = f"the call of {show(name)} comes again though its result was sent"
            found.add(53, severity, turn.place("tool_calls"), reason)
    rounds = _failed_rounds(turn.messages)
    if turn.meaning and rounds >= MOST_FAILED_ROUNDS:
        reason = f"still calls after {rounds} rounds in a row that failed"
        found.add(54, BEHAVIOURAL, turn.place("tool_calls"), reason)


def _answered_last(messages: Sequence[Mapping[str, Any]]) -> list[tuple[Meaning, bool]]:
    """The calls whose results end the history; True: the result is an error."""
    results: dict[str, bool] = {}
    for message in reversed(messages):
        if message.get("role") != "tool":
            calls = calls_of(message)
            ids = [call.get("id") for call in calls]
            return [
                (meaning_of(call), results[id_])
                for call, id_ in zip(calls, ids)
                if isinstance(id_, str) and id_ in results
            ]
        answered = message.get("tool_call_id")
        if isinstance(answered, str):
            results[answered] = _is_error(text_of(message))
    return []


def _failed_rounds(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many rounds of calls at the end of the history had nothing but errors for results."""
    rounds = 0
    results: list[bool] = []
    for message in reversed(messages):
        if message.get("role") == "tool":
            results.append(_is_error(text_of(message)))
        elif not calls_of(message) or not results or not all(results):
            break
        else:
            rounds += 1
            results = []
    return rounds


def _is_error(result: str) -> bool:
    """As our own tools and most others say it: a text that begins with it, or an object with `error`."""
    if _ERROR_TEXT.match(result[:200]):
        return True
    if not result.lstrip().startswith("{"):
        return False
    try:
        value = parse_body(result)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and (bool(value.get("error")) or value.get("is_error") is True)
