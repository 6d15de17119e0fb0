"""The recorded exchanges of `/v1/chat/completions`, as the judge is given them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from healthchecks.toolcalls import Exchange
from healthchecks.toolcalls.conversation import judge_conversation

CAPTURES = Path(__file__).parents[1] / "captures"
VERDICTS = CAPTURES / "verdicts.json"
VERSIONS = ("0.17.5", "0.24.0", "0.32.15")


@dataclass(frozen=True)
class Capture:
    """One recorded exchange: `name` is version, folder, case and, for scripted ones, the variant."""

    name: str
    version: str
    about: str
    model_output: str
    exchange: Exchange


@cache
def captures() -> tuple[Capture, ...]:
    """All of them: scripted model output, and requests to a real server."""
    return tuple(
        capture
        for version in VERSIONS
        for folder in ("scripted", "http")
        for path in sorted((CAPTURES / version / folder).glob("*.json"))
        for capture in _read(version, path)
    )


def verdict_on(capture: Capture) -> dict[str, list[list[Any]]]:
    """What fires, without and with the server's version: rule, severity, the issue that it is known as."""
    verdicts = {
        "absolute": judge_conversation([capture.exchange]),
        "with_server": judge_conversation([capture.exchange], server=f"ollama/{capture.version}"),
    }
    return {
        kind: [
            list(entry) for entry in dict.fromkeys((f.rule, f.severity, f.known) for f in verdict.findings)
        ]
        for kind, verdict in verdicts.items()
    }


def _read(version: str, path: Path) -> Iterator[Capture]:
    document = json.loads(path.read_bytes())
    scripted = "exchanges" in document
    for entry in document["exchanges"] if scripted else [document]:
        request = entry["request"]
        if request["path"] != "/v1/chat/completions" or request["method"] != "POST":
            continue
        name = f"{version}/{path.parent.name}/{path.stem}"
        yield Capture(
            name=f"{name}/{entry['variant']}" if scripted else name,
            version=version,
            about=document["about"],
            model_output=document.get("model_output", {}).get("text", ""),
            exchange=_exchange(version, request, entry["response"]),
        )


def _exchange(version: str, request: dict[str, Any], response: dict[str, Any]) -> Exchange:
    sent = request.get("body")
    body = dict(sent) if isinstance(sent, dict) else {}
    if body.get("tools") == "@../tools.json":
        body["tools"] = json.loads((CAPTURES / version / "tools.json").read_bytes())
    return Exchange(body, response["status"], response["headers"], _body(response))


def _body(response: dict[str, Any]) -> bytes:
    if "events" in response:
        return "".join(f"{event}\n\n" for event in response["events"]).encode()
    body = response["body"]
    return (response.get("raw") or (body if isinstance(body, str) else json.dumps(body))).encode()
