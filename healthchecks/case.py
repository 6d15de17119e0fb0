"""The smoke suite's cases: conversations as JSON, read and checked.

A case is a file in `cases/`, written by the rules of `case.schema.json`; the tools it names stand in
`tools.json`.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema

DATABASE_SCHEMA_MARK = "{database_schema}"
_SAMPLING: Mapping[str, Any] = {"temperature": 0, "top_p": 1, "seed": 1, "max_tokens": 512}


class UnknownCaseError(ValueError):
    """A case was asked for that does not exist."""

    def __init__(self, unknown: Sequence[str], known: Sequence[str]) -> None:
        quoted = ", ".join(f"`{name}`" for name in unknown)
        super().__init__(f"no case {quoted}; the cases are {', '.join(known)}")
        self.unknown = tuple(unknown)
        self.known = tuple(known)


class InvalidCaseError(ValueError):
    """A case's JSON does not say what a case must say; `where` is the place in it, as `turns/0/expect`."""

    def __init__(self, name: str, where: str, reason: str) -> None:
        super().__init__(f"case `{name}`, {where or 'top level'}: {reason}")
        self.name = name
        self.where = where
        self.reason = reason


@dataclass(frozen=True)
class Expectation:
    """What must come back: these calls and no others, or (`calls` is None) text that fits and no call.

    `rule` is the rule of the judge's list that is broken otherwise.
    """

    rule: int
    calls: tuple[Mapping[str, Any], ...] | None
    text: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """What we send, a user's text or the results of the calls just made (`user` is None), and what is due.

    `results` says by tool name how its calls are answered: `{"run_sql": ARGUMENT}` or `{"text": RESULT}`.
    """

    user: str | None
    results: Mapping[str, Mapping[str, str]]
    expect: Expectation


@dataclass(frozen=True)
class Case:
    """One conversation. `tools` are in OpenAI's form; a description may hold `DATABASE_SCHEMA_MARK`."""

    name: str
    about: str
    system: str | None
    tools: tuple[Mapping[str, Any], ...]
    sampling: Mapping[str, Any]
    turns: tuple[Turn, ...]


def load_cases(names: Sequence[str] | None = None) -> tuple[Case, ...]:
    """The cases that come with this package: all of them by name, or those asked for in the order asked.

    Raises:
        UnknownCaseError: a name that is not among them.
        InvalidCaseError: a file that is not as a case must be.
    """
    package = importlib.resources.files("healthchecks")
    files = {
        entry.name[: -len(".json")]: entry
        for entry in package.joinpath("cases").iterdir()
        if entry.name.endswith(".json")
    }
    known = sorted(files)
    wanted = known if names is None else list(names)
    unknown = [name for name in wanted if name not in files]
    if unknown:
        raise UnknownCaseError(unknown, known)
    tools = json.loads(package.joinpath("tools.json").read_text(encoding="utf-8"))
    return tuple(parse_case(name, files[name].read_text(encoding="utf-8"), tools) for name in wanted)


def parse_case(name: str, text: str, tools: Mapping[str, Mapping[str, Any]]) -> Case:
    """Read one case.

    Args:
        name: what the case is called.
        text: its JSON.
        tools: the tools that it may name, as in `tools.json`: name -> description and parameters.

    Raises:
        InvalidCaseError: not JSON, not as the schema says, or it names what does not exist.
    """
    try:
        document = json.loads(text)
    except ValueError as problem:
        raise InvalidCaseError(name, "", f"not JSON: {problem}") from None
    for violation in _validator().iter_errors(document):
        raise InvalidCaseError(
            name, "/".join(str(part) for part in violation.absolute_path), violation.message
        )
    _check_names(name, document, tools)
    return Case(
        name=name,
        about=document["about"],
        system=document.get("system"),
        tools=tuple({"type": "function", "function": {"name": t, **tools[t]}} for t in document["tools"]),
        sampling={**_SAMPLING, **document.get("sampling", {})},
        turns=tuple(_turn(turn) for turn in document["turns"]),
    )


def _turn(turn: Mapping[str, Any]) -> Turn:
    expect = turn["expect"]
    calls = tuple(expect["calls"]) if "calls" in expect else None
    return Turn(
        turn.get("user"), turn.get("results", {}), Expectation(expect["rule"], calls, expect.get("text", {}))
    )


def _check_names(name: str, document: Mapping[str, Any], tools: Mapping[str, Any]) -> None:
    """What a JSON schema cannot say: named tools exist, and results follow calls."""
    declared = document["tools"]
    for tool in declared:
        if tool not in tools:
            raise InvalidCaseError(name, "tools", f"no tool `{tool}` in tools.json")
    calls_before: Sequence[Mapping[str, Any]] = ()
    for number, turn in enumerate(document["turns"]):
        calls = turn["expect"].get("calls", ())
        for tool in [*turn.get("results", {}), *(call["name"] for call in calls)]:
            if tool not in declared:
                raise InvalidCaseError(name, f"turns/{number}", f"`{tool}` is not among the case's tools")
        if bool(calls_before) != ("results" in turn):
            raise InvalidCaseError(name, f"turns/{number}", "results are sent after calls, and only then")
        calls_before = calls


def _validator() -> jsonschema.Draft202012Validator:
    schema = (
        importlib.resources.files("healthchecks").joinpath("case.schema.json").read_text(encoding="utf-8")
    )
    return jsonschema.Draft202012Validator(json.loads(schema))
