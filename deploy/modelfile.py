"""Ollama's Modelfile syntax -> the parsed value.

The reader follows parser/parser.go (`ParseFile`, 0.17.5 and 0.32.15) rune by rune: a value ends at the first
line break where its quotes are closed, comments stand on lines of their own, nothing is escaped. What
`ollama create` would drop or guess is an error here; parameters get the types of api/types.go (`Options`),
because the API accepts unknown and mistyped ones with "success" (measured on 0.17.5 and 0.24.0).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from deploy.desired import Modelfile, ParameterValue
from deploy.errors import FleetError, InputErrors, ModelError

_INTEGERS = (
    "num_keep seed num_predict top_k repeat_last_n num_ctx num_batch num_gpu main_gpu num_thread"
).split()
_FLOATS = ("top_p min_p typical_p temperature repeat_penalty presence_penalty frequency_penalty").split()
# Options.Runner and Options of api/types.go, as 0.17.5 and 0.32.15 both know them.
PARAMETER_TYPES = {
    **dict.fromkeys(_INTEGERS, "integer"),
    **dict.fromkeys(_FLOATS, "number"),
    "use_mmap": "boolean",
    "stop": "text",
}
# `deprecatedParameters` of parser.go: the CLI warns and drops them.
_DEPRECATED = frozenset(
    "penalize_newline low_vram f16_kv logits_all vocab_only use_mlock "
    "mirostat mirostat_tau mirostat_eta".split()
)
_SUPPORTED = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM")
_UNSUPPORTED = frozenset("license adapter draft renderer parser message requires".split())
_TRUE = frozenset("1 t T TRUE true True".split())
_FALSE = frozenset("0 f F FALSE false False".split())
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MAX_FLOAT32 = 3.4028234663852886e38


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One instruction: `name` in lower case (`from`, `parameter`), a parameter's `key`, `line` from 1."""

    name: str
    key: str
    value: str
    line: int


def parse_modelfile(text: str, path: str) -> Modelfile:
    """Modelfile text -> the value `POST /api/create` is given.

    `path` is for messages. `template` is "" where there is no TEMPLATE. Raises ModelError with the line, or
    InputErrors with all of them.
    """
    commands = parse_commands(text, path)
    problems: list[FleetError] = [*_find_misplaced(commands, path)]
    parameters: dict[str, ParameterValue] = {}
    for command in commands:
        if command.name != "parameter":
            continue
        try:
            _set_parameter(parameters, command, path)
        except ModelError as error:
            problems.append(error)
    raise_problems(problems, "Modelfile")
    values = {command.name: command.value for command in commands}
    return Modelfile(
        text=text,
        template=values.get("template", ""),
        parameters=parameters,
        system=values.get("system") or None,
    )


def raise_problems(problems: list[FleetError], subject: str) -> None:
    """One problem as itself, several as InputErrors in the order of their lines, none not at all."""
    if not problems:
        return
    if len(problems) == 1:
        raise problems[0]
    ordered = sorted(problems, key=lambda problem: (problem.path or "", problem.line or 0))
    raise InputErrors(sentence=f"{len(problems)} problems in the {subject}", problems=tuple(ordered))


def suggest(word: str, known: Iterable[str]) -> str | None:
    """The nearest known word, or None."""
    return next(iter(difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)), None)


def parse_commands(text: str, path: str) -> tuple[Command, ...]:
    """Modelfile text -> its instructions in order. Raises ModelError at the first that Ollama refuses."""
    reader = _Reader(text=text.removeprefix("\ufeff"), path=path)
    return tuple(reader.commands())


@dataclass(slots=True)
class _Reader:
    text: str
    path: str
    at: int = 0
    line: int = 1

    def commands(self) -> Iterable[Command]:
        while self._skip_blank():
            line = self.line
            name = self._word(allowed=str.isalpha).lower()
            if name.upper() not in _SUPPORTED and name not in _UNSUPPORTED:
                raise self._unknown_instruction(name, line)
            if self._take() not in (" ", "\t"):
                raise self._error(f"`{name.upper()}` has no value", line)
            key = ""
            if name == "parameter":
                key = self._word(allowed=lambda character: character.isalnum() or character == "_")
                if not key:
                    raise self._error("`PARAMETER` must be followed by one blank and a name", line)
                if self._take() not in (" ", "\t"):
                    raise self._error(f"the parameter `{key}` has no value", line)
            yield Command(name=name, key=key, value=self._value(name, line), line=line)

    def _take(self) -> str:
        character = self.text[self.at : self.at + 1]
        self.at += 1
        if character == "\n" or (character == "\r" and self.text[self.at : self.at + 1] != "\n"):
            self.line += 1
        return character

    def _skip_blank(self) -> bool:
        """To the next instruction; False at the end."""
        while self.at < len(self.text):
            character = self.text[self.at]
            if character == "#":
                while self.text[self.at : self.at + 1] not in ("", "\r", "\n"):
                    self.at += 1
            elif character in " \t\r\n":
                self._take()
            else:
                return True
        return False

    def _word(self, *, allowed: Callable[[str], bool]) -> str:
        start = self.at
        while self.text[self.at : self.at + 1].isascii() and allowed(self.text[self.at : self.at + 1]):
            self.at += 1
        return self.text[start : self.at]

    def _value(self, name: str, line: int) -> str:
        start = self.at
        while True:
            end_of_text = self.at >= len(self.text)
            if end_of_text or self.text[self.at] in "\r\n":
                value = unquote(self.text[start : self.at].strip())
                if value is not None:
                    return value
            if end_of_text:
                raise self._error(f"the quotes of `{name.upper()}` are never closed", line)
            character = self.text[self.at]
            if not character.isprintable() and character not in "\t\r\n":
                raise self._error(
                    f"`U+{ord(character):04X}` in `{name.upper()}` cannot be seen, and Ollama drops it",
                    self.line,
                )
            self._take()

    def _unknown_instruction(self, word: str, line: int) -> ModelError:
        shown = word
        if not word:
            character = self.text[self.at]
            shown = character if character.isprintable() else f"U+{ord(character):04X}"
        near = suggest(shown, [name.lower() for name in _SUPPORTED])
        return self._error(
            f"`{shown}` is not an instruction of a Modelfile",
            line,
            hint=f"did you mean `{near.upper()}`?"
            if near
            else f"use one of {', '.join(_SUPPORTED)}, or # for a comment",
        )

    def _error(self, sentence: str, line: int, hint: str | None = None) -> ModelError:
        return ModelError(
            sentence=sentence,
            path=self.path,
            line=line,
            hint=hint or 'write `NAME value` or `NAME """value"""`',
        )


