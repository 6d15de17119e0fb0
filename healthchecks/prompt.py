"""Does a rendered prompt hold what was sent: pure, bytes of no server.

A TEMPLATE can hide a tool, a turn or a whole role from the model without a word, and every reply is judged
as if the model had seen it. So what the server renders is compared with the request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from healthchecks.toolcalls.known import KnownFault

ERROR = "error"
WARN = "warn"

HOW_NOT_TO_CUT = "the oldest turns were cut away: the prompt is longer than `PARAMETER num_ctx`; raise it"

_EVIDENCE_CHARACTERS = 160
_LONG_LITERAL_CHARACTERS = 40

# What Ollama keeps of a tool's schema (api.ToolProperty); `items` is kept whole, whatever is in it.
_KEPT_KEYWORDS = frozenset(
    ("anyOf", "type", "items", "description", "enum", "properties", "required", "$defs")
)
# `required` of a nested object: dropped by 0.17.5, kept by 0.24.0 (measured; a new field in api/types.go).
NESTED_REQUIRED = KnownFault("ollama: `required` of nested objects is dropped", before=(0, 24, 0))
OTHER_KEYWORDS = KnownFault("ollama: only a few keywords of a schema are kept")
# Measured on 0.17.5, 0.24.0 and 0.32.15 (`v1_chat_render_tool_parts` of the recordings).
PART_IS_MESSAGE = KnownFault("ollama: each part of a tool's result is a message")

# What fmt and text/template print for values that nobody turned into text.
_GO_SYNTAX = re.compile(r"<nil>|<no value>|\bmap\[|%!\w?\(|\b0xc0[0-9a-f]{8}\b")
_FAMILIES: Mapping[str, Sequence[str]] = {
    "ChatML": ("<|im_start|>", "<|im_end|>"),
    "Llama 3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"),
    "Llama 2 and Mistral": ("[INST]", "[/INST]", "<<SYS>>", "[AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    "Gemma": ("<start_of_turn>", "<end_of_turn>"),
    "Phi and Zephyr": ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    "Harmony": ("<|start|>", "<|message|>", "<|channel|>"),
    "Command R": ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    "DeepSeek": ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),
}
_MARKERS = tuple(marker for markers in _FAMILIES.values() for marker in markers)


@dataclass(frozen=True)
class PromptFault:
    """What the model is not shown, or should not be: `severity` is "error" or "warn".

    `evidence` is an excerpt of the prompt or of what is not in it. `known` names the known fault of the
    server's version, which is then a "warn".
    """

    severity: str
    reason: str
    evidence: str
    hint: str
    known: str | None = None


def find_prompt_faults(
    request: Mapping[str, Any], prompt: str, *, template: str | None = None, server: str | None = None
) -> tuple[PromptFault, ...]:
    """Compare a rendered `prompt` with the `request` it was made from.

    Args:
        request: the body of a chat request: messages, tools.
        template: the model's TEMPLATE where it is known (`/api/show`).
        server: as in "ollama/0.17.5", for what is known of that version.
    """
    texts = [text for message in request["messages"] for text in _texts(message)]
    faults = [
        *_find_go_syntax(prompt, [*texts, json.dumps(request.get("tools", []), ensure_ascii=False)]),
        *_find_tool_faults(request.get("tools") or (), prompt, server),
        *_find_message_faults(request["messages"], prompt, server),
        *_find_marker_faults(prompt, template, texts),
    ]
    if template is not None and request.get("tools"):
        faults.extend(_find_other_template(prompt, template))
    return tuple(faults)


def excerpt(prompt: str, start: int, end: int) -> str:
    """The place in the prompt with what stands around it, on one line."""
    around = max((_EVIDENCE_CHARACTERS - (end - start)) // 2, 0)
    text = prompt[max(start - around, 0) : min(end, start + _EVIDENCE_CHARACTERS) + around]
    return text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text


# ---- Go's own syntax
def _find_go_syntax(prompt: str, sent: Sequence[str]) -> Iterator[PromptFault]:
    """At most one: where one tool is printed so, all are."""
    for match in _GO_SYNTAX.finditer(prompt):
        if not any(match.group() in text for text in sent):
            yield PromptFault(
                ERROR,
                f"the prompt holds `{match.group()}`: a value printed by Go instead of JSON",
                excerpt(prompt, *match.span()),
                "write `{{ json .Function }}` where the TEMPLATE says `{{ .Function }}` or `{{ . }}`",
            )
            return


# ---- tools
def _find_tool_faults(
    tools: Sequence[Mapping[str, Any]], prompt: str, server: str | None
) -> Iterator[PromptFault]:
    shown: dict[str, list[Mapping[str, Any]]] = {}
    for value in parse_values(prompt):
        for function in _functions(value):
            shown.setdefault(function["name"], []).append(function)
    missing = [tool["function"]["name"] for tool in tools if tool["function"]["name"] not in shown]
    if missing:
        named = [name for name in missing if name in prompt]
        place = prompt.find(named[0]) if named else 0
        yield PromptFault(
            ERROR,
            f"{_count(len(missing), 'tool')} of {len(tools)} not in the prompt as JSON: {_names(missing)}",
            excerpt(prompt, place, place + len(named[0]) + 80) if named else excerpt(prompt, 0, 80),
            "see which template the server uses, and that it prints each tool as `{{ json .Function }}`",
        )
    for tool in tools:
        function = tool["function"]
        candidates = shown.get(function["name"], ())
        found = [list(_differences(function, candidate, function["name"])) for candidate in candidates]
        if found:
            yield from _difference_faults(min(found, key=len), server)


def _difference_faults(
    differences: Sequence[tuple[str, str, KnownFault | None]], server: str | None
) -> Iterator[PromptFault]:
    for path, what, known in differences:
        fault = PromptFault(
            ERROR,
            f"`{path}` is not in the prompt as it was sent: {what}",
            path,
            "compare what `/api/show` prints as the TEMPLATE with what was sent",
        )
        yield _as_known(fault, known, server)


def _differences(sent: Any, shown: Any, path: str) -> Iterator[tuple[str, str, KnownFault | None]]:
    """Where `shown` is not what was `sent`; Go adds empty values and drops keywords that it does not know."""
    if isinstance(sent, Mapping) and isinstance(shown, Mapping):
        for key, value in sent.items():
            if key in shown:
                yield from _differences(value, shown[key], f"{path}.{key}")
            elif not _is_empty(value):
                yield f"{path}.{key}", f"`{key}` is dropped", _known_loss(path, key)
        for key in shown:
            if key not in sent and not _is_empty(shown[key]):
                yield f"{path}.{key}", f"`{key}` was added", None
    elif isinstance(sent, list) and isinstance(shown, list) and len(sent) == len(shown):
        for at, (one, other) in enumerate(zip(sent, shown)):
            yield from _differences(one, other, f"{path}[{at}]")
    elif not same_json(sent, shown) and not (_is_empty(sent) and _is_empty(shown)):
        yield path, f"{_shown(sent)} became {_shown(shown)}", None


def _known_loss(path: str, key: str) -> KnownFault | None:
    """`path` is that of the object that had `key`, from the tool's name on."""
    inside_a_property = path.count(".properties.") > 0 and not path.endswith(".properties")
    if key == "required" and inside_a_property:
        return NESTED_REQUIRED
    is_schema = ".parameters" in path and not path.endswith(".properties")
    return OTHER_KEYWORDS if is_schema and key not in _KEPT_KEYWORDS else None


