"""Plays one case against an endpoint, and finds what no single reply shows.

That is rules 53 to 62, as the case's expectations name them, and whether a history with calls (51) and
results (52) is accepted. Everything else is the judge's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from healthchecks.case import DATABASE_SCHEMA_MARK, Case, Expectation, Turn, render_expectation
from healthchecks.database import FACTS, DatabaseTool, describe_schema
from healthchecks.endpoint import Answered, Endpoint, ask
from healthchecks.expectations import unmet, unmet_error, unmet_growth
from healthchecks.toolcalls import BEHAVIOURAL, INTEROP, MUST, RULES, WARN, Call, Exchange, Finding, Reply
from healthchecks.toolcalls.known import TOOL_CHOICE_IGNORED, KnownFault
from healthchecks.toolcalls.obeyed import REFUSALS_OF_TOOL_CHOICE, refuses_tool_choice

MOST_ROUNDS_OF_CALLS = 4

# The server's doing; what a case expects besides is the model's.
SERVERS_RULES = (59, 60, 61, 62, 63)
_KNOWN: Mapping[int, KnownFault] = {59: TOOL_CHOICE_IGNORED}


@dataclass(frozen=True)
class Stage:
    """What all conversations of a run have in common: the server, and the database with what it says."""

    endpoint: Endpoint
    deadline_seconds: float
    database: DatabaseTool
    schema: str
    facts: Mapping[str, Sequence[str]]

    def ask(self, request: Mapping[str, Any]) -> Answered:
        return ask(self.endpoint, request, self.deadline_seconds)


def set_stage(endpoint: Endpoint, deadline_seconds: float, database: Path) -> Stage:
    """Read what the conversations need to know of `database`.

    Raises:
        UnusableDatabaseError: it cannot be read or says nothing.
    """
    facts = {name: read(database) for name, read in FACTS.items()}
    return Stage(endpoint, deadline_seconds, DatabaseTool(database), describe_schema(database), facts)


@dataclass(frozen=True)
class Conversation:
    """One case in one mode while it is played; `play` fills the lists.

    `others` are the conversations that are held at the same time.
    """

    stage: Stage
    case: Case
    mode: str
    others: Sequence[Case] = ()
    messages: list[Mapping[str, Any]] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def play(self) -> None:
        """Turn by turn, until one does not bring what is expected: what follows would make no sense."""
        self.messages.extend(opening_messages(self.case))
        reply: Reply | None = None
        for number, turn in enumerate(self.case.turns):
            if turn.expect.error:
                self._send_error(turn)
                self._keep_expectation(turn)
                continue
            if turn.user is not None:
                self.messages.append({"role": "user", "content": turn.user})
                reply = self._ask(turn)
            elif reply is not None:
                reply = self._send_results(turn, reply)
            self._keep_expectation(turn)
            if reply is None:
                return
            at = len(self.answers)
            reason = self._unmet(turn.expect, reply)
            if reason is not None:
                mixed_up = turn.expect.rule != 63 or self._is_of_another(number, reply)
                self._find_unmet(turn.expect.rule if mixed_up else models_rule(63), reason, at)
                return

    def find(
        self, rule: int, severity: str, reason: str, at: int | None = None, known: str | None = None
    ) -> None:
        """Add a finding about the reply of that number, or the latest one."""
        self.findings.append(Finding(rule, severity, f"reply {at or len(self.answers)}", reason, known))

    def _find_unmet(self, rule: int, reason: str, at: int | None = None) -> None:
        known = _KNOWN.get(rule)
        if known is not None and known.concerns(self.stage.endpoint.server):
            self.find(rule, WARN, reason, at, known.label)
        else:
            of_form = rule in SERVERS_RULES and RULES[rule].severities != "B"
            self.find(rule, INTEROP if of_form else BEHAVIOURAL, reason, at)

    def _keep_expectation(self, turn: Turn) -> None:
        """With the exchange that it is about: whoever reads it from a file can judge it again."""
        exchange = replace(self.answers[-1].exchange, expect=render_expectation(turn.expect))
        self.answers[-1] = replace(self.answers[-1], exchange=exchange)

    def _unmet(self, expect: Expectation, reply: Reply) -> str | None:
        if expect.prompt_grows:
            sent = self.answers[-1].exchange.request
            without = {key: value for key, value in sent.items() if key != "tools"}
            # Kept too: whoever reads it from a file can compare them again.
            return unmet_growth(reply, self._take(self.stage.ask(without)).reply)
        return unmet(expect, reply, self.stage.facts)

    def _is_of_another(self, number: int, reply: Reply) -> bool:
        """Whether a call in the reply to the turn of that number is what another conversation asked for."""
        return any(
            unmet(replace(expect, calls=(wanted,)), replace(reply, calls=(call,)), self.stage.facts) is None
            for expect in (other.turns[number].expect for other in self.others)
            for wanted in expect.calls or ()
            for call in reply.calls
        )

    def _ask(self, turn: Turn) -> Reply | None:
        """Send the history; the reply becomes part of it. None where there is no reply to go on with."""
        answered = self.stage.ask(self._request(turn))
        self.answers.append(answered)
        if turn.expect.may_refuse and _is_refused(answered.exchange):
            return None
        self._find_of(answered)
        reply = answered.reply
        if reply is None:
            self._blame_history(answered)
            if all(finding.severity == WARN for finding in self.findings):
                self.find(1, MUST, "no reply could be read from what came")
        elif reply.calls:
            # As clients do: null where calls come without text.
            self.messages.append({**reply.message, "content": reply.content or None})
        else:
            self.messages.append(reply.message)
        return reply

    def _take(self, answered: Answered) -> Answered:
        self.answers.append(answered)
        self._find_of(answered)
        return answered

    def _find_of(self, latest: Answered) -> None:
        """What the judge found in it."""
        where = f"reply {len(self.answers)}"
        self.findings.extend(replace(one, where=f"{where}: {one.where}") for one in latest.findings)

    def _send_error(self, turn: Turn) -> None:
        """Rule 60: a request that must fail; it stays out of the history."""
        user = {"role": "user", "content": turn.user}
        answered = self.stage.ask({**self._request(turn), "messages": [*self.messages, user], **turn.request})
        self.answers.append(answered)
        reason = answered.error or unmet_error(turn.expect.error, answered.exchange)
        if reason is not None:
            said = ", ".join(f"`{key}` {json.dumps(value)}" for key, value in turn.request.items())
            self._find_unmet(turn.expect.rule, f"with {said}: {reason}")

    def _request(self, turn: Turn) -> Mapping[str, Any]:
        request: dict[str, Any] = {
            "model": self.stage.endpoint.model,
            "messages": list(self.messages),
            **self.case.sampling,
            "stream": self.mode == "stream",
        }
        if self.mode == "stream":
            request["stream_options"] = {"include_usage": True}
        if self.case.tools:
            request["tools"] = declared_tools(self.case, self.stage.schema)
        return {**request, **turn.request}

    def _send_results(self, turn: Turn, reply: Reply) -> Reply | None:
        """Answer the calls of `reply`; where text is expected, also the new calls that come instead."""
        asked: list[Any] = []
        for _ in range(MOST_ROUNDS_OF_CALLS):
            asked.extend(meaning(reply))
            for call in reply.calls:
                result = self._result(turn, call)
                self.messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
            following = self._ask(turn)
            if following is None or not following.calls or turn.expect.calls is not None:
                return following
            if all(call in asked for call in meaning(following)):
                self.find(53, BEHAVIOURAL, "the same call came again after its result")
                return None
            reply = following
        self.find(54, BEHAVIOURAL, f"still calls and no text after {MOST_ROUNDS_OF_CALLS} rounds of results")
        return None

    def _result(self, turn: Turn, call: Call) -> Any:
        how = turn.results.get(call.name) if isinstance(call.name, str) else None
        if how is None:
            return "there is no such function"
        if "text" in how:
            return how["text"]
        if "parts" in how:
            return [{"type": "text", "text": text} for text in how["parts"]]
        sql = (call.arguments or {}).get(how["run_sql"])
        if not isinstance(sql, str):
            return f"query failed with error: the call has no text in `{how['run_sql']}`"
        return self.stage.database.run(sql)

    def _blame_history(self, answered: Answered) -> None:
        """Where a history with results was refused: is it its `content: null` (51) or the results (52)?"""
        status, request = answered.exchange.status, answered.exchange.request
        if status not in (400, 422):
            return  # A wrong key or too many requests are no word about the history.
        if not any(message["role"] == "tool" for message in request["messages"]):
            return
        with_text = [{**message, "content": message["content"] or ""} for message in request["messages"]]
        if self.stage.ask({**request, "messages": with_text}).exchange.status == 200:
            self.find(51, INTEROP, f"HTTP {status} for a history with calls and `content: null`")
        else:
            self.find(52, INTEROP, f"HTTP {status} for a history with tool results")


def _is_refused(exchange: Exchange) -> bool:
    """Whether the server says, as errors are said (rule 60), that it cannot do what `tool_choice` asks."""
    return refuses_tool_choice(exchange) and unmet_error(REFUSALS_OF_TOOL_CHOICE, exchange) is None


def models_rule(rule: int) -> int:
    """What the model broke where an expectation by this rule is not met: mixing up (63) no model can do."""
    return 55 if rule == 63 else rule


def meaning(reply: Reply) -> list[tuple[Any, Any]]:
    """The calls without their ids and the spelling of their JSON: name and arguments."""
    return [
        (call.name, call.raw_arguments if call.arguments is None else call.arguments) for call in reply.calls
    ]


def declared_tools(case: Case, schema: str) -> list[Mapping[str, Any]]:
    """The case's tools, with the database's `schema` (`describe_schema`) where a description asks for it."""
    text = json.dumps(case.tools).replace(DATABASE_SCHEMA_MARK, json.dumps(schema)[1:-1])
    tools: list[Mapping[str, Any]] = json.loads(text)
    return tools


def opening_messages(case: Case) -> list[Mapping[str, Any]]:
    """What stands before the first turn: the system's message and the history."""
    system = [] if case.system is None else [{"role": "system", "content": case.system}]
    return [*system, *case.history]


def opening_request(case: Case, model: str, schema: str) -> Mapping[str, Any]:
    """The first request of a case, plain, as `Conversation` sends it."""
    first = {"role": "user", "content": case.turns[0].user}
    request = {"model": model, "messages": [*opening_messages(case), first], **case.sampling}
    return {**request, "tools": declared_tools(case, schema)} if case.tools else request
