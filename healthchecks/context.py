"""The context budget: does the largest request of the cases fit into what the server gives one request.

Ollama cuts a prompt that is too long without a word: a history loses its oldest turns, a single message its
middle (measured on 0.17.5 and 0.24.0). Only `/api/chat` with `truncate` false says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from healthchecks.api import loaded_runner
from healthchecks.case import Case
from healthchecks.check import Check
from healthchecks.conversation import opening_request
from healthchecks.database import describe_schema
from healthchecks.endpoint import Endpoint
from healthchecks.provenance import root_url
from healthchecks.wire import send

DEADLINE_SECONDS = 120.0
CHECK_NAME = "context"
_TOO_LONG = re.compile(r"context (?:length|size)", re.IGNORECASE)


@dataclass(frozen=True)
class _Meter:
    """Counts tokens by asking the server: one token of answer is the cheapest real request."""

    endpoint: Endpoint
    deadline_seconds: float

    def prompt_tokens(self, request: Mapping[str, Any], tools: Sequence[Any]) -> int:
        """`usage.prompt_tokens` of the request with these tools; what was cut away is not counted."""
        asked = {**request, "max_tokens": 1, "stream": False}
        asked.pop("tools", None)
        if tools:
            asked["tools"] = list(tools)
        url, key = self.endpoint.chat_url, self.endpoint.key
        reply = send("POST", url, asked, deadline_seconds=self.deadline_seconds, key=key).json()
        usage = reply.get("usage") if isinstance(reply, dict) else None
        tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if isinstance(tokens, int):
            return tokens
        raise ValueError(f"the reply counts no prompt tokens: {usage!r}")

    def is_too_long(self, request: Mapping[str, Any], tools: Sequence[Any]) -> bool:
        """Whether the server refuses the request when it may cut nothing."""
        asked: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": request["messages"],
            "stream": False,
        }
        asked |= {"truncate": False, "options": {"num_predict": 1}, "tools": list(tools)}
        url, key = root_url(self.endpoint) + "/api/chat", self.endpoint.key
        answer = send("POST", url, asked, deadline_seconds=self.deadline_seconds, key=key)
        return answer.status == 400 and bool(_TOO_LONG.search(answer.body.decode("utf-8", "replace")))

    def tool_tokens(self, request: Mapping[str, Any], tools: Sequence[Any], base: int) -> int:
        """What these tools take, counted in shares that fit; one that does not alone counts as cut."""
        if len(tools) <= 1 or not self.is_too_long(request, tools):
            return self.prompt_tokens(request, tools) - base if tools else 0
        half = len(tools) // 2
        return self.tool_tokens(request, tools[:half], base) + self.tool_tokens(request, tools[half:], base)


def check_context(
    endpoint: Endpoint, cases: Sequence[Case], *, database: Path, deadline_seconds: float = DEADLINE_SECONDS
) -> Check:
    """Whether the longest opening of `cases` fits into the context of one request, tools and all.

    The context is `context_length` of `/api/ps`: what one request has, since the server multiplies by
    OLLAMA_NUM_PARALLEL itself (`llm/server.go` of Ollama). The model is loaded by this.

    Args:
        cases: at least one.
        database: as in `healthchecks.runner.run_suite`.
        deadline_seconds: for each single request.

    Returns:
        A check whose `data` has `judged`; and then `case`, `context_tokens`, `prompt_tokens` (needed),
        `tool_tokens` of them, `tools`, `reply_tokens` (the most an answer may have) and `clipped`.
    """
    schema = describe_schema(database)
    openings = [(case, opening_request(case, endpoint.model, schema)) for case in cases]
    case, request = max(openings, key=lambda pair: len(json.dumps(pair[1])))
    meter = _Meter(endpoint, deadline_seconds)
    tools = request.get("tools", [])
    try:
        prompt = meter.prompt_tokens(request, tools)
        context = _context_tokens(endpoint)
        clipped = meter.is_too_long(request, tools)
        base = meter.prompt_tokens(request, [])
        taken = meter.tool_tokens(request, tools, base) if clipped else prompt - base
    except ValueError as problem:
        return Check(CHECK_NAME, False, f"not judged: {problem}", {"judged": False})
    data = {
        "judged": True,
        "case": case.name,
        "context_tokens": context,
        "prompt_tokens": base + taken if clipped else prompt,
        "tool_tokens": taken,
        "tools": len(tools),
        "reply_tokens": case.sampling["max_tokens"],
        "clipped": clipped,
    }
    return Check(CHECK_NAME, not clipped, _reason(data), data)


def _context_tokens(endpoint: Endpoint) -> int:
    runner = loaded_runner(root_url(endpoint), endpoint.model)
    length = (runner or {}).get("context_length")
    if isinstance(length, int) and length > 0:
        return length
    raise ValueError("/api/ps states no `context_length` for the model")


def _reason(data: Mapping[str, Any]) -> str:
    prompt, context = data["prompt_tokens"], data["context_tokens"]
    # A tool, or the messages, that do not fit alone were counted as they were cut.
    least = "at least " if data["clipped"] and prompt <= context else ""
    tools = f"{data['tools']} tool{'' if data['tools'] == 1 else 's'}"
    taken = f"{least}{prompt} of {context} tokens, {data['tool_tokens']} of them for {tools}"
    said = f"`{data['case']}` takes {taken}"
    if data["clipped"]:
        return f"{said}: the server cuts it; raise `PARAMETER num_ctx` or send fewer tools"
    left = context - prompt
    if left < data["reply_tokens"]:
        return f"{said}; {left} are left for an answer that may have {data['reply_tokens']}"
    return said
