"""The task `chat`: talk to the model that a host serves, by question and answer or with one question."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from console.chat_client import ChatClient, Deadlines
from console.chat_session import ChatSession
from console.chat_talk import clean, talk
from console.chat_tools import ToolSet, tool_set
from console.chat_view import ChatView
from console.run import transport_to
from deploy.compose import login_of
from deploy.errors import ExitCode, ModelRefused, ServiceError, UsageError
from deploy.outcomes import HostOutcome, Outcome
from deploy.report import Report
from deploy.settings import HostSettings, load_settings, parse_data_home
from healthchecks.api import ANSWER_SECONDS, server_version
from healthchecks.wire import send

LONGEST_QUESTION_BYTES = 4 * 1024 * 1024
_SAMPLING = re.compile(r"^(temperature|top_p)[ \t]+(\S+)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTask:
    """What `./fleet chat` was asked; without `prompt` one talks, or standard input is the question."""

    report: Report
    inventory: Path
    as_json: bool = False
    limit: str | None = None
    model: str | None = None
    tools: str | None = None
    database: Path | None = None
    prompt: str | None = None
    deadlines: Deadlines = field(default_factory=Deadlines)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What `/api/show` says of a model: the sampling its Modelfile states, and what it can do."""

    sampling: Mapping[str, float]
    capabilities: tuple[str, ...]


def chat(task: ChatTask) -> ExitCode:
    """Talk until the end, or answer one question. Raises FleetError; a talk outlives a failed answer."""
    question = _one_question(task)
    host, settings = _the_host(task)
    with tool_set(task.tools, task.database) as tools, _server_url(host, settings) as url:
        model = task.model or next(iter(settings.models), None)
        version = _server(host, url)
        if model is None:
            raise _no_model(task, host, url)
        served = read_model(host, url, model)
        if tools is not None and "tools" not in served.capabilities:
            raise _no_tools(task, host, model, served)
        view = ChatView(task.report, host, as_json=task.as_json, stdout=sys.stdout)
        client = ChatClient(host=host, url=url, deadlines=task.deadlines)
        with contextlib.closing(client):
            session = ChatSession(
                client=client,
                view=view,
                host=host,
                model=model,
                sampling=served.sampling,
                tools=tools,
                server=f"ollama/{version['version']}",
            )
            session.reset()
            _tell_begin(session, host, url, version, tools)
            asked = (
                _answer_one(session, question)
                if question is not None
                else talk(session, task.report, as_json=task.as_json)
            )
    if task.as_json:
        kind = "simulated" if version["simulated"] else "real"
        outcome = HostOutcome(host=host, outcome=Outcome.OK)
        task.report.summary((outcome,), model=model, questions=asked, ollama=kind)
    return ExitCode.DONE


def parse_sampling(parameters: str) -> Mapping[str, float]:
    """`temperature` and `top_p` of the `parameters` text of `/api/show`, where the Modelfile states them.

    `/v1` puts 1.0 in the place of what a request leaves out, whatever the Modelfile says (measured on
    0.17.5), so they have to be sent.
    """
    return {name: float(value) for name, value in sorted(_SAMPLING.findall(parameters))}


def read_model(host: str, url: str, model: str) -> ServedModel:
    """Raises ModelRefused with what is served for a model that is not, ServiceError without an answer."""
    answer = send("POST", f"{url}/api/show", {"model": model}, deadline_seconds=ANSWER_SECONDS)
    if answer.status in (400, 404):
        raise ModelRefused(
            sentence=f"`{model}` is not served",
            host=host,
            cause=f"the server has {_served(url)}",
            hint=f"./fleet chat --limit {host} --model NAME, or ./fleet create --limit {host}",
        )
    try:
        told = answer.json()
        sampling = parse_sampling(told.get("parameters") or "")
        capabilities = tuple(str(one) for one in told.get("capabilities") or ())
    except (ValueError, AttributeError) as error:
        raise ServiceError(
            sentence=f"`{url}` does not describe `{model}`",
            host=host,
            cause=str(error),
            hint=f"./fleet smoke --limit {host}",
        ) from error
    return ServedModel(sampling=sampling, capabilities=capabilities)


