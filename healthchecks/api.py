"""Is the Ollama server there, which one is it, and does it hold the model: checks over `/api`.

`url` is the server's root, as in `http://127.0.0.1:11434`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from healthchecks.check import Check
from healthchecks.wire import Answer, send

RETRY_SECONDS = 0.05
ANSWER_SECONDS = 10.0
"""For requests that a running server answers at once."""

# It is printed and put into reports; whoever answers with anything else has stated none.
_PLAIN_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,64}")


def is_simulated(headers: Mapping[str, str] | None) -> bool:
    """Whether the reply came from the simulated Ollama, which says so in each of its replies."""
    return any(name.lower() == "x-ollama-simulated" for name in headers or {})


def wait_ready(url: str, deadline_seconds: float) -> Check:
    """Wait until the server answers a real request, at most `deadline_seconds`.

    An open port proves nothing: the socket listens before the GPUs are discovered, and a request sent then
    waits (measured on 0.17.5). So a refused connection is tried again, and a connected request may use all
    the time left.
    """
    import tenacity

    started = time.monotonic()

    def ask_again() -> Answer:
        left = started + deadline_seconds - time.monotonic()
        return _get(url, "/api/version", max(left, RETRY_SECONDS))

    answer: Answer = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda got: got.status != 200),
        wait=tenacity.wait_fixed(RETRY_SECONDS),
        stop=tenacity.stop_before_delay(deadline_seconds),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )(ask_again)
    check = _version_check("ready", url, answer)
    return Check("ready", check.ok, check.reason, {**check.data, "seconds": time.monotonic() - started})


def server_version(url: str, deadline_seconds: float = ANSWER_SECONDS) -> Check:
    """Which version runs there: `data` has `version` and `simulated`."""
    return _version_check("version", url, _get(url, "/api/version", deadline_seconds))


@dataclass(frozen=True)
class Identity:
    """What an OpenAI-compatible endpoint says of itself.

    `server` as "ollama/0.17.5", None for one that says nothing. `unreachable` says why nobody answered.
    """

    server: str | None = None
    simulated: bool = False
    unreachable: str | None = None


def identify(url: str, key: str | None = None) -> Identity:
    """Ask a server that need not be Ollama: whatever it answers, it is there.

    Others have an `/api/version` too; the word at the root is Ollama's alone (0.17.5 to 0.32.15, recorded).

    Args:
        url: with or without `/v1`.
    """
    root = re.sub(r"/v\d+$", "", url.rstrip("/"))
    answer = send("GET", root + "/api/version", deadline_seconds=ANSWER_SECONDS, key=key)
    check = _version_check("version", root, answer)
    if check.ok and re.match(r"\d+\.\d+\.\d+", check.data["version"]) and _is_ollama(root, key):
        return Identity(f"ollama/{check.data['version']}", check.data["simulated"])
    if answer.status is None:
        # Some servers leave a request hanging that they do not know.
        answer = send("GET", root + "/v1/models", deadline_seconds=ANSWER_SECONDS, key=key)
    return Identity(unreachable=None if answer.status is not None else answer.error)


def _is_ollama(root: str, key: str | None) -> bool:
    answer = send("GET", root + "/", deadline_seconds=ANSWER_SECONDS, key=key)
    return answer.status == 200 and answer.body.strip() == b"Ollama is running"


def load_model(url: str, model: str, deadline_seconds: float) -> Check:
    """Load `model` and keep it loaded; `deadline_seconds` may be minutes for a large model on a slow disk."""
    asked = {"model": model, "keep_alive": -1}
    answer = ask(url, "POST", "/api/generate", asked, deadline_seconds=deadline_seconds)
    try:
        answer.json()
    except ValueError as problem:
        return Check("load", False, f"`{model}` could not be loaded: {problem}", {"model": model})
    return Check("load", True, f"`{model}` is loaded", {"model": model})


def loaded(url: str, model: str) -> Check:
    """Whether a runner holds `model`'s weights: `data["runner"]` is its entry in `/api/ps`."""
    try:
        runner = loaded_runner(url, model)
    except ValueError as problem:
        return Check("loaded", False, str(problem), {"model": model})
    if runner is None:
        return Check("loaded", False, f"`{model}` is not loaded", {"model": model})
    return Check("loaded", True, f"`{model}` is loaded", {"model": model, "runner": runner})