def same_json(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are one number, true is none."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)


def parse_values(text: str) -> Iterator[Any]:
    """Every JSON object and array in `text`, the outermost ones, in order."""
    for value, _, _ in _places_of_values(text):
        yield value


def _places_of_values(text: str) -> Iterator[tuple[Any, int, int]]:
    decoder = json.JSONDecoder()
    at = 0
    while match := re.compile(r"[{\[]").search(text, at):
        try:
            value, at = decoder.raw_decode(text, match.start())
        except ValueError:
            at = match.end()
            continue
        except RecursionError:
            return
        yield value, match.start(), at


def _functions(value: Any) -> Iterator[Mapping[str, Any]]:
    """The tool definitions inside a value: `{"name", "parameters"}`, wrapped or not."""
    if isinstance(value, list):
        for item in value:
            yield from _functions(item)
    elif isinstance(value, dict):
        if isinstance(value.get("function"), dict):
            yield from _functions(value["function"])
        elif isinstance(value.get("name"), str) and ("parameters" in value or "description" in value):
            yield value


# ---- messages
def _find_message_faults(
    messages: Sequence[Mapping[str, Any]], prompt: str, server: str | None
) -> Iterator[PromptFault]:
    """Every message with its text and its calls, in order; those of the system may stand in front."""
    cursor = 0
    missing: list[int] = []
    lost: dict[int, PromptFault] = {}
    for number, message in enumerate(messages):
        ends: list[int] = []
        for text in filter(None, map(str.strip, _texts(message))):
            place = _find_text(text, prompt, 0 if message["role"] == "system" else cursor)
            if place < 0:
                missing.append(number)
                break
            if ends and any(marker in prompt[ends[-1] : place] for marker in _MARKERS):
                yield _split_fault(message, prompt, ends[-1], place, server)
            ends.append(place + len(text))
        cursor = max([cursor, *ends])
        for call in message.get("tool_calls") or ():
            end = _find_call(call["function"], prompt, cursor)
            if end is None:
                lost.setdefault(number, _lost_call(call["function"]["name"], prompt, cursor))
            cursor = end or cursor
    cut = bool(missing) and _were_cut(messages, {*missing, *lost})
    yield from _missing_messages(messages, missing, prompt, cut=cut)
    # What was cut away holds no calls: to say so of the TEMPLATE would lead nowhere.
    yield from () if cut else lost.values()


def _were_cut(messages: Sequence[Mapping[str, Any]], missing: Collection[int]) -> bool:
    """Are they the oldest turns? A server cuts those, and keeps the system's messages (server/prompt.go)."""
    turns = [number for number, message in enumerate(messages) if message["role"] != "system"]
    oldest = turns[: len(missing) + 1]
    return 1 < len(missing) < len(turns) and oldest[0] in missing and set(missing) <= set(oldest)


def _find_text(text: str, prompt: str, start: int) -> int:
    """Where `text` stands, not as a part of longer words; -1 where it does not."""
    found = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)").search(prompt, start)
    return found.start() if found else -1


