"""The smoke suite: plays cases against a server, each plain and streamed, and says which passed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from healthchecks.case import Case, load_cases, numbered_case
from healthchecks.conversation import Conversation, Stage, meaning, set_stage
from healthchecks.database import check_database
from healthchecks.endpoint import Endpoint
from healthchecks.toolcalls import BEHAVIOURAL, INTEROP, WARN, Exchange, Finding, Reply
from healthchecks.toolcalls.compared import telling_ids
from healthchecks.toolcalls.strict_json import spelled

__all__ = ["MODES", "CaseResult", "Endpoint", "load_cases", "run_suite"]

MODES = ("plain", "stream")
DEADLINE_SECONDS = 120.0
MOST_WAITS = 3
"""Plays in a row that came to their deadline: a server that hangs or drips would take hours for all cases."""


@dataclass(frozen=True)
class CaseResult:
    """One case in one mode, in the run of that number, counted from 1.

    `where` in the findings begins with the reply's number, which is its place in `exchanges`, counted from 1;
    where a case holds several conversations at once, the conversation's number stands before it, and the
    exchanges follow conversation by conversation. `conversation` is the history at the end, of the first of
    several. `error` is set where a request got no whole answer.
    """

    case: str
    mode: str
    passed: bool
    findings: tuple[Finding, ...]
    seconds: float
    exchanges: tuple[Exchange, ...]
    conversation: tuple[Mapping[str, Any], ...]
    error: str | None
    run: int = 1


def _ignore(_: CaseResult) -> None:
    pass


def run_suite(
    endpoint: Endpoint,
    cases: Sequence[Case],
    *,
    database: Path,
    modes: Sequence[str] = MODES,
    deadline_seconds: float = DEADLINE_SECONDS,
    on_result: Callable[[CaseResult], None] = _ignore,
    runs: int = 1,
    first_run: int = 1,
) -> tuple[CaseResult, ...]:
    """Run every case in every mode; `on_result` hears of each as soon as it is known.

    Args:
        database: a SQLite file with Chinook's tables (`healthchecks.database.make_database` makes one).
        modes: "plain", "stream" or both; with both the streamed calls are compared with the plain ones.
        deadline_seconds: for each single request, its answer read to the end. After three plays in a row
            that came to it the suite ends, and the last result's `error` says so.
        runs: how often each case is played in each mode, one time after the other.
        first_run: the number of the first of these runs.

    Raises:
        UnusableDatabaseError: `database` is not such a file. A server's faults are findings, never
        exceptions.
    """
    check_database(database)
    stage = set_stage(endpoint, deadline_seconds, database)
    results: list[CaseResult] = []
    for result in _results(stage, cases, modes, range(first_run, first_run + runs)):
        results.append(result)
        last = results[-MOST_WAITS:]
        is_over = len(last) == MOST_WAITS and all(_has_waited(one, deadline_seconds) for one in last)
        if is_over:
            told = f"{result.error}; the suite ends here, as {MOST_WAITS} plays in a row waited for nothing"
            results[-1] = dataclasses.replace(result, error=told)
        on_result(results[-1])
        if is_over:
            break
    return tuple(results)


def _results(
    stage: Stage, cases: Sequence[Case], modes: Sequence[str], runs: Sequence[int]
) -> Iterator[CaseResult]:
    """Play after play, as somebody asks for the next."""
    for case in cases:
        for run in runs:
            played: dict[str, tuple[Conversation, ...]] = {}
            for mode in modes:
                started = time.monotonic()
                talks = played[mode] = _play(stage, case, mode)
                if mode == "stream" and "plain" in played and case.concurrent == 1:
                    talks[0].findings.extend(_compare(stage, played["plain"][0], talks[0]))
                yield _result(talks, run, time.monotonic() - started)


def _has_waited(result: CaseResult, deadline_seconds: float) -> bool:
    """Whether a request of the play was given up at its deadline."""
    return result.error is not None and result.seconds >= deadline_seconds


def _play(stage: Stage, case: Case, mode: str) -> tuple[Conversation, ...]:
    """The conversations of a case, played: one, or the concurrent ones at once."""
    if case.concurrent == 1:
        talk = Conversation(stage, case, mode)
        talk.play()
        return (talk,)
    numbered = [numbered_case(case, number) for number in range(1, case.concurrent + 1)]
    talks = tuple(
        Conversation(stage, one, mode, [other for other in numbered if other is not one]) for one in numbered
    )
    with ThreadPoolExecutor(case.concurrent) as pool:
        for playing in [pool.submit(talk.play) for talk in talks]:
            playing.result()
    return talks


def _result(talks: Sequence[Conversation], run: int, seconds: float) -> CaseResult:
    findings = tuple(_findings(talks))
    answers = [answer for talk in talks for answer in talk.answers]
    return CaseResult(
        case=talks[0].case.name,
        mode=talks[0].mode,
        passed=all(finding.severity == WARN for finding in findings),
        findings=findings,
        seconds=seconds,
        exchanges=tuple(answer.exchange for answer in answers),
        conversation=tuple(talks[0].messages),
        error=next((answer.error for answer in answers if answer.error is not None), None),
        run=run,
    )


def _findings(talks: Sequence[Conversation]) -> Iterator[Finding]:
    if len(talks) == 1:
        yield from talks[0].findings
        return
    for number, talk in enumerate(talks, 1):
        for finding in talk.findings:
            yield dataclasses.replace(finding, where=f"conversation {number}, {finding.where}")
    yield from _find_shared_ids(talks)


def _find_shared_ids(talks: Sequence[Conversation]) -> Iterator[Finding]:
    """Rule 63: a call of one conversation has no id of another."""
    first: dict[str, int] = {}
    for number, talk in enumerate(talks, 1):
        for id_ in sorted(telling_ids(*(answer.reply for answer in talk.answers))):
            if first.setdefault(id_, number) != number:
                reason = f"a call has the id `{id_}`, as one of conversation {first[id_]}"
                yield Finding(63, BEHAVIOURAL, f"conversation {number}", reason)


def _compare(stage: Stage, plain: Conversation, streamed: Conversation) -> list[Finding]:
    """Rule 49: at temperature 0 and with a seed, the stream has the calls of the plain reply.

    Hardware may break a tie another way the second time, so the plain request is repeated before the stream
    is blamed: a server whose plain replies differ among themselves earns no more than a warning.
    """
    if plain.case.sampling["temperature"] != 0:
        return []
    for number, (one, other) in enumerate(zip(plain.answers, streamed.answers), 1):
        if one.reply is None or other.reply is None:
            return []
        if not _mean_the_same(one.reply, other.reply):
            again = stage.ask(one.exchange.request).reply
            reason = f"calls differ: plain {meaning(one.reply)}, streamed {meaning(other.reply)}"
            if again is not None and _mean_the_same(again, other.reply):
                reason += "; a second plain request gave what the stream gave"
                return [Finding(49, WARN, f"reply {number}", reason)]
            return [Finding(49, INTEROP, f"reply {number}", reason)]
        if one.reply.content != other.reply.content:
            return []  # The conversations part here, without a difference in calls.
    return []


def _mean_the_same(one: Reply, other: Reply) -> bool:
    """By the values of JSON: 1 and true, which are equal to Python, are not the same, and 1 and 1.0 are."""
    try:
        return spelled(meaning(one)) == spelled(meaning(other))
    except RecursionError:
        return True  # Nobody can tell.
