"""What `chat --tools` declares to the model, and who answers its calls: all of it runs on this machine."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from console.proof import smoke_database
from deploy.errors import UsageError
from healthchecks.case import load_cases
from healthchecks.conversation import declared_tools
from healthchecks.database import DatabaseTool, describe_schema
from healthchecks.toolcalls import Call

# The smoke suite's conversations have the article's system texts and functions.
CASES = {"weather": "weather_parallel", "database": "ask_database"}
STUB = "(stub: invented numbers)"
_CONDITIONS = ("sunny", "cloudy", "rainy", "windy")
_MOST_DAYS = 14

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSet:
    """Functions in OpenAI's form, the system text that goes with them, and what answers each of them."""

    about: str
    system: str | None
    declared: Sequence[Mapping[str, Any]]
    functions: Mapping[str, Callable[[Arguments], str]]

    def result(self, call: Call) -> str:
        """The text that goes back to the model; every mistake of a call is such a text too."""
        function = self.functions.get(call.name) if isinstance(call.name, str) else None
        if function is None:
            return f"error: there is no function `{call.name}`; there are {', '.join(self.functions)}"
        if call.arguments is None:
            return f"error: the arguments of `{call.name}` are not a JSON object"
        validator = jsonschema.Draft202012Validator(self._parameters(call.name))
        wrong = [_violation(error) for error in validator.iter_errors(call.arguments)]
        if wrong:
            return f"error: the arguments of `{call.name}` cannot be used: {'; '.join(sorted(wrong))}"
        return function(call.arguments)

    def _parameters(self, name: str) -> Mapping[str, Any]:
        return next(tool["function"]["parameters"] for tool in self.declared if _name(tool) == name)


@contextmanager
def tool_set(name: str | None, database: Path | None) -> Iterator[ToolSet | None]:
    """The tools of that name while the context lasts; none without a name. Raises UsageError."""
    if database is not None and name != "database":
        raise UsageError(
            sentence=f"`--database {database}` says nothing without `--tools database`",
            hint=f"./fleet chat --tools database --database {database}",
        )
    if name is None:
        yield None
        return
    if name not in CASES:
        raise UsageError(
            sentence=f"`--tools {name}` names no tools",
            expected=" or ".join(CASES),
            actual=f"`{name}`",
            hint=f"./fleet chat --tools {next(iter(CASES))}",
        )
    if name == "weather":
        yield _weather_tools()
        return
    with smoke_database(database) as path:
        yield _database_tools(path, given=database)


def _weather_tools() -> ToolSet:
    (case,) = load_cases([CASES["weather"]])
    return ToolSet(
        about="weather (a local stub with invented numbers)",
        system=case.system,
        declared=case.tools,
        functions={
            "get_current_weather": current_weather,
            "get_n_day_weather_forecast": weather_forecast,
        },
    )


def _database_tools(path: Path, *, given: Path | None) -> ToolSet:
    (case,) = load_cases([CASES["database"]])
    tool = DatabaseTool(path)
    return ToolSet(
        about=f"database ({given or 'generated rows in the tables of Chinook'}, read-only)",
        system=case.system,
        declared=declared_tools(case, describe_schema(path)),
        functions={"ask_database": lambda arguments: tool.run(arguments["query"])},
    )


def current_weather(arguments: Arguments) -> str:
    """Invented weather, always the same for a place, that says that it is invented."""
    number = _number(arguments, 0)
    condition = _CONDITIONS[number % len(_CONDITIONS)]
    return f"{condition}, {_degrees(number, arguments)} degrees {arguments['format']} {STUB}"


def weather_forecast(arguments: Arguments) -> str:
    """The same for up to 14 days, one temperature a day."""
    days = arguments["num_days"]
    if not 1 <= days <= _MOST_DAYS:
        return f"error: `num_days` must be 1 to {_MOST_DAYS}"
    numbers = (_number(arguments, day) for day in range(1, int(days) + 1))
    temperatures = ", ".join(str(_degrees(number, arguments)) for number in numbers)
    return f"{temperatures} degrees {arguments['format']} {STUB}"


def _number(arguments: Arguments, day: int) -> int:
    return zlib.crc32(f"{arguments['location']} {day}".encode())


def _degrees(number: int, arguments: Arguments) -> int:
    celsius = 5 + number % 20
    return celsius if arguments["format"] == "celsius" else round(celsius * 9 / 5) + 32


def _name(tool: Mapping[str, Any]) -> str:
    return str(tool["function"]["name"])


def _violation(error: jsonschema.ValidationError) -> str:
    where = "/".join(str(part) for part in error.absolute_path)
    return f"{where}: {error.message}" if where else error.message
