"""The 63 rules: what each asks for and whose demand it is.

A severity belongs to a finding, not to a rule: a rule with the letters "MI" can be broken in a way that the
OpenAI types forbid (M, "must") or in one that only clients and test suites stumble over (I, "interop").
B is "behavioural".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

_TYPES = "OpenAI API types"
_INTEROP = "test suites of clients and servers"
_LLAMA_CPP = "llama.cpp tools/server/tests"
_VLLM = "vLLM tests/tool_use"
_BFCL = "BFCL v4 ast_checker.py"
_K2VV = "K2-Vendor-Verifier tool_calls_eval.py"
_KIMI = "Kimi-Vendor-Verifier tests"
_OLLAMA = "Ollama integration/tools_stress_test.go"
_OURS = "this project"
_MEASURED = "measured on Ollama 0.17.5 and 0.24.0"


class Scope(Enum):
    """What it takes to judge a rule: one exchange, as `judge` is given it, or a conversation of several."""

    EXCHANGE = "exchange"
    CONVERSATION = "conversation"


@dataclass(frozen=True)
class Rule:
    """One thing that replies must satisfy: `title` says it in one sentence, `source` who demands it."""

    id: int
    severities: str
    title: str
    source: str
    scope: Scope = Scope.EXCHANGE


_PLAIN = (
    Rule(1, "M", "the status is 200 and the body is JSON of that content type", _TYPES),
    Rule(2, "M", "a plain reply is an object `chat.completion`", _TYPES),
    Rule(3, "MI", "`id` is a non-empty string, `created` an integer, `model` the requested one", _TYPES),
    Rule(4, "MI", "there is exactly one choice, and its index is 0", f"{_TYPES}; {_LLAMA_CPP}"),
    Rule(5, "M", "`finish_reason` is one of the five known words, not null", _TYPES),
    Rule(6, "M", "the role is `assistant`", _TYPES),
    Rule(7, "M", "`content` is present, as a string or null", _TYPES),
    Rule(8, "I", "`tool_calls` is a non-empty list, or absent", "litellm PR#32311"),
    Rule(9, "I", "calls are there exactly when the finish reason is `tool_calls`", f"{_K2VV}; litellm#35663"),
    Rule(10, "I", "the legacy `function_call` is not used", _TYPES),
    Rule(11, "I", "`usage` holds integers, adds up, and counts completion tokens", _TYPES),
    Rule(12, "I", "a reply whose tokens were counted holds text or calls: nothing was swallowed", _MEASURED),
)
_CALL = (
    Rule(13, "MI", "the id of a call is a non-empty string", f"{_TYPES}; litellm PR#33223"),
    Rule(14, "I", "ids of calls are unique in the message and across the conversation", _TYPES),
    Rule(15, "M", "the type of a call is `function`", _TYPES),
    Rule(16, "MI", "`function` is an object without an id of its own", f"{_TYPES}; {_LLAMA_CPP}"),
    Rule(17, "MI", "the called name is a declared tool, spelled exactly so", f"{_TYPES}; {_BFCL}"),
    Rule(18, "M", "`arguments` is a string", f"{_TYPES}; llama.cpp#20198"),
    Rule(19, "I", "`arguments` is JSON, encoded once, with nothing after it", f"{_K2VV}; vllm#10395"),
    Rule(20, "I", "`arguments` decodes to an object, `{}` when there are none", _K2VV),
    Rule(21, "I", "every required argument of the called tool is given", f"{_K2VV}; {_BFCL}"),
    Rule(22, "I", "arguments have the types that the called tool declares", f"{_BFCL}; ollama#7843"),
    Rule(23, "I", "argument values are among those that the called tool allows", f"{_K2VV}; {_BFCL}"),
    Rule(24, "I", "no argument is undeclared by the called tool", f"{_BFCL}; {_MEASURED}"),
    Rule(25, "I", "no doubled keys, only finite numbers and whole characters", "RFC 8259, 4, 6 and 8"),
    Rule(26, "I", "strings arrive as the conversation has them: quotes, newlines, <>&, CJK", _MEASURED),
    Rule(27, "I", "integers above 2^53 arrive exactly", _MEASURED),
    Rule(28, "I", "the index of a call in a plain reply is its position", "ollama#15457"),
    Rule(29, "I", "arguments hold no tokens of the chat template", _OLLAMA),
    Rule(30, "I", "the text holds no call and no token of the chat template", "vllm#28297; ollama#16686"),
)
_STREAM = (
    Rule(
        31,
        "I",
        "the stream is text/event-stream, each event `data: JSON` and a blank line",
        "WHATWG HTML 9.2",
    ),
    Rule(32, "I", "the stream ends with `data: [DONE]`, once, and nothing after it", "ollama#17118"),
    Rule(33, "M", "every chunk is an object `chat.completion.chunk`", _TYPES),
    Rule(34, "M", "every chunk has the same id", _TYPES),
    Rule(35, "MI", "every chunk has the same `created` and `model`", _TYPES),
    Rule(36, "I", "the role comes once, in the first delta", _VLLM),
    Rule(37, "M", "every tool delta has an integer index", f"{_TYPES}; ollama#7881"),
    Rule(38, "I", "indices start at 0 and are first seen in order, without gaps", _INTEROP),
    Rule(39, "I", "one index belongs to one id", "ollama#15457; vercel/ai PR#14277"),
    Rule(40, "I", "the first delta of a call has its id, type and name", _LLAMA_CPP),
    Rule(41, "I", "id, type and name of a call never change", _VLLM),
    Rule(42, "M", "every piece of `arguments` is a string", _TYPES),
    Rule(43, "MI", "tool deltas are non-empty lists", f"{_TYPES}; litellm PR#32311"),
    Rule(44, "I", "exactly one chunk has a finish reason", _VLLM),
    Rule(45, "I", "no text and no tool delta comes after the finish reason", _INTEROP),
    Rule(
        46, "I", "usage comes once, beside empty choices, and only when asked for", f"{_TYPES}; {_LLAMA_CPP}"
    ),
    Rule(47, "I", "no error takes the place of a reply, and no stream is cut", "ollama#17118"),
    Rule(48, "I", "no empty text stands beside a tool delta", "openai-go#756"),
    Rule(49, "I", "the stream gives the calls of the plain reply", _VLLM, Scope.CONVERSATION),
    Rule(
        50, "I", "no call and no token of the chat template leaks across chunks", "vllm#28297; ollama#16686"
    ),
)
_CONVERSATION = (
    Rule(51, "I", "a history with calls and `content: null` is accepted", _TYPES, Scope.CONVERSATION),
    Rule(52, "I", "tool results are accepted as a string and as parts", _TYPES, Scope.CONVERSATION),
    Rule(
        53, "B", "text that uses the results follows them, no repeated call", _LLAMA_CPP, Scope.CONVERSATION
    ),
    Rule(54, "B", "an error result leads to a corrected call, in a bounded loop", _BFCL, Scope.CONVERSATION),
    Rule(55, "B", "n things asked for give n calls, in any order", _BFCL, Scope.CONVERSATION),
    Rule(56, "B", "a missing argument is asked for before the call", _BFCL, Scope.CONVERSATION),
    Rule(57, "B", "an unrelated question gives no call", _BFCL, Scope.CONVERSATION),
    Rule(58, "B", "no tools sent, no calls made", _LLAMA_CPP, Scope.CONVERSATION),
    Rule(59, "I", "`tool_choice` is obeyed or refused, not ignored", "ollama#17921", Scope.CONVERSATION),
    Rule(60, "I", "a bad request gets its 4xx and an error object", _TYPES, Scope.CONVERSATION),
    Rule(61, "I", "the prompt grows when tools are added", _KIMI, Scope.CONVERSATION),
    Rule(62, "I", "a call cut by `max_tokens` ends with `length`", _TYPES, Scope.CONVERSATION),
    Rule(63, "B", "concurrent requests do not mix ids or arguments", _OURS, Scope.CONVERSATION),
)

RULES: Mapping[int, Rule] = {rule.id: rule for rule in _PLAIN + _CALL + _STREAM + _CONVERSATION}
