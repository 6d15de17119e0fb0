"""How recorded exchanges are sent and compared: volatile fields by type, all else by value and order."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CAPTURES = Path(__file__).parents[1] / "captures"
VERSIONS = ("0.17.5", "0.24.0", "0.32.15")
"""What the simulated server plays; of the last one only a part is recorded."""
HEADERS = ("Content-Type", "Transfer-Encoding", "Location", "Allow", "Vary")
TIMES = {"created", "created_at", "modified_at", "expires_at", "completed_at"}
IDS = re.compile(r"(chatcmpl|cmpl|resp|msg)[-_]\w+|call_[a-z0-9]{8}")


def load_case(version: str, folder: str, name: str) -> dict[str, Any]:
    """One recorded case."""
    path = CAPTURES / version / folder / f"{name}.json"
    case: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return case


def case_names(version: str, folder: str) -> list[str]:
    """All recorded cases of a folder."""
    return sorted(path.stem for path in (CAPTURES / version / folder).glob("*.json"))


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply as it came; `headers` without those that only the transport needs."""

    status: int
    headers: Mapping[str, str]
    text: str


def resolve(value: Any) -> Any:
    """A recorded request with its references to files (`@../tools.json`) filled in."""
    if isinstance(value, str) and value.startswith("@../"):
        text = (CAPTURES / VERSIONS[0] / value[4:]).read_text(encoding="utf-8")
        return json.loads(text) if value.endswith(".json") else text
    if isinstance(value, dict):
        return {key: resolve(item) for key, item in value.items()}
    return [resolve(item) for item in value] if isinstance(value, list) else value


