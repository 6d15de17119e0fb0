#!/bin/sh
""":"
# This file is a shell script and a Python module at once, so that it can be installed as `bin/ollama`.
python=
for candidate in "$python" python3 python3.13 python3.12 python3.11 python3.10 python3.9; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null || continue
    exec "$candidate" -I -S "$0" "$@"
done
echo "Error: the simulated ollama needs Python 3.9 or newer, and none was found on PATH" >&2
exit 127

A simulated Ollama: the HTTP API, the store on disk and the tool-call parser, without a model.

usage: ollama serve [--host HOST] [--port PORT] [--models DIR] [--script FILE] [--model NAME]...
                    [--fault FAULT]...
       ollama run NAME </dev/null        loads the model; with a prompt it fails
       ollama list|ls [PREFIX]...
       ollama ps [PREFIX]
       ollama show NAME
       ollama --version

It answers as the recorded replies of real servers do (streaming shapes, errors, headers, files) and with
HTTP 501 where it does not know what the real server would do. Which release it plays follows from the
version that it reports: below 0.24.0 it is 0.17.5, below 0.32.6 it is 0.24.0, from there on 0.32.15.
It reads OLLAMA_HOST, OLLAMA_MODELS, OLLAMA_KEEP_ALIVE, OLLAMA_CONTEXT_LENGTH, OLLAMA_MAX_LOADED_MODELS,
OLLAMA_NOPRUNE, OLLAMA_NO_CLOUD and OLLAMA_ORIGINS as the real server does. Its log, its version banner and
the header `X-Ollama-Simulated: 1` of every reply say that it is simulated.

Where answers come from
  --script FILE   (or OLLAMA_SIMULATED_SCRIPT) a JSON object that maps the last user message to
                  {"chunks": ["..."], "done_reason": "stop"|"length", "then_error": null|"..."}: the raw
                  pieces of the model, which pass through the same parsing as any other. Optional keys:
                  "then_error_status" (HTTP status of the runner's error), "then": "no_final_message" (or
                  "runner returns without a final message"), "done_content" (text inside the final
                  message), "text" (ignored). A message that is not in the script is answered with
                  HTTP 500. Limits are those of the request; a PARAMETER of the model limits nothing.
  otherwise       a few fixed rules play the conversations of the smoke suite for the models canary and
                  myqwen2 and for anything copied or created from them; other models: HTTP 500.
With --script, --port or --model, and without OLLAMA_MODELS and --models, the store is a temporary one that
holds the models canary, myqwen2, qwen (tag <tool_call>), bare (tag {) and each --model NAME.

Faults (--fault NAME[=VALUE], or OLLAMA_SIMULATED_FAULT="name[=value],...")
  slow=SECONDS      waits before the first piece of every answer
  reload=SECONDS    loads the model anew for every answer, which takes that long
  hang[=PATH]       accepts requests (below PATH) and never answers
  die               exits in the middle of a reply
  die-after-call    exits after the first tool call was sent
  503               every generation is refused: server busy
  gpu[=PERCENT]     claims a GPU and that this share of the model is in its memory (100)
  cpu               claims a GPU, but the model is not in its memory: size_vram stays 0
  text-calls        calls come back as text, as with a broken TEMPLATE
  missing-argument  drops the first required argument of each call
  swallow           empty answers with finish_reason "stop"
  duplicate-id      all calls have the same id
  index-zero        all calls have the index 0
  no-done           streams end without `data: [DONE]`
  cut-stream        the runner ends in the middle of every answer, without its final message
  no-length         an answer cut by max_tokens ends with "stop"
  soft-errors       errors of /v1/chat/completions come with HTTP 200
  refuse-null       histories with `content: null` are refused with HTTP 400
  refuse-parts      messages whose content is an array of parts are refused with HTTP 400
  broken-template   renders with the template of the GGUF: the model is never shown a tool
  no-growth         tools are not counted among the prompt's tokens
  cross-talk        two requests that are answered at once get each other's answers
Faults of the model itself, of the rules of canary and myqwen2 (not of a script):
  wrong-tool        calls the next of the declared tools
  string-types      numbers and booleans in arguments come as strings
  extra-argument    adds an argument that nobody declared
  wrong-enum        values out of a list come in capitals
  escape-strings    `<`, `>`, `&` and quotes in arguments come as HTML has them
  one-call          makes the first of several calls only
  repeat-call       makes the same call again after its result
  give-up           apologises where a tool says what was wrong
  ignore-results    answers without the result
  guess             makes up what it should ask for
  always-call       calls a tool where none fits
  leak-tags         every text ends with `</tool_call>`, a token of the chat template
  start-fails       exits 2 at start, as a server does that finds a damaged store
  memory=MIB        a loaded model really takes this much memory
  version=VERSION   reports another version, and plays it (also OLLAMA_SIMULATED_VERSION)
Without `gpu` and `cpu` it is a machine without a GPU: size_vram is 0.
"""

from __future__ import annotations

# One file without other packages, quick to start, that speaks of paths as the real server does:
# ruff: noqa: PTH101, PTH103, PTH104, PTH106, PTH108, PTH110, PTH112, PTH116, PTH118, PTH120, PTH123, PTH206, PTH208
# Texts are built with printf's formats, as in the Go sources they are held to:
# ruff: noqa: UP031
# Flags of Go's functions, handlers of one form, a loopback or any address, numbers that are no secrets,
# SQL a model writes:
# ruff: noqa: FBT001, FBT002, ARG001, ARG002, S104, S311, S608, PLR0911, EXE003
import codecs
import contextlib
import email.utils
import errno
import functools
import hashlib
import html
import http.client
import http.server
import ipaddress
import json
import math
import os
import posixpath
import random
import re
import shutil
import signal
import socket
import socketserver
import stat
import struct
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, BinaryIO, Callable, NamedTuple

VERSION = "0.17.5"  # a packer may replace this line

Json = Any
Params = dict[str, Any]

MAX_INT64 = (1 << 63) - 1
FOREVER_SECONDS = MAX_INT64 / 1e9
# A token takes at least so long in what a reply tells of itself; two thirds of that are eval_duration, so 25
# tokens/s. What really passes is too short to be compared: a busy machine would look like another model.
TOLD_NANOSECONDS = 60_000_000
DEFAULT_CONTEXT_LENGTH = 4096  # a server without a GPU; measured on 0.17.5 and 0.24.0
# What unicode.IsSpace takes for space; str.strip() takes more.
GO_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
GO_SPACE += "".join(chr(c) for c in range(0x2000, 0x200B))


# ------------------------------------------------------------ errors
class ApiError(Exception):
    """An error answered as `{"error": message}` with an HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class ServerPanic(Exception):
    """The real server panics here: HTTP 500 with an empty body (measured on 0.17.5)."""


class ModelMissing(Exception):
    """A manifest or a blob that must be there is not (os.ErrNotExist)."""


class StartError(Exception):
    """The server cannot start; the text goes to stderr and the process exits with `code`."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


# ------------------------------------------------------------ releases and what each does its own way
@dataclass(frozen=True)
class Release:
    """What a span of releases does in its own way, beginning with the version `since`.

    Attributes:
        recorded: the release whose recordings it is held to.
        unplayed: routes (method and path) that only this span has, beside those that all have.
        error_types: an OpenAI error's type follows its status; else it is always "api_error".
        model_refs: names are read with `:cloud` and `:local`, and a bad one is "invalid model name".
        efforts: the reasoning efforts of /v1, each with the think value it stands for.
        effort_refusal: what another one is answered with.
        think_values: texts that a model may be told to think with; `checks_think` refuses them all once more.
        nested_required: `required` of a property inside a property is read.
        checks_empty_digests: an empty digest is refused before anything is created.
        quantizable: file types that can be quantized.
        prune_after_seconds: age from which a stray file is removed at start.
        touches_blobs: create sets the time of each blob it uses, which only the file's owner may do.
        reads_models_at_start: every model is read at start, where one that is no GGUF ends the server.
        forgives_bad_gguf: one that is no GGUF ends nothing; what is answered instead is not recorded.
        openai_stream: a stream has the role once and the reason in a last chunk of its own, and only "stop"
            turns into "tool_calls".
        copies_gguf: create writes the GGUF anew, under another digest.
        llama_server: the runner is llama.cpp's server, with its errors; create knows drafts, and a config has
            no `rootfs`.
        lists_capabilities: /api/tags tells capabilities, context and parent.
        shows_full_tag: /api/show names a missing model with its tag.
        skips_strings: the parser with the tag `{` does not count braces inside strings.
    """

    since: tuple[int, int, int]
    recorded: str
    unplayed: tuple[tuple[str, str], ...] = ()
    error_types: bool = False
    model_refs: bool = False
    efforts: tuple[tuple[str, bool | str], ...] = ()
    effort_refusal: str = ""
    think_values: tuple[str, ...] = ("high", "medium", "low")
    checks_think: bool = False
    nested_required: bool = False
    checks_empty_digests: bool = False
    quantizable: tuple[str, ...] = ("F16", "F32")
    prune_after_seconds: float = 0.0
    touches_blobs: bool = False
    reads_models_at_start: bool = False
    forgives_bad_gguf: bool = False
    openai_stream: bool = False
    copies_gguf: bool = False
    llama_server: bool = False
    lists_capabilities: bool = False
    shows_full_tag: bool = False
    skips_strings: bool = False


_IMAGES = (("POST", "/v1/images/generations"), ("POST", "/v1/images/edits"))
_UNTIL_0_24 = Release(
    since=(0, 0, 0),
    recorded="0.17.5",
    unplayed=(*_IMAGES, *((method, "/api/experimental/aliases") for method in ("GET", "POST", "DELETE"))),
    efforts=(("high", "high"), ("medium", "medium"), ("low", "low"), ("none", False)),
    effort_refusal='invalid reasoning value: \'%s\' (must be "high", "medium", "low", or "none")',
    checks_think=True,
)
_EXPERIMENTAL = (
    ("POST", "/api/experimental/web_search"),
    ("POST", "/api/experimental/web_fetch"),
    ("GET", "/api/experimental/model-recommendations"),
    ("POST", "/v1/audio/transcriptions"),
)
_SINCE_0_24 = replace(
    _UNTIL_0_24,
    since=(0, 24, 0),
    recorded="0.24.0",
    unplayed=(*_IMAGES, *_EXPERIMENTAL),
    error_types=True,
    model_refs=True,
    efforts=(*_UNTIL_0_24.efforts, ("max", "max")),
    effort_refusal='invalid reasoning value: \'%s\' (must be "high", "medium", "low", "max", or "none")',
    think_values=("high", "medium", "low", "max"),
    checks_think=False,
    nested_required=True,
    checks_empty_digests=True,
    quantizable=("F16", "BF16", "F32"),
    prune_after_seconds=3600.0,
    touches_blobs=True,
    reads_models_at_start=True,
)
_SINCE_0_32_6 = replace(
    _SINCE_0_24,
    since=(0, 32, 6),
    recorded="0.32.15",
    unplayed=_EXPERIMENTAL,
    efforts=(*_SINCE_0_24.efforts, ("minimal", "low"), ("xhigh", "max"), ("ultra", "max")),
    effort_refusal='invalid reasoning value: "%s" (must be "minimal", "low", "medium", "high", "xhigh", '
    '"ultra", "max", or "none")',
    forgives_bad_gguf=True,
    openai_stream=True,
    copies_gguf=True,
    llama_server=True,
    lists_capabilities=True,
    shows_full_tag=True,
    skips_strings=True,
)
RELEASES = (_UNTIL_0_24, _SINCE_0_24, _SINCE_0_32_6)
"""By version, the oldest first. No default of the sampling is here: without a model nothing shows it."""


def release_of(version: str) -> Release:
    """What a server of this version plays; a candidate counts as its release. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+)(?:\.([0-9]+))?(?:\.([0-9]+))?(?:[-+][\w.+-]*)?", version)
    if match is None:
        raise ValueError(f"`{version}` is no version")
    number = tuple(int(part or 0) for part in match.groups())
    return next(release for release in reversed(RELEASES) if release.since <= number)


# ------------------------------------------------------------ JSON as Go reads and writes it
class Number(float):
    """A JSON number: Go's float64 with its source text (for error messages)."""

    text: str

    def __new__(cls, text: str) -> Number:  # noqa: PYI034
        value = super().__new__(cls, text)
        if math.isinf(value):
            raise GoJsonError(f"json: cannot unmarshal number {text} into Go value of type float64")
        value.text = text
        return value


class GoJsonError(ValueError):
    """A text that encoding/json refuses; the message is Go's."""


def _replace_one_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd", error.start + 1


codecs.register_error("simulated-go", _replace_one_byte)


def decode_utf8(data: bytes) -> str:
    """Decode as Go does: every invalid byte becomes U+FFFD."""
    return data.decode("utf-8", "simulated-go")


def clean_text(text: str) -> str:
    """Replace lone surrogates by U+FFFD, as encoding/json does."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text) if not text.isascii() else text


def _refuse_constant(name: str) -> Json:
    raise GoJsonError(f"invalid character {name[0]!r} looking for beginning of value")


def _clean(value: Json) -> Json:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_clean(v) for v in value]
    return value


_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_refuse_constant)


def _quote_char(char: str) -> str:
    if char == "'":
        return "'\\''"
    if char == '"':
        return "'\"'"
    escaped = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}.get(char)
    if escaped is None:
        escaped = char if char.isprintable() else f"\\x{ord(char):02x}"
    return f"'{escaped}'"


def _syntax_error(text: str, error: json.JSONDecodeError) -> GoJsonError:
    """Translate Python's error into Go's wording (encoding/json scanner.go) for the usual mistakes."""
    position = error.pos
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    unterminated = error.msg.startswith(("Unterminated string", "Invalid \\uXXXX"))
    if position >= len(text) or (unterminated and '"' not in text[error.pos + 1 :]):
        return GoJsonError("unexpected EOF")
    char = _quote_char(text[position])
    if error.msg.startswith("Invalid control character"):
        return GoJsonError(f"invalid character {_quote_char(text[error.pos])} in string literal")
    if error.msg.startswith("Invalid \\escape"):
        at = position + 1 if text[position] == "\\" else position
        return GoJsonError(
            "invalid character {} in string escape code".format(_quote_char(text[at : at + 1] or " "))
        )
    if error.msg.startswith(("Expecting property name", "Illegal trailing comma before end of object")):
        return GoJsonError(f"invalid character {char} looking for beginning of object key string")
    if error.msg.startswith("Expecting ':'"):
        return GoJsonError(f"invalid character {char} after object key")
    number = re.match(r"(-|\.[0-9]*|(?:\.[0-9]+)?[eE][+-]?)(.?)", text[position:], re.DOTALL)
    after_value = error.msg.startswith("Expecting ','")
    if number and (not after_value if number.group(1) == "-" else text[position - 1].isdigit()):
        place = {"-": "in", ".": "after decimal point in"}.get(number.group(1), "in exponent of")
        if not number.group(2):
            return GoJsonError("unexpected EOF")
        return GoJsonError(f"invalid character {_quote_char(number.group(2))} {place} numeric literal")
    if after_value:
        inside = "object key:value pair" if _open_bracket(text[:position]) == "{" else "array element"
        return GoJsonError(f"invalid character {char} after {inside}")
    for literal in ("true", "false", "null"):
        if text[position] == literal[0]:
            for at in range(1, len(literal)):
                got = text[position + at : position + at + 1]
                if not got:
                    return GoJsonError("unexpected EOF")
                if got != literal[at]:
                    return GoJsonError(
                        f"invalid character {_quote_char(got)} in literal {literal} (expecting "
                        f"{_quote_char(literal[at])})"
                    )
    return GoJsonError(f"invalid character {char} looking for beginning of value")


def _find_syntax_error(text: str) -> GoJsonError:
    try:
        _DECODER.raw_decode(text, len(text) - len(text.lstrip(" \t\r\n")))
    except json.JSONDecodeError as error:
        return _syntax_error(text, error)
    return GoJsonError("unexpected EOF")


def _open_bracket(text: str) -> str:
    stack: list[str] = []
    in_string = escaped = False
    for char in text:
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "{[":
            stack.append(char)
        elif char in "}]" and stack:
            stack.pop()
    return stack[-1] if stack else ""


def parse_json(data: bytes, whole: bool = True) -> Json:
    """Parse as encoding/json does. `whole` refuses trailing text (Unmarshal); a Decoder takes the first
    value.

    Raises GoJsonError with Go's message: "EOF" and "unexpected EOF" for nothing and half a value.
    """
    text = decode_utf8(data)
    start = len(text) - len(text.lstrip(" \t\r\n"))
    if start == len(text):
        raise GoJsonError("unexpected end of JSON input" if whole else "EOF")
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise _find_syntax_error(data.decode("latin-1")) from None  # byte by byte, as Go reads
    except RecursionError:
        raise GoJsonError("exceeded max depth") from None
    rest = text[end:].lstrip(" \t\r\n")
    if whole and rest:
        raise GoJsonError(f"invalid character {_quote_char(rest[0])} after top-level value")
    return value if text.isascii() and "\\u" not in text else _clean(value)


class Float32(float):
    """A 32-bit float: written with the fewest digits that give the same 32-bit value."""


def render_number(value: float) -> str:
    """A float64 as encoding/json writes it."""
    if isinstance(value, Float32):
        for precision in range(1, 18):
            digits = "%.*g" % (precision, value)
            if struct.pack("<f", float(digits)) == struct.pack("<f", value):
                value = float(digits)
                break
    sign = "-" if math.copysign(1, value) < 0 else ""
    mantissa, _, exponent = repr(abs(float(value))).partition("e")
    whole, _, fraction = mantissa.removesuffix(".0").partition(".")
    digits, point = (
        whole + fraction,
        len(whole) + int(exponent or 0),
    )  # 0.digits * 10**point, were whole empty
    stripped = digits.lstrip("0")
    point -= len(digits) - len(stripped)
    if not stripped:
        return sign + "0"
    if not 1e-6 <= abs(value) < 1e21:
        tail = "." + stripped[1:] if len(stripped) > 1 else ""
        return "%s%s%se%+d" % (sign, stripped[0], tail, point - 1)
    if point <= 0:
        return sign + "0." + "0" * -point + stripped
    if len(stripped) <= point:
        return sign + stripped + "0" * (point - len(stripped))
    return f"{sign}{stripped[:point]}.{stripped[point:]}"


_GO_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def render_string(text: str) -> str:
    """A string as encoding/json writes it: `<`, `>` and `&` escaped."""
    quoted = json.dumps(clean_text(text), ensure_ascii=False)
    return re.sub("[<>&\u2028\u2029]", lambda match: _GO_ESCAPES[match.group()], quoted)


def render_json(value: Json) -> str:
    """Marshal: compact, HTML characters escaped, keys in the order of the dict (structs) or SortedDict
    (maps).
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return render_string(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return render_number(value)
    if isinstance(value, dict):
        keys = sorted(value) if isinstance(value, GoMap) else value
        return "{{{}}}".format(",".join(f"{render_string(k)}:{render_json(value[k])}" for k in keys))
    if isinstance(value, (list, tuple)):
        return "[{}]".format(",".join(render_json(item) for item in value))
    raise TypeError(f"cannot render {type(value)!r}")


class GoMap(dict[str, Any]):
    """A Go map[string]any: written with sorted keys."""


def to_go(value: Json) -> Json:
    """Turn parsed JSON into what Go holds in an `any`: objects are maps."""
    if isinstance(value, dict):
        return GoMap((k, to_go(v)) for k, v in value.items())
    if isinstance(value, list):
        return [to_go(item) for item in value]
    return value


def format_value(value: Json) -> str:
    """What fmt's %v prints for a value decoded from JSON."""
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _format_g(float(value))
    if isinstance(value, (list, tuple)):
        return "[{}]".format(" ".join(format_value(item) for item in value))
    if isinstance(value, dict):
        return "map[{}]".format(" ".join(f"{k}:{format_value(value[k])}" for k in sorted(value)))
    return str(value)


def _format_g(value: float) -> str:
    """strconv.FormatFloat(value, 'g', -1, 64): an exponent below -4 or from 21 on prints as %e, as fmt's %v
    does.
    """
    digits = repr(value)
    if (value and not 1e-4 <= abs(value) < 1e6) or "e" in digits:
        mantissa, _, exponent = (f"{value!r}").partition("e")
        if not exponent:
            text = f"{value:.17e}"
            for precision in range(18):
                text = "%.*e" % (precision, value)
                if float(text) == value:
                    break
            mantissa, _, exponent = text.partition("e")
        return "%se%s%02d" % (mantissa.removesuffix(".0"), exponent[0], int(exponent[1:]))
    return digits.removesuffix(".0")


def quote_go(text: str) -> str:
    """strconv.Quote."""
    out = ['"']
    for char in clean_text(text):
        if char in '"\\':
            out.append("\\" + char)
        elif char in "\n\r\t\a\b\f\v":
            out.append(
                {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}[
                    char
                ]
            )
        elif char == " " or (char.isprintable() and not char.isspace()):
            out.append(char)
        elif ord(char) < 0x80:
            out.append(f"\\x{ord(char):02x}")
        else:
            out.append(f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}")
    return "".join(out) + '"'


# ------------------------------------------------------------ Go templates: the tree, not the values
class TemplateError(ValueError):
    """The text is not a template; the message is text/template's."""


@dataclass(frozen=True)
class Operand:
    """One argument of a command. `idents` holds the names of a field (`.A.B`) or variable (`$a.B`)."""

    kind: str
    idents: tuple[str, ...] = ()
    pipe: Pipe | None = None


@dataclass(frozen=True)
class Pipe:
    """A pipeline: its commands, each a list of arguments."""

    commands: tuple[tuple[Operand, ...], ...]


@dataclass(frozen=True)
class Node:
    """A node of the tree: text, action, if, range, with, template."""

    kind: str
    text: str = ""
    pipe: Pipe | None = None
    body: tuple[Node, ...] = ()
    otherwise: tuple[Node, ...] | None = None


class Token(NamedTuple):
    """A token of an action and its line."""

    kind: str
    text: str
    line: int


_FUNCTIONS = frozenset(
    "and call html index slice js len not or print printf println urlquery eq ge gt le lt ne"
    " json currentDate yesterdayDate toTypeScriptType".split()
)
_KEYWORDS = frozenset("if else end range with define template block break continue".split())
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)|(?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)|(?P<char>'(?:\\.|[^'\\\n])+')"""
    r"""|(?P<number>[+-]?(?:[0-9]|\.[0-9])[\w.]*)|(?P<variable>\$\w*)|(?P<field>\.\w+)|(?P<dot>\.)"""
    r"""|(?P<ident>\w+)|(?P<declare>:=)|(?P<assign>=)|(?P<pipe>\|)|(?P<left>\()|(?P<right>\))|(?P<comma>,)"""
    r"""|(?P<mark>[!-~])"""
)


