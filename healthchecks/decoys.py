"""Tools that are only there to be passed over: a long list hides the right one, and fills the context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Two uncommon words each, since Ollama's parser finds the name of a tool anywhere in a text (measured).
_VERBS = ("calibrate", "overhaul", "lubricate", "catalogue", "varnish")
_NOUNS = (
    "barometer",
    "sextant",
    "capstan",
    "windlass",
    "binnacle",
    "bowsprit",
    "foghorn",
    "gangway",
    "halyard",
    "mainsail",
    "periscope",
    "rudder",
)
MOST_DECOYS = len(_VERBS) * len(_NOUNS)


def make_decoys(count: int) -> tuple[Mapping[str, Any], ...]:
    """So many tools in OpenAI's form, at most `MOST_DECOYS`: the same ones every time."""
    pairs = [(verb, noun) for noun in _NOUNS for verb in _VERBS]
    return tuple(
        {"type": "function", "function": {"name": f"{verb}_{noun}", **_describe(verb, noun)}}
        for verb, noun in pairs[:count]
    )


def _describe(verb: str, noun: str) -> Mapping[str, Any]:
    return {
        "description": f"{verb.capitalize()} the {noun}",
        "parameters": {
            "type": "object",
            "properties": {"reason": {"type": "string"}},
            "required": ["reason"],
        },
    }
