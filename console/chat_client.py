"""A streamed answer over `/v1` by the official client: text as it comes, raw bytes for the judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import tenacity

from deploy.errors import ServiceError
from healthchecks.toolcalls import Exchange

ATTEMPTS = 5
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 2.0
_SHOWN_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long to wait for the connection, between two pieces of an answer, and for all of it.

    A server that has to load large weights first is silent for minutes.
    """

    connect_seconds: float = 10.0
    silence_seconds: float = 600.0
    answer_seconds: float = 1800.0


class _Kept(httpx2.SyncByteStream):
    """The body of a response, kept while the client reads it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.body = bytearray()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            self.body.extend(piece)
            yield piece

    def close(self) -> None:
        self._stream.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """A reply of which the first chunk is there; `first` is None where it has none."""

    response: httpx2.Response
    kept: _Kept
    chunks: Any
    first: Any


class ChatClient:
    """`url` is the root of the host's server, as this process reaches it."""

    def __init__(self, *, host: str, url: str, deadlines: Deadlines) -> None:
        self._host, self._url, self._deadlines = host, url, deadlines
        timeout = httpx2.Timeout(deadlines.silence_seconds, connect=deadlines.connect_seconds)
        self._client = openai.OpenAI(
            base_url=f"{url.rstrip('/')}/v1",
            api_key="unused",  # the client wants one, Ollama reads none
            max_retries=0,  # its own would repeat refused requests too
            timeout=timeout,
            # A proxy of the environment must not stand between us and a server behind a loopback port.
            http_client=openai.DefaultHttpxClient(trust_env=False),
            default_headers={"Accept-Encoding": "identity"},
        )

    def close(self) -> None:
        self._client.close()

    def answer(self, request: Mapping[str, Any], tell: Callable[[str], None]) -> Exchange:
        """Send `request` (model, messages, ...) as a stream and tell each piece of text as it arrives.

        A connection that fails is tried again as long as nothing has arrived; later the answer would come
        twice. Raises ServiceError.
        """
        asked = {**request, "stream": True, "stream_options": {"include_usage": True}}
        stop_at = time.monotonic() + self._deadlines.answer_seconds
        with self._explained():
            begun = self._begin_again(asked)
        with begun.chunks, self._explained(after_first=True):
            if begun.first is not None:
                _tell(begun.first, tell)
            for chunk in begun.chunks:
                if time.monotonic() > stop_at:
                    raise self._error("did not end", f"not within {self._deadlines.answer_seconds:g} s")
                _tell(chunk, tell)
        response = begun.response
        return Exchange(asked, response.status_code, dict(response.headers), bytes(begun.kept.body))

    def _begin_again(self, request: Mapping[str, Any]) -> _Begun:
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_worth_another),
            wait=tenacity.wait_exponential(FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            reraise=True,
        )
        return attempts(self._begin, request)

    def _begin(self, request: Mapping[str, Any]) -> _Begun:
        create: Any = self._client.chat.completions.with_raw_response.create
        raw = create(**request)
        response: httpx2.Response = raw.http_response
        kept = response.stream = _Kept(response.stream)
        chunks = raw.parse()
        return _Begun(response=response, kept=kept, chunks=chunks, first=next(chunks, None))

    @contextmanager
    def _explained(self, *, after_first: bool = False) -> Iterator[None]:
        """Errors of the client as designed ones."""
        try:
            yield
        except openai.APITimeoutError as error:
            cause = f"nothing came for {self._deadlines.silence_seconds:g} s"
            raise self._error("did not end" if after_first else "did not begin", cause) from error
        except openai.APIStatusError as error:
            cause = f"HTTP {error.status_code}: {_words(error)}"
            raise self._error("was refused", cause, task="smoke") from error
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a chunk that is not JSON
            raise self._error("broke off" if after_first else "did not begin", _words(error)) from error

    def _error(self, what: str, cause: str, *, task: str = "service start") -> ServiceError:
        return ServiceError(
            sentence=f"the answer of `{self._url}` {what}",
            host=self._host,
            cause=cause,
            unchanged="the conversation before this question",
            hint=f"./fleet {task} --limit {self._host}",
        )


def _is_worth_another(error: BaseException) -> bool:
    """A connection refused or cut; not a server that is too slow, nor one that answers with an error."""
    return isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)


def _tell(chunk: Any, tell: Callable[[str], None]) -> None:
    for choice in chunk.choices or ():
        text = choice.delta.content if choice.delta is not None else None
        if text:
            tell(text)


def _words(error: Exception) -> str:
    """What a server's error object says, else the innermost cause: the client wraps it several times."""
    body = getattr(error, "body", None)
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])[:_SHOWN_CHARACTERS]
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    return (str(cause) or type(cause).__name__)[:_SHOWN_CHARACTERS]