class _TemplateParser:
    """text/template/parse, as far as the tree is needed: trim markers, blocks, pipelines."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.items = self._lex(text)
        self.templates: dict[str, tuple[Node, ...]] = {}
        self.variables: list[str] = ["$"]
        self.loops = 0

    # ---- text and actions
    def _lex(self, text: str) -> Iterator[tuple[str, Any, int]]:
        position = 0
        trim_next = False
        while True:
            start = text.find("{{", position)
            chunk = text[position:] if start < 0 else text[position:start]
            line = text.count("\n", 0, position) + 1
            if trim_next:
                chunk = chunk.lstrip(" \t\r\n")
            if start < 0:
                if chunk:
                    yield "text", chunk, line
                return
            inside = start + 2
            if re.match(r"-[ \t\r\n]", text[inside : inside + 2]):
                chunk = chunk.rstrip(" \t\r\n")
                inside += 1
            if chunk:
                yield "text", chunk, line
            line = text.count("\n", 0, start) + 1
            comment = re.match(r"\s*/\*" if inside > start + 2 else r"/\*", text[inside:])
            if comment:
                end = text.find("*/", inside + comment.end())
                if end < 0:
                    raise self._error("unclosed comment", line)
                closing = re.match(r"([ \t\r\n]-)?\}\}", text[end + 2 :])
                if not closing:
                    raise self._error("comment ends before closing delimiter", line)
                trim_next = bool(closing.group(1))
                position = end + 2 + closing.end()
                continue
            tokens, position, trim_next = self._lex_action(text, inside, line)
            yield "action", tokens, line

    def _lex_action(self, text: str, position: int, line: int) -> tuple[list[Token], int, bool]:
        tokens: list[Token] = []
        depth = 0
        while True:
            closing = re.compile(r"([ \t\r\n]-)?\}\}").match(text, position)
            if closing:
                if depth:
                    raise self._error("unclosed left paren", line)
                return tokens, closing.end(), bool(closing.group(1))
            if position >= len(text):
                raise self._error("unclosed action", text.count("\n", 0, position) + 1)
            match = _TOKEN.match(text, position)
            char = text[position]
            if match is None:
                raise self._error(
                    f"unrecognized character in action: U+{ord(char):04X} {_quote_char(char)}", line
                )
            if match.lastgroup == "mark" and char in "\"`'":
                name = {'"': "unterminated quoted string", "`": "unterminated raw quoted string"}
                raise self._error(name.get(char, "unterminated character constant"), line)
            kind = match.lastgroup or ""
            depth += (kind == "left") - (kind == "right")
            if depth < 0:
                raise self._error("unexpected right paren", line)
            if kind == "space" and re.compile(r"[ \t\r\n]*[ \t\r\n]-\}\}").match(text, position):
                position = match.end() - 1
                if tokens:
                    tokens.append(Token("space", " ", line))
                continue
            tokens.append(Token(kind, match.group(), text.count("\n", 0, position) + 1))
            position = match.end()
            after = text[position : position + 1]
            if (
                kind in ("ident", "field", "variable")
                and after
                and not re.match(r"[\s.,|:)(=]|}}", text[position : position + 2])
            ):
                raise self._error(f"bad character U+{ord(after):04X} {_quote_char(after)}", tokens[-1].line)

    def _error(self, message: str, line: int) -> TemplateError:
        return TemplateError("template: :%d: %s" % (line, message))

    # ---- the tree
    def parse(self) -> tuple[Node, ...]:
        nodes, ending = self._parse_list(top=True)
        if ending is not None:
            raise self._error(f"unexpected {{{{{ending[0]}}}}}", ending[1])
        return nodes

    def _parse_list(self, top: bool = False) -> tuple[tuple[Node, ...], tuple[str, int, list[Token]] | None]:
        nodes: list[Node] = []
        for kind, value, line in self.items:
            if kind == "text":
                nodes.append(Node("text", text=value))
                continue
            tokens = list(value)
            words = [token for token in tokens if token.kind != "space"]
            first = words[0] if words else Token("", "", line)
            if not words:
                raise self._error("missing value for command", line)
            if first.kind == "ident" and first.text in ("end", "else"):
                if first.text == "end" and len(words) > 1:
                    raise self._error(f"unexpected {_item(words[1])} in end", line)
                return tuple(nodes), (first.text, line, tokens[tokens.index(first) + 1 :])
            if first.kind == "ident" and first.text == "define" and top:
                self._parse_define(words, line)
            else:
                nodes.append(self._parse_action(first, tokens, line))
        if not top:
            raise self._error("unexpected EOF", self.text.count("\n") + 1)
        return tuple(nodes), None

    def _parse_define(self, words: list[Token], line: int) -> None:
        if len(words) != 2 or words[1].kind != "string":
            raise self._error(f"unexpected {quote_go(words[-1].text)} in define clause", line)
        saved, self.variables = self.variables, ["$"]
        body, ending = self._parse_list()
        self.variables = saved
        if ending is None or ending[0] != "end":
            raise self._error("unexpected {{else}} in define clause", line)
        self.templates[words[1].text[1:-1]] = body

    def _parse_action(self, first: Token, tokens: list[Token], line: int) -> Node:
        word = first.text if first.kind == "ident" else ""
        rest = tokens[tokens.index(first) + 1 :]
        if word in ("if", "range", "with"):
            return self._parse_branch(word, rest, line)
        if word in ("break", "continue"):
            if not self.loops:
                raise self._error(f"{{{{{word}}}}} outside {{{{range}}}}", line)
            return Node(word)
        if word in ("template", "block"):
            words = [token for token in rest if token.kind != "space"]
            if not words or words[0].kind != "string":
                raise self._error(
                    "unexpected {} in {} clause".format(quote_go(words[0].text) if words else "}}", word),
                    line,
                )
            arguments = rest[rest.index(words[0]) + 1 :]
            pipe = self._parse_pipe(arguments, line, "template clause") if len(words) > 1 else None
            if word == "block":
                if pipe is None:
                    raise self._error("missing value for block clause", line)
                saved, self.variables = self.variables, ["$"]
                self.templates[words[0].text[1:-1]], _ = self._parse_list()
                self.variables = saved
            return Node("template", text=words[0].text[1:-1], pipe=pipe)
        return Node("action", pipe=self._parse_pipe(tokens, line, "command"))

    def _parse_branch(self, word: str, tokens: list[Token], line: int) -> Node:
        scope = len(self.variables)
        pipe = self._parse_pipe(tokens, line, word)
        self.loops += word == "range"
        body, ending = self._parse_list()
        self.loops -= word == "range"
        otherwise: tuple[Node, ...] | None = None
        if ending is not None and ending[0] == "else":
            words = [token for token in ending[2] if token.kind != "space"]
            if words and words[0].text in ("if", "with") and words[0].text == word:
                rest = ending[2][ending[2].index(words[0]) + 1 :]
                otherwise = (self._parse_branch(word, rest, ending[1]),)
                del self.variables[scope:]
                return Node(word, pipe=pipe, body=body, otherwise=otherwise)
            if words:
                raise self._error("unexpected {} in {} clause".format(_item(words[0]), "else"), ending[1])
            otherwise, ending = self._parse_list()
            if ending is not None and ending[0] == "else":
                raise self._error("expected end; found {{else}}", ending[1])
        del self.variables[scope:]
        return Node(word, pipe=pipe, body=body, otherwise=otherwise)

    # ---- pipelines
    def _parse_pipe(self, tokens: list[Token], line: int, context: str) -> Pipe:
        tokens = list(tokens)
        while tokens and tokens[0].kind == "space":
            tokens.pop(0)
        while tokens and tokens[-1].kind == "space":
            tokens.pop()
        words = [token for token in tokens if token.kind != "space"]
        names: list[str] = []
        for size in (2, 4):
            if (
                len(words) >= size
                and words[0].kind == "variable"
                and words[size - 1].kind in ("declare", "assign")
            ):
                if size == 4 and words[1].kind != "comma":
                    continue
                if size == 4 and context != "range":
                    raise self._error(f"too many declarations in {context}", line)
                names = [word.text for word in words[: size - 1] if word.kind == "variable"]
                marker = words[size - 1]
                tokens = tokens[tokens.index(marker) + 1 :]
                for name in names:
                    if marker.kind == "assign" and name not in self.variables:
                        raise self._error(f"undefined variable {quote_go(name)}", line)
                break
        commands: list[tuple[Operand, ...]] = []
        part: list[Token] = []
        depth = 0
        for token in [*tokens, Token("pipe", "|", line)]:
            depth += (token.kind == "left") - (token.kind == "right")
            if token.kind == "pipe" and depth == 0:
                commands.append(self._parse_command(part, line, context))
                part = []
            else:
                part.append(token)
        self.variables.extend(names)
        return Pipe(tuple(commands))

    def _parse_command(self, tokens: list[Token], line: int, context: str) -> tuple[Operand, ...]:
        operands: list[Operand] = []
        position = 0
        while position < len(tokens):
            token = tokens[position]
            if token.kind == "space":
                position += 1
                continue
            operand, position = self._parse_operand(
                tokens, position, line, "operand" if operands else context
            )
            operands.append(operand)
        if not operands:
            raise self._error(f"missing value for {context}", line)
        return tuple(operands)

    def _parse_operand(
        self, tokens: list[Token], position: int, line: int, context: str
    ) -> tuple[Operand, int]:
        token = tokens[position]
        position += 1
        if token.kind == "left":
            depth, end = 1, position
            while end < len(tokens) and depth:
                depth += (tokens[end].kind == "left") - (tokens[end].kind == "right")
                end += 1
            operand = Operand(
                "pipe", pipe=self._parse_pipe(tokens[position : end - 1], line, "parenthesized pipeline")
            )
            position = end
        elif token.kind == "ident" and token.text not in ("true", "false", "nil"):
            if token.text in _KEYWORDS:
                raise self._error(f"unexpected {_item(token)} in {context}", line)
            if token.text not in _FUNCTIONS:
                raise self._error(f"function {quote_go(token.text)} not defined", line)
            operand = Operand("function", (token.text,))
        elif token.kind == "variable":
            if token.text not in self.variables:
                raise self._error(f"undefined variable {quote_go(token.text)}", line)
            operand = Operand("variable", (token.text,))
        elif token.kind == "field":
            operand = Operand("field", (token.text[1:],))
        elif token.kind in ("string", "char", "number", "dot", "ident"):
            operand = Operand(token.kind if token.kind != "ident" else token.text)
        else:
            raise self._error(f"unexpected {_item(token)} in {context}", line)
        while position < len(tokens) and tokens[position].kind == "field":
            name = tokens[position].text[1:]
            kind = operand.kind if operand.kind in ("field", "variable") else "chain"
            operand = Operand(kind, (*operand.idents, name) if kind != "chain" else (name,), operand.pipe)
            position += 1
        return operand, position


def _item(token: Token) -> str:
    return f"<{token.text}>" if token.text in _KEYWORDS else quote_go(token.text)


@dataclass(frozen=True)
class Template:
    """A parsed TEMPLATE.

    Attributes:
        text: as given.
        tag: the text the server looks for in the model's output (`tools/template.go`).
        variables: lower-cased identifiers (`template.go`, Vars): they make the capabilities.
        thinks: the template marks thinking (`thinking/template.go`, InferTags).
    """

    text: str
    tag: str
    variables: frozenset[str]
    thinks: bool


def _identifiers(nodes: Sequence[Node]) -> Iterator[str]:
    for node in nodes:
        if node.kind == "template" and node.pipe is None:
            raise TemplateError("undefined template specified")
        if node.pipe is not None:
            yield from _pipe_identifiers(node.pipe)
        yield from _identifiers(node.body)
        yield from _identifiers(node.otherwise or ())


def _pipe_identifiers(pipe: Pipe) -> Iterator[str]:
    for command in pipe.commands:
        for operand in command:
            if operand.kind in ("field", "variable"):
                yield from operand.idents
            elif operand.kind == "pipe" and operand.pipe is not None:
                yield from _pipe_identifiers(operand.pipe)


def _find_tool_calls(nodes: Sequence[Node]) -> Node | None:
    for node in nodes:
        if node.kind == "if" and node.pipe is not None:
            for command in node.pipe.commands:
                if any(operand.kind == "field" and "ToolCalls" in operand.idents for operand in command):
                    return node
        if node.kind in ("if", "range", "with"):
            found = _find_tool_calls(node.body) or _find_tool_calls(node.otherwise or ())
            if found:
                return found
    return None


def _find_text(nodes: Sequence[Node]) -> str | None:
    for node in nodes:
        if node.kind == "text" and node.text.strip(GO_SPACE):
            return node.text
        if node.kind in ("if", "range", "with"):
            return _find_text(node.body) or _find_text(node.otherwise or ())
        if node.kind == "action":
            return None
    return None


def derive_tag(nodes: Sequence[Node]) -> str:
    """The parser's tag: the first text inside the first `if` on `.ToolCalls`, cut at `{`
    (tools/template.go).
    """
    branch = _find_tool_calls(nodes)
    text = _find_text(branch.body) if branch else None
    tag = (text or "").replace("\r\n", "\n").partition("{")[0].strip(GO_SPACE)
    return tag or "{"


def _uses_thinking(nodes: Sequence[Node], in_messages: bool = False) -> bool:
    """Whether InferTags finds both tags; `in_messages` is true inside a range over `.Messages`."""
    for node in nodes:
        inside = in_messages
        if node.kind == "range" and node.pipe is not None:
            inside = any(
                o.kind == "field" and o.idents[0] == "Messages" for c in node.pipe.commands for o in c
            )
        used = node.pipe is not None and "Thinking" in {
            o.idents[0] for c in node.pipe.commands for o in c if o.kind == "field"
        }
        if used and in_messages and node.kind == "action":
            ends = (nodes[0], nodes[-1])
            if all(end.kind == "text" and end.text.strip(GO_SPACE) for end in ends):
                return True
        if _uses_thinking(node.body, inside) or _uses_thinking(node.otherwise or (), inside):
            return True
    return False


@functools.lru_cache(maxsize=64)
def parse_template(text: str) -> Template:
    """Parse a TEMPLATE as the server does at create and at load.

    Raises TemplateError with text/template's message.
    """
    parser = _TemplateParser(text)
    nodes = parser.parse()
    names = {name.lower() for part in (nodes, *parser.templates.values()) for name in _identifiers(part)}
    if not names & {"messages", "response"}:
        names.add("response")  # the server appends {{ .Response }}
    return Template(text, derive_tag(nodes), frozenset(names), _uses_thinking(nodes))


# ------------------------------------------------------------ tool calls in the model's text
@dataclass(frozen=True)
class Call:
    """A parsed call; `arguments` are in the order of the text."""

    name: str
    arguments: Params
    index: int


class ToolParser:
    """tools/tools.go, step by step; `tools` are the declared names."""

    def __init__(self, tag: str, tools: Sequence[str], skips_strings: bool = False) -> None:
        self.tag = tag.encode()
        self.skips_strings = skips_strings
        self.tools = [name.encode() for name in tools]
        self.buffer = b""
        self.state = "looking"
        self.count = 0

    def add(self, text: str) -> tuple[list[Call], str]:
        """Take one piece; give the calls it completes and the text to show."""
        if self.state == "done":
            return [], text
        self.buffer += text.encode("utf-8", "surrogatepass")
        content = b""
        if self.state == "looking":
            at, found = self._find_tag()
            content, self.buffer = (self.buffer, b"") if at < 0 else (self.buffer[:at], self.buffer[at:])
            if self.tag in (b"{", b"[") and decode_utf8(content).strip(GO_SPACE):
                self.state = "done"
                return [], decode_utf8(content + self.buffer)
            if not found:
                return [], decode_utf8(content)
            self.state = "calling"
        calls = []
        call = self._parse_call()
        while call is not None:
            calls.append(call)
            call = self._parse_call()
        if self._is_done():
            self.state = "done"
            content, self.buffer = self.buffer, b""
        return calls, decode_utf8(content)

    def rest(self) -> str:
        """What is left to show at the end: only with the tag `{` or `[` and without a call."""
        return decode_utf8(self.buffer) if self.count == 0 and self.tag in (b"{", b"[") else ""

    def _find_tag(self) -> tuple[int, bool]:
        at = self.buffer.find(self.tag)
        if at > -1:
            return at, True
        for size in range(min(len(self.buffer), len(self.tag)), 0, -1):
            if self.buffer.endswith(self.tag[:size]):
                return len(self.buffer) - size, False
        return -1, False

    def _parse_call(self) -> Call | None:
        tool, end = self._find_tool()
        if tool is None:
            return None
        arguments, at = find_arguments(decode_utf8(tool), self.buffer)
        if arguments is None:
            return None
        call = Call(decode_utf8(tool), arguments, self.count)
        self.count += 1
        self.buffer = self.buffer[max(at, end) :]
        return call

    def _find_tool(self) -> tuple[bytes | None, int]:
        if not self.buffer:
            return None, 0
        longest = max((len(name) for name in self.tools), default=0)
        for size in range(1, min(len(self.buffer), longest) + 1):
            tail = self.buffer[-size:]
            if any(len(tail) < len(name) and name.startswith(tail) for name in self.tools):
                return None, 0
        found: bytes | None = None
        start = -1
        for name in self.tools:
            at = self.buffer.find(name)
            if at == -1 or (found is not None and (at > start or (at == start and len(name) <= len(found)))):
                continue
            found, start = name, at
        return found, start + len(found) if found is not None else 0

    def _is_done(self) -> bool:
        if self.tag not in (b"{", b"["):
            return False
        opening, closing = b"{}" if self.tag == b"{" else b"[]"
        count = 0
        buffer = _without_strings(self.buffer) if self.skips_strings else self.buffer
        for byte in buffer:
            if byte == opening:
                count += 1
            elif byte == closing:
                count -= 1
                if count == 0:
                    return True
        return False


def _without_strings(buffer: bytes) -> bytes:
    """The text outside of strings, the last of which may be open."""
    return re.sub(rb'\\.|"(?:[^"\\]|\\.)*(?:"|\\?\Z)', b"", buffer, flags=re.DOTALL)


def find_arguments(tool: str, buffer: bytes) -> tuple[Params | None, int]:
    """The first JSON object of the buffer that may be arguments, and the place of its last byte
    (findArguments).
    """
    start, braces = -1, 0
    in_string = escaped = False
    for at, byte in enumerate(buffer):
        if escaped:
            escaped = False
        elif byte == 0x5C:
            escaped = True
        elif byte == 0x22:
            in_string = not in_string
        elif in_string:
            continue
        elif byte == 0x7B:
            if braces == 0:
                start = at
            braces += 1
        elif byte == 0x7D:
            braces -= 1
            if braces == 0 and start != -1:
                data = _parse_object(buffer[start : at + 1])
                if data is None:
                    start = -1
                    continue
                arguments, found = _find_object(tool, data)
                return (arguments if found else data), at
            braces = max(braces, 0)
    return None, 0


def _parse_object(text: bytes) -> Params | None:
    try:
        value = parse_json(text)
    except GoJsonError:
        return None
    return value if isinstance(value, dict) else None


def _find_map(name: str, data: Params) -> tuple[Params | None, bool]:
    value = data.get(name)
    if isinstance(value, dict):
        return value, True
    if isinstance(value, str):
        with contextlib.suppress(GoJsonError):
            inner = parse_json(value.encode())
            if inner is None or isinstance(inner, dict):
                return inner, True
    return None, False


def _find_object(tool: str, data: Params) -> tuple[Params | None, bool]:
    if "name" in data:
        for key in ("arguments", "parameters"):
            arguments, found = _find_map(key, data)
            if found:
                return arguments, True
        return None, True
    arguments, found = _find_map(tool, data)
    if found:
        return arguments, True
    # Go ranges a map here, in random order and anew with every piece: any child with arguments is found
    # sooner or later.
    named = False
    for value in data.values():
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, dict):
                arguments, found = _find_object(tool, child)
                if arguments is not None:
                    return arguments, True
                if found:
                    named = True
                    break  # a list has an order: its first named object decides
    return None, named


# ------------------------------------------------------------ names, durations, times
@dataclass(frozen=True)
class Name:
    """A model name (types/model/name.go)."""

    host: str
    namespace: str
    model: str
    tag: str

    def is_valid(self) -> bool:
        """Whether every part is present and well-formed."""
        return (
            re.fullmatch(r"\w[\w.:-]{0,349}", self.host, re.ASCII) is not None
            and re.fullmatch(r"\w[\w-]{0,79}", self.namespace, re.ASCII) is not None
            and all(re.fullmatch(r"\w[\w.-]{0,79}", part, re.ASCII) for part in (self.model, self.tag))
        )

    def path(self) -> str:
        """The manifest's path below `manifests/`."""
        return os.path.join(self.host, self.namespace, self.model, self.tag)

    def full(self) -> str:
        """`host/namespace/model:tag`."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    def shortest(self) -> str:
        """The name as /api/tags shows it: always with a tag, without the default host and namespace."""
        head = ""
        if self.host.lower() != "registry.ollama.ai":
            head = f"{self.host}/{self.namespace}/"
        elif self.namespace.lower() != "library":
            head = f"{self.namespace}/"
        return f"{head}{self.model}:{self.tag}"


def _cut_last(text: str, separator: str) -> tuple[str, str, bool]:
    before, mark, after = text.rpartition(separator)
    return (before or "!MISSING!", after or "!MISSING!", True) if mark else (text, "", False)


def parse_name(text: str) -> Name:
    """Parse a name and fill in the defaults; ask `is_valid()` before use."""
    host, namespace, tag = "registry.ollama.ai", "library", "latest"
    if text.rfind(":") > text.rfind("/"):
        text, tag, _ = _cut_last(text, ":")
    text, model, more = _cut_last(text, "/")
    if not more:
        return Name(host, namespace, text, tag)
    text, space, more = _cut_last(text, "/")
    if not more:
        return Name(host, text, model, tag)
    rest = text.partition("://")
    return Name((rest[2] if rest[1] else rest[0]) or host, space, model, tag)


def split_source(text: str) -> tuple[str, str]:
    """A name without its ending, and what that says of its source: cloud, local or nothing (modelref.go)."""
    before, mark, last = text.rpartition(":")
    ending = last.strip().lower() if mark else ""
    if ending in ("cloud", "local"):
        return before, ending
    if ending.endswith("-cloud") and "/" not in ending:
        return f"{before}:{last.strip()[: -len('-cloud')]}", "cloud"
    return text, ""


_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "\u00b5s": 1e-6,
    "\u03bcs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}


def parse_duration(text: str) -> float:
    """time.ParseDuration, in seconds. Raises ValueError with Go's message."""
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    if not rest:
        raise ValueError(f"time: invalid duration {quote_go(text)}")
    total = 0.0
    while rest:
        match = re.match(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([^0-9.]*)", rest)
        if not match:
            raise ValueError(f"time: invalid duration {quote_go(text)}")
        if not match.group(2):
            raise ValueError(f"time: missing unit in duration {quote_go(text)}")
        if match.group(2) not in _UNITS:
            raise ValueError(f"time: unknown unit {quote_go(match.group(2))} in duration {quote_go(text)}")
        total += float(match.group(1)) * _UNITS[match.group(2)]
        rest = rest[match.end() :]
    return sign * total


def parse_keep_alive(text: str) -> float:
    """OLLAMA_KEEP_ALIVE in seconds: a duration or a number of seconds, negative is for ever, nonsense is 5
    minutes.
    """
    seconds = 300.0
    with contextlib.suppress(ValueError):
        seconds = parse_duration(text) if text else seconds
        return FOREVER_SECONDS if seconds < 0 else seconds
    if re.fullmatch(r"[+-]?[0-9]+", text):
        seconds = float(text)
    return FOREVER_SECONDS if seconds < 0 else seconds


def render_time(nanoseconds: int, utc: bool = True) -> str:
    """RFC 3339 with nanoseconds, trailing zeros dropped; `utc` false gives the local offset, as time.Now()
    prints.
    """
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    offset = ""
    if not utc:
        moment = moment.astimezone()
        offset = moment.strftime("%z")
    fraction = (".%09d" % rest).rstrip("0").rstrip(".")
    zone = "Z" if offset in ("", "+0000") else offset[:3] + ":" + offset[3:5]
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + fraction + zone


# ------------------------------------------------------------ GGUF
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    4: "MXFP4",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    21: "Q2_K_S",
    32: "BF16",
}  # fs/ggml/type.go
# tensor kind: name, elements in a block, bytes of a block (fs/ggml/ggml.go)
_TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    4: ("MXFP4", 32, 17),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("unknown", 256, 66),
    17: ("unknown", 256, 74),
    18: ("unknown", 256, 98),
    19: ("unknown", 256, 50),
    20: ("unknown", 32, 18),
    21: ("unknown", 256, 110),
    22: ("unknown", 256, 82),
    23: ("unknown", 256, 136),
    24: ("unknown", 1, 1),
    25: ("unknown", 1, 2),
    26: ("unknown", 1, 4),
    27: ("unknown", 1, 8),
    28: ("F64", 1, 8),
    29: ("unknown", 256, 56),
    30: ("BF16", 1, 2),
    39: ("MXFP4", 32, 17),
}
_GGUF_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_GGUF_LITTLE, _GGUF_BIG = b"GGUF", b"FUGG"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a GGUF."""

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int

    def elements(self) -> int:
        """The product of the shape."""
        return math.prod(self.shape)

    def size_bytes(self) -> int:
        """Bytes in the file, as fs/ggml computes them (0 for a kind it does not know)."""
        _, block, size = _TENSOR_TYPES.get(self.kind, ("unknown", 256, 0))
        return self.elements() * size // block


@dataclass(frozen=True)
class Gguf:
    """The header of a GGUF: keys as in the file plus `general.parameter_count`, and the tensors.

    In the file the keys end at `values_end`, and the tensors' offsets count from `data_start`.
    """

    values: Params
    tensors: tuple[Tensor, ...]
    values_end: int = 0
    data_start: int = 0

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return str(self.values.get("general.architecture", "unknown"))

    def number(self, key: str, default: int = 0) -> int:
        """A number below the architecture's prefix; the largest of an array."""
        value = self.values.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list):
            return max(value, default=default)
        return int(value)

    def size_bytes(self, context_length: int) -> int:
        """Memory of a loaded model: tensors and an f16 cache (agrees with size in /api/ps, measured on
        0.17.5).
        """
        heads = self.number("attention.head_count", 1)
        head = self.number("embedding_length") // max(heads, 1)
        width = self.number("attention.key_length", head) + self.number("attention.value_length", head)
        cache = self.number("block_count") * self.number("attention.head_count_kv", heads) * width * 2
        return sum(tensor.size_bytes() for tensor in self.tensors) + cache * context_length


class _GgufReader:
    def __init__(self, file: BinaryIO, order: str, values_too: bool) -> None:
        self.file = file
        self.order = order
        self.values_too = values_too

    def take(self, size: int) -> bytes:
        if size > 1 << 31:
            raise ServerPanic("makeslice: len out of range")
        data = self.file.read(size)
        if len(data) < size:
            raise ApiError(500, "unexpected EOF" if data or self.started else "EOF")
        return data

    started = False

    def scalar(self, code: str) -> Any:
        data = self.take(struct.calcsize("=" + code))
        value = struct.unpack(self.order + code, data)[0]
        return Float32(value) if code == "f" else value

    def string(self) -> str:
        return decode_utf8(self.take(self.scalar("Q")))

    def value(self, kind: int) -> Any:
        if kind in _GGUF_SCALARS:
            return self.scalar(_GGUF_SCALARS[kind])
        if kind == 8:
            return self.string()
        if kind == 9:
            inner, count = self.scalar("I"), self.scalar("Q")
            if inner in _GGUF_SCALARS:
                code = _GGUF_SCALARS[inner]
                data = self.take(struct.calcsize("=" + code) * count)
                return (
                    list(struct.unpack("%s%d%s" % (self.order, count, code), data))
                    if self.values_too
                    else [None] * min(count, 1)
                )
            if inner == 8:
                return [self.string() for _ in range(count)]
            raise ApiError(500, "invalid array type: %d" % inner)
        raise ApiError(500, "invalid type: %d" % kind)


