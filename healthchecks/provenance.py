"""Template provenance: what the server really shows the model of what it is sent.

Ollama renders a chat request instead of answering it where `_debug_render_only` is true (0.17.5 and later).
That prompt is compared with the request: a tool that is not in it, or a turn, was never seen by the model.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from healthchecks.case import Case
from healthchecks.check import Check
from healthchecks.conversation import opening_request
from healthchecks.database import describe_schema
from healthchecks.endpoint import Endpoint
from healthchecks.prompt import ERROR, HOW_NOT_TO_CUT, WARN, PromptFault, find_prompt_faults
from healthchecks.wire import send

DEADLINE_SECONDS = 60.0
CHECK_NAME = "provenance"


@dataclass(frozen=True)
class Probe:
    """One request to be rendered. With `only_warns`, what it shows fails nothing: we never send such."""

    name: str
    request: Mapping[str, Any]
    only_warns: bool = False


class NotRenderedError(ValueError):
    """The server answered without a rendered prompt."""


def check_provenance(
    endpoint: Endpoint, cases: Sequence[Case], *, database: Path, deadline_seconds: float = DEADLINE_SECONDS
) -> Check:
    """Whether the model is shown what the cases send: every tool as JSON, every message in order.

    Args:
        cases: those that are played; each different set of tools and system message is rendered once, and a
            whole conversation with calls and results beside them.
        database: as in `healthchecks.runner.run_suite`.
        deadline_seconds: for each single request.

    Returns:
        A check whose `data` has `judged`: false where the server does not render (it is no Ollama, or one
        before `_debug_render_only`), and then `ok` is false too, since nothing was proved. `faults` are the
        fields of `PromptFault` with the `probe` that showed them; those of severity "warn" fail nothing.
    """
    schema = describe_schema(database)
    template = read_template(endpoint, deadline_seconds)
    faults: list[tuple[str, PromptFault]] = []
    probes = tuple(make_probes(endpoint.model, cases, schema))
    for probe in probes:
        try:
            prompt = render(endpoint, probe.request, deadline_seconds)
        except NotRenderedError as problem:
            return Check(CHECK_NAME, False, f"not judged: {problem}", {"judged": False, "faults": []})
        except ValueError as problem:
            faults.append((probe.name, _refused(str(problem))))
            continue
        found = find_prompt_faults(probe.request, prompt, template=template, server=endpoint.server)
        faults.extend((probe.name, _softened(fault) if probe.only_warns else fault) for fault in found)
    return _checked(_without_repeats(faults), len(probes))


def make_probes(model: str, cases: Sequence[Case], schema: str) -> Iterator[Probe]:
    """The openings of the cases, each different one once, and the conversations of `provenance.json`."""
    seen: set[str] = set()
    for case in cases:
        same = json.dumps([case.system, case.tools])
        if same not in seen:
            seen.add(same)
            opening = opening_request(case, model, schema)
            yield Probe(
                case.name, {key: opening[key] for key in ("model", "messages", "tools") if key in opening}
            )
    package = importlib.resources.files("healthchecks")
    words = json.loads(package.joinpath("provenance.json").read_text(encoding="utf-8"))
    question = {"role": "user", "content": words["question"]}
    if not any(case.tools for case in cases):
        messages = [_message("system", words["system"]), question, _message("assistant", words["answer"])]
        yield Probe(
            "a conversation", {"model": model, "messages": [*messages, _message("user", words["follow_up"])]}
        )
        return
    calling = _calling(words["calls"])
    results = [_result(number, text) for number, text in enumerate(words["results"])]
    whole = [_message("system", words["system"]), question, calling, *results]
    whole += [_message("assistant", words["answer"]), _message("user", words["follow_up"])]
    yield Probe("a conversation with calls", {"model": model, "messages": whole, "tools": words["tools"]})
    one = {**calling, "tool_calls": calling["tool_calls"][:1]}
    parts = [question, one, _result(0, [{"type": "text", "text": text} for text in words["parts"]])]
    yield Probe("a result in parts", {"model": model, "messages": parts, "tools": words["tools"]})
    developer = [_message("developer", words["developer"]), question]
    yield Probe("the role developer", {"model": model, "messages": developer}, only_warns=True)


def render(endpoint: Endpoint, request: Mapping[str, Any], deadline_seconds: float) -> str:
    """The prompt that the server makes of `request`.

    Raises:
        NotRenderedError: a good answer without a prompt in it.
        ValueError: no answer, or one that is no success; the text says which.
    """
    # With `stream` true the answer is one empty chunk (measured on 0.17.5 to 0.32.15).
    asked = {**request, "stream": False, "_debug_render_only": True, "max_tokens": 1}
    answer = send("POST", endpoint.chat_url, asked, deadline_seconds=deadline_seconds, key=endpoint.key)
    reply = answer.json()
    info = reply.get("_debug_info") if isinstance(reply, dict) else None
    prompt = info.get("rendered_template") if isinstance(info, dict) else None
    if not isinstance(prompt, str):
        raise NotRenderedError("the server does not say what it renders (`_debug_render_only` of Ollama)")
    return prompt


def read_template(endpoint: Endpoint, deadline_seconds: float) -> str | None:
    """The model's TEMPLATE from `/api/show`; None where the server has none to show."""
    asked = {"model": endpoint.model}
    url = root_url(endpoint) + "/api/show"
    answer = send("POST", url, asked, deadline_seconds=deadline_seconds, key=endpoint.key)
    try:
        reply = answer.json()
    except ValueError:
        return None
    template = reply.get("template") if isinstance(reply, dict) else None
    return template if isinstance(template, str) and template else None


