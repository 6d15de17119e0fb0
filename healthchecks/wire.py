"""One HTTP request under a hard deadline, with every byte of the answer kept.

A server under test may hang before its status line, stop in the middle of a stream, or never end one; each
of these comes back as an `Answer` with `error` set and the bytes that did arrive.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

CONNECT_SECONDS = 10.0
LARGEST_BODY_BYTES = 16 * 1024 * 1024
PIECE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """What came back; without a status line `status` is None. `error` says why it is not whole.

    `first_byte_seconds` is from the request to the first byte of the body: of a stream, its first piece.
    """

    status: int | None
    headers: Mapping[str, str] | None
    body: bytes
    error: str | None = None
    first_byte_seconds: float | None = None

    def json(self) -> Any:
        """The decoded body.

        Raises:
            ValueError: the answer is not whole, its status is not 200 or it is not JSON; the text says which.
        """
        if self.error is not None:
            raise ValueError(self.error)
        if self.status != 200:
            said = self.body[:300].decode("utf-8", "replace").strip()
            raise ValueError(f"HTTP {self.status}: {said}")
        try:
            return json.loads(self.body)
        except ValueError:
            raise ValueError(f"not JSON: {self.body[:80]!r}") from None


@dataclass(frozen=True)
class _Arriving:
    """Filled by the receiving thread, read by the waiting one; `give_up`: nobody waits any more."""

    head: dict[str, Any] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    done: threading.Event = field(default_factory=threading.Event)
    give_up: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)

    def answer(self, error: str | None) -> Answer:
        head = self.head
        first = head.get("first_byte_seconds")
        return Answer(head.get("status"), head.get("headers"), bytes(self.body), error, first)


def send(
    method: str,
    url: str,
    payload: Mapping[str, Any] | None = None,
    *,
    deadline_seconds: float,
    key: str | None = None,
) -> Answer:
    """Send one request and return within `deadline_seconds`, whatever the server does.

    Reading happens on a thread of its own, since the time-outs of requests count from the last byte
    received, so a server that drips bytes would never run into them.

    Servers quote a key that they refuse, and answers are kept and shown: it is taken out of them here.
    """
    arriving = _Arriving()
    arguments = (method, url, payload, key, deadline_seconds, arriving)
    threading.Thread(target=_receive, args=arguments, name="receive " + url, daemon=True).start()
    if not arriving.done.wait(deadline_seconds):
        arriving.give_up.set()
        what = "the answer did not end" if "status" in arriving.head else "no answer"
        return _without(key, arriving.answer(f"{what} within {deadline_seconds:g} s"))
    return _without(key, arriving.answer(arriving.head.get("error")))


def _without(key: str | None, answer: Answer) -> Answer:
    if key is None:
        return answer
    # It brings the judge and its schemas; most servers want no key.
    from healthchecks.withheld import WHY_WITHHELD, WITHHELD, is_secret, without_key, without_key_bytes

    if not is_secret(key):
        return answer
    body, headers, error = without_key_bytes(key, answer.body), answer.headers, answer.error
    headers = headers and {name: without_key(key, value) for name, value in headers.items()}
    error = WHY_WITHHELD if body == WITHHELD else error and without_key(key, error)
    return Answer(answer.status, headers, body, error, answer.first_byte_seconds)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _receive(
    method: str,
    url: str,
    payload: Mapping[str, Any] | None,
    key: str | None,
    deadline_seconds: float,
    arriving: _Arriving,
) -> None:
    # Not gzip: the bytes are kept as they were on the wire.
    headers = {"Accept-Encoding": "identity"}
    if key is not None:
        headers["Authorization"] = "Bearer " + key
    try:
        with requests.Session() as session:
            # A proxy of the environment must not stand between us and a server on this machine.
            session.trust_env = urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1")
            # Later than the deadline, which `send` keeps; this one only ends the thread.
            timeouts = (CONNECT_SECONDS, deadline_seconds + 1)
            with session.request(
                method,
                url,
                json=payload,
                headers=headers,
                # Or requests would put a password of the user's .netrc in the key's place.
                auth=_as_it_is,
                timeout=timeouts,
                stream=True,
                allow_redirects=False,
            ) as response:
                arriving.head["headers"] = dict(response.headers)
                arriving.head["status"] = response.status_code
                _read_body(response, arriving)
    except (requests.RequestException, HTTPError, OSError, ValueError) as problem:
        # ValueError: a key that no header can carry.
        arriving.head["error"] = _plain(problem)
    finally:
        arriving.done.set()


def _read_body(response: requests.Response, arriving: _Arriving) -> None:
    while not arriving.give_up.is_set():
        piece = response.raw.read1(PIECE_BYTES)
        if not piece:
            return
        arriving.head.setdefault("first_byte_seconds", time.monotonic() - arriving.started)
        arriving.body.extend(piece)
        if len(arriving.body) > LARGEST_BODY_BYTES:
            arriving.head["error"] = f"the answer is larger than {LARGEST_BODY_BYTES} bytes"
            return


def _plain(problem: Exception) -> str:
    """The innermost cause in words: requests and urllib3 wrap it several times."""
    cause: BaseException = problem
    while cause.__context__ is not None:
        cause = cause.__context__
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    return f"{type(problem).__name__}: {cause}"