def unquote(value: str) -> str | None:
    """As parser.go: surrounding triple or double quotes taken away, None where they are not closed."""
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            closed = len(value) >= 2 * len(quotes) and value.endswith(quotes)
            return value[len(quotes) : -len(quotes)] if closed else None
    return value


def _find_misplaced(commands: tuple[Command, ...], path: str) -> Iterable[ModelError]:
    seen: dict[str, int] = {}
    for command in commands:
        name = command.name.upper()
        if command.name in _UNSUPPORTED:
            yield ModelError(
                sentence=f"`{name}` is not supported",
                path=path,
                line=command.line,
                hint=f"take the line out; supported are {', '.join(_SUPPORTED)}",
            )
        elif command.name != "parameter" and command.name in seen:
            yield _said_twice(name, path, command.line, seen[command.name])
        seen.setdefault(command.name, command.line)
    if "from" not in seen:
        yield ModelError(
            sentence="the Modelfile has no `FROM`", path=path, hint="begin it with `FROM ./[[ weights ]]`"
        )


def _said_twice(what: str, path: str, line: int, first: int) -> ModelError:
    return ModelError(
        sentence=f"`{what}` is given twice, first in line {first}",
        path=path,
        line=line,
        hint="keep one of the two",
    )


def _set_parameter(parameters: dict[str, ParameterValue], command: Command, path: str) -> None:
    kind = PARAMETER_TYPES.get(command.key)
    if kind is None:
        raise _unknown_parameter(command, path)
    if kind == "text":
        if not command.value:
            raise ModelError(
                sentence=f"an empty `{command.key}` ends every answer before it begins",
                path=path,
                line=command.line,
                hint='write the text, for example `PARAMETER stop "<|im_end|>"`',
            )
        stops = parameters.setdefault(command.key, [])
        assert isinstance(stops, list)
        stops.append(command.value)
        return
    value = _parse_value(kind, command.value)
    if value is None:
        raise ModelError(
            sentence=f"the parameter `{command.key}` has a wrong value",
            path=path,
            line=command.line,
            expected=f"{'an' if kind == 'integer' else 'a'} {kind}",
            actual=f"`{command.value}`",
            cause="the API stores any value, and every load of the model then fails",
            hint="a comment cannot follow a value on its line"
            if "#" in command.value
            else "correct the value",
        )
    if command.key in parameters:
        raise ModelError(
            sentence=f"the parameter `{command.key}` is given twice",
            path=path,
            line=command.line,
            hint="keep one of the two lines",
        )
    parameters[command.key] = value


def _unknown_parameter(command: Command, path: str) -> ModelError:
    near = suggest(command.key, PARAMETER_TYPES)
    if command.key in _DEPRECATED:
        return ModelError(
            sentence=f"the parameter `{command.key}` is deprecated and has no effect",
            path=path,
            line=command.line,
            hint="take the line out",
        )
    return ModelError(
        sentence=f"unknown parameter `{command.key}`",
        path=path,
        line=command.line,
        cause="the API would store it and ignore it for ever",
        hint=f"did you mean `{near}`?" if near else f"known are {', '.join(sorted(PARAMETER_TYPES))}",
    )


def _parse_value(kind: str, text: str) -> int | float | bool | None:
    """As strconv.ParseInt, ParseFloat, ParseBool, without infinity and hexadecimals; None: another kind."""
    if kind == "boolean":
        return True if text in _TRUE else False if text in _FALSE else None
    if kind == "integer":
        if re.fullmatch(r"[+-]?[0-9]{1,19}", text) is None:
            return None
        number = int(text)
        return number if -(2**63) <= number < 2**63 else None
    if _FLOAT.fullmatch(text) is None:
        return None
    value = float(text)
    return value if math.isfinite(value) and abs(value) <= _MAX_FLOAT32 else None
