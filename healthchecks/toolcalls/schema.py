"""Rules 21 to 24: arguments against the schema of the tool that was called."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import validator_for
from referencing.jsonschema import EMPTY_REGISTRY

from healthchecks.toolcalls.asked import Tool
from healthchecks.toolcalls.exchange import INTEROP, WARN
from healthchecks.toolcalls.findings import Findings, names, printable
from healthchecks.toolcalls.schema_limits import bounded, longest_key
from healthchecks.toolcalls.strict_json import objects

# Every other keyword (enum, const, minimum, pattern, maxItems, ...) restricts values: rule 23.
_RULE_OF_KEYWORD = {
    "required": 21,
    "dependentRequired": 21,
    "minProperties": 21,
    "type": 22,
    "additionalProperties": 24,
    "unevaluatedProperties": 24,
    "propertyNames": 24,
    "maxProperties": 24,
}
_SAYS_MORE_ABOUT_KEYS = (
    "additionalProperties",
    "unevaluatedProperties",
    "patternProperties",
    "$ref",
    "$dynamicRef",
    "allOf",
    "anyOf",
    "oneOf",
    "if",
    "dependentSchemas",
    "dependencies",
)


def check_arguments_fit(tool: Tool, arguments: Mapping[str, Any], where: str, found: Findings) -> None:
    """Rules 21 to 24 for one call; not judged where the tool's own schema is broken."""
    try:
        errors = list(_errors(tool, arguments))
    except Exception:  # noqa: BLE001 - a broken schema raises TypeError, re.error, Unresolvable, RecursionError
        return
    found.looked_at(21, 22, 23, 24)
    mistyped = {error.json_path for error in errors if error.validator == "type"}
    for error in errors:
        rule = _rule_of(error)
        # A value of the wrong type is in no enum either: say it once.
        if rule != 23 or error.json_path not in mistyped:
            found.add(rule, INTEROP, where + printable(error.json_path[1:]), printable(error.message))
    _check_undeclared(tool, arguments, where, found)


def _errors(tool: Tool, arguments: Mapping[str, Any]) -> Iterator[ValidationError]:
    if tool.parameters is None:
        return
    # The same few tools are declared in many requests, and a schema takes longer to check than arguments do.
    validator, longest = _validator(json.dumps(tool.parameters))
    if any(len(key) > longest for item in objects(arguments) for key in item):
        raise ValueError("a key is too long to be held against a pattern")
    yield from validator.iter_errors(arguments)


@lru_cache(maxsize=128)
def _validator(schema: str) -> tuple[Any, int]:
    """For the JSON text of a schema, and how long keys may be. Raises SchemaError, among others."""
    parameters = json.loads(schema)
    validator = validator_for(parameters, default=Draft202012Validator)
    validator.check_schema(parameters)
    # The empty registry, since the default one fetches a remote `$ref` from the network.
    return bounded(validator)(parameters, registry=EMPTY_REGISTRY), longest_key(parameters)


def _rule_of(error: ValidationError) -> int:
    """Of a failed anyOf or oneOf: the rule of its first branch of the right type, or else the type (22)."""
    if not error.context:
        return _RULE_OF_KEYWORD.get(str(error.validator), 23)
    branches: dict[object, set[int]] = {}
    for inner in error.context:
        branches.setdefault(inner.schema_path[0], set()).add(_rule_of(inner))
    return next((min(rules) for rules in branches.values() if 22 not in rules), 22)


def _check_undeclared(tool: Tool, arguments: Mapping[str, Any], where: str, found: Findings) -> None:
    """What JSON schema does not forbid: keys beside the declared ones where it says nothing about others.

    One such key is a warning. Nothing but such keys are another tool's arguments: Ollama gives those of an
    undeclared tool to a declared one (measured on 0.17.5 and 0.24.0). A strict tool has none inside its
    arguments either.
    """
    schema = {"properties": {}} if tool.parameters is None else tool.parameters
    for path, undeclared in _undeclared(schema, arguments):
        reason = f"undeclared arguments: {names(undeclared)}"
        if tool.strict:
            found.add(24, INTEROP, where + printable(path), f"{reason}, and the tool is strict")
        elif not path and len(undeclared) == len(arguments):
            found.add(24, INTEROP, where, f"{reason}, and no declared one: they look like another tool's")
        elif not path:
            found.add(24, WARN, where, f"{reason}, which the tool's schema does not forbid")


def _undeclared(schema: Any, arguments: Any) -> Iterator[tuple[str, list[str]]]:
    """The undeclared keys of each object, with its path."""
    pending = [("", schema, arguments)]
    while pending:
        path, schema, value = pending.pop()
        properties = schema.get("properties") if isinstance(schema, dict) else None
        if isinstance(schema, dict) and isinstance(value, list):
            pending += [(f"{path}[{number}]", schema.get("items"), item) for number, item in enumerate(value)]
        elif isinstance(value, dict) and isinstance(properties, dict):
            pending += [(f"{path}.{key}", properties[key], value[key]) for key in value if key in properties]
            declared = {*properties, *_demanded(schema)}
            undeclared = [key for key in value if key not in declared]
            if undeclared and not any(word in schema for word in _SAYS_MORE_ABOUT_KEYS):
                yield path, undeclared


def _demanded(schema: Mapping[str, Any]) -> Iterator[str]:
    """Keys that a schema asks for, wherever it describes them."""
    dependent = schema.get("dependentRequired")
    for keys in (schema.get("required"), *(dependent.values() if isinstance(dependent, dict) else ())):
        if isinstance(keys, list):
            yield from (key for key in keys if isinstance(key, str))