def _one_question(task: ChatTask) -> str | None:
    """`--prompt`, else standard input where it is no terminal; None for a talk. Raises UsageError."""
    if task.prompt is None and sys.stdin is not None and sys.stdin.isatty():
        return None
    given, where = task.prompt or "", "--prompt"
    if task.prompt is None:
        raw = sys.stdin.buffer.read(LONGEST_QUESTION_BYTES + 1) if sys.stdin is not None else b""
        if len(raw) > LONGEST_QUESTION_BYTES:
            raise _no_question("standard input", f"longer than {LONGEST_QUESTION_BYTES} bytes")
        given, where = raw.decode(errors="replace"), "standard input"
    question = clean(given).strip()
    if not question:
        raise _no_question(where, "empty")
    return question


def _no_question(where: str, what: str) -> UsageError:
    return UsageError(
        sentence=f"the question in `{where}` is {what}",
        hint="./fleet chat --tools database --prompt 'Which album has the most tracks?'",
    )


def _the_host(task: ChatTask) -> tuple[str, HostSettings]:
    data_home = parse_data_home(os.environ, PurePosixPath(Path.home()))
    inventory, settings = load_settings(task.inventory, data_home=data_home)
    names = [host.name for host in inventory.select(task.limit)]
    if len(names) != 1:
        chosen = f"`--limit {task.limit}` selects" if task.limit else f"`{task.inventory}` names"
        example = next(iter(names or inventory.hosts), "HOST")
        raise UsageError(
            sentence=f"{chosen} {len(names) or 'no'} host{'s' if len(names) > 1 else ''}, not one",
            cause=f"these: {', '.join(names)}"
            if names
            else f"there are: {', '.join(inventory.hosts) or 'none'}",
            hint=f"./fleet chat --limit {example}",
        )
    return names[0], settings[names[0]]


@contextmanager
def _server_url(host: str, settings: HostSettings) -> Iterator[str]:
    """The server's root as this process reaches it."""
    transport = transport_to(host, login_of(settings), settings.root)
    with transport.http_url(f"http://{settings.environment['OLLAMA_HOST']}") as url:
        yield url


def _server(host: str, url: str) -> Mapping[str, Any]:
    """`version` and `simulated` of the server that answers there."""
    check = server_version(url)
    if not check.ok:
        raise ServiceError(
            sentence=f"no Ollama answers at `{url}`",
            host=host,
            cause=check.reason.partition(": ")[2] or check.reason,
            hint=f"./fleet service start --limit {host}",
        )
    return check.data


def _served(url: str) -> str:
    try:
        listed = send("GET", f"{url}/api/tags", deadline_seconds=ANSWER_SECONDS).json()["models"]
        return ", ".join(sorted(str(entry["name"]) for entry in listed)) or "no model"
    except (ValueError, LookupError, TypeError) as error:
        return f"a list that cannot be read ({error})"


def _no_model(task: ChatTask, host: str, url: str) -> UsageError:
    return UsageError(
        sentence=f"`{host}` has no `ollama_models` in `{task.inventory}`",
        host=host,
        cause=f"the server has {_served(url)}",
        hint=f"./fleet chat --limit {host} --model NAME",
    )


def _no_tools(task: ChatTask, host: str, model: str, served: ServedModel) -> UsageError:
    return UsageError(
        sentence=f"`{model}` cannot call functions, so `--tools {task.tools}` is of no use",
        host=host,
        cause=f"its capabilities are: {', '.join(served.capabilities) or 'none'}, from its TEMPLATE",
        hint=f"./fleet chat --limit {host} --model NAME with another model, or without --tools",
    )


def _tell_begin(
    session: ChatSession, host: str, url: str, version: Mapping[str, Any], tools: ToolSet | None
) -> None:
    kind = "simulated" if version["simulated"] else "real"
    sampling = ", ".join(f"{name} {value:g}" for name, value in session.sampling.items())
    session.view.begin(
        f"{host}: {session.model} on Ollama {version['version']} ({kind}), {sampling or 'default sampling'}"
        + (f", tools: {tools.about}" if tools is not None else ""),
        model=session.model,
        url=url,
        version=version["version"],
        ollama=kind,
        sampling=session.sampling,
        tools=[tool["function"]["name"] for tool in tools.declared] if tools is not None else [],
    )
    for message in session.messages:
        session.view.turn("system", message["content"])


def _answer_one(session: ChatSession, question: str) -> int:
    session.view.turn("user", question)
    session.ask(question)
    return 1