def _missing_messages(
    messages: Sequence[Mapping[str, Any]], missing: Sequence[int], prompt: str, *, cut: bool
) -> Iterator[PromptFault]:
    if not missing:
        return
    roles = sorted({messages[number]["role"] for number in missing})
    hint = f"the TEMPLATE needs a branch for the role {_names(roles)}"
    if cut:
        hint = HOW_NOT_TO_CUT
    first = messages[missing[0]]
    yield PromptFault(
        ERROR,
        f"{_count(len(missing), 'message')} of {len(messages)} not in the prompt, in order, with its text: "
        f"the first has the role `{first['role']}`",
        next(filter(None, map(str.strip, _texts(first))), "")[:_EVIDENCE_CHARACTERS]
        or excerpt(prompt, 0, 80),
        hint,
    )


def _split_fault(
    message: Mapping[str, Any], prompt: str, start: int, end: int, server: str | None
) -> PromptFault:
    fault = PromptFault(
        ERROR,
        f"the parts of a message with the role `{message['role']}` became several messages",
        excerpt(prompt, start, end),
        "send the text of a tool's result as one string",
    )
    return _as_known(fault, PART_IS_MESSAGE, server)


def _find_call(function: Mapping[str, Any], prompt: str, cursor: int) -> int | None:
    """Where the call ends in the prompt: a JSON object with its name and its arguments."""
    sent = json.loads(function["arguments"])
    for value, start, end in _places_of_values(prompt[cursor:]):
        for entry in value if isinstance(value, list) else [value]:
            if _is_call(entry, function["name"], sent):
                return cursor + end
        # Some templates write the name before the arguments: `[TOOL_CALLS]name[ARGS]{...}`.
        before = prompt[cursor:][max(start - len(function["name"]) - 20, 0) : start]
        if same_json(value, sent) and function["name"] in before:
            return cursor + end
    return None