def root_url(endpoint: Endpoint) -> str:
    """The server's root, without `/v1`."""
    return re.sub(r"/v\d+$", "", endpoint.url.rstrip("/"))


def _message(role: str, text: str) -> Mapping[str, Any]:
    return {"role": role, "content": text}


def _calling(calls: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    made = [
        {
            "id": f"call_probe{number}",
            "type": "function",
            "function": {
                "name": call["name"],
                "arguments": json.dumps(call["arguments"], ensure_ascii=False),
            },
        }
        for number, call in enumerate(calls)
    ]
    return {"role": "assistant", "content": None, "tool_calls": made}


def _result(number: int, content: Any) -> Mapping[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_probe{number}", "content": content}


def _refused(problem: str) -> PromptFault:
    return PromptFault(ERROR, f"the request could not be rendered: {problem}", "", "see the server's log")


def _softened(fault: PromptFault) -> PromptFault:
    return replace(fault, severity=WARN)


def _without_repeats(faults: Sequence[tuple[str, PromptFault]]) -> list[tuple[str, PromptFault]]:
    """One fault of the TEMPLATE shows in every probe: the first is enough."""
    first: dict[tuple[str, str], tuple[str, PromptFault]] = {}
    for name, fault in faults:
        first.setdefault((fault.severity, fault.reason), (name, fault))
    return list(first.values())


def _checked(faults: Sequence[tuple[str, PromptFault]], probes: int) -> Check:
    errors = [(name, fault) for name, fault in faults if fault.severity == ERROR]
    data = {
        "judged": True,
        "probes": probes,
        "faults": [{"probe": name, **asdict(fault)} for name, fault in faults],
    }
    if not errors:
        warned = len(faults)
        said = f"{probes} prompts hold every tool and message that was sent"
        return Check(CHECK_NAME, True, said + (f"; {warned} known faults" if warned else ""), data)
    # Where turns were cut away, whatever else is missing is for want of room.
    name, fault = next((error for error in errors if error[1].hint == HOW_NOT_TO_CUT), errors[0])
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return Check(CHECK_NAME, False, f"{name}: {fault.reason}; {fault.hint}{more}", data)