def loaded_runner(url: str, model: str) -> Mapping[str, Any] | None:
    """The entry of `/api/ps` whose runner serves `model`, None where there is none.

    Two names on one GGUF share a runner and `/api/ps` lists only the first of them (measured on 0.17.5 and
    0.24.0), so where the name is missing the manifests are compared (a copy has the digest of its source, and
    a deleted source stays listed until its keep-alive ends), then the weights: the blob in the FROM line of
    `/api/show`.

    Raises:
        ValueError: the server did not answer, or not with what Ollama answers.
    """
    running = running_models(url)
    for entry in running:
        if is_same_model(str(entry.get("model", "")), model):
            return entry
    manifest = _manifest_digest(url, model)
    for entry in running:
        if manifest is not None and entry.get("digest") == manifest:
            return entry
    wanted = _weights(url, model)
    for entry in running:
        if wanted is not None and _weights(url, str(entry.get("model", ""))) == wanted:
            return entry
    return None


def running_models(url: str) -> Sequence[Mapping[str, Any]]:
    """The entries of `/api/ps`.

    Raises:
        ValueError: as in `loaded_runner`.
    """
    reply = _get(url, "/api/ps", ANSWER_SECONDS).json()
    models = reply.get("models") if isinstance(reply, dict) else None
    if not isinstance(models, list) or not all(isinstance(entry, dict) for entry in models):
        raise ValueError(f"`{url}/api/ps` did not answer with a list of models")
    return models


def _version_check(name: str, url: str, answer: Answer) -> Check:
    data = {"simulated": is_simulated(answer.headers)}
    try:
        reply = answer.json()
    except ValueError as problem:
        return Check(name, False, f"no Ollama answers at `{url}`: {problem}", data)
    version = reply.get("version") if isinstance(reply, dict) else None
    if not isinstance(version, str) or not _PLAIN_VERSION.fullmatch(version):
        return Check(name, False, f"`{url}/api/version` states no version", data)
    kind = "simulated Ollama" if data["simulated"] else "Ollama"
    return Check(name, True, f"{kind} {version}", {"version": version, **data})


def listed_models(url: str) -> Sequence[Mapping[str, Any]]:
    """The entries of `/api/tags`; none where the answer has no list of them.

    Raises:
        ValueError: the server did not answer.
    """
    reply = _get(url, "/api/tags", ANSWER_SECONDS).json()
    listed = reply.get("models") if isinstance(reply, dict) else None
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def ask(
    url: str,
    method: str,
    path: str,
    payload: Mapping[str, Any] | None = None,
    *,
    deadline_seconds: float = ANSWER_SECONDS,
) -> Answer:
    """One request to the server's own interface."""
    return send(method, url.rstrip("/") + path, payload, deadline_seconds=deadline_seconds)


def _manifest_digest(url: str, model: str) -> str | None:
    for entry in listed_models(url):
        if is_same_model(str(entry.get("model", "")), model):
            digest = entry.get("digest")
            return digest if isinstance(digest, str) else None
    return None


def _weights(url: str, model: str) -> str | None:
    answer = ask(url, "POST", "/api/show", {"model": model})
    if answer.status != 200:
        return None
    reply = answer.json()
    modelfile = reply.get("modelfile", "") if isinstance(reply, dict) else ""
    found = re.search(r"^FROM .*\bsha256[-:]([0-9a-f]{64})\s*$", modelfile, re.MULTILINE)
    return found.group(1) if found else None


def is_same_model(one: str, other: str) -> bool:
    """Names are case-insensitive on the server, and no tag means `latest`."""
    return _full_name(one) == _full_name(other)


def _full_name(model: str) -> str:
    last = model.rsplit("/", 1)[-1]
    return (model if ":" in last else model + ":latest").lower()


def _get(url: str, path: str, deadline_seconds: float) -> Answer:
    return ask(url, "GET", path, deadline_seconds=deadline_seconds)
