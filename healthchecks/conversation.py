"""Plays one case against an endpoint, and finds what no single reply shows.

That is rules 53 to 58, as the case's expectations name them, and whether a history with calls (51) and
results (52) is accepted. Everything else is the judge's.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from healthchecks.case import DATABASE_SCHEMA_MARK, Case, Turn
from healthchecks.database import FACTS, DatabaseTool, describe_schema
from healthchecks.endpoint import Answered, Endpoint, ask
from healthchecks.expectations import unmet
from healthchecks.toolcalls import BEHAVIOURAL, INTEROP, Call, Finding, Reply

MOST_ROUNDS_OF_CALLS = 4


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
    """One case in one mode while it is played; `play` fills the lists."""

    stage: Stage
    case: Case
    mode: str
    messages: list[Mapping[str, Any]] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def play(self) -> None:
        """Turn by turn, until one does not bring what is expected: what follows would make no sense."""
        if self.case.system is not None:
            self.messages.append({"role": "system", "content": self.case.system})
        reply: Reply | None = None
        for turn in self.case.turns:
            if turn.user is not None:
                self.messages.append({"role": "user", "content": turn.user})
                reply = self._ask()
            elif reply is not None:
                reply = self._send_results(turn, reply)
            if reply is None:
                return
            reason = unmet(turn.expect, reply, self.stage.facts)
            if reason is not None:
                self.find(turn.expect.rule, BEHAVIOURAL, reason)
                return

    def find(self, rule: int, severity: str, reason: str) -> None:
        """Add a finding about the latest reply."""
        self.findings.append(Finding(rule, severity, f"reply {len(self.answers)}", reason))

    def _ask(self) -> Reply | None:
        """Send the history; the reply becomes part of it. None where there is no reply to go on with."""
        answered = self.stage.ask(self._request())
        self.answers.append(answered)
        number = len(self.answers)
        self.findings.extend(
            dataclasses.replace(finding, where=f"reply {number}: {finding.where}")
            for finding in answered.findings
        )
        reply = answered.reply
        if reply is None:
            self._blame_history(answered)
        elif reply.calls:
            # As clients do: null where calls come without text.
            self.messages.append({**reply.message, "content": reply.content or None})
        else:
            self.messages.append(reply.message)
        return reply

    def _request(self) -> Mapping[str, Any]:
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
        return request

    def _send_results(self, turn: Turn, reply: Reply) -> Reply | None:
        """Answer the calls of `reply`; where text is expected, also the new calls that come instead."""
        asked: list[Any] = []
        for _ in range(MOST_ROUNDS_OF_CALLS):
            asked.extend(meaning(reply))
            for call in reply.calls:
                result = self._result(turn, call)
                self.messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
            following = self._ask()
            if following is None or not following.calls or turn.expect.calls is not None:
                return following
            if all(call in asked for call in meaning(following)):
                self.find(53, BEHAVIOURAL, "the same call came again after its result")
                return None
            reply = following
        self.find(54, BEHAVIOURAL, f"still calls and no text after {MOST_ROUNDS_OF_CALLS} rounds of results")
        return None

    def _result(self, turn: Turn, call: Call) -> str:
        how = turn.results.get(call.name) if isinstance(call.name, str) else None
        if how is None:
            return "there is no such function"
        if "text" in how:
            return how["text"]
        sql = (call.arguments or {}).get(how["run_sql"])
        if not isinstance(sql, str):
            return f"query failed with error: the call has no text in `{how['run_sql']}`"
        return self.stage.database.run(sql)

    def _blame_history(self, answered: Answered) -> None:
        """Where a history with results was refused: is it its `content: null` (51) or the results (52)?"""
        status, request = answered.exchange.status, answered.exchange.request
        if status is None or not 400 <= status < 500 or request["messages"][-1]["role"] != "tool":
            return
        with_text = [{**message, "content": message["content"] or ""} for message in request["messages"]]
        if self.stage.ask({**request, "messages": with_text}).exchange.status == 200:
            self.find(51, INTEROP, f"HTTP {status} for a history with calls and `content: null`")
        else:
            self.find(52, INTEROP, f"HTTP {status} for a history with tool results")


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


def opening_request(case: Case, model: str, schema: str) -> Mapping[str, Any]:
    """The first request of a case, plain, as `Conversation` sends it."""
    messages = [] if case.system is None else [{"role": "system", "content": case.system}]
    first = case.turns[0].user
    request = {"model": model, "messages": [*messages, {"role": "user", "content": first}], **case.sampling}
    return {**request, "tools": declared_tools(case, schema)} if case.tools else request
