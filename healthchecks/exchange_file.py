"""What people save and attach to a report: a bare reply, or exchanges with all that is known of them.

The form of an exchange file is on the page docs/judge.md. The two functions are each other's inverse.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from healthchecks.toolcalls import Exchange
from healthchecks.toolcalls.expected import why_invalid
from healthchecks.toolcalls.sse import looks_like_events
from healthchecks.toolcalls.strict_json import parse_body

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_SECONDS = 1e12


class InvalidExchangeFileError(ValueError):
    """An exchange file that says what it must not; `where` is the place in it, as `exchanges[0].status`."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


class InvalidToolsError(ValueError):
    """A text that is no list of tools; the message says what it is instead."""


@dataclass(frozen=True)
class SavedExchanges:
    """What a file holds.

    `bare`: it is a reply alone; then there is one exchange, of which nothing else is known. `tools` are those
    of the file, None where it names none: they hold for the requests that say nothing of tools themselves.
    """

    exchanges: tuple[Exchange, ...]
    tools: tuple[Mapping[str, Any], ...] | None
    bare: bool


def parse_saved(data: bytes) -> SavedExchanges:
    """Read a saved reply (JSON, an event stream, anything else) or an exchange file, whichever it is.

    An exchange file is `{"exchanges": [...]}`, a list of exchanges, or one exchange alone; an exchange is an
    object with `request`. All else is a reply: nothing is refused as one.

    Raises:
        InvalidExchangeFileError: an exchange file that is not as it must be.
    """
    document = _document(data)
    if isinstance(document, dict) and "exchanges" in document:
        entries, where, tools = document["exchanges"], "exchanges", document.get("tools")
    elif isinstance(document, list):
        entries, where, tools = document, "", None
    elif document is not None:
        entries, where, tools = [document], "", None
    else:
        # An editor's mark is not the server's.
        body = data.removeprefix(_BYTE_ORDER_MARK)
        return SavedExchanges((Exchange({}, None, None, body),), None, bare=True)
    if not isinstance(entries, list) or not entries:
        raise InvalidExchangeFileError(where, "not a list of exchanges, or an empty one")
    exchanges = tuple(_exchange(entry, f"{where}[{number}]") for number, entry in enumerate(entries))
    return SavedExchanges(exchanges, _tools(tools), bare=False)


