"""The smoke suite: plays cases against a server, each plain and streamed, and says which passed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from healthchecks.case import Case, load_cases
from healthchecks.conversation import Conversation, Stage, meaning, set_stage
from healthchecks.database import check_database
from healthchecks.endpoint import Endpoint
from healthchecks.toolcalls import INTEROP, WARN, Exchange, Finding

__all__ = ["MODES", "CaseResult", "Endpoint", "load_cases", "run_suite"]

MODES = ("plain", "stream")
DEADLINE_SECONDS = 120.0


@dataclass(frozen=True)
class CaseResult:
    """One case in one mode.

    `where` in the findings begins with the reply's number, which is its place in `exchanges`, counted from 1.
    `conversation` is the history at the end. `error` is set where a request got no whole answer. `run` counts
    from 1 where every case is played several times.
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
    runs: int = 1,
    on_result: Callable[[CaseResult], None] = _ignore,
) -> tuple[CaseResult, ...]:
    """Run every case in every mode; `on_result` hears of each as soon as it is known.

    Args:
        database: a SQLite file with Chinook's tables (`healthchecks.database.make_database` makes one).
        modes: "plain", "stream" or both; with both the streamed calls are compared with the plain ones.
        deadline_seconds: for each single request, its answer read to the end.
        runs: how often the whole suite is played.

    Raises:
        UnusableDatabaseError: `database` is not such a file. A server's faults are findings, never
        exceptions.
    """
    check_database(database)
    stage = set_stage(endpoint, deadline_seconds, database)
    results: list[CaseResult] = []
    for run, case in itertools.product(range(1, runs + 1), cases):
        played: dict[str, Conversation] = {}
        for mode in modes:
            started = time.monotonic()
            talk = played[mode] = Conversation(stage, case, mode)
            talk.play()
            if mode == "stream" and "plain" in played:
                talk.findings.extend(_compare(stage, played["plain"], talk))
            results.append(_result(talk, time.monotonic() - started, run))
            on_result(results[-1])
    return tuple(results)


def _result(talk: Conversation, seconds: float, run: int) -> CaseResult:
    return CaseResult(
        case=talk.case.name,
        mode=talk.mode,
        passed=all(finding.severity == WARN for finding in talk.findings),
        findings=tuple(talk.findings),
        seconds=seconds,
        exchanges=tuple(answer.exchange for answer in talk.answers),
        conversation=tuple(talk.messages),
        error=next((answer.error for answer in talk.answers if answer.error is not None), None),
        run=run,
    )


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
        if meaning(one.reply) != meaning(other.reply):
            again = stage.ask(one.exchange.request).reply
            reason = f"calls differ: plain {meaning(one.reply)}, streamed {meaning(other.reply)}"
            if again is not None and meaning(again) == meaning(other.reply):
                reason += "; a second plain request gave what the stream gave"
                return [Finding(49, WARN, f"reply {number}", reason)]
            return [Finding(49, INTEROP, f"reply {number}", reason)]
        if one.reply.content != other.reply.content:
            return []  # The conversations part here, without a difference in calls.
    return []
