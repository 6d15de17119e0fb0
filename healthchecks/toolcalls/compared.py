"""Rules 49, 61 and 63: what two exchanges show that one alone does not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

from healthchecks.toolcalls.exchange import BEHAVIOURAL, INTEROP, WARN, Reply
from healthchecks.toolcalls.findings import Findings, names, show
from healthchecks.toolcalls.strict_json import spelled, walk
from healthchecks.toolcalls.turn import is_integer
from healthchecks.toolcalls.turns import Meaning, Turn, list_of, request_without

_MOST_COMPARED = 40
_MOST_PAIRS = 2000
_MOST_DIGITS = 15
_DELIVERY = ("stream", "stream_options")
_OF_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
# Ids that count within one conversation, as `functions.get_time:0` or `call_1`: equal ones mean nothing.
_COUNTED_ID = re.compile(r"(?:[\w.]*[:_.-])?\d{1,4}")
_WORD = re.compile(r"[\u3040-\u9fff]{2,}|[^\W_]{3,}")
_NUMBER = re.compile(r"(?<![\w.,])\d{3,}(?:\.\d+)?(?![\w]|[.,]\d)")
_GROUPING = re.compile(r"(?<=\d)[,_'\u00a0\u202f ](?=\d)")


def check_compared(turns: Sequence[Turn], found: Findings) -> None:
    """All pairs that have something to say about each other."""
    for group in _groups(turns, *_DELIVERY):
        _check_stream_against_plain(group, found)
    for group in _groups(turns, *_DELIVERY, *_OF_TOOLS):
        _check_growth(group, found)
    for one, other in _concurrent(turns):
        _check_apart(one, other, found)


def _groups(turns: Sequence[Turn], *keys: str) -> Iterator[list[Turn]]:
    """The exchanges with a reply whose requests are equal but for `keys`; of many the first few."""
    groups: dict[str, list[Turn]] = {}
    for turn in turns:
        if turn.request and turn.reply is not None:
            group = groups.setdefault(request_without(turn, *keys), [])
            if len(group) < _MOST_COMPARED:
                group.append(turn)
    yield from (group for group in groups.values() if len(group) > 1)


def _check_stream_against_plain(group: Sequence[Turn], found: Findings) -> None:
    """Rule 49, at temperature 0 and with a seed.

    Hardware may break a tie another way the second time: where the plain replies differ among themselves,
    the stream earns no more than a warning.
    """
    request = group[0].request
    if request.get("temperature") != 0 or not is_integer(request.get("seed")):
        return
    plain = [turn for turn in group if turn.asked.stream is False]
    streamed = [turn for turn in group if turn.asked.stream is True]
    if not plain or not streamed:
        return
    found.looked_at(49)
    meanings = [spelled(turn.meaning) for turn in plain]
    severity = INTEROP if len(set(meanings)) == 1 else WARN
    for turn in streamed:
        if spelled(turn.meaning) not in meanings:
            reason = f"{_called(turn)} in the stream, {_called(plain[0])} in the plain reply"
            found.add(49, severity, turn.place("tool_calls"), f"{reason} (exchange {plain[0].number})")


def _called(turn: Turn) -> str:
    if not turn.meaning:
        return "no call"
    return names([f"{name}({spelled(arguments)})" for name, arguments in turn.meaning])


def _check_growth(group: Sequence[Turn], found: Findings) -> None:
    """Rule 61."""
    counted = []
    for turn in group:
        tokens = (turn.reply.usage or {}).get("prompt_tokens") if turn.reply is not None else None
        if is_integer(tokens) and int(tokens or 0) > 0:
            tools = {spelled(tool) for tool in list_of(turn.request.get("tools"))}
            counted.append((turn, tools, int(tokens or 0)))
    for one, other in combinations(counted, 2):
        (_, fewer, before), (turn, more, after) = sorted((one, other), key=lambda entry: len(entry[1]))
        if fewer < more:
            found.looked_at(61)
            if after <= before:
                reason = f"{after} prompt tokens with {len(more)} tools, {before} with {len(fewer)}"
                found.add(61, INTEROP, turn.place("usage.prompt_tokens"), reason)


def _concurrent(turns: Sequence[Turn]) -> Iterator[tuple[Turn, Turn]]:
    """The pairs whose times overlap; of very many the first ones."""
    timed = [
        (turn.exchange.started_seconds, turn.exchange.started_seconds + turn.exchange.seconds, turn)
        for turn in turns
        if turn.exchange.started_seconds is not None and turn.exchange.seconds and turn.reply is not None
    ]
    timed.sort(key=lambda entry: entry[0])
    pairs = 0
    for place, (_, ended, turn) in enumerate(timed):
        for started, _, other in timed[place + 1 :]:
            if started >= ended or pairs == _MOST_PAIRS:
                break
            pairs += 1
            yield turn, other


def _check_apart(one: Turn, other: Turn, found: Findings) -> None:
    """Rule 63."""
    if not one.meaning and not other.meaning:
        return
    found.looked_at(63)
    shared = telling_ids(one.reply) & telling_ids(other.reply)
    for id_ in sorted(shared):
        reason = f"the id {show(id_)} is that of a call of exchange {one.number}, which ran at the same time"
        found.add(63, BEHAVIOURAL, other.place("tool_calls"), reason)
    for turn, its_neighbour in ((one, other), (other, one)):
        foreign, call = _foreign_value(turn, its_neighbour)
        if foreign is not None:
            # Both may mean the same: a capital, and the city by its name. A reply that was sent twice has
            # its ids twice, and nobody comes upon such a number by himself.
            may_mean_it = isinstance(foreign, str) and call in its_neighbour.meaning
            severity = WARN if may_mean_it else BEHAVIOURAL
            reason = (
                f"{show(foreign)} is in the arguments, and only exchange {its_neighbour.number} speaks of it,"
                " which ran at the same time"
            )
            found.add(63, severity, turn.place("tool_calls"), reason)


def telling_ids(*replies: Reply | None) -> frozenset[str]:
    """The ids of calls that no other conversation may have; those that merely count may be anybody's."""
    ids = [call.id for reply in replies if reply is not None for call in reply.calls]
    return frozenset(id_ for id_ in ids if isinstance(id_, str) and id_ and not _COUNTED_ID.fullmatch(id_))