def _is_call(entry: Any, name: str, arguments: Any) -> bool:
    """`{"name", "arguments"}`, wrapped in `function` or not, the arguments as an object or as its text."""
    if isinstance(entry, dict) and isinstance(entry.get("function"), dict):
        return _is_call(entry["function"], name, arguments)
    if not isinstance(entry, dict) or entry.get("name") != name:
        return False
    given = entry.get("arguments", entry.get("parameters"))
    return same_json(next(parse_values(given), None) if isinstance(given, str) else given, arguments)


def _lost_call(name: str, prompt: str, cursor: int) -> PromptFault:
    return PromptFault(
        ERROR,
        f"a call of `{name}` in the history is not in the prompt with its arguments",
        excerpt(prompt, cursor, cursor + 80),
        "the TEMPLATE needs a branch for `.ToolCalls`, also where the message has `.Content`",
    )


def _texts(message: Mapping[str, Any]) -> list[str]:
    content = message.get("content")
    if isinstance(content, list):
        return [part["text"] for part in content if isinstance(part.get("text"), str)]
    return [content] if isinstance(content, str) else []


# ---- markers and the template
def _find_marker_faults(prompt: str, template: str | None, texts: Sequence[str]) -> Iterator[PromptFault]:
    """Marks of turns: only those of one family, and of the model's own TEMPLATE where it has any."""
    used = {
        family: next(marker for marker in markers if marker in prompt)
        for family, markers in _FAMILIES.items()
        if any(marker in prompt and not any(marker in text for text in texts) for marker in markers)
    }
    own = (
        [] if template is None else [f for f, marks in _FAMILIES.items() if any(m in template for m in marks)]
    )
    expected = own or list(used)[:1]
    for family, marker in used.items():
        if family not in expected:
            place = prompt.find(marker)
            yield PromptFault(
                ERROR,
                f"the prompt holds `{marker}`, a mark of {family}, in a prompt of {expected[0]}",
                excerpt(prompt, place, place + len(marker)),
                "the server renders with another template than the model's own; " + _HOW_TO_KEEP_OURS,
            )
    if own and not used:
        yield PromptFault(
            ERROR,
            f"the TEMPLATE writes the marks of {own[0]}, and the prompt has none of them",
            excerpt(prompt, 0, 80),
            "the server renders with another template than the model's own; " + _HOW_TO_KEEP_OURS,
        )


_HOW_TO_KEEP_OURS = "since 0.30 it takes the GGUF's unless OLLAMA_GO_TEMPLATE=1 is set"


def _find_other_template(prompt: str, template: str) -> Iterator[PromptFault]:
    """Whether a long text of the TEMPLATE is in the prompt; one without long texts tells nothing."""
    literals = [text.strip() for text in re.split(r"\{\{.*?\}\}", template, flags=re.DOTALL)]
    long = [text for text in literals if len(text) >= _LONG_LITERAL_CHARACTERS]
    if long and not any(text in prompt for text in long):
        yield PromptFault(
            ERROR,
            "the prompt was not made by the model's TEMPLATE: none of its longer texts is in it",
            long[0][:_EVIDENCE_CHARACTERS],
            "read `template selection` in the server's log; " + _HOW_TO_KEEP_OURS,
        )


def _as_known(fault: PromptFault, known: KnownFault | None, server: str | None) -> PromptFault:
    if known is None or not known.concerns(server):
        return fault
    return replace(fault, severity=WARN, known=known.label)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]


def _is_empty(value: Any) -> bool:
    """What Go writes for a field that was not sent."""
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    return value is None or value in ("", [])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