def send(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send one request on a connection of its own; a `Host` in `headers` replaces the real one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        text = response.read().decode()
        return Reply(response.status, dict(response.getheaders()), text)
    finally:
        connection.close()


def send_recorded(port: int, request: Mapping[str, Any], replace: Mapping[str, str] | None = None) -> Reply:
    """Send a recorded request; `replace` maps recorded texts to what they are here."""
    body: bytes | None = None
    if request.get("body_raw") is not None:
        body = request["body_raw"].encode()
    elif request.get("body") is not None:
        body = json.dumps(resolve(request["body"])).encode()
    path = request["path"]
    for old, new in (replace or {}).items():
        body = body.replace(old.encode(), new.encode()) if body is not None else None
        path = path.replace(old, new)
    return send(port, request["method"], path, body, request.get("headers") or {})


def normalise(value: Any, key: str = "", loose: frozenset[str] = frozenset()) -> Any:
    """Replace what may differ by its type; `loose` names further keys of which only the type counts."""
    if key in loose or key in TIMES or key.endswith("_duration"):
        return type(value).__name__
    if isinstance(value, dict):
        return {name: normalise(item, name, loose) for name, item in value.items() if name != "context"}
    if isinstance(value, list):
        return [normalise(item, "", loose) for item in value if not str(item).startswith("... ")]
    if key == "arguments" and isinstance(value, str):
        return normalise(json.loads(value), "", loose)
    if key == "digest" and isinstance(value, str) and not value.startswith("sha256"):
        return f"{len(value)} digits"
    if key in {"parameters", "modelfile"} and isinstance(value, str):
        return sorted(value.split("\n"))
    if isinstance(value, str):
        value = re.sub(r"\b\d+ tokens|n_prompt_tokens\":\d+", "N tokens", IDS.sub(r"ID", value))
        return re.sub(r"( on \S+)?: no such host", ": no such host", value)
    return value


def shape(value: Any) -> Any:
    """The order of keys at every depth; arguments have none."""
    if isinstance(value, dict):
        return [
            (key, shape(item) if key != "arguments" else "")
            for key, item in value.items()
            if key != "context"
        ]
    return [shape(item) for item in value] if isinstance(value, list) else ""


def events_of(text: str) -> list[str]:
    """The events of a stream: SSE events are separated by a blank line, NDJSON objects by a line break."""
    parts = text.split("\n\n" if text.startswith("data: ") else "\n")
    assert parts.pop() == "", "the stream does not end where an event ends"
    return parts


def _event(text: str) -> Any:
    return text if text == "data: [DONE]" else json.loads(text.removeprefix("data: "))


def differences(
    recorded: Mapping[str, Any],
    reply: Reply,
    replace: Mapping[str, str] | None = None,
    loose: frozenset[str] = frozenset(),
) -> list[str]:
    """What a reply has else than the recorded one; an empty list means equal."""
    text = json.dumps(recorded, ensure_ascii=False)
    for old, new in (replace or {}).items():
        text = text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
    wanted: dict[str, Any] = json.loads(text)
    found = []
    if reply.status != wanted["status"]:
        found.append(f"status {reply.status}, recorded {wanted['status']}: {reply.text[:200]}")
    for name in HEADERS:
        if name == "Transfer-Encoding" and _near_the_limit(recorded):
            continue
        if reply.headers.get(name) != wanted["headers"].get(name):
            found.append(f"{name} {reply.headers.get(name)!r}, recorded {wanted['headers'].get(name)!r}")
    if "events" in wanted:
        ours, theirs = (list(map(_event, events)) for events in (events_of(reply.text), wanted["events"]))
    elif isinstance(wanted["body"], str):
        ours, theirs = [reply.text], [wanted["body"]]
    else:
        ours, theirs = [json.loads(reply.text)], [wanted["body"]]
    if len(ours) != len(theirs):
        found.append(f"{len(ours)} events, recorded {len(theirs)}: {reply.text[:500]}")
    for one, other in zip(ours, theirs, strict=False):
        if normalise(one, "", loose) != normalise(other, "", loose):
            found.append(f"{normalise(one, '', loose)}\n  recorded {normalise(other, '', loose)}")
        elif shape(one) != shape(other) and "tensors" not in str(shape(other)):
            found.append(f"order of keys {shape(one)}\n  recorded {shape(other)}")
    return found


def _near_the_limit(recorded: Mapping[str, Any]) -> bool:
    """Whether the body was cut by the capture, or a few bytes decide between length and chunks."""
    length = int(recorded["headers"].get("Content-Length", 0))
    cut = "cut by the capture" in json.dumps(recorded) or (
        isinstance(recorded.get("body"), dict) and "models" in recorded["body"]
    )
    return cut or abs(length - 2048) < 64 or "_debug_info" in json.dumps(recorded.get("body"))


GOOD = {
    "status": 200,
    "headers": {"Content-Type": "application/json"},
    "body": {"id": "chatcmpl-1", "created": 5, "finish_reason": "stop", "total_duration": 7},
}


def _reply(status: int = 200, content_type: str = "application/json", **body: Any) -> Reply:
    value = {"id": "chatcmpl-998", "created": 9, "finish_reason": "stop", "total_duration": 1, **body}
    return Reply(status, {"Content-Type": content_type}, json.dumps(value))


@pytest.mark.parametrize("name", ["tools.json", "template.qwen.txt", "template.bare.txt"])
def test_what_requests_refer_to_is_the_same_in_every_version(name: str) -> None:
    assert len({(CAPTURES / version / name).read_bytes() for version in VERSIONS}) == 1


def test_replies_that_differ_only_in_volatile_fields_are_equal() -> None:
    assert differences(GOOD, _reply()) == []


@pytest.mark.parametrize(
    "reply",
    [
        _reply(status=500),
        _reply(content_type="text/plain"),
        _reply(finish_reason="length"),
        _reply(created="now"),
        _reply(more=1),
        Reply(
            200,
            {"Content-Type": "application/json"},
            '{"created":9,"id":"chatcmpl-1","finish_reason":"stop","total_duration":1}',
        ),
    ],
    ids=["status", "header", "value", "type", "another key", "order of keys"],
)
def test_a_reply_that_differs_otherwise_is_told_from_the_recorded_one(reply: Reply) -> None:
    assert differences(GOOD, reply)