def read_gguf(path: str, verbose: bool = True) -> Gguf:
    """Read the header of a GGUF and check that every tensor lies inside the file.

    Raises ApiError(500) with the real server's message, OSError, or ServerPanic where the real one panics.
    """
    with open(path, "rb") as file:
        magic = file.read(4)
        if not magic:
            raise ApiError(500, "EOF")
        if len(magic) < 4:
            raise ApiError(500, "unexpected EOF")
        if magic not in (_GGUF_LITTLE, _GGUF_BIG):
            raise ApiError(500, "invalid file magic")
        reader = _GgufReader(file, "<" if magic == _GGUF_LITTLE else ">", verbose)
        version = reader.scalar("I")
        if version == 1:
            raise ApiError(501, "simulated: GGUF version 1")
        count_tensors, count_values = reader.scalar("Q"), reader.scalar("Q")
        reader.started = True
        values: Params = {}
        for _ in range(count_values):
            key = reader.string()
            values[key] = reader.value(reader.scalar("I"))
        values_end = file.tell()
        tensors = []
        for _ in range(count_tensors):
            name = reader.string()
            shape = tuple(reader.scalar("Q") for _ in range(reader.scalar("I")))
            kind, offset = reader.scalar("I"), reader.scalar("Q")
            tensors.append(Tensor(name, kind, shape, offset))
        alignment = int(values.get("general.alignment", 32))
        start = -(-file.tell() // alignment) * alignment
        size = os.fstat(file.fileno()).st_size
    for tensor in tensors:
        end = start + tensor.offset + tensor.size_bytes()
        if end > size:
            raise ApiError(
                500, "tensor %s offset+size (%d) exceeds file size (%d)" % (quote_go(tensor.name), end, size)
            )
    values["general.parameter_count"] = sum(tensor.elements() for tensor in tensors)
    return Gguf(values, tuple(tensors), values_end, start)


def _place_in_layers(tensor: Tensor) -> tuple[int, str]:
    layer = re.match(r"blk\.([0-9]+)\.", tensor.name)
    return int(layer.group(1)) if layer else -1, tensor.name


def copy_gguf(path: str) -> Iterator[bytes]:
    """The GGUF as llama-quantize copies it: the same keys, the tensors by layer and name.

    As recorded: the size is the same, the bytes and so the digest are others; and a copy is its own copy.
    Raises ApiError(501) for a big-endian file.
    """
    gguf = read_gguf(path, verbose=False)
    alignment = int(gguf.values.get("general.alignment", 32))
    with open(path, "rb") as file:
        head = file.read(gguf.values_end)
        if not head.startswith(_GGUF_LITTLE):
            raise ApiError(501, "simulated: a copy of a big-endian GGUF")
        tensors, offset = sorted(gguf.tensors, key=_place_in_layers), 0
        for tensor in tensors:
            name = tensor.name.encode("utf-8", "surrogatepass")
            head += struct.pack("<Q", len(name)) + name
            head += struct.pack(
                "<I%dQIQ" % len(tensor.shape), len(tensor.shape), *tensor.shape, tensor.kind, offset
            )
            offset += -(-tensor.size_bytes() // alignment) * alignment
        yield head + b"\0" * (-len(head) % alignment)
        for tensor in tensors:
            file.seek(gguf.data_start + tensor.offset)
            left = tensor.size_bytes()
            while left:
                data = file.read(min(left, 1 << 20))
                left -= len(data)
                yield data
            yield b"\0" * (-tensor.size_bytes() % alignment)


def render_gguf(values: Params, tensors: Sequence[tuple[str, tuple[int, ...]]]) -> bytes:
    """A small valid GGUF of F32 tensors filled with zeros; `values` may hold strings and non-negative
    integers.
    """

    def text(value: str) -> bytes:
        data = value.encode()
        return struct.pack("<Q", len(data)) + data

    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(values))]
    for key, value in values.items():
        out.append(
            text(key)
            + (struct.pack("<I", 8) + text(value) if isinstance(value, str) else struct.pack("<II", 4, value))
        )
    offset = 0
    for name, shape in tensors:
        out.append(text(name) + struct.pack("<I%dQIQ" % len(shape), len(shape), *shape, 0, offset))
        offset += -(-math.prod(shape) * 4 // 32) * 32
    header = b"".join(out)
    return header + b"\0" * (-len(header) % 32 + offset)


def render_count(number: int) -> str:
    """A number of parameters as format.HumanNumber prints it."""
    for limit, letter, digits in ((1_000_000_000, "B", 1), (1_000_000, "M", 2)):
        if number >= limit:
            value = number / limit
            return "%.*f%s" % (0 if value == math.floor(value) else digits, value, letter)
    return "%.0fK" % (number / 1000) if number >= 1000 else str(number)


# Jinja chat templates that Ollama takes for "chatml" (template/index.json). A GGUF without TEMPLATE gets
# the built-in
# one of the nearest known jinja text if the edit distance is below 100. The number beside each: below this
# distance it
# is nearer than any text of another kind. The other lengths tell where only the whole list could answer.
_FOR = "{% for message in messages %}"
_TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
_ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_UNSET = "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
_FIRST = (
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant@<|im_end|>\n' }}{% endif %}"
)
CHATML_JINJA = (
    (_FOR + _TURN + _ASK, 32),
    ("{{bos_token}}" + _FOR + _TURN + _ASK, 26),
    (_UNSET + _FOR + _TURN + _ASK, 67),
    (_UNSET + "{{ bos_token }}" + _FOR + _TURN + _ASK, 72),
    (_FOR + _FIRST.replace("@", ".") + _TURN + _ASK, 87),
    (_FOR + _FIRST.replace("@", "") + _TURN + _ASK, 86),
)
_KNOWN_JINJA_LENGTHS = (
    196,
    209,
    218,
    222,
    254,
    269,
    291,
    306,
    306,
    327,
    328,
    340,
    356,
    358,
    376,
    389,
    409,
    410,
    441,
    450,
    459,
    470,
    477,
    531,
    533,
    571,
    574,
    591,
    629,
    690,
    813,
    815,
    1041,
    1204,
    1532,
    1842,
    4614,
)
CHATML_TEMPLATE = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n"
    "{{ end }}<|im_start|>assistant\n"
)
CHATML_STOPS = ["<|im_start|>", "<|im_end|>"]


def detect_chat_template(jinja: str) -> str | None:
    """The built-in TEMPLATE for a GGUF's jinja template: chatml or None (template.Named).

    Raises ApiError(501) where only the real server's whole list could tell.
    """
    if any(_distance(jinja, known, limit) < limit for known, limit in CHATML_JINJA):
        return CHATML_TEMPLATE
    if any(abs(len(jinja) - length) < 100 for length in _KNOWN_JINJA_LENGTHS):
        raise ApiError(501, "simulated: unknown chat template in the GGUF")
    return None


def _distance(one: str, other: str, limit: int) -> int:
    """Levenshtein's distance, or `limit` where it is not less."""
    if one == other or abs(len(one) - len(other)) >= limit:
        return 0 if one == other else limit
    row = list(range(len(other) + 1))
    for at, char in enumerate(one, 1):
        above, row = row, [at]
        for column, candidate in enumerate(other, 1):
            row.append(min(above[column] + 1, row[-1] + 1, above[column - 1] + (char != candidate)))
        if min(row) >= limit:
            return limit
    return row[-1]


# ------------------------------------------------------------ the store
MEDIA = "application/vnd.ollama.image."
MEDIA_CONFIG = "application/vnd.docker.container.image.v1+json"
MEDIA_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class Layer:
    """A layer of a manifest; `status` is told at create, `gguf` is known while creating."""

    media_type: str
    digest: str
    size: int
    origin: str = ""
    status: str = ""
    gguf: Gguf | None = None

    def record(self) -> Params:
        """The layer as the manifest holds it."""
        out: Params = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.origin:
            out["from"] = self.origin
        return out


@dataclass(frozen=True)
class Manifest:
    """A manifest file; `digest` is the sha256 of its bytes, as /api/tags tells."""

    name: Name
    config: Layer
    layers: tuple[Layer, ...]
    digest: str
    modified_ns: int

    def all_layers(self) -> tuple[Layer, ...]:
        """Layers and config."""
        return (*self.layers, self.config)


def _layer(record: Any) -> Layer:
    record = record if isinstance(record, dict) else {}
    return Layer(
        record.get("mediaType", ""),
        record.get("digest", ""),
        int(record.get("size", 0)),
        record.get("from", ""),
    )


def describe_os_error(error: OSError, verb: str, path: str) -> str:
    """An OSError as Go prints a PathError."""
    text = os.strerror(error.errno or 0)
    return f"{verb} {path}: {text[:1].lower() + text[1:]}"


class Store:
    """OLLAMA_MODELS: blobs and manifests, the only state. Thread-safe by `lock` around changes of
    manifests.
    """

    def __init__(self, root: str, release: Release, prune: bool = True) -> None:
        self.root = os.path.normpath(root)
        self.release = release
        self.prune = prune
        self.lock = threading.RLock()

    # ---- blobs
    def blob_path(self, digest: str) -> str:
        """Path of a blob; `` is the directory. Raises ApiError(400), "invalid digest format"."""
        if digest and not re.fullmatch(r"sha256[:-][0-9a-fA-F]{64}", digest):
            raise ApiError(400, "invalid digest format")
        path = os.path.join(self.root, "blobs", digest.replace(":", "-"))
        directory = path.rstrip("/") if not digest else os.path.dirname(path)
        self._make_directory(directory)
        return path.rstrip("/")

    def _make_directory(self, path: str) -> None:
        missing = path
        try:
            while missing and not os.path.isdir(missing):
                parent = os.path.dirname(missing)
                if os.path.lexists(missing):
                    raise NotADirectoryError(errno.ENOTDIR, "", missing)
                if os.path.isdir(parent) or not parent:
                    break
                missing = parent
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            text = describe_os_error(error, "mkdir", missing)
            raise ApiError(500, f"{text}: ensure path elements are traversable") from None

    def write_blob(self, chunks: Iterator[bytes], media_type: str) -> Layer:
        """Write a blob under its real digest: temporary file, fsync, rename, 0644. Raises ApiError(500)."""
        directory = self.blob_path("")
        path = ""
        try:
            while True:
                path = os.path.join(directory, "sha256-%d" % random.randrange(1 << 32))
                with contextlib.suppress(FileExistsError):
                    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                    break
            digest, size = hashlib.sha256(), 0
            with os.fdopen(handle, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                file.flush()
                os.fsync(file.fileno())
            name = "sha256:" + digest.hexdigest()
            final = self.blob_path(name)
            status = "using existing layer"
            if not os.path.exists(final):
                status = "creating new layer"
                os.rename(path, final)
                os.chmod(final, 0o644)
            self.touch(final)
            return Layer(media_type, name, size, status=f"{status} {name}")
        except OSError as error:
            raise ApiError(
                500, describe_os_error(error, "write" if error.errno == errno.ENOSPC else "open", path)
            ) from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def touch(self, path: str) -> None:
        """Set a blob's time to now, if this release does. Raises ApiError(500): it is another user's."""
        if not self.release.touches_blobs:
            return
        try:
            os.utime(path)
        except OSError as error:
            raise ApiError(500, describe_os_error(error, "chtimes", path)) from None

    def write_text(self, text: str, kind: str) -> Layer:
        """Write a small layer."""
        media_type = kind if "/" in kind else MEDIA + kind
        return self.write_blob(iter([text.encode("utf-8", "surrogatepass")]), media_type)

    def read_text(self, layer: Layer) -> str:
        """Read a small layer. Raises ModelMissing."""
        try:
            with open(self.blob_path(layer.digest), "rb") as file:
                return decode_utf8(file.read())
        except FileNotFoundError:
            raise ModelMissing(layer.digest) from None
        except OSError as error:
            raise ApiError(500, describe_os_error(error, "open", self.blob_path(layer.digest))) from None

    # ---- manifests
    def manifests_path(self) -> str:
        """The directory of manifests, made if absent."""
        path = os.path.join(self.root, "manifests")
        self._make_directory(path)
        return path

    def read_manifest(self, name: Name) -> Manifest:
        """Read one manifest. Raises ModelMissing, ApiError(500) for a damaged one."""
        path = os.path.join(self.manifests_path(), name.path())
        try:
            with open(path, "rb") as file:
                data = file.read()
                modified = os.fstat(file.fileno()).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            raise ModelMissing(name.full()) from None
        except OSError as error:
            raise ApiError(500, describe_os_error(error, "open", path)) from None
        try:
            value = parse_json(data, whole=False)
        except GoJsonError as error:
            raise ApiError(500, str(error)) from None
        value = value if isinstance(value, dict) else {}
        layers = tuple(_layer(record) for record in value.get("layers") or ())
        return Manifest(name, _layer(value.get("config")), layers, hashlib.sha256(data).hexdigest(), modified)

    def names(self) -> list[Name]:
        """Names of all manifest files, sorted."""
        root = self.manifests_path()
        found = []
        for directory, _, files in os.walk(root, followlinks=True):
            parts = os.path.relpath(directory, root).split(os.sep)
            if len(parts) == 3:
                found += [Name(parts[0], parts[1], parts[2], tag) for tag in files]
        return sorted((name for name in found if name.is_valid()), key=Name.full)

    def manifests(self) -> list[Manifest]:
        """All readable manifests."""
        out = []
        for name in self.names():
            with contextlib.suppress(ApiError, ModelMissing):
                out.append(self.read_manifest(name))
        return out

    def existing_name(self, name: Name) -> Name:
        """The name with the spelling of what is there: names ignore case (getExistingName)."""
        host, namespace, model, tag = name.host, name.namespace, name.model, name.tag
        for other in (manifest.name for manifest in self.manifests()):
            host = other.host if other.host.lower() == host.lower() else host
            namespace = other.namespace if other.namespace.lower() == namespace.lower() else namespace
            model = other.model if other.model.lower() == model.lower() else model
            tag = other.tag if other.tag.lower() == tag.lower() else tag
        return Name(host, namespace, model, tag)

    def write_manifest(self, name: Name, config: Layer, layers: Sequence[Layer]) -> None:
        """Write a manifest: temporary file, fsync, rename."""
        value = {
            "schemaVersion": 2,
            "mediaType": MEDIA_MANIFEST,
            "config": config.record(),
            "layers": [layer.record() for layer in layers] or None,
        }
        self.write_manifest_bytes(name, (render_json(value) + "\n").encode())

    def write_manifest_bytes(self, name: Name, data: bytes) -> None:
        """Write a manifest's bytes in one step. Raises ApiError(500)."""
        root = self.manifests_path()
        path = os.path.join(root, name.path())
        self._make_directory(os.path.dirname(path))
        temporary = os.path.join(root, ".%d-%d" % (os.getpid(), threading.get_ident()))
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except OSError as error:
            raise ApiError(500, describe_os_error(error, "open", path)) from None

    def copy(self, source: Name, target: Name) -> None:
        """Copy a manifest. Raises ModelMissing."""
        if source == target:
            return
        path = os.path.join(self.manifests_path(), source.path())
        try:
            with open(path, "rb") as file:
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            raise ModelMissing(source.full()) from None
        self.write_manifest_bytes(target, data)

    def delete(self, manifest: Manifest) -> None:
        """Remove a manifest, directories it leaves empty, and blobs nothing else names."""
        os.unlink(os.path.join(self.manifests_path(), manifest.name.path()))
        self.prune_directories(self.manifests_path())
        self.remove_layers(manifest)

    def remove_layers(self, manifest: Manifest) -> None:
        """Remove the layers of `manifest` that no manifest names."""
        used = {layer.digest for other in self.manifests() for layer in other.all_layers()}
        for layer in manifest.all_layers():
            if layer.digest and layer.digest not in used:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.blob_path(layer.digest))

    def drop_layers(self, layers: Sequence[Layer], kind: str) -> list[Layer]:
        """The layers without those of a kind; their blobs that nothing names are removed (removeLayer)."""
        used = {layer.digest for other in self.manifests() for layer in other.all_layers()}
        for layer in layers:
            if layer.media_type == MEDIA + kind and layer.digest not in used:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.blob_path(layer.digest))
        return [layer for layer in layers if layer.media_type != MEDIA + kind]

    def prune_directories(self, path: str) -> None:
        """Remove empty directories, `path` too."""
        for directory, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    def _is_ripe(self, path: str) -> bool:
        """Whether a file is old enough to be removed as a stray one."""
        grace_seconds = self.release.prune_after_seconds
        if not grace_seconds:
            return True
        with contextlib.suppress(OSError):
            found = os.stat(path, follow_symlinks=False)
            return not stat.S_ISDIR(found.st_mode) and time.time() - found.st_mtime >= grace_seconds
        return False

    def start(self, log: Callable[[str], None]) -> None:
        """Make the directories and remove stray blobs of the age at which they count. Raises ApiError."""
        blobs = self.blob_path("")
        if not self.prune:
            return
        try:
            kept = [self.read_manifest(name) for name in self.names()]
        except (ApiError, ModelMissing):
            log("corrupt manifests detected, skipping prune operation.  Re-pull or delete to clear")
            return
        unused = {}
        for entry in sorted(os.listdir(blobs)):
            if not self._is_ripe(os.path.join(blobs, entry)):
                continue
            digest = entry.replace("-", ":")
            if re.fullmatch(r"sha256[:-][0-9a-fA-F]{64}", digest):
                unused[digest] = entry
            else:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(blobs, entry))
        log("total blobs: %d" % len(unused))
        for manifest in kept:
            for layer in manifest.all_layers():
                unused.pop(layer.digest, None)
        for entry in unused.values():
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(blobs, entry))
        log("total unused blobs removed: %d" % len(unused))
        for entry in os.listdir(self.manifests_path()):
            if re.fullmatch(r"\.[0-9]+-[0-9]+", entry):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.manifests_path(), entry))
        self.prune_directories(self.manifests_path())


@dataclass(frozen=True)
class Model:
    """A model as GetModel reads it (server/images.go)."""

    name: Name
    digest: str
    modified_ns: int
    config: Params
    path: str = ""
    parent: str = ""
    template: Template = field(default_factory=lambda: parse_template("{{ .Prompt }}"))
    has_template: bool = False
    system: str = ""
    licenses: tuple[str, ...] = ()
    options: Params = field(default_factory=dict)
    messages: tuple[Params, ...] = ()

    def capabilities(self) -> list[str]:
        """Capabilities as /api/show lists them. Raises ServerPanic for a file that is no GGUF."""
        out = []
        if self.path and _opens_as_gguf(self.path):
            out.append("completion")
        if "tools" in self.template.variables:
            out.append("tools")
        if "suffix" in self.template.variables:
            out.append("insert")
        if self.template.thinks:
            out.append("thinking")
        return out

    def details(self, parent: bool = False) -> Params:
        """`details` of /api/show, /api/tags and /api/ps."""
        return {
            "parent_model": self.parent if parent else "",
            "format": self.config.get("model_format", ""),
            "family": self.config.get("model_family", ""),
            "families": self.config.get("model_families"),
            "parameter_size": self.config.get("model_type", ""),
            "quantization_level": self.config.get("file_type", ""),
        }


def _opens_as_gguf(path: str) -> bool:
    """What opening the file for its capabilities gives (fs/gguf; measured with damaged files on 0.17.5)."""
    try:
        with open(path, "rb") as file:
            head = file.read(24)
            if len(head) <= 4 or not head.strip(b"\0"):
                return False
            if head[:4] not in (_GGUF_LITTLE, _GGUF_BIG):
                raise ServerPanic("makeslice: len out of range")
            if len(head) == 24 and struct.unpack("<I", head[4:8])[0] not in (1, 2, 3):
                raise ServerPanic("slice bounds out of range [:18446744073709551615] with capacity 4096")
            return True
    except OSError:
        return False


def load_model(store: Store, name: Name) -> Model:
    """Read a model. Raises ModelMissing if the manifest, config or a small layer is missing, ApiError(500)
    otherwise.
    """
    manifest = store.read_manifest(name)
    try:
        config = (
            parse_json(store.read_text(manifest.config).encode(), whole=False)
            if manifest.config.digest
            else {}
        )
        model = Model(name, manifest.digest, manifest.modified_ns, config)
        for layer in manifest.layers:
            kind = layer.media_type.replace(MEDIA, "")
            if kind == "model":
                model = replace(model, path=store.blob_path(layer.digest), parent=layer.origin)
            elif kind in ("template", "prompt"):
                model = replace(model, template=parse_template(store.read_text(layer)), has_template=True)
            elif kind == "system":
                model = replace(model, system=store.read_text(layer))
            elif kind == "license":
                model = replace(model, licenses=(*model.licenses, store.read_text(layer)))
            elif kind == "params":
                model = replace(model, options=parse_json(store.read_text(layer).encode(), whole=False) or {})
            elif kind == "messages":
                model = replace(
                    model, messages=tuple(parse_json(store.read_text(layer).encode(), whole=False) or ())
                )
    except (GoJsonError, TemplateError) as error:
        raise ApiError(500, str(error)) from None
    return model


# ------------------------------------------------------------ known TEMPLATEs and what they render
_TOOLS_TEXT = (
    "You are provided with function signatures within <tools></tools> XML tags. You may call one or "
    "more functions to "
    "assist with the user query. Don't make assumptions about what values to plug into functions. Here "
    "are the available "
    "tools:\n<tools>"
)
_CALLS_TEXT = (
    "For each function call, return a JSON object with function name and arguments within "
    "<tool_call></tool_call> XML "
    'tags as follows:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_PLAIN_TAIL = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}<|im_start|>user\n"
    "{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ end }}\n"
)
CORRECTED_TEMPLATE = (
    "{{- if .Messages }}\n{{- if or .System .Tools }}<|im_start|>system\n{{- if .System }}\n{{ .System "
    "}}\n{{- end }}\n"
    "{{- if .Tools }}\n\n# Tools\n\n" + _TOOLS_TEXT + "\n{{- range .Tools }}\n"
    '{"type": "function", "function": {{ json .Function }}}\n{{- end }}\n</tools>\n\n' + _CALLS_TEXT + "\n"
    '{{- end }}<|im_end|>\n{{ end }}\n{{- range .Messages }}\n{{- if eq .Role "user" }}<|im_start|>user\n'
    '{{ .Content }}<|im_end|>\n{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{- if .Content }}\n'
    "{{ .Content }}\n{{- end }}\n{{- if .ToolCalls }}\n{{- range .ToolCalls }}\n<tool_call>\n"
    '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n</tool_call>\n{{- end }}\n'
    '{{- end }}<|im_end|>\n{{ else if eq .Role "tool" }}<|im_start|>user\n<tool_response>\n{{ .Content }}\n'
    "</tool_response><|im_end|>\n{{ end }}\n{{- end }}<|im_start|>assistant\n{{ else }}\n{{- "
    + _PLAIN_TAIL[3:]
)
ARTICLE_TEMPLATE = (
    "{{ if .Messages }}\n{{- if or .System .Tools }}<|im_start|>system\n{{ .System }}\n{{- if .Tools "
    "}}\n# Tools\n"
    + _TOOLS_TEXT
    + "{{- range .Tools }}{{ .Function }}{{- end }}</tools>\n"
    + _CALLS_TEXT
    + '{{- end }}<|im_end|>{{- end }}\n{{- range .Messages }}\n{{- if eq .Role "user" }}\n'
    "<|im_start|>{{ .Role }}\n"
    '{{ .Content }}<|im_end|>\n{{- else if eq .Role "assistant" }}\n<|im_start|>{{ .Role }}\n{{- if '
    ".Content }}\n"
    "{{ .Content }}\n{{- end }}\n{{- if .ToolCalls }}\n<tool_call>\n"
    '{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n{{ '
    "end }}"
    '</tool_call>\n{{- end }}<|im_end|>\n{{- else if eq .Role "tool" }}\n<|im_start|>user\n<tool_response>\n'
    "{{ .Content }}\n</tool_response><|im_end|>\n{{- end }}\n{{- end }}\n<|im_start|>assistant\n{{ else }}"
    + _PLAIN_TAIL
)
_QWEN_HEAD = (
    "{{- if or .System .Tools }}<|im_start|>system\n{{- if .System }}\n{{ .System }}\n{{- end }}\n{{- "
    "if .Tools }}\n\n"
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided "
    "with function "
    "signatures within <tools></tools> XML tags:\n<tools>\n{{- range .Tools }}\n"
    '{"type": "function", "function": {{ .Function }}}\n{{- end }}\n</tools>\n\nFor each function call, '
    "return a json "
    "object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>\n{{- end }}<|im_end|>\n{{ '
    "end }}\n"
    "{{- range $i, $_ := .Messages }}\n{{- $last := eq (len (slice $.Messages $i)) 1 -}}\n{{- if eq "
    '.Role "user" }}'
    '<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ else if eq .Role "assistant" }}<|im_start|>assistant\n'
    "{{ if .Content }}{{ .Content }}\n{{- else if .ToolCalls }}%s"
    '{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n{{ '
    "end }}%s\n"
    '{{- end }}{{ if not $last }}<|im_end|>\n{{ end }}\n{{- else if eq .Role "tool" '
    "}}<|im_start|>user\n<tool_response>\n"
    '{{ .Content }}\n</tool_response><|im_end|>\n{{ end }}\n{{- if and (ne .Role "assistant") $last }}'
    "<|im_start|>assistant\n{{ end }}\n{{- end }}"
)
QWEN_TEMPLATE = _QWEN_HEAD % ("<tool_call>\n", "</tool_call>")
BARE_TEMPLATE = _QWEN_HEAD % ("", "")


@dataclass(frozen=True)
class Message:
    """api.Message: one turn as the template sees it. `calls` are (name, arguments) pairs."""

    role: str
    content: str = ""
    calls: tuple[tuple[str, Params], ...] = ()
    images: int = 0


def collate(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """Join neighbours of one role (not tool) and collect the system texts (template.go, collate)."""
    system = [message.content for message in messages if message.role == "system"]
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1].role == message.role and message.role != "tool":
            joined[-1] = replace(joined[-1], content=f"{joined[-1].content}\n\n{message.content}")
        else:
            joined.append(message)
    return "\n\n".join(system), joined


def function_json(function: Params) -> str:
    """`{{ json .Function }}` of a tool."""
    parameters = function["parameters"]
    shown: Params = {"type": parameters["type"]}
    shown.update(
        (key, to_go(parameters[key])) for key in ("$defs", "items") if parameters.get(key) is not None
    )
    if parameters.get("required"):
        shown["required"] = parameters["required"]
    properties = parameters.get("properties")
    shown["properties"] = None if properties is None else GoMap(properties)
    return render_json(
        {"name": function["name"], "description": function["description"], "parameters": shown}
    )


def function_struct(function: Params) -> str:
    """`{{ .Function }}` of a tool: Go's struct syntax (measured on 0.17.5)."""
    parameters = function["parameters"]
    properties = parameters.get("properties")
    return "{{{} {} {{{} {} {} {} {}}}}}".format(
        function["name"],
        function["description"],
        parameters["type"],
        format_value(parameters.get("$defs")),
        format_value(parameters.get("items")),
        format_value(parameters.get("required") or []),
        "{}" if properties is None else render_json(GoMap(properties)),
    )


def _call_text(call: tuple[str, Params]) -> str:
    return f'{{"name": "{call[0]}", "arguments": {render_json(to_go(call[1]))}}}'


def _render_corrected(system: str, messages: Sequence[Message], tools: Sequence[Params], tail: str) -> str:
    out = []
    if system or tools:
        out.append("<|im_start|>system" + ("\n" + system if system else ""))
        if tools:
            lines = "".join(f'\n{{"type": "function", "function": {function_json(tool)}}}' for tool in tools)
            out.append(f"\n\n# Tools\n\n{_TOOLS_TEXT}{lines}\n</tools>\n\n{_CALLS_TEXT}")
        out.append("<|im_end|>\n")
    for message in messages:
        if message.role == "user":
            out.append(f"<|im_start|>user\n{message.content}<|im_end|>\n")
        elif message.role == "assistant":
            out.append("<|im_start|>assistant" + ("\n" + message.content if message.content else ""))
            out += [f"\n<tool_call>\n{_call_text(call)}\n</tool_call>" for call in message.calls]
            out.append("<|im_end|>\n")
        elif message.role == "tool":
            out.append(f"<|im_start|>user\n<tool_response>\n{message.content}\n</tool_response><|im_end|>\n")
    return "".join(out) + "<|im_start|>assistant\n" + tail


