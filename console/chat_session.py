"""A conversation with one model: questions, answers, and the rounds of calls and results between them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from console.chat_client import ChatClient
from console.chat_tools import ToolSet
from console.chat_view import ChatView
from deploy.errors import CommandFailed, ServiceError
from healthchecks.toolcalls import WARN, Reply, judge

MOST_ROUNDS = 8
# Measured on 0.17.5 and 0.24.0: such an answer has status 200, and nothing in it says that it failed.
_NO_END = "no finish reason: Ollama ends like this when its runner fails, or repeats one token 30 times"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSession:
    """`sampling` is the model's own; `server`, as in "ollama/0.17.5", tells the judge of known faults."""

    client: ChatClient
    view: ChatView
    host: str
    model: str
    sampling: Mapping[str, float]
    tools: ToolSet | None
    server: str
    messages: list[Mapping[str, Any]] = field(default_factory=list)

    def reset(self) -> None:
        """Forget everything but the system text."""
        self.messages.clear()
        if self.tools is not None and self.tools.system is not None:
            self.messages.append({"role": "system", "content": self.tools.system})

    def ask(self, question: str) -> None:
        """One question and all that follows from it; where that does not end well, it is forgotten.

        Raises ServiceError, and CommandFailed for a model that calls without end.
        """
        before = len(self.messages)
        try:
            self.messages.append({"role": "user", "content": question})
            self._follow()
        except BaseException:
            # Half a turn, calls without their results, would spoil every later answer.
            del self.messages[before:]
            raise

    def _follow(self) -> None:
        for _ in range(MOST_ROUNDS):
            reply = self._reply()
            if not reply.calls:
                return
            assert self.tools is not None
            for call in reply.calls:
                result = self.tools.result(call)
                self.view.turn("function", result, name=str(call.name))
                self.messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        raise CommandFailed(
            sentence=f"`{self.model}` still calls functions after {MOST_ROUNDS} rounds of results",
            host=self.host,
            unchanged="the conversation before this question",
            hint="ask in other words, or begin anew with /reset",
        )

    def _reply(self) -> Reply:
        """The next message of the assistant, shown and in the history."""
        started = time.monotonic()
        with self.view.answering() as tell:
            exchange = self.client.answer(self._request(), tell)
        verdict = judge(exchange, server=self.server)
        serious = [finding for finding in verdict.findings if finding.severity != WARN]
        reply = verdict.reply
        if reply is None or (reply.calls and self.tools is None):
            said = "\n".join(finding.reason for finding in serious)
            raise self._useless("cannot be read", said or "calls came, and no functions were declared")
        if reply.finish_reason is None:
            raise self._useless("broke off", _NO_END)
        for call in reply.calls:
            self.view.call(str(call.name), _shown(call.raw_arguments))
        # As clients do: null where calls come without text.
        message = {
            **reply.message,
            "content": (reply.content or None) if reply.calls else reply.content or "",
        }
        self.messages.append(message)
        seconds = round(time.monotonic() - started, 3)
        self.view.answered(message, finish_reason=reply.finish_reason, usage=reply.usage, seconds=seconds)
        if not reply.calls and not reply.content:
            self.view.note("(the model answered nothing)")
        for finding in serious:
            self.view.hint(
                f"rule {finding.rule} ({finding.severity}) {finding.where}: {finding.reason}",
                rule=finding.rule,
                severity=finding.severity,
                where=finding.where,
                reason=finding.reason,
            )
        return reply

    def _useless(self, what: str, cause: str) -> ServiceError:
        return ServiceError(
            sentence=f"the answer of `{self.model}` {what}",
            host=self.host,
            cause=cause,
            unchanged="the conversation before this question",
            hint=f"ask again; where it comes again: ./fleet smoke --limit {self.host}",
        )

    def _request(self) -> Mapping[str, Any]:
        request = {"model": self.model, "messages": list(self.messages), **self.sampling}
        if self.tools is not None:
            request["tools"] = list(self.tools.declared)
        return request


def _shown(raw_arguments: Any) -> str:
    return raw_arguments if isinstance(raw_arguments, str) else json.dumps(raw_arguments, ensure_ascii=False)