def _foreign_value(turn: Turn, other: Turn) -> tuple[str | int | float | None, Meaning | None]:
    """A text or number in the arguments that is in the other conversation and nowhere in this request.

    With the call that has it.
    """
    theirs, ours = other.asked.text.casefold(), ""
    if not theirs:
        return None, None
    for call in turn.meaning:
        for value in _values(call[1]):
            ours = ours or _all_text(turn).casefold()
            if not isinstance(value, str):
                if value in _telling_numbers(theirs) and not _spells(ours, value):
                    return value, call
                continue
            words = [word.casefold() for word in _WORD.findall(value)]
            foreign = [word for word in words if word in theirs and word not in ours]
            if foreign and not any(word in ours for word in words):
                return value, call
    return None, None


def _all_text(turn: Turn) -> str:
    """All that the request says, its tools too, as one text."""
    return "\n".join(value for value in walk(dict(turn.request)) if isinstance(value, str))


def _values(arguments: Any) -> list[str | int | float]:
    return [
        value
        for value in walk(arguments)
        if isinstance(value, (str, int, float)) and not isinstance(value, bool)
    ][:_MOST_COMPARED]


@lru_cache(maxsize=64)
def _telling_numbers(text: str) -> frozenset[float]:
    """Those that nobody comes upon by himself: of three digits and more, and not round."""
    numbers = (float(number) for number in _NUMBER.findall(text) if len(number) <= _MOST_DIGITS)
    return frozenset(number for number in numbers if number % 10)


def _spells(text: str, number: float) -> bool:
    """Does `text` hold the digits, however they are grouped?"""
    return str(abs(number)).removesuffix(".0") in _GROUPING.sub("", text)