def _render_article(system: str, messages: Sequence[Message], tools: Sequence[Params], tail: str) -> str:
    out = []
    if system or tools:
        out.append("<|im_start|>system\n" + system)
        if tools:
            out.append(
                "\n# Tools\n{}{}</tools>\n{}".format(
                    _TOOLS_TEXT, "".join(map(function_struct, tools)), _CALLS_TEXT
                )
            )
        out.append("<|im_end|>")
    for message in messages:
        if message.role == "user":
            out.append(f"\n<|im_start|>user\n{message.content}<|im_end|>")
        elif message.role == "assistant":
            out.append("\n<|im_start|>assistant" + ("\n" + message.content if message.content else ""))
            if message.calls:
                out.append(
                    "\n<tool_call>\n{}</tool_call>".format(
                        "".join(_call_text(call) + "\n" for call in message.calls)
                    )
                )
            out.append("<|im_end|>")
        elif message.role == "tool":
            out.append(f"\n<|im_start|>user\n<tool_response>\n{message.content}\n</tool_response><|im_end|>")
    return "".join(out) + "\n<|im_start|>assistant\n" + tail


def _render_qwen(
    tagged: bool, system: str, messages: Sequence[Message], tools: Sequence[Params], tail: str
) -> str:
    out = []
    if system or tools:
        out.append("<|im_start|>system" + ("\n" + system if system else ""))
        if tools:
            lines = "".join(
                f'\n{{"type": "function", "function": {function_struct(tool)}}}' for tool in tools
            )
            head, _, rest = QWEN_TEMPLATE.partition("{{- range .Tools }}")
            before = head.partition("{{- if .Tools }}")[2].rstrip("\n")
            after = rest.partition("{{- end }}")[2].partition("\n{{- end }}")[0]
            out.append(before + lines + after)
        out.append("<|im_end|>\n")
    for at, message in enumerate(messages):
        last = at == len(messages) - 1
        if message.role == "user":
            out.append(f"<|im_start|>user\n{message.content}<|im_end|>\n")
        elif message.role == "assistant":
            out.append("<|im_start|>assistant\n")
            if message.content:
                out.append(message.content)
            elif message.calls:
                calls = "".join(_call_text(call) + "\n" for call in message.calls)
                out.append(f"<tool_call>\n{calls}</tool_call>" if tagged else calls.rstrip("\n") + "\n")
            if not last:
                out.append("<|im_end|>\n")
        elif message.role == "tool":
            out.append(f"<|im_start|>user\n<tool_response>\n{message.content}\n</tool_response><|im_end|>\n")
        if message.role != "assistant" and last:
            out.append("<|im_start|>assistant\n")
    return "".join(out) + tail


def _render_chatml(system: str, messages: Sequence[Message], tools: Sequence[Params], tail: str) -> str:
    turns = "".join(f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n" for message in messages)
    return turns + "<|im_start|>assistant" + tail


Renderer = Callable[[str, Sequence[Message], Sequence[Params], str], str]
RENDERERS: dict[str, Renderer] = {
    CORRECTED_TEMPLATE.rstrip(): _render_corrected,
    ARTICLE_TEMPLATE.rstrip(): _render_article,
    QWEN_TEMPLATE.rstrip(): functools.partial(_render_qwen, True),
    BARE_TEMPLATE.rstrip(): functools.partial(_render_qwen, False),
    CHATML_TEMPLATE.rstrip(): _render_chatml,
}


def render_prompt(template: str, messages: Sequence[Message], tools: Sequence[Params]) -> str:
    """The prompt that a known TEMPLATE gives. Raises ApiError(501) for an unknown one."""
    text = template.replace("\r\n", "\n")
    body = text.rstrip()
    renderer = RENDERERS.get(body)
    if renderer is None:
        raise ApiError(501, "simulated: unknown template")
    tail = text[len(body) :]
    system, joined = collate(messages)
    return renderer(system, joined, tools, tail)


def count_tokens(text: str) -> int:
    """A rough number of tokens: words, numbers and marks."""
    return len(split_pieces(text))


_PIECE = re.compile(r"<\|?\w+\|?>|</\w+>|\s?[^\W\d_]+|\s?\d|\s+(?=\S)|[^\s\w]+|_|\s+|.", re.DOTALL)


def split_pieces(text: str) -> list[str]:
    """Split a text into pieces the size of a model's tokens; joined they give the text again."""
    return _PIECE.findall(text)


# ------------------------------------------------------------ script and faults
@dataclass(frozen=True)
class Played:
    """What the model says to one message: raw pieces and how it ends.

    Attributes:
        done_reason: "stop" or "length"; None if the runner sends no final message.
        error: the runner fails with this text after the pieces.
        error_status: HTTP status of that failure; None is 500.
        done_content: text inside the final message.
    """

    chunks: tuple[str, ...]
    done_reason: str | None
    error: str | None = None
    error_status: int | None = None
    done_content: str = ""


_SCRIPT_KEYS = {"chunks", "done_reason", "then_error", "then_error_status", "then", "done_content", "text"}
_NO_FINAL = ("runner returns without a final message", "no_final_message")


def _check(condition: bool, where: str, what: str) -> None:
    if not condition:
        raise ValueError(f"{where}: {what}")


def _parse_played(key: str, entry: Any) -> Played:
    where = f"script entry {json.dumps(key, ensure_ascii=False)}"
    _check(isinstance(entry, dict), where, "must be an object")
    unknown = sorted(set(entry) - _SCRIPT_KEYS)
    _check(
        not unknown,
        where,
        "unknown key {}; known are {}".format(", ".join(unknown), ", ".join(sorted(_SCRIPT_KEYS))),
    )
    chunks = entry.get("chunks")
    _check(
        isinstance(chunks, list) and all(isinstance(c, str) for c in chunks),
        where,
        "`chunks` must be a list of strings",
    )
    error, status, then = entry.get("then_error"), entry.get("then_error_status"), entry.get("then")
    _check(error is None or isinstance(error, str), where, "`then_error` must be a string or null")
    _check(
        status is None or (type(status) is int and 400 <= status <= 599 and error is not None),
        where,
        "`then_error_status` must be an HTTP error status, beside a `then_error`",
    )
    _check(
        then is None or then in _NO_FINAL,
        where,
        "`then` must be null or one of {}".format(" | ".join(map(repr, _NO_FINAL))),
    )
    reason = entry.get("done_reason")
    _check(
        reason in ("stop", "length") or (reason is None and (error is not None or then is not None)),
        where,
        '`done_reason` must be "stop" or "length" (null only with `then_error` or `then`)',
    )
    done_content = entry.get("done_content", "")
    _check(isinstance(done_content, str), where, "`done_content` must be a string")
    pieces = tuple(clean_text(chunk) for chunk in chunks)
    return Played(
        pieces,
        None if then is not None or error is not None else reason,
        error,
        status,
        clean_text(done_content),
    )


def parse_script(text: str) -> dict[str, Played]:
    """Parse a script. Raises ValueError that names the entry and what is wrong with it."""

    def unique(pairs: list[tuple[str, Any]]) -> Params:
        seen: Params = {}
        for key, value in pairs:
            _check(
                key not in seen,
                "script",
                f"the key {json.dumps(key, ensure_ascii=False)} is there twice",
            )
            seen[key] = value
        return seen

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"script: not JSON: {error}") from None
    _check(
        isinstance(value, dict),
        "script",
        "must be an object that maps a last user message to what the model says",
    )
    return {key: _parse_played(key, entry) for key, entry in value.items()}


def read_script(path: str) -> dict[str, Played]:
    """Read a script file. Raises StartError."""
    try:
        with open(path, encoding="utf-8") as file:
            return parse_script(file.read())
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise StartError(f"Error: simulated: cannot use the script {path}: {text}") from None


FAULTS: dict[str, str] = {
    "slow": "SECONDS",
    "reload": "SECONDS",
    "hang": "[PATH]",
    "die": "",
    "die-after-call": "",
    "503": "",
    "gpu": "[PERCENT]",
    "cpu": "",
    "text-calls": "",
    "missing-argument": "",
    "swallow": "",
    "duplicate-id": "",
    "index-zero": "",
    "no-done": "",
    "cut-stream": "",
    "no-length": "",
    "soft-errors": "",
    "refuse-null": "",
    "refuse-parts": "",
    "broken-template": "",
    "no-growth": "",
    "cross-talk": "",
    "wrong-tool": "",
    "string-types": "",
    "extra-argument": "",
    "wrong-enum": "",
    "escape-strings": "",
    "one-call": "",
    "repeat-call": "",
    "give-up": "",
    "ignore-results": "",
    "guess": "",
    "always-call": "",
    "leak-tags": "",
    "start-fails": "",
    "memory": "MIB",
    "version": "VERSION",
}


def parse_faults(items: Sequence[str]) -> dict[str, str]:
    """Parse `name[=value]` switches, several joined by commas. Raises StartError with the list of known
    ones.
    """
    known = ", ".join(
        name + (f"[={value[1:-1]}]" if value[:1] == "[" else "=" + value if value else "")
        for name, value in FAULTS.items()
    )
    out: dict[str, str] = {}
    for item in (part.strip() for text in items for part in text.split(",")):
        if not item:
            continue
        name, _mark, value = item.partition("=")
        wanted = FAULTS.get(name)
        wrong = "unknown" if wanted is None else ""
        if wanted is not None and bool(value) != bool(wanted) and not wanted.startswith("["):
            wrong = "needs a value" if wanted else "takes no value"
        if (
            name in ("slow", "reload", "gpu", "memory")
            and value
            and not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value)
        ):
            wrong = "needs a number"
        if wrong:
            raise StartError(f"Error: simulated: fault `{item}`: {wrong}; known faults: {known}")
        out[name] = value
    return out


# ------------------------------------------------------------ the scripted brain
Calls = list[tuple[str, Params]]
NO_ANSWER = "I am a simulated model and have no answer for that."
ASK_PLACE = (
    "Of course, I can help with that. Could you please tell me the city and state you are interested in?"
)
ASK_DAYS = "Sure, I can help with that. How many days ahead do you want the weather forecast for %s?"
_NUMBER_WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen".split()
_DAYS = re.compile(r"\b(\d+|{})(?:\s+|-)days?\b".format("|".join(_NUMBER_WORDS)), re.IGNORECASE)
_PLACE = re.compile(
    r"\b(?:in|for|at)\s+(?!the\b|next\b|\d|celsius\b|fahrenheit\b|degrees\b|x\b|a\b|some\b)([^?.!;:]+)",
    re.IGNORECASE,
)
_PLACE_END = re.compile(
    r"\s*(?:\b(?:over|for|in|during|within)\s+(?:the\s+)?(?:next|coming|\d|x\b|{}|some|a few|celsius|"
    r"fahrenheit|degrees)|"
    r"\b(?:today|tomorrow|tonight|now|right now|please|currently|using|this week|next)\b|\(|"
    r",\s*please).*".format("|".join(_NUMBER_WORDS)),
    re.IGNORECASE | re.DOTALL,
)


def _find_places(text: str) -> list[str]:
    """Places named after "in", "for" or "at"; several are joined by "and" or commas."""
    for match in _PLACE.finditer(text):
        found = _PLACE_END.sub("", match.group(1)).strip(" ,")
        if not found:
            continue
        parts = [part.strip(" ,") for part in re.split(r"\s+and\s+|\s+as well as\s+|\s*&\s*", found)]
        if len(parts) > 1 and parts[0].count(",") > 1:
            parts = [*(piece.strip() for piece in parts[0].split(",")), *parts[1:]]
        elif (
            len(parts) > 1
            and "," in parts[0]
            and "," not in parts[-1]
            and len(parts[0].split(",")[1].strip()) > 2
        ):
            places = parts[0].split(",")
            parts = [*(piece.strip() for piece in places), *parts[1:]] if len(places) > 2 else parts
        return [part for part in parts if part]
    return []


def _bare_place(text: str) -> list[str]:
    """An answer to "which place": the whole text without its polite words."""
    found = _find_places(text)
    if found:
        return found
    text = re.sub(
        r"^\s*(?:it'?s|my city is|the city is|i meant|i live in|i'?m|i am)\s+", "", text, flags=re.IGNORECASE
    )
    text = _PLACE_END.sub("", text).strip(" .!,")
    return [text] if text and len(text) < 60 else []


def _find_days(text: str) -> int | None:
    match = _DAYS.search(text)
    word = match.group(1).lower() if match else text.strip(" .!").lower()
    if word.isdigit():
        return int(word) if match or len(word) < 3 else None
    return _NUMBER_WORDS.index(word) + 1 if word in _NUMBER_WORDS else None


_ORDER = re.compile(r"\bcall `([\w-]+)` with exactly these arguments:\s*", re.IGNORECASE)
_CHAINED = re.compile(
    r"\bcall `(?P<tool>[\w-]+)` with the `(?P<key>\w+)` (?:from|of|in) (?:that|its|the) result", re.IGNORECASE
)
_CORRECTION = re.compile(r"use [\"'`]([^\"'`]+)[\"'`] instead of [\"'`]([^\"'`]+)[\"'`]", re.IGNORECASE)


def _find_orders(text: str) -> Calls:
    """Every "call `tool` with exactly these arguments: {JSON}" of a text, in order."""
    orders = []
    for match in _ORDER.finditer(text):
        try:
            arguments, _ = json.JSONDecoder().raw_decode(text, match.end())
        except ValueError:
            continue
        if isinstance(arguments, dict):
            orders.append((match.group(1), arguments))
    return orders


def _find_value(result: str, key: str) -> Json:
    """What a result, a JSON object, says under `key`; None where it is none or says nothing."""
    try:
        value = json.loads(result)
    except ValueError:
        return None
    return value.get(key) if isinstance(value, dict) else None


def _replaced(value: Json, old: str, new: str) -> Json:
    """`value` with the text `new` wherever a text is `old`."""
    if isinstance(value, dict):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    return new if value == old else value


def _property(function: Params, *words: str) -> str | None:
    properties = function["parameters"].get("properties") or {}
    for key in properties:
        if any(word in key.lower() for word in words):
            return str(key)
    return None


def write_calls(calls: Sequence[tuple[str, Params]]) -> str:
    """Calls as the corrected TEMPLATE asks for them."""
    return "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": '
        f"{json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>"
        for name, arguments in calls
    )