def parse_tools(data: bytes) -> tuple[Mapping[str, Any], ...]:
    """Read a list of tools in OpenAI's form, or `{"tools": [...]}`; a tool may be its bare function object.

    Raises:
        InvalidToolsError: it is something else.
    """
    try:
        document = parse_body(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise InvalidToolsError(f"it is not JSON: {problem}") from None
    if isinstance(document, dict):
        document = document.get("tools", [document])
    if not isinstance(document, list):
        raise InvalidToolsError("it holds no list")
    return tuple(_tool(entry, number) for number, entry in enumerate(document, 1))


def _tool(entry: Any, number: int) -> Mapping[str, Any]:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidToolsError(f"entry {number} is no function with a name")
    return {"type": "function", "function": function}


def render_exchange_file(
    exchanges: Sequence[Exchange], *, tools: Sequence[Mapping[str, Any]] | None = None
) -> bytes:
    """An exchange file that `parse_saved` reads; what is not known is left out.

    Args:
        tools: those of all requests that do not name their own.
    """
    document: dict[str, Any] = {"exchanges": [_render(exchange) for exchange in exchanges]}
    if tools is not None:
        document["tools"] = list(tools)
    try:
        return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()
    except UnicodeEncodeError:
        # Half a surrogate pair in a request: only its escape can be written down.
        return (json.dumps(document, indent=1) + "\n").encode()


def _document(data: bytes) -> Any:
    """The JSON of an exchange file; None where `data` is not one."""
    # A reply of a hundred megabytes is not decoded only to find out that it is a reply.
    if b'"exchanges"' not in data and b'"request"' not in data:
        return None
    text = data.decode("utf-8-sig", "replace")
    if looks_like_events(text):
        return None
    try:
        document = parse_body(text)
    except (ValueError, RecursionError):
        return None
    first = document[0] if isinstance(document, list) and document else document
    named = isinstance(first, dict) and ("request" in first or "exchanges" in first)
    # A chat completion may hold any further key, and so may an error; that of an exchange is a text.
    is_reply = named and ("choices" in first or isinstance(first.get("error"), dict))
    return document if named and not is_reply else None


def _exchange(entry: Any, where: str) -> Exchange:
    if not isinstance(entry, dict):
        raise InvalidExchangeFileError(where, "not an object")
    request = entry.get("request")
    if request is not None and not isinstance(request, dict):
        raise InvalidExchangeFileError(where + ".request", "not the object that was sent as JSON")
    expect = _optional(entry, "expect", dict, where, "an object")
    wrong = None if expect is None else why_invalid(expect)
    if wrong is not None:
        raise InvalidExchangeFileError(where + ".expect", wrong)
    return Exchange(
        request=request or {},
        status=_optional(entry, "status", int, where, "a number such as 200"),
        headers=_headers(entry.get("headers"), where + ".headers"),
        body=_body(entry, where),
        started_seconds=_seconds(entry, "started_seconds", where),
        seconds=_seconds(entry, "seconds", where),
        error=_optional(entry, "error", str, where, "a text"),
        expect=expect,
    )


def _optional(
    entry: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str, what: str
) -> Any:
    value = entry.get(key)
    if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
        return value
    raise InvalidExchangeFileError(f"{where}.{key}", f"not {what}")


def _seconds(entry: Mapping[str, Any], key: str, where: str) -> float | None:
    value = _optional(entry, key, (int, float), where, "a number of seconds")
    # A JSON integer may be too long for a float.
    if value is None or abs(value) <= _LONGEST_SECONDS:
        return None if value is None else float(value)
    raise InvalidExchangeFileError(f"{where}.{key}", "not a number of seconds")


def _headers(value: Any, where: str) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InvalidExchangeFileError(where, "not an object of texts")
    return value


def _body(entry: Mapping[str, Any], where: str) -> bytes:
    """The reply's bytes: `body`, a text or the decoded JSON, or `body_base64` where the bytes are no text."""
    if "body_base64" in entry:
        try:
            return base64.b64decode(entry["body_base64"], validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise InvalidExchangeFileError(where + ".body_base64", "not base64") from None
    if "body" not in entry:
        if isinstance(entry.get("error"), str):
            return b""
        raise InvalidExchangeFileError(where, "no `body`, `body_base64` or `error`: nothing came back?")
    body = entry["body"]
    if isinstance(body, (dict, list)):
        return json.dumps(body).encode()
    if not isinstance(body, str):
        raise InvalidExchangeFileError(where + ".body", "not a text")
    return body.encode("utf-8", "surrogatepass")


def _tools(value: Any) -> tuple[Mapping[str, Any], ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise InvalidExchangeFileError("tools", "not a list of tools")
    try:
        return tuple(_tool(entry, number) for number, entry in enumerate(value, 1))
    except InvalidToolsError as problem:
        raise InvalidExchangeFileError("tools", str(problem)) from None


def _render(exchange: Exchange) -> dict[str, Any]:
    known: dict[str, Any] = {
        "request": dict(exchange.request),
        "status": exchange.status,
        "headers": None if exchange.headers is None else dict(exchange.headers),
    }
    try:
        known["body"] = exchange.body.decode()
    except UnicodeDecodeError:
        known["body_base64"] = base64.b64encode(exchange.body).decode("ascii")
    known["started_seconds"] = exchange.started_seconds
    known["seconds"] = exchange.seconds
    known["error"] = exchange.error
    known["expect"] = None if exchange.expect is None else dict(exchange.expect)
    return {key: value for key, value in known.items() if value is not None}
