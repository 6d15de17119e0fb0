"""The answer of a service that is in other hands: its beginning, however much it sends."""

from __future__ import annotations

from typing import Any

import requests


class Beginning:
    """A hook of requests that keeps so many bytes of an answer's body and reads no more of it.

    requests calls it before it reads the body itself, and for each redirect on the way too.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes

    def __call__(self, answer: requests.Response, **_: Any) -> None:
        kept = b""
        for piece in answer.iter_content(4096):
            kept += piece
            if len(kept) >= self._most_bytes:
                break
        # requests offers no way to bound a body; what stands here is what `content` and `json()` go by.
        answer._content = kept[: self._most_bytes]  # noqa: SLF001
        answer.close()
