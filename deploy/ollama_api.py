"""The few calls of Ollama's own HTTP API that a deploy makes, each with a deadline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import requests

from deploy.errors import ModelRefused, ServiceError

SHORT_SECONDS = 10.0
# Hashing and copying of weights happen inside create; loading reads them from disk.
LONG_SECONDS = 600.0


class OllamaApi:
    """One server under one base URL."""

    def __init__(self, host: str, url: str) -> None:
        self._host = host
        self._url = url
        self._session = requests.Session()
        # A proxy of the environment must never see, or break, a call to loopback.
        self._session.trust_env = False

    def version(self, timeout_seconds: float = SHORT_SECONDS) -> str:
        """`/api/version`. Raises requests.RequestException while nobody answers."""
        reply = self._session.get(f"{self._url}/api/version", timeout=timeout_seconds)
        reply.raise_for_status()
        return str(reply.json()["version"])

    def create(self, body: Mapping[str, Any]) -> None:
        """`/api/create`; raises ModelRefused with the server's words.

        An error can come as the second line of a reply with status 200 (measured on 0.17.5).
        """
        name = str(body.get("model"))
        text = self._post("/api/create", {**body, "stream": True}, f"`{name}` was not created", LONG_SECONDS)
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
        error = next((line["error"] for line in lines if "error" in line), None)
        if error is not None or not lines or lines[-1].get("status") != "success":
            raise self._refused(
                f"`{name}` was not created", str(error or "the reply ended without `success`")
            )

    def copy(self, source: str, destination: str) -> None:
        """`/api/copy`: the destination is replaced."""
        body = {"source": source, "destination": destination}
        self._post("/api/copy", body, f"`{source}` was not copied to `{destination}`", SHORT_SECONDS)

    def delete(self, name: str) -> None:
        """`/api/delete`; an absent model is no error."""
        self._request(
            "DELETE", "/api/delete", {"model": name}, f"`{name}` was not deleted", SHORT_SECONDS, (404,)
        )

    def load(self, name: str) -> None:
        """Load a model for good: a `generate` without a prompt (ollama docs/api.md)."""
        self._post(
            "/api/generate",
            {"model": name, "keep_alive": -1, "stream": False},
            f"`{name}` was not loaded",
            LONG_SECONDS,
        )

    def loaded_names(self) -> frozenset[str]:
        """The names in `/api/ps`, in lower case."""
        text = self._request("GET", "/api/ps", None, "the loaded models are not known", SHORT_SECONDS, ())
        return frozenset(str(entry["name"]).lower() for entry in json.loads(text)["models"])

    def unload(self, name: str) -> None:
        """Unload a model; an absent one is no error."""
        body = {"model": name, "keep_alive": 0, "stream": False}
        self._request("POST", "/api/generate", body, f"`{name}` was not unloaded", SHORT_SECONDS, (404,))

    def _post(self, path: str, body: Mapping[str, Any], sentence: str, timeout_seconds: float) -> str:
        return self._request("POST", path, body, sentence, timeout_seconds, ())

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        sentence: str,
        timeout_seconds: float,
        allowed: tuple[int, ...],
    ) -> str:
        try:
            reply = self._session.request(method, self._url + path, json=body, timeout=(5, timeout_seconds))
        except requests.RequestException as error:
            raise ServiceError(
                sentence=sentence,
                host=self._host,
                cause=f"{method} {path}: {error}",
                hint=f"./fleet status --limit {self._host}",
            ) from error
        if reply.status_code >= 400 and reply.status_code not in allowed:
            words = reply.text.strip() or "an empty reply"
            raise self._refused(sentence, f"{method} {path}: HTTP {reply.status_code}: {words[:500]}")
        return reply.text

    def _refused(self, sentence: str, cause: str) -> ModelRefused:
        return ModelRefused(
            sentence=sentence,
            host=self._host,
            cause=cause,
            hint=f"./fleet status --limit {self._host} shows what the server holds",
        )