class Brain:
    """The model's part in the smoke suite's conversations, as rules over the declared tools and the
    messages. `faults` are the ways in which it misbehaves.
    """

    def __init__(
        self, tools: Sequence[Params], messages: Sequence[Message], faults: Sequence[str] = ()
    ) -> None:
        self.tools = tools
        self.faults = faults
        self.messages = [message for message in messages if message.role in ("user", "assistant", "tool")]
        users = [message.content for message in messages if message.role == "user"]
        self.last = users[-1] if users else ""
        self.asked = self._open_question()

    def answer(self) -> str:
        """What the model writes, tags and all."""
        said = self._decide()
        after_result = bool(self.messages) and self.messages[-1].role == "tool"
        if after_result and "repeat-call" in self.faults:
            said = list(self._last_calls())
        if isinstance(said, str) and "always-call" in self.faults and self.tools and not after_result:
            said = [(str(self.tools[0]["name"]), _make_up(self.tools[0]["parameters"]))]
        if isinstance(said, str):
            return said + "</tool_call>" if "leak-tags" in self.faults else said
        return write_calls(spoil_calls(said, self.tools, self.faults))

    def _decide(self) -> str | Calls:
        if self.messages and self.messages[-1].role == "tool":
            return self._follow_results() or self._tell_results()
        orders = self._known(_find_orders(self.last))
        if orders:
            return orders
        for function in self.tools:
            if _property(function, "query", "sql") and re.search(
                r"album|artist|track|genre|playlist|invoice|customer|song", self.last, re.IGNORECASE
            ):
                return self._query(function)
        weather = [function for function in self.tools if _property(function, "location", "city", "place")]
        if weather and re.search(
            r"weather|forecast|temperature|raining|cold|warm", self.asked, re.IGNORECASE
        ):
            return self._weather(weather)
        if re.search(r"\b(?:was|were|did|said|again)\b", self.last, re.IGNORECASE):
            return self._recall()
        return NO_ANSWER

    def _known(self, calls: Sequence[tuple[str, Params]]) -> Calls:
        """Those of the calls whose tool is declared."""
        names = [function["name"] for function in self.tools]
        return [call for call in calls if call[0] in names]

    def _follow_results(self) -> Calls:
        """The call that the results ask for: the next one of the user's order, or a corrected one."""
        calls = self._last_calls()
        result = self.messages[-1].content
        if "give-up" in self.faults and "error" in result.lower():
            return []
        correction = _CORRECTION.search(result)
        if correction and "error" in result.lower():
            new, old = correction.groups()
            corrected = [(name, _replaced(arguments, old, new)) for name, arguments in calls]
            return self._known([call for call in corrected if call not in calls])
        chained = _CHAINED.search(self.last)
        if chained and all(name != chained["tool"] for name, _ in calls):
            value = _find_value(result, chained["key"])
            return self._known([(chained["tool"], {chained["key"]: value})]) if value is not None else []
        return []

    def _recall(self) -> str:
        """The results that came before the last question, once more."""
        told = [message.content for message in self.messages if message.role == "tool"]
        return "It was: {}.".format("; ".join(told)) if told else NO_ANSWER

    def _places_before(self, functions: Sequence[Params]) -> list[str]:
        """The places of the last calls, for a question that says "there"."""
        if not re.search(r"\bthere\b", self.asked, re.IGNORECASE):
            return []
        keys = {str(f["name"]): _property(f, "location", "city", "place") or "" for f in functions}
        return [
            arguments[keys[name]] for name, arguments in self._last_calls() if keys.get(name) in arguments
        ]

    def _last_calls(self) -> Sequence[tuple[str, Params]]:
        return next((message.calls for message in reversed(self.messages) if message.calls), ())

    def _open_question(self) -> str:
        """The user's texts since the last call or answer that was not a question, joined."""
        texts: list[str] = []
        for message in reversed(self.messages):
            if message.role == "user":
                texts.append(message.content)
            elif message.role == "tool" or message.calls or not message.content.rstrip().endswith("?"):
                break
        return "\n".join(reversed(texts))

    def _query(self, function: Params) -> str | Calls:
        argument = _property(function, "query", "sql") or "query"
        joins = {"album": ("Album", "Title"), "artist": ("Artist", "Name"), "genre": ("Genre", "Name")}
        counted = re.search(
            r"how many (album|artist|track|genre|playlist|invoice|customer)", self.last, re.IGNORECASE
        )
        if counted:
            return [(function["name"], {argument: f"SELECT COUNT(*) FROM {counted.group(1).capitalize()}"})]
        top = re.search(r"\btop (\d+)|\bwhich (\d+)|\bthe (\d+) ", self.last)
        limit = int(next(filter(None, top.groups()))) if top else 1
        word = next((word for word in joins if word in self.last.lower()), "track")
        if word == "track" or not re.search(r"track|song", self.last, re.IGNORECASE):
            return NO_ANSWER
        table, column = joins[word]
        steps = {
            "Album": "JOIN Track ON Album.AlbumId = Track.AlbumId",
            "Genre": "JOIN Track ON Genre.GenreId = Track.GenreId",
            "Artist": "JOIN Album ON Artist.ArtistId = Album.ArtistId JOIN Track ON Album.AlbumId = "
            "Track.AlbumId",
        }
        sql = "SELECT %s.%s FROM %s %s GROUP BY %s.%sId ORDER BY COUNT(*) DESC LIMIT %d" % (
            table,
            column,
            table,
            steps[table],
            table,
            table,
            limit,
        )
        return [(function["name"], {argument: sql})]

    def _weather(self, functions: Sequence[Params]) -> str | Calls:
        *before, last = self.asked.split("\n")
        places = [place for text in before for place in _find_places(text)] or _find_places(last)
        if not places and before:
            places = _bare_place(last)
        places = places or self._places_before(functions)
        days = (
            _find_days(self.asked)
            if not before
            else next(filter(None, map(_find_days, [last, *before])), None)
        )
        ahead = days is not None or re.search(
            r"forecast|going to be|will |next|coming|over the", self.asked, re.IGNORECASE
        )
        forecast = next((f for f in functions if _property(f, "day")), None)
        function = (
            forecast
            if ahead and forecast
            else next((f for f in functions if not _property(f, "day")), functions[0])
        )
        day_key = _property(function, "day")
        if "guess" in self.faults:
            places, days = places or ["Paris, France"], days or 3
        if not places:
            return ASK_PLACE
        if day_key and days is None:
            return ASK_DAYS % " and ".join(places)
        unit_key = _property(function, "format", "unit")
        unit = "fahrenheit" if re.search(r"fahrenheit", self.asked, re.IGNORECASE) else "celsius"
        calls = []
        for place in places:
            arguments: Params = {_property(function, "location", "city", "place") or "location": place}
            if unit_key:
                arguments[unit_key] = unit
            if day_key:
                arguments[day_key] = days
            calls.append((str(function["name"]), arguments))
        return calls

    def _tell_results(self) -> str:
        results: list[str] = []
        for message in reversed(self.messages):
            if message.role != "tool":
                break
            results.insert(0, message.content)
        if "ignore-results" in self.faults:
            return "It is done."
        asks_data = any("SELECT" in json.dumps(arguments) for _, arguments in self._last_calls())
        if asks_data and len(results) == 1:
            if "error" in results[0].lower():
                return "Sorry, the {}.".format(results[0].rstrip("."))
            return self._tell_rows(results[0])
        return "The answer is: {}.".format("; ".join(results))

    def _tell_rows(self, result: str) -> str:
        values = re.findall(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", result)
        names = [(single or double).replace("\\'", "'").replace('\\"', '"') for single, double in values]
        found = ", ".join(names) if names else result.strip("[](), ")
        if re.search(r"album", self.last, re.IGNORECASE) and len(names) == 1:
            return f"The album with the most tracks is {found}."
        return f"The answer is {found}."


def _make_up(schema: Params) -> Json:
    """Some value that fits a tool's schema, with what is required and nothing else."""
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties") or {}
        return {key: _make_up(properties[key]) for key in schema.get("required") or () if key in properties}
    made: Params = {"integer": 1, "number": 1.5, "boolean": True, "array": []}
    return made.get(str(kind), "something")


def spoil_calls(calls: Calls, tools: Sequence[Params], faults: Sequence[str]) -> Calls:
    """The calls as a model with these faults makes them."""
    names = [str(tool["name"]) for tool in tools]
    spoiled = []
    for name, given in calls[:1] if "one-call" in faults else calls:
        tool = next((tool for tool in tools if tool["name"] == name), None)
        arguments: Params = dict(given)
        if "wrong-enum" in faults and tool is not None:
            properties = tool["parameters"].get("properties") or {}
            listed = [key for key in arguments if (properties.get(key) or {}).get("enum")]
            arguments.update((key, arguments[key].upper()) for key in listed)
        if "string-types" in faults:
            arguments = _changed(arguments, _as_text)
        if "escape-strings" in faults:
            arguments = _changed(
                arguments, lambda value: html.escape(value) if isinstance(value, str) else value
            )
        if "extra-argument" in faults:
            arguments["confidence"] = 0.9
        wrong = "wrong-tool" in faults and name in names
        spoiled.append((names[(names.index(name) + 1) % len(names)] if wrong else name, arguments))
    return spoiled


def _changed(value: Json, change: Callable[[Json], Json]) -> Json:
    """`value` with every leaf changed."""
    if isinstance(value, dict):
        return {key: _changed(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    return change(value)


def _as_text(value: Json) -> Json:
    return value if isinstance(value, str) else json.dumps(value)


class Crossing:
    """The fault `cross-talk`: of two requests that are answered at once, each gets the other's answer."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: list[list[str]] = []

    def cross(self, text: str, seconds: float = 0.3) -> str:
        """The text of another request that comes within `seconds`, or one's own."""
        with self._condition:
            if self._waiting:
                slot = self._waiting.pop()
                theirs, slot[0] = slot[0], text
                self._condition.notify_all()
                return theirs
            slot = [text]
            self._waiting.append(slot)
            if not self._condition.wait_for(lambda: slot not in self._waiting, seconds):
                self._waiting.remove(slot)
            return slot[0]


# ------------------------------------------------------------ requests as Go decodes them
class GoTypeError(GoJsonError):
    """json.UnmarshalTypeError: a value of the wrong type for a Go field."""

    def __init__(
        self, value: str, go_type: str, struct_name: str | None = None, path: tuple[str, ...] = ()
    ) -> None:
        self.value, self.go_type, self.struct_name, self.path = value, go_type, struct_name, path
        where = "value" if struct_name is None else "struct field {}.{}".format(struct_name, ".".join(path))
        super().__init__(f"json: cannot unmarshal {value} into Go {where} of type {go_type}")

    def inside(self, struct_name: str | None, path: tuple[str, ...]) -> GoTypeError:
        """The same error seen from the struct around a type that decodes itself."""
        return (
            self
            if struct_name is None
            else GoTypeError(self.value, self.go_type, struct_name, path + self.path)
        )


@dataclass(frozen=True)
class Spec:
    """A Go type to decode into: `kind` is string, bool, int, float, any, slice, map, struct or own."""

    kind: str
    go_type: str = ""
    item: Spec | None = None
    fields: dict[str, Spec] | None = None
    own: Callable[[Any], Any] | None = None
    nullable: bool = False


class _Decoding:
    def __init__(self) -> None:
        self.error: GoJsonError | None = None

    def fail(self, error: GoJsonError) -> None:
        self.error = self.error or error

    def decode(self, value: Any, spec: Spec, struct_name: str | None, path: tuple[str, ...]) -> Any:
        if spec.own is not None:
            return self._own(value, spec, struct_name, path)
        if spec.kind == "any":
            return value
        if value is None:
            return None if spec.nullable or spec.kind in ("slice", "map") else self._zero(spec)
        if spec.kind == "struct" and isinstance(value, dict) and spec.fields is not None:
            return self._struct(value, spec, path)
        if spec.kind == "slice" and isinstance(value, list) and spec.item is not None:
            return [self.decode(item, spec.item, struct_name, path) for item in value]
        if spec.kind == "map" and isinstance(value, dict) and spec.item is not None:
            return {
                key: self.decode(item, spec.item, struct_name, (*path, key)) for key, item in value.items()
            }
        if (spec.kind == "string" and isinstance(value, str)) or (
            spec.kind == "bool" and isinstance(value, bool)
        ):
            return value
        if spec.kind in ("int", "float") and isinstance(value, Number):
            if spec.kind == "float":
                return float(value)
            if re.fullmatch(r"-?[0-9]+", value.text) and -(1 << 63) <= int(value.text) <= MAX_INT64:
                return int(value.text)
            self.fail(GoTypeError("number " + value.text, spec.go_type, struct_name, path))
            return None if spec.nullable else 0
        self.fail(GoTypeError(_json_kind(value), spec.go_type, struct_name, path))
        return None if spec.nullable else self._zero(spec)

    def _own(self, value: Any, spec: Spec, struct_name: str | None, path: tuple[str, ...]) -> Any:
        if value is None and spec.nullable:
            return None
        assert spec.own is not None
        try:
            return spec.own(value)
        except GoTypeError as error:
            raise error.inside(struct_name, path) from None  # ends the decoding, other mistakes do not

    def _struct(self, value: Params, spec: Spec, path: tuple[str, ...]) -> Params:
        fields = spec.fields or {}
        folded = {name.lower(): name for name in fields}
        out: Params = {}
        for key, item in value.items():
            name = key if key in fields else folded.get(key.lower())
            if name is not None:
                struct_name = "" if spec.go_type.startswith("struct {") else spec.go_type.rpartition(".")[2]
                out[name] = self.decode(item, fields[name], struct_name, (*path, name))
        for name, inner in fields.items():
            if out.get(name) is None:
                out[name] = (
                    None
                    if inner.nullable or inner.kind in ("slice", "map", "any", "own")
                    else self._zero(inner)
                )
        return out

    def _zero(self, spec: Spec) -> Any:
        if spec.kind == "struct":
            return self._struct({}, spec, ())
        return {"string": "", "bool": False, "int": 0, "float": 0.0}.get(spec.kind)


def _json_kind(value: Any) -> str:
    for kind, name in ((bool, "bool"), (dict, "object"), (list, "array"), (str, "string")):
        if isinstance(value, kind):
            return name
    return "number"


def decode_go(value: Any, spec: Spec) -> Any:
    """Decode a parsed JSON value into a Go type. Raises GoJsonError: the first mistake in the order of the
    text.
    """
    decoding = _Decoding()
    out = decoding.decode(value, spec, None, ())
    if decoding.error is not None:
        raise decoding.error
    return out


STRING, BOOL, INT, FLOAT, ANY = (
    Spec("string", "string"),
    Spec("bool", "bool"),
    Spec("int", "int"),
    Spec("float", "float64"),
    Spec("any"),
)


def _nullable(spec: Spec) -> Spec:
    return replace(spec, nullable=True)


def _slice(item: Spec, go_type: str) -> Spec:
    return Spec("slice", go_type, item=item)


def _struct(go_type: str, **fields: Spec) -> Spec:
    return Spec("struct", go_type, fields={name.rstrip("_"): spec for name, spec in fields.items()})


def _own(decode: Callable[[Any], Any], nullable: bool = False) -> Spec:
    return Spec("own", own=decode, nullable=nullable)


def _decode_property_type(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return decode_go(value, _slice(STRING, "[]string")) or ([""] if value is None else [])


def _decode_property(value: Any, release: Release) -> Params:
    fields = decode_go(value, _property_spec(release))
    kinds = fields["type"] or []
    out: Params = {
        "anyOf": fields["anyOf"],
        "type": kinds[0] if len(kinds) == 1 else kinds,
        "items": to_go(fields["items"]),
        "description": fields["description"],
        "enum": to_go(fields["enum"]),
        "properties": fields["properties"],
        "required": fields.get("required"),
    }
    return {
        key: item
        for key, item in out.items()
        if (
            item is not None
            if key in ("items", "properties")
            else bool(kinds)
            if key == "type"
            else bool(item)
        )
    }


def _decode_properties(value: Any, release: Release) -> Params:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise GoJsonError("Value looks like object, but can't find closing '}' symbol")
    return {key: _decode_property(item, release) for key, item in value.items()}


def _decode_arguments(value: Any) -> Params:
    """api.ToolCallFunctionArguments: an object in order, null is empty."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise GoJsonError("Value looks like object, but can't find closing '}' symbol")
    return value


@functools.cache
def _property_spec(release: Release) -> Spec:
    required = {"required": _slice(STRING, "[]string")} if release.nested_required else {}
    return _struct(
        "api.ToolProperty",
        anyOf=_slice(_own(functools.partial(_decode_property, release=release)), "[]api.ToolProperty"),
        type=_own(_decode_property_type),
        items=ANY,
        description=STRING,
        enum=_slice(ANY, "[]interface {}"),
        properties=_own(functools.partial(_decode_properties, release=release), nullable=True),
        **required,
    )


def _tool_spec(release: Release) -> Spec:
    properties = _own(functools.partial(_decode_properties, release=release), nullable=True)
    return _struct(
        "api.Tool",
        type=STRING,
        items=ANY,
        function=_struct(
            "api.ToolFunction",
            name=STRING,
            description=STRING,
            parameters=Spec(
                "struct",
                "api.ToolFunctionParameters",
                fields={
                    "type": STRING,
                    "$defs": ANY,
                    "items": ANY,
                    "required": _slice(STRING, "[]string"),
                    "properties": properties,
                },
            ),
        ),
    )


_API_CALL = _struct(
    "api.ToolCall",
    id=STRING,
    function=_struct("api.ToolCallFunction", index=INT, name=STRING, arguments=_own(_decode_arguments)),
)


def _decode_image(value: Any) -> str | None:
    """[]byte: base64 text; the bytes are not looked at."""
    if value is not None and not isinstance(value, str):
        raise GoTypeError(_json_kind(value), "api.ImageData")
    match = re.match(r"[A-Za-z0-9+/\r\n]*={0,2}", value or "")
    if value and match and (match.end() < len(value) or len(re.sub(r"[\r\n]", "", value)) % 4):
        raise GoJsonError("illegal base64 data at input byte %d" % min(match.end(), len(value) // 4 * 4))
    return value


_IMAGE = Spec("own", own=_decode_image)


def _decode_api_message(value: Any) -> Params:
    fields: Params = decode_go(
        value,
        _struct(
            "api.Alias",
            role=STRING,
            content=STRING,
            thinking=STRING,
            images=_slice(_IMAGE, "[]api.ImageData"),
            tool_calls=_slice(_API_CALL, "[]api.ToolCall"),
            tool_name=STRING,
            tool_call_id=STRING,
        ),
    )
    fields["role"] = fields["role"].lower()
    return fields


def _decode_keep_alive(value: Any) -> float:
    """api.Duration in seconds: a number of seconds or a duration, negative is for ever."""
    if isinstance(value, Number):
        return FOREVER_SECONDS if value < 0 else float(value)
    if isinstance(value, str):
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise GoJsonError(str(error)) from None
        return FOREVER_SECONDS if seconds < 0 else seconds
    name = {"bool": "bool", "array": "[]interface {}", "object": "map[string]interface {}"}[_json_kind(value)]
    raise GoJsonError(f"Unsupported type: '{name}'")


def _decode_think(value: Any, release: Release) -> bool | str:
    known = ", ".join(map(quote_go, release.think_values))
    if isinstance(value, bool):
        return value
    if value is None:
        return False
    if isinstance(value, str):
        if value not in release.think_values:
            raise GoJsonError(f"invalid think value: {quote_go(value)} (must be {known}, true, or false)")
        return value
    raise GoJsonError(f"think must be a boolean or string ({known}, true, or false)")


_KEEP_ALIVE = _own(_decode_keep_alive, nullable=True)
_OPTIONS = Spec("map", "map[string]interface {}", item=ANY)


def _run_fields(release: Release) -> dict[str, Spec]:
    return {
        "model": STRING,
        "stream": _nullable(BOOL),
        "format": ANY,
        "keep_alive": _KEEP_ALIVE,
        "options": _OPTIONS,
        "think": _own(functools.partial(_decode_think, release=release), nullable=True),
        "truncate": _nullable(BOOL),
        "shift": _nullable(BOOL),
        "_debug_render_only": BOOL,
        "logprobs": BOOL,
        "top_logprobs": INT,
    }


@functools.cache
def chat_request(release: Release) -> Spec:
    """What /api/chat takes."""
    return Spec(
        "struct",
        "api.ChatRequest",
        fields={
            **_run_fields(release),
            "messages": _slice(_own(_decode_api_message), "[]api.Message"),
            "tools": _slice(_tool_spec(release), "api.Tools"),
        },
    )


@functools.cache
def generate_request(release: Release) -> Spec:
    """What /api/generate takes."""
    return Spec(
        "struct",
        "api.GenerateRequest",
        fields={
            **_run_fields(release),
            "prompt": STRING,
            "suffix": STRING,
            "system": STRING,
            "template": STRING,
            "context": _slice(INT, "[]int"),
            "raw": BOOL,
            "images": _slice(_IMAGE, "[]api.ImageData"),
            "width": INT,
            "height": INT,
            "steps": INT,
        },
    )


_STREAM_OPTIONS = _nullable(_struct("openai.StreamOptions", include_usage=BOOL))
_UNNAMED_FUNCTION = 'struct { Name string "json:\\"name\\""; Arguments string "json:\\"arguments\\"" }'


@functools.cache
def openai_chat_request(release: Release) -> Spec:
    """What /v1/chat/completions takes."""
    return _struct(
        "openai.ChatCompletionRequest",
        model=STRING,
        messages=_slice(
            _struct(
                "openai.Message",
                role=STRING,
                content=ANY,
                reasoning=STRING,
                name=STRING,
                tool_call_id=STRING,
                tool_calls=_slice(
                    _struct(
                        "openai.ToolCall",
                        id=STRING,
                        index=INT,
                        type=STRING,
                        function=_struct(_UNNAMED_FUNCTION, name=STRING, arguments=STRING),
                    ),
                    "[]openai.ToolCall",
                ),
            ),
            "[]openai.Message",
        ),
        stream=BOOL,
        stream_options=_STREAM_OPTIONS,
        max_tokens=_nullable(INT),
        seed=_nullable(INT),
        stop=ANY,
        temperature=_nullable(FLOAT),
        frequency_penalty=_nullable(FLOAT),
        presence_penalty=_nullable(FLOAT),
        top_p=_nullable(FLOAT),
        response_format=_nullable(
            _struct(
                "openai.ResponseFormat",
                type=STRING,
                json_schema=_nullable(_struct("openai.JsonSchema", schema=ANY)),
            )
        ),
        tools=_slice(_tool_spec(release), "[]api.Tool"),
        reasoning=_nullable(_struct("openai.Reasoning", effort=STRING)),
        reasoning_effort=_nullable(STRING),
        logprobs=_nullable(BOOL),
        top_logprobs=INT,
        _debug_render_only=BOOL,
    )


OPENAI_COMPLETION_REQUEST = _struct(
    "openai.CompletionRequest",
    model=STRING,
    prompt=STRING,
    frequency_penalty=Spec("float", "float32"),
    max_tokens=_nullable(INT),
    presence_penalty=Spec("float", "float32"),
    seed=_nullable(INT),
    stop=ANY,
    stream=BOOL,
    stream_options=_STREAM_OPTIONS,
    temperature=_nullable(Spec("float", "float32")),
    top_p=Spec("float", "float32"),
    suffix=STRING,
    logprobs=_nullable(INT),
    _debug_render_only=BOOL,
)
CREATE_REQUEST = Spec(
    "struct",
    "api.CreateRequest",
    fields={
        "model": STRING,
        "name": STRING,
        "stream": _nullable(BOOL),
        "quantize": STRING,
        "quantization": STRING,
        "from": STRING,
        "remote_host": STRING,
        "files": Spec("map", "map[string]string", item=STRING),
        "adapters": Spec("map", "map[string]string", item=STRING),
        "template": STRING,
        "license": ANY,
        "system": STRING,
        "parameters": _OPTIONS,
        "messages": _slice(_own(_decode_api_message), "[]api.Message"),
        "renderer": STRING,
        "parser": STRING,
        "requires": STRING,
        "info": _OPTIONS,
        "draft_files": ANY,
        "draft_quantize": ANY,
    },
)
SHOW_REQUEST = _struct(
    "api.ShowRequest",
    model=STRING,
    name=STRING,
    system=STRING,
    template=STRING,
    verbose=BOOL,
    options=_OPTIONS,
)
DELETE_REQUEST = _struct("api.DeleteRequest", model=STRING, name=STRING)
COPY_REQUEST = _struct("api.CopyRequest", source=STRING, destination=STRING)
PULL_REQUEST = _struct(
    "api.PullRequest",
    model=STRING,
    name=STRING,
    insecure=BOOL,
    username=STRING,
    password=STRING,
    stream=_nullable(BOOL),
)

_INT_OPTIONS = frozenset(
    "num_keep seed num_predict top_k repeat_last_n num_ctx num_batch num_gpu main_gpu num_thread".split()
)
_FLOAT_OPTIONS = frozenset(
    "top_p min_p typical_p temperature repeat_penalty presence_penalty frequency_penalty".split()
)
_LOAD_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")


def merge_options(*sources: Params) -> Params:
    """api.Options.FromMap over several sources, later ones win. Raises ApiError(500) for a wrong type."""
    out: Params = {}
    for source in sources:
        for key, value in source.items():
            if value is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if key in _INT_OPTIONS:
                if not number:
                    raise ApiError(500, f'option "{key}" must be of type integer')
                out[key] = int(value)
                continue
            if key in _FLOAT_OPTIONS:
                if not number:
                    raise ApiError(500, f'option "{key}" must be of type float32')
            elif key == "use_mmap":
                if not isinstance(value, bool):
                    raise ApiError(500, f'option "{key}" must be of type boolean')
            elif key == "stop":
                if not isinstance(value, list):
                    raise ApiError(500, f'option "{key}" must be of type array')
                if not all(isinstance(item, str) for item in value):
                    raise ApiError(500, f'option "{key}" must be of an array of strings')
            else:
                continue
            out[key] = value
    return out


# ---- OpenAI's requests turned into Ollama's (openai/openai.go)
def _openai_error(message: str) -> ApiError:
    return ApiError(400, message)


def _history_calls(calls: Sequence[Params] | None) -> list[Params]:
    out = []
    for call in calls or ():
        try:
            arguments = _decode_arguments(parse_json(call["function"]["arguments"].encode()))
        except GoJsonError:
            raise _openai_error("invalid tool call arguments") from None
        out.append(
            {
                "id": call["id"],
                "function": {"index": 0, "name": call["function"]["name"], "arguments": arguments},
            }
        )
    return out


def _part_message(role: str, part: Any) -> Params:
    wrong = _openai_error("invalid message format")
    if not isinstance(part, dict):
        raise wrong
    message: Params = {"role": role.lower(), "content": "", "images": None, "tool_calls": None}
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        message["content"] = part["text"]
        return message
    if part.get("type") != "image_url":
        raise wrong
    url = part.get("image_url")
    url = url.get("url") if isinstance(url, dict) else url
    if not isinstance(url, str):
        raise wrong
    if url.startswith(("http://", "https://")):
        raise _openai_error("image URLs are not currently supported, please use base64 encoded data instead")
    match = re.fullmatch(r"data:(?:image/(?:jpeg|jpg|png|webp))?;base64,([A-Za-z0-9+/\r\n]*={0,2})", url)
    if not match or len(re.sub(r"[\r\n]", "", match.group(1))) % 4:
        raise _openai_error("invalid image input")
    message["images"] = [match.group(1)]
    return message


def _openai_messages(messages: Sequence[Params]) -> list[Params]:
    out: list[Params] = []
    for message in messages:
        content, calls = message["content"], message["tool_calls"]
        if isinstance(content, list):
            out += [_part_message(message["role"], part) for part in content]
            if out and calls:
                out[-1]["tool_calls"] = _history_calls(calls)
            continue
        if not isinstance(content, str):
            if calls is None:
                kinds = {"object": "map[string]interface {}", "number": "float64"}
                kind = "<nil>" if content is None else kinds.get(_json_kind(content), _json_kind(content))
                raise _openai_error(f"invalid message content type: {kind}")
            content = ""
        out.append(
            {
                "role": message["role"].lower(),
                "content": content,
                "images": None,
                "tool_calls": _history_calls(calls),
            }
        )
    return out


def _openai_options(request: Params, strict_stop: bool) -> Params:
    options: Params = {}
    stop = request["stop"]
    if isinstance(stop, str):
        options["stop"] = [stop]
    elif isinstance(stop, list):
        for item in stop:
            if strict_stop and not isinstance(item, str):
                kind = {"object": "map[string]interface {}", "number": "float64", "array": "[]interface {}"}
                name = "<nil>" if item is None else kind.get(_json_kind(item), _json_kind(item))
                raise _openai_error(f"invalid type for 'stop' field: {name}")
        options["stop"] = [item for item in stop if isinstance(item, str)]
    if request["max_tokens"] is not None:
        options["num_predict"] = request["max_tokens"]
    return options


def convert_chat_request(request: Params, release: Release) -> Params:
    """FromChatRequest: an OpenAI chat request as /api/chat takes it. Raises ApiError(400)."""
    messages = _openai_messages(request["messages"] or ())
    options = _openai_options(request, strict_stop=False)
    response_format = request["response_format"]
    wanted = None
    if response_format is not None:
        kind = response_format["type"].strip(GO_SPACE).lower()
        wanted = "json" if kind == "json_object" else None
        if kind == "json_schema" and response_format["json_schema"] is not None:
            wanted = response_format["json_schema"]["schema"]
    think: bool | str | None = None
    effort = (
        request["reasoning"]["effort"] if request["reasoning"] is not None else request["reasoning_effort"]
    )
    if effort:
        efforts = dict(release.efforts)
        if effort not in efforts:
            raise _openai_error(release.effort_refusal % effort)
        think = efforts[effort]
    return {
        "model": request["model"],
        "messages": messages,
        "options": options,
        "stream": request["stream"],
        "tools": request["tools"],
        "format": wanted,
        "think": think,
        "keep_alive": None,
        "truncate": None,
        "_debug_render_only": request["_debug_render_only"],
        "logprobs": bool(request["logprobs"]),
        "top_logprobs": request["top_logprobs"],
    }


def convert_completion_request(request: Params) -> Params:
    """FromCompleteRequest: an OpenAI completion request as /api/generate takes it. Raises ApiError(400)."""
    return {
        "model": request["model"],
        "prompt": request["prompt"],
        "options": _openai_options(request, strict_stop=True),
        "stream": request["stream"],
        "suffix": request["suffix"],
        "_debug_render_only": request["_debug_render_only"],
        "logprobs": (request["logprobs"] or 0) > 0,
        "top_logprobs": request["logprobs"] or 0,
        "format": None,
        "think": None,
        "keep_alive": None,
        "truncate": None,
        "system": "",
        "template": "",
        "raw": False,
        "context": None,
        "images": None,
    }


# ------------------------------------------------------------ settings
def go_bool(text: str) -> bool:
    """A boolean setting as envconfig reads it: nonsense is true."""
    if not text:
        return False
    return text not in ("0", "f", "F", "false", "FALSE", "False")


def parse_host(text: str) -> tuple[str, int]:
    """OLLAMA_HOST as (host, port); a bad port falls back to 11434 (measured on 0.17.5)."""
    text = text.strip().strip("\"'")
    scheme, mark, rest = text.partition("://")
    default = {"http": 80, "https": 443}.get(scheme, 11434) if mark else 11434
    hostport = (rest if mark else text).partition("/")[0]
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*):([^:]*)", hostport)
    if match is None:
        return hostport.strip("[]") or "127.0.0.1", default
    host, port = match.group(1).strip("[]"), match.group(2)
    return host, int(port) if re.fullmatch(r"[0-9]+", port) and int(port) <= 65535 else default


def _unsigned(text: str, default: int) -> int:
    return int(text) if re.fullmatch(r"[0-9]+", text) else default


@dataclass(frozen=True)
class Settings:
    """What a server is started with. `keep_alive_seconds` counts from the end of a request.

    Raises ValueError where `version` is none.
    """

    version: str = VERSION
    models_dir: str = ""
    keep_alive_seconds: float = 300.0
    context_length: int = 0
    max_loaded: int = 3
    prune: bool = True
    no_cloud: bool = False
    origins: tuple[str, ...] = ()
    script: dict[str, Played] | None = None
    faults: dict[str, str] = field(default_factory=dict)
    release: Release = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "release", release_of(self.version))


def read_settings(
    env: dict[str, str], script: str | None = None, faults: Sequence[str] = (), models_dir: str = ""
) -> Settings:
    """Settings from the environment and the flags of `serve`. Raises StartError."""

    def text(name: str) -> str:
        return env.get(name, "").strip().strip("\"'")

    switches = parse_faults([text("OLLAMA_SIMULATED_FAULT"), *faults])
    script = script or text("OLLAMA_SIMULATED_SCRIPT") or None
    version = switches.get("version") or text("OLLAMA_SIMULATED_VERSION") or VERSION
    try:
        release_of(version)
    except ValueError as error:
        raise StartError(f"Error: simulated: {error}") from None
    return Settings(
        version=version,
        models_dir=models_dir or text("OLLAMA_MODELS"),
        keep_alive_seconds=parse_keep_alive(text("OLLAMA_KEEP_ALIVE")),
        context_length=_unsigned(text("OLLAMA_CONTEXT_LENGTH"), 0),
        max_loaded=_unsigned(text("OLLAMA_MAX_LOADED_MODELS"), 0) or 3,
        prune=not go_bool(text("OLLAMA_NOPRUNE")),
        no_cloud=go_bool(text("OLLAMA_NO_CLOUD")),
        origins=tuple(filter(None, text("OLLAMA_ORIGINS").split(","))),
        script=read_script(script) if script else None,
        faults=switches,
    )


# ------------------------------------------------------------ loaded models and generation
@dataclass
class Loaded:
    """A model in memory; several names of one GGUF share it, and the first name is the one shown."""

    model: Model
    options: Params
    size: int
    size_vram: int
    context_length: int
    keep_alive_seconds: float
    expires_ns: int
    memory: bytes = b""


@dataclass(frozen=True)
class Piece:
    """One message of the runner; the last one has a `reason` and the counts."""

    content: str
    reason: str | None = None
    prompt_tokens: int = 0
    eval_tokens: int = 0


class RunnerError(Exception):
    """The runner failed; `status` is the HTTP status if nothing was sent yet."""

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


# What llama.cpp's server says; the words of it are the message of Ollama's own error.
_NO_IMAGES = (
    '{"error":{"code":400,"message":"Multimodal data provided, but model does not support multimodal '
    'requests.","type":"invalid_request_error"}}'
)
_TOO_LONG = (
    '{"error":{"code":400,"message":"request (%d tokens) exceeds the available context size (%d tokens), try '
    'increasing it","type":"exceed_context_size_error","n_prompt_tokens":%d,"n_ctx":%d}}'
)


class Engine:
    """Loads models into nothing and lets the script or the brain speak."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.lock = threading.RLock()
        self.loaded: dict[str, Loaded] = {}
        self.crossing = Crossing()

    def running(self) -> list[Loaded]:
        """Loaded models that have not expired, the longest remaining first."""
        with self.lock:
            now = time.time_ns()
            self.loaded = {path: entry for path, entry in self.loaded.items() if entry.expires_ns > now}
            return sorted(self.loaded.values(), key=lambda entry: -entry.expires_ns // 1_000_000_000)

    def unload(self, model: Model) -> None:
        """Forget a model."""
        with self.lock:
            self.loaded.pop(model.path, None)

    def schedule(
        self, model: Model, wanted: Sequence[str], options: Params, keep_alive: float | None
    ) -> Params:
        """Check capabilities and options, load; give the options in force. Raises ApiError, ServerPanic."""
        available = model.capabilities()
        missing = [name for name in wanted if name not in available]
        if "completion" in missing:
            raise ApiError(400, "completion")
        if missing:
            raise ApiError(400, "{} does not support {}".format(model.name.full(), "\n".join(missing)))
        if model.template.thinks:
            raise ApiError(501, "simulated: templates with thinking are not implemented")
        merged = merge_options(model.options, options)
        if "503" in self.settings.faults:
            raise ApiError(503, "server busy, please try again.  maximum pending requests exceeded")
        gguf = read_gguf(model.path, verbose=False)
        if "reload" in self.settings.faults:
            self.unload(model)
            time.sleep(float(self.settings.faults["reload"]))
        with self.lock:
            self._load(model, gguf, merged, keep_alive)
        return merged

    def _load(self, model: Model, gguf: Gguf, options: Params, keep_alive: float | None) -> None:
        self.running()
        load_options = {key: options[key] for key in _LOAD_OPTIONS if key in options}
        entry: Loaded | None = self.loaded.get(model.path)
        if entry is None or entry.options != load_options:
            self.loaded.pop(model.path, None)
            while len(self.loaded) >= self.settings.max_loaded:
                self.loaded.pop(min(self.loaded, key=lambda path: self.loaded[path].expires_ns))
            asked = int(options.get("num_ctx") or self.settings.context_length or DEFAULT_CONTEXT_LENGTH)
            context = min(asked, gguf.number("context_length", asked) or asked)
            size = gguf.size_bytes(context)
            share = float(self.settings.faults.get("gpu") or 100) if "gpu" in self.settings.faults else 0.0
            vram = 0 if "cpu" in self.settings.faults else int(size * min(share, 100.0) / 100)
            entry = Loaded(model, load_options, size, vram, context, self.settings.keep_alive_seconds, 0)
            # Not zeros: the kernel gives a page of them only to who writes to it.
            entry.memory = b"m" * int(float(self.settings.faults.get("memory") or 0) * 1024 * 1024)
            self.loaded[model.path] = entry
        if keep_alive is not None:
            entry.keep_alive_seconds = keep_alive
        self.touch(model)

    def touch(self, model: Model) -> None:
        """Count keep_alive anew, as at the end of every request; none left unloads."""
        with self.lock:
            entry = self.loaded.get(model.path)
            if entry is not None:
                entry.expires_ns = min(
                    time.time_ns() + int(entry.keep_alive_seconds * 1e9), time.time_ns() + MAX_INT64
                )
                if entry.keep_alive_seconds == 0:
                    entry.expires_ns = time.time_ns() + 1_000_000

    def context_length(self, model: Model) -> int:
        """num_ctx of the loaded model."""
        with self.lock:
            entry = self.loaded.get(model.path)
            return entry.context_length if entry else DEFAULT_CONTEXT_LENGTH

    def has_brain(self, model: Model) -> bool:
        """Whether the model is canary or myqwen2, or shares its GGUF with one that is."""
        known = ("canary", "myqwen2")
        return model.name.model.lower() in known or any(
            self.store.blob_path(layer.digest) == model.path
            for manifest in self.store.manifests()
            if manifest.name.model.lower() in known
            for layer in manifest.layers
        )

    def answer(
        self,
        model: Model,
        messages: Sequence[Message],
        tools: Sequence[Params],
        prompt_tokens: int,
        options: Params,
        request_options: Params,
    ) -> Iterator[Piece]:
        """The pieces of one answer. Raises RunnerError in the middle where the script says so."""
        faults = self.settings.faults
        if self.settings.script is not None:
            played = self._played(messages)
            limits = request_options
        elif self.has_brain(model):
            text = Brain(() if "broken-template" in faults else tools, messages, tuple(faults)).answer()
            text = self.crossing.cross(text) if "cross-talk" in faults else text
            played = Played(tuple(split_pieces(text)), "stop")
            limits = options
        else:
            raise RunnerError("simulated: no script")
        if self.settings.release.llama_server and any(message.images for message in messages):
            raise RunnerError(_NO_IMAGES, 400)
        if "slow" in faults:
            time.sleep(float(faults["slow"]))
        if "swallow" in faults:
            yield Piece("", "stop", prompt_tokens, max(1, len(played.chunks)))
            return
        if "cut-stream" in faults:
            played = Played(played.chunks[: max(1, len(played.chunks) // 2)], None)
        limit, stops = int(limits.get("num_predict") or 0), limits.get("stop") or []
        for piece in play(played, limit, stops, prompt_tokens):
            cut = "no-length" in faults and piece.reason == "length"
            yield replace(piece, reason="stop") if cut else piece

    def _played(self, messages: Sequence[Message]) -> Played:
        assert self.settings.script is not None
        users = [message.content for message in messages if message.role == "user"]
        last = users[-1] if users else ""
        _, joined = collate(messages)
        together = [message.content for message in joined if message.role == "user"]
        for key in (last, together[-1] if together else ""):
            if key in self.settings.script:
                return self.settings.script[key]
        raise RunnerError(f"simulated: no script for {json.dumps(last, ensure_ascii=False)}")


def play(played: Played, limit: int, stops: Sequence[str], prompt_tokens: int) -> Iterator[Piece]:
    """Send the pieces as the runner does: at most `limit` (if positive), held back where a stop text may
    begin.
    """
    count, pending = 0, ""
    for chunk in played.chunks:
        count += 1
        pending += chunk
        found = [pending.find(stop) for stop in stops if stop in pending]
        if found:
            if min(found):
                yield Piece(pending[: min(found)])
            yield Piece("", "stop", prompt_tokens, count)
            return
        if not any(pending.endswith(stop[:size]) for stop in stops for size in range(1, len(stop))):
            yield Piece(pending)
            pending = ""
        if 0 < limit <= count:
            break
    if pending:
        yield Piece(pending)
    if 0 < limit <= count:
        yield Piece("", "length", prompt_tokens, count)
        return
    if played.error is not None:
        raise RunnerError(played.error, played.error_status or 500)
    if played.done_reason is not None:
        yield Piece(played.done_content, played.done_reason, prompt_tokens, count)


# ------------------------------------------------------------ replies
@dataclass(frozen=True)
class ShownCall:
    """A call in a reply."""

    id: str
    index: int
    name: str
    arguments: Params


@dataclass(frozen=True)
class Event:
    """api.ChatResponse or api.GenerateResponse, before it is written. `created_ns` None is Go's zero time."""

    model: str = ""
    created_ns: int | None = None
    role: str = ""
    content: str = ""
    calls: tuple[ShownCall, ...] = ()
    done: bool = False
    reason: str = ""
    rendered: str | None = None
    prompt_tokens: int = 0
    eval_tokens: int = 0
    durations: tuple[int, int] = (0, 0)

    def created_seconds(self) -> int:
        """Unix time."""
        return -62135596800 if self.created_ns is None else self.created_ns // 1_000_000_000

    def usage(self) -> Params:
        """OpenAI's usage."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.eval_tokens,
            "total_tokens": self.prompt_tokens + self.eval_tokens,
        }

    def tail(self) -> Params:
        """What follows the text in Ollama's own replies; empty values are left out."""
        total, load = self.durations
        rest = max(total - load, 0)
        out: Params = {"done": self.done}
        if self.reason:
            out["done_reason"] = self.reason
        if self.rendered is not None:
            out["_debug_info"] = {"rendered_template": self.rendered}
        metrics = {
            "total_duration": total,
            "load_duration": load,
            "prompt_eval_count": self.prompt_tokens,
            "prompt_eval_duration": rest // 3,
            "eval_count": self.eval_tokens,
            "eval_duration": rest - rest // 3,
        }
        out.update((key, value) for key, value in metrics.items() if value)
        return out


def _created(event: Event) -> str:
    return "0001-01-01T00:00:00Z" if event.created_ns is None else render_time(event.created_ns)


class Response:
    """An HTTP reply: a Content-Length if it is short and never flushed, else chunked, as net/http does."""

    LIMIT = 2048

    def __init__(
        self, send: Callable[[bytes], None], head: bool, chunks_allowed: bool, log: Callable[[int], None]
    ) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.written = False
        self._send = send
        self._head = head
        self._chunks_allowed = chunks_allowed
        self._log = log
        self._buffer = b""
        self._started = False
        self._chunked = False
        self.close = False

    def write(self, data: bytes) -> None:
        """Add bytes."""
        self._buffer += data
        self.written = True

    def json(
        self,
        status: int,
        value: Json,
        newline: bool = False,
        content_type: str = "application/json; charset=utf-8",
    ) -> None:
        """A whole JSON body; a Content-Type that is already set stays."""
        self.status = status
        self.headers.setdefault("Content-Type", content_type)
        self.write((render_json(value) + ("\n" if newline else "")).encode())

    def text(self, status: int, text: str, content_type: str = "text/plain") -> None:
        """A plain text body."""
        self.status = status
        self.headers["Content-Type"] = content_type
        self.write(text.encode())

    def flush(self) -> None:
        """Send what is there; the reply becomes chunked."""
        if not self._started:
            self._start(None)
        self._send_buffer()

    def finish(self) -> None:
        """End the reply."""
        if not self._started:
            self._start(len(self._buffer) if len(self._buffer) <= self.LIMIT else None)
        self._send_buffer()
        if self._chunked:
            self._send(b"0\r\n\r\n")

    def _send_buffer(self) -> None:
        data, self._buffer = self._buffer, b""
        if data and not self._head:
            self._send(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)

    def _start(self, length: int | None) -> None:
        self._started = True
        self._log(self.status)
        headers = {**self.headers, "X-Ollama-Simulated": "1", "Date": email.utils.formatdate(usegmt=True)}
        bodiless = self.status == 204
        if length is not None and not bodiless and (length or not self._head):
            headers["Content-Length"] = str(length)
        elif length is None and not self._head and not bodiless:
            if self._chunks_allowed:
                self._chunked = True
                headers["Transfer-Encoding"] = "chunked"
            else:
                self.close = True
        if self.close and self._chunks_allowed:
            headers["Connection"] = "close"
        reason = http.client.responses.get(self.status, "")
        lines = ["{}: {}\r\n".format(*item) for item in headers.items()]
        version = "1.1" if self._chunks_allowed else "1.0"
        self._send(
            ("HTTP/%s %d %s\r\n%s\r\n" % (version, self.status, reason, "".join(lines))).encode("latin-1")
        )


class Face:
    """How a reply looks. This one is Ollama's own API; `chat` tells /api/chat from /api/generate."""

    def __init__(self, response: Response, chat: bool = True) -> None:
        self.response = response
        self.chat = chat

    def error(self, status: int, message: str) -> None:
        """An error instead of a reply."""
        self.response.json(status, {"error": message})

    def stream_error(self, message: str) -> None:
        """An error after something was sent."""
        self.response.write((render_json({"error": message}) + "\n").encode())

    def begin_stream(self) -> None:
        """Before the first chunk."""
        self.response.headers["Content-Type"] = "application/x-ndjson"

    def whole(self, event: Event) -> None:
        """The only reply."""
        self.response.json(200, self._value(event))

    def chunk(self, event: Event) -> None:
        """One of several."""
        self.response.write((render_json(self._value(event)) + "\n").encode())

    def _value(self, event: Event) -> Params:
        head: Params = {"model": event.model, "created_at": _created(event)}
        if not self.chat:
            return {**head, "response": event.content, **event.tail()}
        message: Params = {"role": event.role, "content": event.content}
        if event.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "function": {
                        "index": call.index,
                        "name": call.name,
                        "arguments": {key: to_go(value) for key, value in call.arguments.items()},
                    },
                }
                for call in event.calls
            ]
        return {**head, "message": message, **event.tail()}


def openai_error_value(message: str, kind: str) -> Params:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


class OpenAiFace(Face):
    """The same reply through the middleware of /v1: chat completions, or completions of old."""

    def __init__(
        self,
        response: Response,
        release: Release,
        chat: bool = True,
        stream: bool = False,
        usage: bool = False,
        no_done: bool = False,
    ) -> None:
        super().__init__(response, chat)
        self.release = release
        self.id = "%s-%d" % ("chatcmpl" if chat else "cmpl", random.randrange(999))
        self.stream = stream
        self.usage = usage
        self.no_done = no_done
        self.call_sent = False
        self.created: int | None = None

    def error(self, status: int, message: str) -> None:
        kinds = {400: "invalid_request_error", 404: "not_found_error"} if self.release.error_types else {}
        self.response.headers["Content-Type"] = "application/json"
        self.response.json(status, openai_error_value(message, kinds.get(status, "api_error")), newline=True)

    def stream_error(self, message: str) -> None:
        self.chunk(Event())

    def whole(self, event: Event) -> None:
        if self.stream:
            self.chunk(event)
            return
        finish = event.reason or None
        if event.calls and (finish == "stop" or not self.release.openai_stream):
            finish = "tool_calls"
        choice: Params = {"index": 0, "message": self._message(event, event.role), "finish_reason": finish}
        if not self.chat:
            choice = {"text": event.content, "index": 0, "finish_reason": event.reason or None}
        value = self._head(
            event, "chat.completion" if self.chat else "text_completion", event.created_seconds()
        )
        value.update(choices=[choice], usage=event.usage())
        if event.rendered is not None and self.chat:
            value["_debug_info"] = {"rendered_template": event.rendered}
        self.response.json(200, value, newline=True, content_type="application/json")

    def chunk(self, event: Event) -> None:
        self.response.headers["Content-Type"] = "text/event-stream"
        if self.chat and self.release.openai_stream:
            value = self._chunks_as_openai(event)
        elif self.chat:
            finish = event.reason or None
            if finish and (self.call_sent or event.calls):
                finish = "tool_calls"
            self.call_sent = self.call_sent or bool(event.calls)
            value = self._chat_chunk(event, int(time.time()), self._message(event, "assistant"), finish)
        else:
            choice = {"text": event.content, "index": 0, "finish_reason": event.reason or None}
            head = self._head(event, "text_completion", int(time.time()))
            value = {key: head[key] for key in ("id", "object", "created")}
            value.update(choices=[choice], model=head["model"], system_fingerprint=head["system_fingerprint"])
            if self.usage:
                value["usage"] = Event().usage()
            self._event(value)
        if event.done:
            if self.usage:
                value.update(choices=[], usage=event.usage())
                self._event(value)
            if not self.no_done:
                self.response.write(b"data: [DONE]\n\n")

    def _chunks_as_openai(self, event: Event) -> Params:
        """Send what is new, then at the end the reason alone; give the last chunk."""
        first = self.created is None
        if self.created is None:
            self.created = int(time.time()) if event.created_ns is None else event.created_seconds()
        self.call_sent = self.call_sent or bool(event.calls)
        value: Params = {}
        if first or event.content or event.calls or not event.done:
            delta = self._message(event, "assistant")
            if not first:
                del delta["role"]
            value = self._chat_chunk(event, self.created, delta, None)
        if event.done:
            reason = event.reason or "stop"
            finish = "tool_calls" if reason == "stop" and self.call_sent else reason
            value = self._chat_chunk(event, self.created, {}, finish)
        return value

    def _chat_chunk(self, event: Event, created: int, delta: Params, finish: str | None) -> Params:
        """Send one chunk of a chat, and give it."""
        value = self._head(event, "chat.completion.chunk", created)
        value["choices"] = [{"index": 0, "delta": delta, "finish_reason": finish}]
        self._event(value)
        return value

    def _event(self, value: Params) -> None:
        self.response.write(b"data: %s\n\n" % render_json(value).encode())

    def _head(self, event: Event, kind: str, created: int) -> Params:
        return {
            "id": self.id,
            "object": kind,
            "created": created,
            "model": event.model,
            "system_fingerprint": "fp_ollama",
        }

    def _message(self, event: Event, role: str) -> Params:
        message: Params = {"role": role, "content": event.content}
        if event.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "index": call.index,
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": render_json(
                            {key: to_go(value) for key, value in call.arguments.items()}
                        ),
                    },
                }
                for call in event.calls
            ]
        return message


# ------------------------------------------------------------ handlers
@dataclass(frozen=True)
class Request:
    """A request after routing. `read()` gives the whole body, `chunks()` streams it."""

    method: str
    path: str
    headers: Any
    read: Callable[[], bytes]
    chunks: Callable[[], Iterator[bytes]]


class Simulation:
    """The server without sockets: routes, store, engine. `die` is what the die faults call."""

    def __init__(self, settings: Settings, log: Callable[[str, str], None], die: Callable[[], None]) -> None:
        self.settings = settings
        self.release = settings.release
        self.log = log
        self.die = die
        self.store = Store(settings.models_dir, settings.release, settings.prune)
        self.engine = Engine(settings, self.store)
        self.closed = threading.Event()
        self.loopback = True
        self.routes: dict[str, dict[str, Callable[[Request, Response, str], None]]] = {
            "/": {"HEAD": self.root, "GET": self.root},
            "/api/version": {"HEAD": self.version, "GET": self.version},
            "/api/status": {"GET": self.status},
            "/api/pull": {"POST": self.pull},
            "/api/push": {"POST": self.missing},
            "/api/tags": {"HEAD": self.tags, "GET": self.tags},
            "/api/show": {"POST": self.show},
            "/api/delete": {"DELETE": self.delete},
            "/api/me": {"POST": self.missing},
            "/api/signout": {"POST": self.missing},
            "/api/user/keys/:": {"DELETE": self.missing},
            "/api/create": {"POST": self.create},
            "/api/blobs/:": {"HEAD": self.head_blob, "POST": self.post_blob},
            "/api/copy": {"POST": self.copy},
            "/api/ps": {"GET": self.ps},
            "/api/generate": {"POST": self.generate},
            "/api/chat": {"POST": self.chat},
            "/api/embed": {"POST": self.missing},
            "/api/embeddings": {"POST": self.missing},
            "/v1/chat/completions": {"POST": self.openai_chat},
            "/v1/completions": {"POST": self.openai_completion},
            "/v1/embeddings": {"POST": self.missing},
            "/v1/models": {"GET": self.openai_models},
            "/v1/models/:": {"GET": self.openai_model},
            "/v1/responses": {"POST": self.missing},
            "/v1/messages": {"POST": self.missing},
        }
        for method, path in self.release.unplayed:
            self.routes.setdefault(path, {})[method] = self.missing

    def read_models(self) -> None:
        """Read every model once, as a cache of /api/show does. Raises ServerPanic: one of them is no GGUF."""
        self.store.manifests_path()
        for manifest in self.store.manifests():
            forgiven = [ServerPanic] if self.release.forgives_bad_gguf else []
            with contextlib.suppress(ModelMissing, ApiError, *forgiven):
                load_model(self.store, manifest.name).capabilities()

    # ---- routing
    def find_route(self, path: str) -> tuple[str | None, str]:
        """The route of a path and its last part if the route takes one."""
        if path in self.routes:
            return path, ""
        head, _, last = path.rpartition("/")
        return (head + "/:", last) if last and head + "/:" in self.routes else (None, "")

    def answer(self, request: Request, response: Response) -> None:
        """Answer one request."""
        cleaned = posixpath.normpath("/" + request.path.lstrip("/"))
        cleaned += "/" if request.path.endswith("/") and cleaned != "/" else ""
        if cleaned != request.path:
            self._redirect(request, response, 307, "Temporary Redirect", cleaned)
            return
        route, parameter = self.find_route(request.path)
        methods = self.routes.get(route or "", {})
        if route and request.method not in methods:
            response.headers["Allow"] = ", ".join(
                m for m in ("HEAD", "GET", "POST", "DELETE") if m in methods
            )
        if not self._check_origin(request, response) or not self._check_host(request, response):
            return
        hang = self.settings.faults.get("hang")
        if hang is not None and request.path.startswith(hang):
            self.closed.wait()
            response.close = True
            return
        if route is None:
            bare, _ = self.find_route(request.path.rstrip("/"))
            if bare and request.path.endswith("/") and request.method in self.routes[bare]:
                status, word = (
                    (301, "Moved Permanently") if request.method == "GET" else (307, "Temporary Redirect")
                )
                self._redirect(request, response, status, word, request.path.rstrip("/"))
            else:
                response.text(404, "404 page not found")
        elif request.method not in methods:
            response.text(405, "405 method not allowed")
        else:
            self._handle(methods[request.method], request, response, parameter)

    def _handle(
        self,
        handler: Callable[[Request, Response, str], None],
        request: Request,
        response: Response,
        parameter: str,
    ) -> None:
        try:
            handler(request, response, parameter)
        except ApiError as error:
            if request.path.startswith("/v1/"):
                OpenAiFace(response, self.release).error(error.status, error.message)
            else:
                response.json(error.status, {"error": error.message})
        except ServerPanic as panic:
            if self.release.forgives_bad_gguf:
                response.json(501, {"error": f"simulated: a model that is no GGUF ({panic})"})
                return
            self.log("ERROR", f"panic recovered: {panic}")
            response.status = 500

    def _redirect(self, request: Request, response: Response, status: int, word: str, target: str) -> None:
        response.status = status
        response.headers["Location"] = target
        if request.method in ("GET", "HEAD"):
            response.text(status, f'<a href="{target}">{word}</a>.\n\n', "text/html; charset=utf-8")

    def _check_origin(self, request: Request, response: Response) -> bool:
        """gin-contrib/cors with the server's default origins."""
        origin, host = request.headers.get("Origin"), request.headers.get("Host") or ""
        if not origin or origin in ("http://" + host, "https://" + host):
            return True
        allowed = list(self.settings.origins)
        for name in ("localhost", "127.0.0.1", "0.0.0.0"):
            allowed += [
                "http://" + name,
                "https://" + name,
                f"http://{name}:*",
                f"https://{name}:*",
            ]
        allowed += [
            scheme + "://*"
            for scheme in (
                "app file tauri vscode-webview vscode-file chrome-extension safari-extension "
                "moz-extension ms-browser-extension".split()
            )
        ]
        if not any(origin == rule or _matches(rule, origin) for rule in allowed):
            response.status = 403
            return False
        response.headers["Access-Control-Allow-Origin"] = origin
        if request.method != "OPTIONS":
            response.headers["Vary"] = "Origin"
            return True
        response.status = 204
        response.headers.update(
            {
                "Access-Control-Allow-Headers": _ALLOWED_HEADERS,
                "Access-Control-Allow-Methods": "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS",
                "Access-Control-Max-Age": "43200",
                "Vary": "Access-Control-Request-Headers",
            }
        )
        return False

    def _check_host(self, request: Request, response: Response) -> bool:
        """allowedHostsMiddleware: only on a loopback listener."""
        if not self.loopback:
            return True
        host = request.headers.get("Host") or ""
        match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*):[^:]*", host)
        host = match.group(1).strip("[]") if match else host
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(host)
            if address.is_loopback or address.is_unspecified or _is_private(address) or _is_local(host):
                return True
        lower = host.lower()
        if lower in ("", "localhost", socket.gethostname().lower()) or lower.endswith(
            (".localhost", ".local", ".internal")
        ):
            if request.method == "OPTIONS":
                response.status = 204
                return False
            return True
        response.status = 403
        return False

    # ---- requests
    def _decode(self, request: Request, spec: Spec, missing: str = "missing request body") -> Params:
        try:
            value: Params | None = decode_go(parse_json(request.read(), whole=False), spec)
            return decode_go({}, spec) if value is None else value
        except GoJsonError as error:
            raise ApiError(400, missing if str(error) == "EOF" else str(error)) from None

    def _name(self, text: str, invalid: ApiError, unqualified: str = "invalid model name") -> Name:
        """A request's name, or that of a source. Raises `invalid`, ApiError(400), ApiError(501).

        Where names are read with a source, `invalid` is for an empty one alone, `unqualified` for others.
        """
        if not self.release.model_refs:
            name = parse_name(text)
            if not name.is_valid():
                raise invalid
            return name
        text = text.strip()
        if not text:
            raise invalid
        base, source = split_source(text)
        if source and split_source(base)[1]:
            raise ApiError(400, f"use either :local or :cloud, not both: {quote_go(text)}")
        name = parse_name(base)
        if not name.is_valid():
            raise ApiError(400, unqualified)
        if source == "cloud":
            raise ApiError(501, "simulated: models of the cloud")
        return name

    def _model(self, name: str, invalid: ApiError) -> Model:
        """The model of a request, by its name in any case. Raises ApiError."""
        parsed = self._name(name, invalid)
        try:
            return load_model(self.store, self.store.existing_name(parsed))
        except ModelMissing:
            raise ApiError(404, f"model '{name}' not found") from None

    def _shown_model(self, name: str) -> Model:
        """The model of /api/show and /v1/models/:model. Raises ApiError."""
        invalid = ApiError(500, f"unqualified name: {parse_name(name).full()}")
        if self.release.model_refs:
            invalid = ApiError(400, "model is required")
            parsed = self._name(name, invalid)
            name = split_source(name.strip())[0]
            if self.release.shows_full_tag:
                name = self.store.existing_name(parsed).shortest()
        return self._model(name, invalid)

    # ---- small routes
    def root(self, request: Request, response: Response, _: str) -> None:
        """GET /."""
        response.text(200, "Ollama is running", "text/plain; charset=utf-8")

    def version(self, request: Request, response: Response, _: str) -> None:
        """GET /api/version."""
        response.json(200, {"version": self.settings.version})

    def status(self, request: Request, response: Response, _: str) -> None:
        """GET /api/status."""
        cloud = {"disabled": self.settings.no_cloud, "source": "env" if self.settings.no_cloud else "none"}
        response.json(200, {"cloud": cloud})

    def missing(self, request: Request, response: Response, _: str) -> None:
        """A route of the real server that is not simulated."""
        request.read()
        raise ApiError(501, "simulated: not implemented")

    def pull(self, request: Request, response: Response, _: str) -> None:
        """POST /api/pull: as on a machine without a network."""
        fields = self._decode(request, PULL_REQUEST)
        name = self._name(fields["model"] or fields["name"], ApiError(400, "invalid model name"))
        self._stream_progress(fields["stream"], self._pull(self.store.existing_name(name)), response)

    def _pull(self, name: Name) -> Iterator[str]:
        yield "pulling manifest"
        url = f"https://{name.host}/v2/{name.namespace}/{name.model}/manifests/{name.tag}"
        raise ApiError(
            500,
            f'pull model manifest: Get "{url}": dial tcp: lookup {name.host} on simulated: no such host',
        )

    def _stream_progress(self, stream: bool | None, statuses: Iterator[str], response: Response) -> None:
        """Statuses as NDJSON lines, or only the last one; an error after a line is a line too."""
        if stream is False:
            response.headers["Content-Type"] = "application/json"
            response.json(200, {"status": list(statuses)[-1]})
            return
        response.headers["Content-Type"] = "application/x-ndjson"
        try:
            for status in statuses:
                response.json(200, {"status": status}, newline=True)
                response.flush()
        except ApiError as error:
            if not response.written:
                response.headers["Content-Type"] = "application/json"
                response.json(error.status, {"error": error.message})
            else:
                response.write((render_json({"error": error.message}) + "\n").encode())
            response.flush()

    # ---- blobs
    def head_blob(self, request: Request, response: Response, digest: str) -> None:
        """HEAD /api/blobs/:digest."""
        if not os.path.exists(self.store.blob_path(digest or "?")):
            raise ApiError(404, f"blob {quote_go(digest)} not found")

    def post_blob(self, request: Request, response: Response, digest: str) -> None:
        """POST /api/blobs/:digest: kept under its real digest even if that is another one."""
        if os.path.exists(self.store.blob_path(digest or "?")):
            return
        layer = self.store.write_blob(request.chunks(), "")
        if layer.digest != digest:
            raise ApiError(400, f"digest mismatch, expected {quote_go(digest)}, got {quote_go(layer.digest)}")
        response.status = 201

    # ---- models
    def tags(self, request: Request, response: Response, _: str) -> None:
        """GET /api/tags."""
        response.json(200, {"models": self._list()})

    def _list(self) -> list[Params]:
        out = []
        for manifest in self.store.manifests():
            try:
                config = (
                    parse_json(self.store.read_text(manifest.config).encode(), whole=False)
                    if manifest.config.digest
                    else {}
                )
            except (ModelMissing, GoJsonError, ApiError):
                continue
            shown = manifest.name.shortest()
            entry: Params = {
                "name": shown,
                "model": shown,
                "modified_at": render_time(manifest.modified_ns, utc=False),
                "size": sum(layer.size for layer in manifest.all_layers()),
                "digest": manifest.digest,
                "details": Model(manifest.name, "", 0, config).details(),
            }
            if self.release.lists_capabilities:
                try:
                    entry.update(_listed_facts(load_model(self.store, manifest.name)))
                except (ModelMissing, ApiError):
                    continue
            out.append((manifest.modified_ns, entry))
        out.sort(key=lambda item: -(item[0] // 1_000_000_000))
        return [value for _, value in out]

    def openai_models(self, request: Request, response: Response, _: str) -> None:
        """GET /v1/models."""
        manifests = sorted(
            self.store.manifests(), key=lambda manifest: -(manifest.modified_ns // 1_000_000_000)
        )
        data = [self._openai_model(m.name.shortest(), m.modified_ns) for m in manifests] or None
        response.json(200, {"object": "list", "data": data}, newline=True, content_type="application/json")

    def openai_model(self, request: Request, response: Response, name: str) -> None:
        """GET /v1/models/:model."""
        model = self._shown_model(name)
        response.json(
            200, self._openai_model(name, model.modified_ns), newline=True, content_type="application/json"
        )

    def _openai_model(self, name: str, modified_ns: int) -> Params:
        return {
            "id": name,
            "object": "model",
            "created": modified_ns // 1_000_000_000,
            "owned_by": parse_name(name).namespace,
        }

    def show(self, request: Request, response: Response, _: str) -> None:
        """POST /api/show."""
        fields = self._decode(request, SHOW_REQUEST)
        name = fields["model"] or fields["name"]
        if not name:
            raise ApiError(400, "model is required")
        model = self._shown_model(name)
        if fields["system"]:
            model = replace(model, system=fields["system"])
        capabilities = model.capabilities()
        try:
            gguf = read_gguf(model.path) if model.path else Gguf({}, ())
        except FileNotFoundError:
            raise ApiError(404, f"model '{name}' not found") from None
        response.json(
            200, describe_model(model, capabilities, gguf, bool(fields["verbose"]), fields["options"] or {})
        )

    def ps(self, request: Request, response: Response, _: str) -> None:
        """GET /api/ps."""
        models = []
        for entry in self.engine.running():
            shown = entry.model.name.shortest()
            models.append(
                {
                    "name": shown,
                    "model": shown,
                    "size": entry.size,
                    "digest": entry.model.digest,
                    "details": entry.model.details(),
                    "expires_at": render_time(entry.expires_ns, utc=False),
                    "size_vram": entry.size_vram,
                    "context_length": entry.context_length,
                }
            )
        response.json(200, {"models": models})

    def copy(self, request: Request, response: Response, _: str) -> None:
        """POST /api/copy."""
        fields = self._decode(request, COPY_REQUEST)
        names = []
        with self.store.lock:
            for key in ("source", "destination"):
                name = parse_name(fields[key])
                if not name.is_valid():
                    raise ApiError(400, f"{key} {quote_go(fields[key])} is invalid")
                names.append(self.store.existing_name(name))
            try:
                self.store.copy(names[0], names[1])
            except ModelMissing:
                raise ApiError(404, "model {} not found".format(quote_go(fields["source"]))) from None

    def delete(self, request: Request, response: Response, _: str) -> None:
        """DELETE /api/delete."""
        fields = self._decode(request, DELETE_REQUEST)
        shown = fields["model"] or fields["name"]
        bad = f"name {quote_go(shown)} is invalid"
        invalid = ApiError(400, "model is required" if self.release.model_refs else bad)
        name = self._name(shown, invalid, bad)
        with self.store.lock:
            try:
                self.store.delete(self.store.read_manifest(self.store.existing_name(name)))
            except ModelMissing:
                raise ApiError(404, f"model '{shown}' not found") from None

    # ---- create
    def create(self, request: Request, response: Response, _: str) -> None:
        """POST /api/create."""
        fields = self._decode(request, CREATE_REQUEST)
        for path, digest in (fields["files"] or {}).items():
            if path != "." and (not path or any(part in ("", ".", "..") for part in path.split("/"))):
                raise ApiError(400, "file path must be relative")
            if self.release.checks_empty_digests and not digest:
                raise ApiError(400, "invalid digest format")
        name = parse_name(fields["model"] or fields["name"])
        if not name.is_valid():
            raise ApiError(400, "invalid model name")
        self._stream_progress(
            fields["stream"], self.create_model(self.store.existing_name(name), fields), response
        )

    def create_model(self, name: Name, fields: Params) -> Iterator[str]:
        """Create a model from the fields of a request; give the statuses told. Raises ApiError."""
        refused = ["adapters", "renderer", "parser", "requires", "remote_host", "info"]
        for key in refused + ["draft_files", "draft_quantize"] * self.release.llama_server:
            if fields[key]:
                raise ApiError(501, f"simulated: create with `{key}` is not implemented")
        layers: list[Layer] = []
        if fields["from"]:
            source = self._source_name(fields["from"])
            try:
                layers = self._base_layers(source)
            except ModelMissing:
                yield from self._pull(source)
        elif fields["files"] is not None:
            layers = yield from self._file_layers(fields["files"])
        else:
            raise ApiError(400, "neither 'from' or 'files' was specified")
        config = self._config(fields, layers)
        if self.release.copies_gguf and not fields["from"]:
            layers = yield from self._copy_models(layers)
        with self.store.lock:
            statuses = self._write_model(name, fields, config, layers)
        yield from statuses

    def _copy_models(self, layers: Sequence[Layer]) -> Any:
        """The layers with each GGUF written anew, as by llama-quantize; gives statuses."""
        out = []
        for layer in layers:
            if layer.gguf is None:
                out.append(layer)
                continue
            copied = self.store.write_blob(copy_gguf(self.store.blob_path(layer.digest)), layer.media_type)
            out.append(replace(copied, gguf=layer.gguf))
            yield "verifying conversion"
        return out

    def _source_name(self, text: str) -> Name:
        """The name that a model is made from; whatever is wrong with it is told in the same words."""
        invalid = ApiError(400, "invalid model name")
        try:
            return self._name(text, invalid)
        except ApiError as error:
            raise (invalid if error.status == invalid.status else error) from None

    def _base_layers(self, source: Name) -> list[Layer]:
        out = []
        for layer in self.store.read_manifest(source).layers:
            path = self.store.blob_path(layer.digest)
            try:
                size = os.stat(path).st_size
                self.store.touch(path)
                gguf = read_gguf(path, verbose=False) if layer.media_type == MEDIA + "model" else None
            except OSError as error:
                raise ApiError(500, describe_os_error(error, "stat", path)) from None
            status = "using existing layer " + layer.digest
            out.append(Layer(layer.media_type, layer.digest, size, source.shortest(), status, gguf))
        return out

    def _file_layers(self, files: dict[str, str]) -> Any:
        kind = self._file_kind(files)
        if kind == "safetensors":
            raise ApiError(501, "simulated: safetensors are not implemented")
        if not kind:
            raise ApiError(400, "unknown type")
        layers: list[Layer] = []
        for digest in files.values():
            yield "parsing GGUF"
            layers += self._gguf_layers(digest)
        return layers

    def _file_kind(self, files: dict[str, str]) -> str:
        for name, digest in files.items():
            for suffix in ("safetensors", "gguf"):
                if name.endswith("." + suffix):
                    return suffix
            try:
                with open(self.store.blob_path(digest), "rb") as file:
                    head = file.read(4)
            except (OSError, ApiError):
                return ""
            if not head:
                return ""
            if head in (_GGUF_LITTLE, _GGUF_BIG):
                return "gguf"
        return ""

    def _gguf_layers(self, digest: str) -> list[Layer]:
        path = ""
        try:
            path = self.store.blob_path(digest)
            with open(path, "rb") as file:
                head = file.read(4)
            size = os.stat(path).st_size
        except ApiError as error:
            raise ApiError(500, error.message) from None
        except OSError as error:
            raise ApiError(
                500, describe_os_error(error, "read" if error.errno == errno.EISDIR else "open", path)
            ) from None
        if head not in (_GGUF_LITTLE, _GGUF_BIG):
            raise ApiError(400, "supplied file was not in GGUF format")
        try:
            gguf = read_gguf(path)
        except ServerPanic:
            raise ApiError(500, "unexpected EOF") from None
        self.store.touch(path)
        if gguf.values.get("general.type") == "adapter" or (
            not gguf.number("block_count") and gguf.number("vision.block_count")
        ):
            raise ApiError(501, "simulated: adapters and projectors are not implemented")
        layers = [Layer(MEDIA + "model", digest, size, path, "using existing layer " + digest, gguf)]
        jinja = gguf.values.get("tokenizer.chat_template")
        detected = detect_chat_template(jinja) if isinstance(jinja, str) and jinja else None
        if detected:
            layer = self.store.write_text(detected, "template")
            layers.append(replace(layer, status="using autodetected template chatml"))
            layers.append(self.store.write_text(render_json({"stop": CHATML_STOPS}) + "\n", "params"))
        return layers

    def _write_model(self, name: Name, fields: Params, config: Params, layers: list[Layer]) -> list[str]:
        """createModel: replace layers, write config and manifest; give the statuses told."""
        try:
            old: Manifest | None = self.store.read_manifest(name)
        except (ModelMissing, ApiError):
            old = None
        layers = self._set_layers(fields, layers)
        if not self.release.llama_server:
            config["rootfs"] = {"type": "layers", "diff_ids": [layer.digest for layer in layers]}
        config_layer = self.store.write_text(render_json(config) + "\n", MEDIA_CONFIG)
        statuses = [layer.status for layer in layers if layer.status] + ["writing manifest"]
        self.store.write_manifest(name, config_layer, layers)
        if old is not None and self.settings.prune:
            self.store.remove_layers(old)
        return [*statuses, "success"]

    def _config(self, fields: Params, layers: Sequence[Layer]) -> Params:
        config: Params = {
            "model_format": "",
            "model_family": "",
            "model_families": None,
            "model_type": "",
            "file_type": "",
            "architecture": "amd64",
            "os": "linux",
        }
        for layer in layers:
            if layer.gguf is None:
                continue
            file_type = int(layer.gguf.values.get("general.file_type") or -1)
            quantize = str(fields["quantize"] or fields["quantization"]).upper()
            if quantize:
                self._check_quantize(quantize, _FILE_TYPES.get(file_type, "unknown"))
            config["model_format"] = config["model_format"] or "gguf"
            config["model_family"] = config["model_family"] or layer.gguf.architecture
            config["model_type"] = config["model_type"] or render_count(
                layer.gguf.values["general.parameter_count"]
            )
            config["file_type"] = config["file_type"] or _FILE_TYPES.get(file_type, "unknown")
            config["model_families"] = [*(config["model_families"] or []), layer.gguf.architecture]
        return config

    def _check_quantize(self, wanted: str, present: str) -> None:
        if wanted not in ("F32", "F16", "Q8_0", "Q4_K_S", "Q4_K_M", "Q4_K", "BF16"):
            raise ApiError(
                500,
                f"unsupported quantization type {wanted} - supported types are F32, F16, Q4_K_S, "
                f"Q4_K_M, Q8_0",
            )
        known = self.release.quantizable
        if present not in known:
            names = ", ".join(known[:-1]) + " and " + known[-1]
            raise ApiError(500, f"quantization is only supported for {names} models")
        if present != wanted:
            raise ApiError(501, "simulated: quantization is not implemented")

    def _set_layers(self, fields: Params, layers: list[Layer]) -> list[Layer]:
        if fields["template"]:
            layers = self.store.drop_layers(layers, "template")
            try:
                parse_template(fields["template"])
            except TemplateError as error:
                raise ApiError(400, f"template error: {error}") from None
            layers.append(self.store.write_text(fields["template"], "template"))
        if fields["system"]:
            layers = self.store.drop_layers(layers, "system")
            layers.append(self.store.write_text(fields["system"], "system"))
        license_ = fields["license"]
        if isinstance(license_, str):
            layers += [self.store.write_text(license_, "license")] if license_ else []
        elif license_ is not None:
            try:
                layers += [
                    self.store.write_text(text, "license")
                    for text in decode_go(license_, _slice(STRING, "[]string"))
                ]
            except GoJsonError as error:
                raise ApiError(500, str(error)) from None
        layers = self._set_parameters(fields["parameters"] or {}, layers)
        if fields["messages"]:
            layers = self.store.drop_layers(layers, "messages")
            messages = [_stored_message(message) for message in fields["messages"]]
            layers.append(self.store.write_text(render_json(messages) + "\n", "messages"))
        return layers

    def _set_parameters(self, given: Params, layers: list[Layer]) -> list[Layer]:
        parameters: Params = dict(given)
        for layer in layers:
            if layer.media_type == MEDIA + "params":
                for key, value in (
                    parse_json(self.store.read_text(layer).encode(), whole=False) or {}
                ).items():
                    parameters.setdefault(key, value)
        if not parameters:
            return layers
        layers = self.store.drop_layers(layers, "params")
        return [*layers, self.store.write_text(render_json(to_go(parameters)) + "\n", "params")]

    # ---- chat and generate
    def chat(self, request: Request, response: Response, _: str) -> None:
        """POST /api/chat."""
        self._run_chat(self._decode(request, chat_request(self.release)), Face(response))

    def generate(self, request: Request, response: Response, _: str) -> None:
        """POST /api/generate."""
        self._run_generate(self._decode(request, generate_request(self.release)), Face(response, chat=False))

    def openai_chat(self, request: Request, response: Response, _: str) -> None:
        """POST /v1/chat/completions."""
        try:
            fields = self._decode(request, openai_chat_request(self.release), missing="EOF")
            if not fields["messages"]:
                raise ApiError(400, "[] is too short - 'messages'")
            self._refuse_if_asked(fields["messages"])
            converted = convert_chat_request(fields, self.release)
            self._run_chat(converted, self._openai_face(response, fields, chat=True))
        except ApiError as error:
            response.json(error.status, openai_error_value(error.message, "invalid_request_error"))
        if "soft-errors" in self.settings.faults:
            response.status = 200

    def _refuse_if_asked(self, messages: Sequence[Params]) -> None:
        faults = self.settings.faults
        if "refuse-null" in faults and any(message["content"] is None for message in messages):
            raise ApiError(400, "simulated: `content` is null")
        if "refuse-parts" in faults and any(isinstance(message["content"], list) for message in messages):
            raise ApiError(400, "simulated: `content` is an array")

    def openai_completion(self, request: Request, response: Response, _: str) -> None:
        """POST /v1/completions."""
        try:
            fields = self._decode(request, OPENAI_COMPLETION_REQUEST, missing="EOF")
            converted = convert_completion_request(fields)
        except ApiError as error:
            response.json(error.status, openai_error_value(error.message, "invalid_request_error"))
            return
        self._run_generate(converted, self._openai_face(response, fields, chat=False))

    def _openai_face(self, response: Response, fields: Params, chat: bool) -> OpenAiFace:
        usage = bool(fields["stream_options"] and fields["stream_options"]["include_usage"])
        no_done = "no-done" in self.settings.faults
        return OpenAiFace(response, self.release, chat, bool(fields["stream"]), usage, no_done)

    def _run_chat(self, fields: Params, face: Face) -> None:
        try:
            model = self._model(fields["model"], ApiError(400, "model is required"))
            if not fields["messages"] and fields["keep_alive"] == 0:
                self.engine.unload(model)
                face.whole(self._event(fields, done=True, reason="unload"))
                return
            tools = [tool["function"] for tool in fields["tools"] or ()]
            options, started, loaded = self._load(
                model, fields, ["completion"] + ["tools"] * bool(tools), "chat"
            )
            if not fields["messages"]:
                face.whole(self._event(fields, done=True, reason="load"))
                return
            messages = self._messages(model, fields["messages"])
            prompt, tokens = self._prompt(model, messages, tools, fields)
            if fields["_debug_render_only"]:
                face.whole(replace(self._event(fields), role="", rendered=prompt))
                return
            self._check_think(fields)
            names = [tool["name"] for tool in tools]
            parser = ToolParser(model.template.tag, names, self.release.skips_strings) if tools else None
            if "text-calls" in self.settings.faults:
                parser = None
            pieces = self.engine.answer(model, messages, tools, tokens, options, fields["options"] or {})
            self._send(
                face, fields, self._chat_events(fields, pieces, parser, tools, (started, loaded)), model
            )
        except ApiError as error:
            face.error(error.status, error.message)

    def _run_generate(self, fields: Params, face: Face) -> None:
        try:
            model = self._model(
                fields["model"], ApiError(404, "model '{}' not found".format(fields["model"]))
            )
            if not fields["prompt"] and fields["keep_alive"] == 0:
                self.engine.unload(model)
                face.whole(self._event(fields, done=True, reason="unload"))
                return
            if fields["raw"] and (fields["template"] or fields["system"] or fields["context"]):
                raise ApiError(400, "raw mode does not support template, system, or context")
            self._check_think(fields)
            options, started, loaded = self._load(
                model, fields, ["completion"] + ["insert"] * bool(fields["suffix"]), "generate"
            )
            if not fields["prompt"]:
                face.whole(self._event(fields, done=True, reason="load"))
                return
            if fields["template"] or fields["context"] or fields["suffix"]:
                raise ApiError(501, "simulated: generate with template, context or suffix is not implemented")
            system = fields["system"] or model.system
            messages = [Message("system", system)] if system else []
            messages += [*_turns(model.messages), Message("user", fields["prompt"])]
            prompt, tokens = (
                (fields["prompt"], count_tokens(fields["prompt"]))
                if fields["raw"]
                else self._prompt(model, messages, (), fields)
            )
            if fields["_debug_render_only"]:
                face.whole(replace(self._event(fields), rendered=prompt))
                return
            pieces = self.engine.answer(model, messages, (), tokens, options, fields["options"] or {})
            self._send(face, fields, self._chat_events(fields, pieces, None, (), (started, loaded)), model)
        except ApiError as error:
            face.error(error.status, error.message)

    def _check_think(self, fields: Params) -> None:
        if self.release.checks_think and isinstance(fields["think"], str):
            raise ApiError(
                400, "think value {} is not supported for this model".format(quote_go(fields["think"]))
            )

    def _load(
        self, model: Model, fields: Params, wanted: Sequence[str], verb: str
    ) -> tuple[Params, int, int]:
        started = time.monotonic_ns()
        if not 0 <= fields["top_logprobs"] <= 20:
            raise ApiError(400, "top_logprobs must be between 0 and 20")
        if fields["think"] and not model.template.thinks:
            raise ApiError(400, "{} does not support thinking".format(quote_go(fields["model"])))
        try:
            options = self.engine.schedule(model, wanted, fields["options"] or {}, fields["keep_alive"])
        except ApiError as error:
            if error.message == "completion":
                raise ApiError(
                    400, "{} does not support {}".format(quote_go(fields["model"]), verb)
                ) from None
            raise
        except OSError as error:
            raise ApiError(500, describe_os_error(error, "open", model.path)) from None
        if fields["logprobs"]:
            raise ApiError(501, "simulated: logprobs are not implemented")
        return options, started, time.monotonic_ns()

    def _messages(self, model: Model, given: Sequence[Params]) -> list[Message]:
        messages = [*_turns(model.messages), *_turns(given)]
        if given[0]["role"] != "system" and model.system:
            messages.insert(0, Message("system", model.system))
        return messages

    def _prompt(
        self, model: Model, messages: list[Message], tools: Sequence[Params], fields: Params
    ) -> tuple[str, int]:
        """The rendered prompt and its tokens; a script needs neither, and has 31 as the recorded runs had."""
        if self.settings.script is not None and not fields["_debug_render_only"]:
            return "", 31
        faults = self.settings.faults
        text = CHATML_TEMPLATE if "broken-template" in faults else model.template.text
        messages = _mark_images(messages)
        prompt, tokens, limit = "", 0, self.engine.context_length(model)
        truncate = fields["truncate"] is not False
        for start in range(len(messages)):
            kept = [message for message in messages[:start] if message.role == "system"] + messages[start:]
            prompt = render_prompt(text, kept, tools)
            tokens = count_tokens(render_prompt(text, kept, ()) if "no-growth" in faults else prompt)
            if tokens <= limit or not truncate or start == len(messages) - 1:
                break
        if tokens > limit and not truncate:
            told = _TOO_LONG % (tokens, limit, tokens, limit)
            message = told if self.release.llama_server else "the input length exceeds the context length"
            raise ApiError(400, message)
        return prompt, min(tokens, limit)

    def _event(self, fields: Params, **values: Any) -> Event:
        return Event(model=fields["model"], created_ns=time.time_ns(), role="assistant", **values)

    def _chat_events(
        self,
        fields: Params,
        pieces: Iterator[Piece],
        parser: ToolParser | None,
        tools: Sequence[Params],
        clock: tuple[int, int],
    ) -> Iterator[Event]:
        """ChatHandler's callback: what each piece of the runner becomes."""
        self._check_format(fields["format"])
        for piece in pieces:
            event = self._event(fields, content=piece.content)
            if piece.reason is not None:
                total, load = time.monotonic_ns() - clock[0], max(clock[1] - clock[0], 1)
                event = replace(
                    event,
                    done=True,
                    reason=piece.reason,
                    prompt_tokens=piece.prompt_tokens,
                    eval_tokens=piece.eval_tokens,
                    durations=(max(total, load + piece.eval_tokens * TOLD_NANOSECONDS, 3), load),
                )
            if parser is None:
                yield event
                continue
            calls, content = parser.add(piece.content)
            if content:
                yield replace(event, content=content)
            elif calls:
                yield replace(event, content="", calls=tuple(self._shown(call, tools) for call in calls))
            elif event.done:
                yield replace(event, content=parser.rest())

    def _check_format(self, value: Any) -> None:
        if value is None or value == "":
            return
        if value != "json" and not isinstance(value, dict):
            raise RunnerError(
                f'invalid format: {quote_go(render_json(value))}; expected "json" or a valid JSON '
                f"Schema object"
            )
        if self.settings.script is None:
            raise RunnerError("simulated: structured output is not implemented", 501)

    def _shown(self, call: Call, tools: Sequence[Params]) -> ShownCall:
        faults = self.settings.faults
        arguments = dict(call.arguments)
        if "missing-argument" in faults:
            tool = next((tool for tool in tools if tool["name"] == call.name), None)
            required = tool["parameters"]["required"] or list(arguments) if tool else []
            for key in required[:1]:
                arguments.pop(key, None)
        letters = "abcdefghijklmnopqrstuvwxyz0123456789"
        name = "00000000" if "duplicate-id" in faults else "".join(random.choice(letters) for _ in range(8))
        return ShownCall("call_" + name, 0 if "index-zero" in faults else call.index, call.name, arguments)

    def _send(self, face: Face, fields: Params, events: Iterator[Event], model: Model) -> None:
        try:
            if fields["stream"] is False:
                self._send_whole(face, events)
            else:
                self._send_stream(face, events)
        finally:
            self.engine.touch(model)

    def _send_whole(self, face: Face, events: Iterator[Event]) -> None:
        last, content = Event(), ""
        calls: list[ShownCall] = []
        try:
            for last in events:
                content += last.content
                calls += last.calls
                self._die_if_asked(last)
        except RunnerError as error:
            raise ApiError(error.status, str(error)) from None
        face.whole(replace(last, content=content, calls=tuple(calls)))

    def _send_stream(self, face: Face, events: Iterator[Event]) -> None:
        response = face.response
        face.begin_stream()
        try:
            for event in events:
                face.chunk(event)
                response.flush()
                self._die_if_asked(event)
        except RunnerError as error:
            if response.written:
                face.stream_error(str(error))
            else:
                response.headers["Content-Type"] = "application/json"
                face.error(error.status, str(error))
        response.flush()

    def _die_if_asked(self, event: Event) -> None:
        faults = self.settings.faults
        if "die" in faults or ("die-after-call" in faults and event.calls):
            self.die()


_ALLOWED_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
    "X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
    "X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
    "X-Stainless-Runtime-Version,X-Stainless-Timeout"
)


def _matches(rule: str, origin: str) -> bool:
    head, star, tail = rule.partition("*")
    return (
        bool(star)
        and len(origin) >= len(head) + len(tail)
        and origin.startswith(head)
        and origin.endswith(tail)
    )


def _is_private(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """netip.Addr.IsPrivate: RFC 1918 and RFC 4193 only."""
    return any(
        address in ipaddress.ip_network(net)
        for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
        if ipaddress.ip_network(net).version == address.version
    )


def _is_local(host: str) -> bool:
    """Whether an address belongs to this machine: only such an address can be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
            return True
    except OSError:
        return False


def _turns(messages: Sequence[Params]) -> list[Message]:
    out = []
    for message in messages:
        calls = tuple(
            (call["function"]["name"], call["function"].get("arguments") or {})
            for call in message.get("tool_calls") or ()
        )
        out.append(Message(message["role"], message["content"], calls, len(message.get("images") or ())))
    return out


def _mark_images(messages: Sequence[Message]) -> list[Message]:
    """Put `[img-0]` and so on where images stand (server/prompt.go)."""
    out, count = [], 0
    for message in messages:
        content, prefix = message.content, ""
        for _ in range(message.images):
            tag = "[img-%d]" % count
            count += 1
            if "[img]" in content:
                content = content.replace("[img]", tag, 1)
            else:
                prefix += tag
        out.append(replace(message, content=prefix + content))
    return out


def _stored_message(message: Params) -> Params:
    out = {"role": message["role"], "content": message["content"]}
    for key in ("thinking", "images", "tool_calls", "tool_name", "tool_call_id"):
        if message.get(key):
            out[key] = message[key]
    return out


def _listed_facts(model: Model) -> Params:
    """What /api/tags tells of a model beside its config, read from the GGUF where that can be read."""
    details, capabilities = model.details(parent=True), list[str]()
    with contextlib.suppress(ApiError, OSError, ServerPanic):
        capabilities = model.capabilities()
        gguf = read_gguf(model.path, verbose=False)
        lengths = {key: gguf.number(key) for key in ("context_length", "embedding_length")}
        details.update((key, value) for key, value in lengths.items() if value)
    return {"details": details, **({"capabilities": capabilities} if capabilities else {})}


def _quote_argument(text: str) -> str:
    if "\n" in text or text.startswith(" ") or text.endswith(" "):
        return f'"""{text}"""' if '"' in text else f'"{text}"'
    return text


def describe_model(
    model: Model, capabilities: Sequence[str], gguf: Gguf, verbose: bool, options: Params
) -> Params:
    """The reply of /api/show (server/routes.go, GetModelInfo)."""
    pairs = [
        (key, item)
        for key, value in model.options.items()
        for item in (value if isinstance(value, list) else [value])
    ]
    shown = {**model.options, **options}
    lines = [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {model.name.shortest()}",
        "",
        f"FROM {model.path}",
        f"TEMPLATE {_quote_argument(model.template.text)}",
    ]
    if model.system:
        lines.append(f"SYSTEM {_quote_argument(model.system)}")
    for key, value in shown.items():
        lines += [
            f"PARAMETER {key} {_quote_argument(format_value(item))}"
            for item in (value if isinstance(value, list) else [value])
        ]
    lines += [f"LICENSE {_quote_argument(text)}" for text in model.licenses]
    lines += [
        "MESSAGE {} {}".format(message["role"], _quote_argument(message["content"]))
        for message in model.messages
    ]
    out: Params = {
        "license": "\n".join(model.licenses),
        "modelfile": "\n".join(lines) + "\n",
        "parameters": "\n".join(
            "%-30s %s" % (key, quote_go(item) if isinstance(item, str) else format_value(item))
            for key, item in pairs
        ),
        "template": model.template.text,
        "system": model.system,
        "details": model.details(parent=True),
        "messages": [{"role": message["role"], "content": message["content"]} for message in model.messages],
    }
    out = {key: value for key, value in out.items() if value}
    values = {
        key: value
        for key, value in gguf.values.items()
        if key not in ("general.name", "tokenizer.chat_template")
    }
    if not verbose:
        values = {key: None if isinstance(value, list) else value for key, value in values.items()}
    out["model_info"] = GoMap(values)
    out["tensors"] = [
        {
            "name": tensor.name,
            "type": _TENSOR_TYPES.get(tensor.kind, ("unknown",))[0],
            "shape": list(tensor.shape),
        }
        for tensor in gguf.tensors
    ]
    out["capabilities"] = list(capabilities)
    out["modified_at"] = render_time(model.modified_ns, utc=False)
    return {key: value for key, value in out.items() if value or key == "model_info"}


# ------------------------------------------------------------ sockets
class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = None
    simulation: Simulation

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        setattr(self, "do_" + self.command, self._answer)
        return True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def _answer(self) -> None:
        started = time.monotonic()
        self.left = self._body_length()
        head = self.command == "HEAD"

        def log(status: int) -> None:
            took = (time.monotonic() - started) * 1000
            self.simulation.log(
                "GIN",
                '%d | %10.3fms | %15s | %-8s "%s"'
                % (status, took, self.client_address[0], self.command, self.path),
            )

        def write(data: bytes) -> None:
            self.wfile.write(data)

        response = Response(write, head, self.request_version != "HTTP/1.0", log)
        target = self.requestline.split()[1]  # self.path has lost a second slash at its beginning
        path = urllib.parse.unquote(target.partition("?")[0]) or "/"
        if self.request_version == "HTTP/1.1" and "Host" not in self.headers:
            response.close = True
            response.text(400, "400 Bad Request: missing required Host header", "text/plain; charset=utf-8")
        else:
            request = Request(self.command, path, self.headers, self._read, self._chunks)
            try:
                self.simulation.answer(request, response)
            except (ConnectionError, TimeoutError):
                self.close_connection = True
                return
        if self.simulation.closed.is_set():
            self.close_connection = True
            return
        with contextlib.suppress(OSError):
            late = not self._drain()
            response.close = response.close or late
            response.finish()
            self.close_connection = self.close_connection or response.close
            if late:
                self._linger()

    def _body_length(self) -> int | None:
        """Bytes of the body still to read; None for a chunked one, whose end is not known."""
        if "chunked" in (self.headers.get("Transfer-Encoding") or "").lower():
            return None
        text = self.headers.get("Content-Length") or "0"
        return int(text) if text.isdigit() else 0

    def _chunks(self) -> Iterator[bytes]:
        if self.left is None:
            yield from self._chunked()
            return
        while self.left:
            data = self.rfile.read(min(self.left, 1 << 20))
            if not data:
                raise ConnectionAbortedError("the client went away")
            self.left -= len(data)
            yield data

    def _chunked(self) -> Iterator[bytes]:
        while True:
            line = self.rfile.readline(1024)
            size = int(line.split(b";")[0].strip() or b"x", 16) if re.match(rb"[0-9a-fA-F]", line) else -1
            if size < 0:
                raise ConnectionAbortedError("the client went away")
            while size:
                data = self.rfile.read(min(size, 1 << 20))
                if not data:
                    raise ConnectionAbortedError("the client went away")
                size -= len(data)
                yield data
                if not size:
                    self.rfile.readline(16)
            if line.split(b";")[0].strip().strip(b"0") == b"":
                while self.rfile.readline(65537).strip():
                    pass
                self.left = 0
                return

    def _read(self) -> bytes:
        return b"".join(self._chunks())

    def _drain(self) -> bool:
        """Read a rest of the body that is short; False leaves a long one, as net/http does."""
        if self.left is None or self.left > 256 << 10:
            return False
        for _ in self._chunks():
            pass
        return True

    def _linger(self) -> None:
        """Let the client read the reply before the connection is reset."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(0.5)
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline and self.connection.recv(1 << 16):
            pass


class _Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        self.live: set[socket.socket] = set()
        self.live_lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self.live_lock:
            self.live.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self.live_lock:
            self.live.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        """Cut every open connection."""
        with self.live_lock:
            for connection in self.live:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError, ValueError)):
            super().handle_error(request, client_address)


def _join_host(host: str, port: int) -> str:
    return "[%s]:%d" % (host, port) if ":" in host else "%s:%d" % (host, port)


def _listen(host: str, port: int) -> _Listener:
    try:
        return _Listener(host, port)
    except OSError as error:
        text = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise StartError(
            f"Error: listen tcp {_join_host(host, port)}: bind: {text[:1].lower() + text[1:]}"
        ) from None


class RunningServer:
    """A started server. `url` has no slash at its end; `close()` stops it and removes a temporary store."""

    def __init__(self, host: str, listener: _Listener, simulation: Simulation, temporary: str) -> None:
        self._listener = listener
        self.temporary = temporary
        self.simulation = simulation
        self.models_dir = simulation.settings.models_dir
        self.port = int(listener.server_address[1])
        self.url = "http://" + _join_host(host, self.port)
        self._thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def wait(self) -> None:
        """Wait until it is closed."""
        self._thread.join()

    def close(self) -> None:
        """Stop: open replies are cut, as SIGTERM does."""
        self.simulation.closed.set()
        if self._thread.is_alive():
            self._listener.shutdown()
        self._listener.server_close()
        self._listener.cut()
        if self.temporary:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def __enter__(self) -> RunningServer:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _no_log(level: str, message: str) -> None:
    pass


def open_server(
    host: str,
    port: int,
    settings: Settings,
    log: Callable[[str, str], None] = _no_log,
    die: Callable[[], None] | None = None,
    preload: Sequence[str] = (),
) -> RunningServer:
    """Listen, prepare the store and give a server that is not started yet.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        settings: an empty `models_dir` means a temporary store with ready models.
        log: called with a level and a line.
        die: what the die faults do; by default all connections are cut and the server stops.
        preload: further names for the temporary store.
    Raises:
        StartError: the port is taken or the store cannot be made.
    """
    listener = _listen(host, port)
    temporary = ""
    try:
        if not settings.models_dir:
            temporary = tempfile.mkdtemp(prefix="simulated-ollama-")
            settings = replace(settings, models_dir=os.path.join(temporary, "models"))

        def cut() -> None:
            threading.Thread(target=server.close, daemon=True).start()
            simulation.closed.set()
            listener.cut()
            raise ConnectionAbortedError("fault: die")

        simulation = Simulation(settings, log, die or cut)
        simulation.loopback = host == "localhost" or (("." in host or ":" in host) and _is_loopback(host))
        listener.RequestHandlerClass = type("Handler", (_Handler,), {"simulation": simulation})
        try:
            simulation.store.start(lambda line: log("INFO", line))
            if settings.release.reads_models_at_start:
                simulation.read_models()
        except ApiError as error:
            raise StartError(f"Error: {error.message}") from None
        except ServerPanic as panic:
            raise StartError(_PANIC_GGUF % panic, 2) from None
        if temporary:
            preload_models(simulation, preload)
        server = RunningServer(host, listener, simulation, temporary)
    except BaseException:
        listener.server_close()
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return server


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def preload_models(simulation: Simulation, names: Sequence[str] = ()) -> None:
    """Create canary, myqwen2, qwen, bare and `names` from a tiny GGUF made here."""
    data = render_gguf(
        {
            "general.architecture": "qwen2",
            "general.type": "model",
            "qwen2.block_count": 1,
            "qwen2.context_length": 32768,
            "qwen2.embedding_length": 32,
            "qwen2.attention.head_count": 1,
            "qwen2.attention.head_count_kv": 1,
        },
        [("token_embd.weight", (32, 8))],
    )
    digest = simulation.store.write_blob(iter([data]), "").digest
    templates = {
        "canary": CORRECTED_TEMPLATE.rstrip(),
        "myqwen2": CORRECTED_TEMPLATE.rstrip(),
        "qwen": QWEN_TEMPLATE,
        "bare": BARE_TEMPLATE,
        **dict.fromkeys(names, QWEN_TEMPLATE),
    }
    for name, template in templates.items():
        parsed = parse_name(name)
        if not parsed.is_valid():
            raise StartError(f"Error: simulated: invalid model name {quote_go(name)}")
        fields = decode_go(
            {"model": name, "files": {"simulated.gguf": digest}, "template": template}, CREATE_REQUEST
        )
        for _ in simulation.create_model(simulation.store.existing_name(parsed), fields):
            pass


def start_server(
    host: str = "127.0.0.1",
    port: int = 0,
    models_dir: str | None = None,
    script: str | dict[str, Any] | None = None,
    faults: Sequence[str] = (),
    version: str | None = None,
) -> RunningServer:
    """Start a server in this process, for tests.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        models_dir: the store; None makes a temporary one that holds canary, myqwen2, qwen and bare.
        script: path of a script file, or its content as a dict.
        faults: switches as for `--fault`.
        version: what /api/version tells; it decides which release is played.
    Returns:
        A server with `.url`, `.models_dir` and `.close()`; also a context manager.
    Raises:
        StartError: the port is taken, or a script or fault is wrong.
    """
    env = {"OLLAMA_SIMULATED_VERSION": version} if version else {}
    settings = read_settings(env, script if isinstance(script, str) else None, faults, models_dir or "")
    if isinstance(script, dict):
        settings = replace(settings, script=parse_script(json.dumps(script)))
    server = open_server(host, port, settings)
    server.start()
    return server


# ------------------------------------------------------------ command line
def _log(level: str, message: str) -> None:
    now = time.time()
    if level == "GIN":
        print(
            "[GIN] {} | {}".format(time.strftime("%Y/%m/%d - %H:%M:%S", time.localtime(now)), message),
            flush=True,
        )
        return
    stamp = render_time(int(now * 1000) * 1_000_000, utc=False)
    print(
        f"time={stamp} level={level} source=simulated msg={quote_go(message)}",
        file=sys.stderr,
        flush=True,
    )


def _make_key(home: str) -> None:
    """The key pair that the real server makes at its first start; here it is no key."""
    directory = os.path.join(home, ".ollama")
    try:
        os.makedirs(directory, 0o755, exist_ok=True)
    except OSError as error:
        raise StartError(
            "Error: could not create directory {}".format(describe_os_error(error, "mkdir", directory))
        ) from None
    for name, mode in (("id_ed25519", 0o600), ("id_ed25519.pub", 0o644)):
        with (
            contextlib.suppress(FileExistsError, OSError),
            os.fdopen(
                os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w"
            ) as file,
        ):
            file.write("simulated, not a key\n")


_PANIC_NO_HOME = "panic: $HOME is not defined\n\ngoroutine 1 [running]:\nsimulated"
_PANIC_GGUF = "panic: runtime error: %s\n\ngoroutine 1 [running]:\nsimulated"
_PANIC_START = (
    "panic: runtime error: invalid memory address or nil pointer dereference\n[signal SIGSEGV: "
    "segmentation violation]\n\n"
    "goroutine 1 [running]:\nsimulated: fault start-fails"
)


class _Arguments(NamedTuple):
    host: str
    port: int | None
    models: str
    script: str | None
    faults: list[str]
    preload: list[str]


def _parse_arguments(argv: Sequence[str]) -> _Arguments:
    found: dict[str, list[str]] = {
        "host": [],
        "port": [],
        "models": [],
        "script": [],
        "fault": [],
        "model": [],
    }
    rest = list(argv)
    while rest:
        flag, mark, value = rest.pop(0).partition("=")
        if flag[:2] != "--" or flag[2:] not in found:
            raise StartError(f"Error: unknown flag: {flag}")
        if not mark:
            if not rest:
                raise StartError(f"Error: flag needs an argument: {flag}")
            value = rest.pop(0)
        found[flag[2:]].append(value)
    port = found["port"][-1] if found["port"] else None
    if port is not None and not (port.isdigit() and int(port) <= 65535):
        raise StartError(f"Error: invalid argument {quote_go(port)} for --port")
    return _Arguments(
        (found["host"] or [""])[-1],
        None if port is None else int(port),
        (found["models"] or [""])[-1],
        found["script"][-1] if found["script"] else None,
        found["fault"],
        found["model"],
    )


def serve(argv: Sequence[str]) -> int:
    """`ollama serve`: run until a signal. Raises StartError."""
    arguments = _parse_arguments(argv)
    env = dict(os.environ)
    settings = read_settings(env, arguments.script, arguments.faults, arguments.models)
    practising = settings.script is not None or arguments.port is not None or bool(arguments.preload)
    temporary = practising and not settings.models_dir
    home = env.get("HOME", "")
    if not settings.models_dir and not temporary:
        if not home:
            raise StartError(_PANIC_NO_HOME, 2)
        settings = replace(settings, models_dir=os.path.join(home, ".ollama", "models"))
    if not temporary:
        if not home:
            raise StartError("Error: $HOME is not defined")
        _make_key(home)
    host, port = parse_host(env.get("OLLAMA_HOST", ""))
    host = arguments.host or host or "0.0.0.0"
    port = port if arguments.port is None else arguments.port
    asked = re.search(
        r":([^:/\]]*)(?:/|$)", env.get("OLLAMA_HOST", "").partition("://")[2] or env.get("OLLAMA_HOST", "")
    )
    if asked and arguments.port is None and asked.group(1) != str(port):
        _log("WARN", "invalid port, using default port=%s default=%d" % (asked.group(1), port))
    server: list[RunningServer] = []

    def leave(code: int) -> None:
        for running in server:
            if running.temporary:
                shutil.rmtree(running.temporary, ignore_errors=True)
        os._exit(code)

    ending = {signal.SIGTERM, signal.SIGINT}
    for number in ending:
        signal.signal(number, signal.SIG_DFL)  # a shell starts background jobs with SIGINT ignored
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    _log(
        "INFO",
        "simulated ollama {}, playing {}: no model runs here, answers are {}; faults: {}".format(
            settings.version,
            settings.release.recorded,
            "played from a script" if settings.script is not None else "made by rules",
            ", ".join(sorted(settings.faults)) or "none",
        ),
    )
    server.append(open_server(host, port, settings, _log, lambda: leave(1), arguments.preload))
    if "start-fails" in settings.faults:
        server[0].close()
        raise StartError(_PANIC_START, 2)
    shown = "[::]" if host == "0.0.0.0" else host
    _log("INFO", "Ollama cloud disabled: %s" % ("true" if settings.no_cloud else "false"))
    _log("INFO", "Listening on %s:%d (version %s)" % (shown, server[0].port, settings.version))
    gpu = "id=GPU-simulated library=CUDA" if {"gpu", "cpu"} & set(settings.faults) else "id=cpu library=cpu"
    _log("INFO", f"inference compute {gpu} (simulated)")
    server[0].start()
    signal.sigwait(ending)
    leave(0)
    return 0


# ---- the client (cmd/cmd.go; words, columns and exit codes measured on 0.17.5 and 0.24.0)
_DOWN = "Error: could not connect to ollama server, run 'ollama serve' to start it"
# What the spinner of a quick answer leaves on stderr, terminal or not.
_SPIN = "\x1b[?25l\x1b[?2026h\x1b[?25l\x1b[1G\x1b[K\x1b[?25h\x1b[?2026l\x1b[2K\x1b[1G\x1b[?25h"
_PULLING = "\x1b[?2026h\x1b[?25l\x1b[1Gpulling manifest \x1b[K\x1b[?25h\x1b[?2026l"


def _ask(method: str, path: str, body: Params | None = None) -> tuple[int, str, str]:
    """Status, its words and the body, asked of OLLAMA_HOST as the real client does: without a deadline.

    Raises StartError: nobody listens, or the connection breaks off.
    """
    host, port = parse_host(os.environ.get("OLLAMA_HOST", ""))
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    connection = http.client.HTTPConnection(host, port)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        reply = connection.getresponse()
        return reply.status, f"{reply.status} {reply.reason}", reply.read().decode()
    except ConnectionRefusedError:
        raise StartError(_DOWN) from None
    except (OSError, http.client.HTTPException) as error:
        url = f"http://{_join_host(host, port)}{path}"
        cause = "EOF" if isinstance(error, http.client.HTTPException) else str(error)
        raise StartError(f'Error: {method.capitalize()} "{url}": {cause}') from None
    finally:
        connection.close()


def _stream(path: str, body: Params) -> None:
    """Read an answer of many lines to its end; an empty one is no error, whatever its status (api/client.go).

    Raises StartError: the first error in it.
    """
    status, words, text = _ask("POST", path, body)
    for line in text.splitlines():
        told = parse_json(line.encode()).get("error", "")
        if status >= 400 or told:
            raise StartError("Error: " + ": ".join(filter(None, [words if status >= 400 else "", told])))


def _read_reply(method: str, path: str, body: Params | None = None) -> Params:
    """One JSON object. Raises StartError: what the server says instead."""
    status, _, text = _ask(method, path, body)
    if status >= 400:
        told = json.loads(text)["error"] if text.startswith("{") else text
        raise StartError(
            "Error: " + (told or "something went wrong, please see the ollama server logs for details")
        )
    value: Params = json.loads(text)
    return value


def human_bytes(size: int) -> str:
    """format.HumanBytes."""
    for limit, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if size >= limit:
            value = size / limit
            return ("%d %s" if value >= 10 or value == int(value) else "%.1f %s") % (value, unit)
    return f"{size} B"


def human_time(stamp: str) -> str:
    """format.HumanTime of an RFC 3339 time, seen from now."""
    match = re.fullmatch(r"(.{19})(\.\d+)?(Z|[+-]\d\d:\d\d)", stamp)
    assert match is not None
    zone = match.group(3).replace("Z", "+00:00")
    at = datetime.fromisoformat(match.group(1) + zone).timestamp() + float(match.group(2) or 0)
    delta = time.time() - at
    if delta / 3600 / 24 / 365 <= -21:
        return "Forever"
    return _human_duration(abs(delta)) + (" from now" if delta < 0 else " ago")


def _human_duration(seconds: float) -> str:
    if seconds < 2:
        return "Less than a second" if seconds < 1 else "1 second"
    if seconds < 120:
        return "%d seconds" % seconds if seconds < 60 else "About a minute"
    if seconds < 3600:
        return "%d minutes" % (seconds // 60)
    hours = int(seconds / 3600 + 0.5)
    for limit, divisor, unit in (
        (48, 1, "hours"),
        (336, 24, "days"),
        (1440, 168, "weeks"),
        (17520, 720, "months"),
    ):
        if hours < limit:
            return "About an hour" if hours == 1 else "%d %s" % (hours // divisor, unit)
    return "%d years" % (seconds // 3600 // 24 // 365)


def render_table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Lines of cells as the real client's tables have them: padded, spaces at the end of each line.

    Cells longer than 30 (100 in a System text) are wrapped by the real client, and here left as they are.
    """
    every = [*rows, header]
    count = max(map(len, every), default=0)
    widths = [max((len(row[at]) for row in every if at < len(row)), default=0) for at in range(count)]
    lines = ["".join(cell.ljust(width) + "    " for cell, width in zip(row, widths)) for row in rows]
    if header:
        head = "    ".join(cell.ljust(width) for cell, width in zip(header, widths)) + " "
        lines.insert(0, head)
    return "".join(line + "\n" for line in lines)


def list_models(arguments: Sequence[str]) -> str:
    """`ollama list [PREFIX]`."""
    rows = [
        [m["name"], m["digest"][:12], human_bytes(m["size"]), human_time(m["modified_at"])]
        for m in _read_reply("GET", "/api/tags")["models"]
        if m["name"].lower().startswith("".join(arguments[:1]).lower())
    ]
    return render_table(rows, ["NAME", "ID", "SIZE", "MODIFIED"])


def list_running(arguments: Sequence[str]) -> str:
    """`ollama ps [PREFIX]`."""
    rows = []
    for m in _read_reply("GET", "/api/ps")["models"]:
        if not m["name"].startswith("".join(arguments[:1])):
            continue
        size, vram = m["size"], m["size_vram"]
        cpu = int((size - vram) / size * 100 + 0.5) if size else 0
        where = "100% CPU" if vram == 0 else "100% GPU" if vram == size else f"{cpu}%/{100 - cpu}% CPU/GPU"
        until = human_time(m["expires_at"])
        until = "Stopping..." if until.endswith(" ago") else until
        rows.append([m["name"], m["digest"][:12], human_bytes(size), where, str(m["context_length"]), until])
    return render_table(rows, ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"])


def show_model(arguments: Sequence[str]) -> str:
    """`ollama show NAME`."""
    reply = _read_reply("POST", "/api/show", {"model": arguments[0]})
    info, details = reply.get("model_info") or {}, reply["details"]
    kind = info.get("general.architecture", "")
    facts = [
        ("architecture", kind),
        ("parameters", details["parameter_size"]),
        ("context length", info.get(f"{kind}.context_length", "")),
        ("embedding length", info.get(f"{kind}.embedding_length", "")),
    ]
    system = reply.get("system", "").split("\n")
    tables: dict[str, list[list[str]]] = {
        "Model": [
            *(["", label, str(value)] for label, value in facts if value),
            ["", "quantization", details["quantization_level"]],
        ],
        "Capabilities": [["", name] for name in reply.get("capabilities", ())],
        "Parameters": [["", *line.split()] for line in reply.get("parameters", "").splitlines() if line],
        "System": [["", line] for line in system[:2] + ["..."] * (len(system) > 2)] if any(system) else [],
    }
    return "".join(f"  {title}\n{render_table(rows)}\n" for title, rows in tables.items() if rows)


def run_model(arguments: Sequence[str]) -> str:
    """`ollama run NAME` with an empty standard input: load the model with the server's keep_alive.

    As in RunHandler, a model that /api/show does not know is pulled first. Raises StartError: always where
    there is a prompt.
    """
    stdin = sys.stdin
    if len(arguments) > 1 or (stdin is not None and (stdin.isatty() or stdin.read())):
        raise StartError("Error: simulated: `ollama run` only loads: one NAME, standard input empty")
    name = {"model": arguments[0]}
    if _ask("POST", "/api/show", name)[0] == 404:
        print(_PULLING, file=sys.stderr)
        _stream("/api/pull", name)
    _read_reply("POST", "/api/show", name)
    try:
        _stream("/api/generate", {**name, "prompt": ""})
    finally:
        print(_SPIN, end="", file=sys.stderr, flush=True)
    print("\x1b[?25l\x1b[?25h", end="", file=sys.stderr)
    return ""


class _Verb(NamedTuple):
    answer: Callable[[Sequence[str]], str]
    least: int = 0
    most: int = 99


_CLIENT: dict[str, _Verb] = {
    "list": _Verb(list_models),
    "ls": _Verb(list_models),
    "ps": _Verb(list_running),
    "show": _Verb(show_model, 1, 1),
    "run": _Verb(run_model, 1),
}


def _unknown_flag(flag: str) -> StartError:
    """As cobra says it."""
    if flag[:2] == "--":
        return StartError("Error: unknown flag: " + flag.partition("=")[0])
    return StartError(f"Error: unknown shorthand flag: '{flag[1:2]}' in {flag}")


def _run_client(verb: str, argv: Sequence[str]) -> int:
    """One of the client's verbs. Raises StartError."""
    action, arguments = _CLIENT[verb], [item for item in argv if item != "--"]
    for flag in (item for item in argv if item[:1] == "-" and item not in ("-", "--")):
        raise _unknown_flag(flag)
    if len(arguments) < action.least or len(arguments) > action.most:
        wanted = (
            "accepts 1 arg(s), received" if action.most == 1 else "requires at least 1 arg(s), only received"
        )
        raise StartError(f"Error: {wanted} {len(arguments)}")
    _ask("HEAD", "/")
    print(action.answer(arguments), end="")
    return 0


def show_version() -> int:
    """`ollama --version`: the server's version, a warning if it is not ours or there is none."""
    mine = os.environ.get("OLLAMA_SIMULATED_VERSION") or VERSION
    try:
        version = str(_read_reply("GET", "/api/version")["version"])
    except (StartError, ValueError, KeyError):
        print("Warning: could not connect to a running Ollama instance")
        version = ""
    if version:
        print(f"ollama version is {version}")
    if version != mine:
        print(f"Warning: client version is {mine}")
    print("Warning: this ollama is simulated")
    return 0


_OTHER_VERBS = frozenset("create stop pull push signin signout cp rm launch runner".split())


def main(argv: Sequence[str]) -> int:
    """Run the command line; `argv` without the program's name. Returns the exit code; `serve` returns only
    on failure.
    """
    verb = argv[0] if argv else "--help"
    if verb in ("--help", "-h", "help"):
        print(((__doc__ or "").partition("exit 127\n")[2]).strip())
        return 0
    try:
        if verb == "serve":
            if any(flag in argv for flag in ("--help", "-h")):
                return main(["--help"])
            return serve(argv[1:])
        if not (os.environ.get("HOME") or os.environ.get("OLLAMA_MODELS")):
            raise StartError(_PANIC_NO_HOME, 2)  # whatever is asked (envconfig.Models)
        if list(argv) in (["--version"], ["-v"]):
            return show_version()
        if verb in _CLIENT:
            return _run_client(verb, argv[1:])
        if verb in _OTHER_VERBS:
            raise StartError(f"Error: simulated: `ollama {verb}` is not implemented")
        if verb[:1] == "-":
            raise _unknown_flag(verb)
        raise StartError(f'Error: unknown command "{verb}" for "ollama"')
    except StartError as error:
        print(error, file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
