"""The smoke suite's cases: conversations as JSON, read and checked.

A case is a file in `cases/`, written by the rules of `case.schema.json`; the tools it names stand in
`tools.json`.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jsonschema

from healthchecks.decoys import make_decoys

DATABASE_SCHEMA_MARK = "{database_schema}"
NUMBER_MARK = "{n}"
LEVELS = ("core", "extended")
_SAMPLING: Mapping[str, Any] = {"temperature": 0, "top_p": 1, "seed": 1, "max_tokens": 512}
_KINDS = ("calls", "call_of", "text", "finish", "prompt_grows", "error")


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
    """What must come back; `rule` is the rule of the judge's list that is broken otherwise.

    One of these, the others being None or empty: `calls`, these and no others; `call_of`, at least one call
    and none but of these tools; `finish`, this finish reason; `prompt_grows`, more prompt tokens than without
    the tools; `error`, one of these statuses and an error object; and without any of them `text` that fits
    and no call. With `may_refuse` an error that refuses the request's `tool_choice` is as good.
    """

    rule: int
    calls: tuple[Mapping[str, Any], ...] | None
    text: Mapping[str, Any]
    call_of: tuple[str, ...] = ()
    finish: str | None = None
    prompt_grows: bool = False
    error: tuple[int, ...] = ()
    may_refuse: bool = False


@dataclass(frozen=True)
class Turn:
    """What we send, a user's text or the results of the calls just made (`user` is None), and what is due.

    `results` says by tool name how its calls are answered: `{"run_sql": ARGUMENT}`, `{"text": RESULT}` or
    `{"parts": [TEXT, ...]}`. `request` overrides what the request says otherwise.
    """

    user: str | None
    results: Mapping[str, Mapping[str, Any]]
    expect: Expectation
    request: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One conversation. `tools` are in OpenAI's form; a description may hold `DATABASE_SCHEMA_MARK`.

    `history` are messages in OpenAI's form that come before the first turn. `concurrent` conversations are
    held at once; `numbered_case` makes one of them.
    """

    name: str
    about: str
    system: str | None
    tools: tuple[Mapping[str, Any], ...]
    sampling: Mapping[str, Any]
    turns: tuple[Turn, ...]
    level: str = "extended"
    history: tuple[Mapping[str, Any], ...] = ()
    concurrent: int = 1


def load_cases(names: Sequence[str] | None = None, level: str | None = None) -> tuple[Case, ...]:
    """The cases that come with this package: all of them by name, or those asked for in the order asked.

    Args:
        names: those to load; None for all of `level`.
        level: "core" for the few that every model plays, "extended" or None for all. Whoever is named is
            loaded whatever its level.

    Raises:
        UnknownCaseError: a name that is not among them.
        InvalidCaseError: a file that is not as a case must be.
        ValueError: `level` is none of `LEVELS`.
    """
    if level not in (None, *LEVELS):
        raise ValueError(f"`level` is one of {', '.join(LEVELS)}, not {level!r}")
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
    cases = (parse_case(name, files[name].read_text(encoding="utf-8"), tools) for name in wanted)
    return tuple(case for case in cases if names is not None or level != "core" or case.level == "core")


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
    for number, turn in enumerate(document["turns"]):
        _check_turn(name, f"turns/{number}", turn)
    _check_names(name, document, tools)
    declared = tuple({"type": "function", "function": {"name": t, **tools[t]}} for t in document["tools"])
    return Case(
        name=name,
        about=document["about"],
        level=document["level"],
        system=document.get("system"),
        tools=(*declared, *make_decoys(document.get("decoys", 0))),
        sampling={**_SAMPLING, **document.get("sampling", {})},
        history=tuple(document.get("history", ())),
        concurrent=document.get("concurrent", 1),
        turns=tuple(_turn(turn) for turn in document["turns"]),
    )


def numbered_case(case: Case, number: int) -> Case:
    """The conversation of that number among the concurrent ones: `NUMBER_MARK` in its turns is the number."""
    turns = tuple(
        replace(
            turn,
            user=_numbered(turn.user, number),
            results=_numbered(turn.results, number),
            expect=replace(
                turn.expect,
                calls=_numbered(turn.expect.calls, number),
                text=_numbered(turn.expect.text, number),
            ),
        )
        for turn in case.turns
    )
    return replace(case, turns=turns)


def _numbered(value: Any, number: int) -> Any:
    """A text that is nothing but the mark becomes the number itself."""
    if value == NUMBER_MARK:
        return number
    if isinstance(value, str):
        return value.replace(NUMBER_MARK, str(number))
    if isinstance(value, Mapping):
        return {key: _numbered(item, number) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_numbered(item, number) for item in value)
    return value


def _turn(turn: Mapping[str, Any]) -> Turn:
    expect = turn["expect"]
    return Turn(
        user=turn.get("user"),
        results=turn.get("results", {}),
        expect=Expectation(
            rule=expect["rule"],
            calls=tuple(expect["calls"]) if "calls" in expect else None,
            text=expect.get("text", {}),
            call_of=tuple(expect.get("call_of", ())),
            finish=expect.get("finish"),
            prompt_grows=expect.get("prompt_grows", False),
            error=tuple(expect.get("error", ())),
            may_refuse=expect.get("may_refuse", False),
        ),
        request=turn.get("request", {}),
    )


def render_expectation(expect: Expectation) -> dict[str, Any]:
    """As a case says it: what was read from `expect` of `case.schema.json`."""
    said: dict[str, Any] = {"rule": expect.rule}
    if expect.calls is not None:
        said["calls"] = list(expect.calls)
    elif expect.call_of:
        said["call_of"] = list(expect.call_of)
    elif expect.finish is not None:
        said["finish"] = expect.finish
    elif expect.prompt_grows:
        said["prompt_grows"] = True
    elif expect.error:
        said["error"] = list(expect.error)
    else:
        said["text"] = dict(expect.text)
    return {**said, "may_refuse": True} if expect.may_refuse else said


def _check_turn(name: str, where: str, turn: Mapping[str, Any]) -> None:
    """What stands in for something else stands alone."""
    if ("user" in turn) == ("results" in turn):
        raise InvalidCaseError(name, where, "either `user` or `results` says what is sent")
    said = [kind for kind in _KINDS if kind in turn["expect"]]
    if len(said) != 1:
        reason = f"one of {', '.join(_KINDS)} says what is due, not {' and '.join(said) or 'none'}"
        raise InvalidCaseError(name, f"{where}/expect", reason)
    for key in ("model", "messages", "tools"):
        if key in turn.get("request", {}) and said != ["error"]:
            raise InvalidCaseError(name, f"{where}/request", f"`{key}` is only sent where `error` is due")


def _check_names(name: str, document: Mapping[str, Any], tools: Mapping[str, Any]) -> None:
    """What a JSON schema cannot say: named tools exist, and results follow calls."""
    declared = document["tools"]
    for tool in declared:
        if tool not in tools:
            raise InvalidCaseError(name, "tools", f"no tool `{tool}` in tools.json")
    calls_before: Sequence[Mapping[str, Any]] = ()
    for number, turn in enumerate(document["turns"]):
        expect = turn["expect"]
        calls = expect.get("calls", ())
        named = [*turn.get("results", {}), *(call["name"] for call in calls), *expect.get("call_of", ())]
        for tool in named:
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
