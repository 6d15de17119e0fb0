"""Rules 21 to 24: arguments against the schema of the tool that was called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import validator_for
from referencing.jsonschema import EMPTY_REGISTRY

from healthchecks.toolcalls.asked import Tool
from healthchecks.toolcalls.exchange import INTEROP, WARN
from healthchecks.toolcalls.findings import Findings, names, printable

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
_SAYS_MORE_ABOUT_KEYS = ("additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf")


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
    # The empty registry, since the default one fetches a remote `$ref` from the network.
    validator = validator_for(tool.parameters, default=Draft202012Validator)
    yield from validator(tool.parameters, registry=EMPTY_REGISTRY).iter_errors(arguments)


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
    undeclared tool to a declared one (measured on 0.17.5 and 0.24.0).
    """
    schema = {"properties": {}} if tool.parameters is None else tool.parameters
    declared = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(declared, dict) or any(word in schema for word in _SAYS_MORE_ABOUT_KEYS):
        return
    undeclared = [key for key in arguments if key not in declared]
    if not undeclared:
        return
    reason = f"undeclared arguments: {names(undeclared)}"
    if len(undeclared) == len(arguments):
        found.add(24, INTEROP, where, f"{reason}, and no declared one: they look like another tool's")
    elif tool.strict:
        found.add(24, INTEROP, where, f"{reason}, and the tool is strict")
    else:
        found.add(24, WARN, where, f"{reason}, which the tool's schema does not forbid")
