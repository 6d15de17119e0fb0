"""Messages to their services by apprise: in order, with retries, within a deadline, each service by itself.

apprise is imported only where there is something to send, and of it only what the service needs: all of its
plugins would be 20 MB more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Callable

import requests

from healthchecks.addresses import Target
from healthchecks.answers import Beginning
from healthchecks.notices import Notice
from healthchecks.retries import Tell, ask_again, tell_all
from healthchecks.spool import Spool

SEND_SECONDS = 20.0
"""For all messages of a run to one service; the services are served at the same time."""

_PLUGINS = {
    "json": ("custom_json", "NotifyJSON"),
    "jsons": ("custom_json", "NotifyJSON"),
    "feishu": ("feishu", "NotifyFeishu"),
    "dingtalk": ("dingtalk", "NotifyDingTalk"),
    "wecombot": ("wecombot", "NotifyWeComBot"),
    "slack": ("slack", "NotifySlack"),
}

_CODED_SCHEMES = ("feishu", "dingtalk", "wecombot")
"""They refuse with HTTP 200 and a code; what another service means by a `code` is its own affair."""

_ANSWER_BYTES_AT_MOST = 64 * 1024


@dataclass(frozen=True)
class Attempt:
    """How one went: `why` is a few words without address or text; `again` where it may pass by itself."""

    delivered: bool
    why: str = ""
    again: bool = False


def deliver(
    spool: Spool,
    targets: Sequence[Target],
    *,
    seconds: float = SEND_SECONDS,
    pause: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Send what waits; what does not arrive stays in the spool. Returns a sentence for each that failed.

    `pause` waits between two attempts.
    """
    everybody = [target.identity for target in targets]
    spool.drop_delivered(everybody)
    waiting = {target.name: target for target in targets if spool.waiting_for(target.identity)}

    def serve(target: Target) -> Tell:
        return lambda until: _serve(spool, target, everybody, until, pause)

    told = []
    for name, why in tell_all({name: serve(target) for name, target in waiting.items()}, seconds).items():
        count = len(spool.waiting_for(waiting[name].identity))
        told.append(f"{name}: {why}; {'1 message waits' if count == 1 else f'{count} messages wait'}")
    return told


def _serve(
    spool: Spool, target: Target, everybody: Sequence[str], until: float, pause: Callable[[float], None]
) -> str:
    """Nothing, or why there is still something that waits."""
    try:
        plugin = make_plugin(target)
    except ValueError as problem:
        return str(problem)
    for message in spool.waiting_for(target.identity):
        if time.monotonic() >= until:
            return "more than there was time for"
        send = partial(attempt_delivery, plugin, message.notice, has_codes=target.scheme in _CODED_SCHEMES)
        attempt = ask_again(send, lambda one: one.again, until, pause)
        if not attempt.delivered:
            # The later ones wait too: nobody is to hear of a recovery before the problem.
            return attempt.why
        spool.mark_delivered(message.number, target.identity, everybody)
    return ""


def make_plugin(target: Target) -> Any:
    """What sends to this target. Raises ValueError with a sentence that does not give it away."""
    module_name, class_name = _PLUGINS[target.scheme]
    # Both log addresses. For good: a thread that is left behind may log later.
    for name in ("apprise", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    module = import_module(f"apprise.plugins.{module_name}")
    asset = import_module("apprise.asset").AppriseAsset(
        app_id="ollama-fleet", app_desc="ollama-fleet", app_url="", async_mode=False, storage_mode="memory"
    )
    module.__dict__["requests"] = _REQUESTS
    plugin_class = getattr(module, class_name)
    try:
        plugin = plugin_class(**plugin_class.parse_url(target.url), asset=asset)
    except (TypeError, ValueError, AttributeError):
        # Without the cause: its text has the address.
        raise ValueError("apprise cannot read the address") from None
    if not plugin.verify_certificate:
        raise ValueError("`verify=no` is refused: whoever stands between would get the address")
    return plugin


def attempt_delivery(plugin: Any, notice: Notice, *, has_codes: bool) -> Attempt:
    """One request, judged by what the service really answered.

    Args:
        has_codes: whether the service may refuse with a code in its answer.
    """
    kind = "failure" if notice.has_problem else "success"
    _REQUESTS.begin(has_codes=has_codes)
    try:
        delivered = plugin.notify(title=notice.title, body=notice.body, notify_type=kind, body_format="text")
    except Exception as problem:  # noqa: BLE001 - another service may work, and its text may have the address
        return Attempt(False, type(problem).__name__)
    if delivered and not _REQUESTS.why:
        return Attempt(True)
    return Attempt(False, _REQUESTS.why or "refused", _REQUESTS.again)


class _Refused(requests.RequestException):
    """The service has answered that it does not take the message."""


class _Requests:
    """What a plugin takes for the module `requests`: remembers how its request ended.

    apprise 2.3.0 says only whether it believes that a message was delivered, and believes it of WeCom and
    DingTalk, whatever they answer: they refuse with HTTP 200 and an `errcode`.
    """

    def __init__(self) -> None:
        self._mine = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(requests, name)

    def begin(self, *, has_codes: bool) -> None:
        """With the next message, of this thread."""
        self._mine.why, self._mine.again, self._mine.has_codes = "", False, has_codes

    @property
    def why(self) -> str:
        return str(getattr(self._mine, "why", ""))

    @property
    def again(self) -> bool:
        return bool(getattr(self._mine, "again", False))

    def post(self, url: str, **options: Any) -> requests.Response:
        return self.request("POST", url, **options)

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            answer = requests.request(method, url, hooks=_HOOKS, **options)  # noqa: S113 - the plugin gives a timeout
        except requests.RequestException as problem:
            self._mine.why, self._mine.again = type(problem).__name__, True
            raise
        code = _refusal(answer) if self._mine.has_codes else None
        if answer.request.method != method.upper():
            # A POST that is sent elsewhere becomes a GET (RFC 9110, 15.4.3), which has no message.
            self._mine.why = "redirected"
            raise _Refused(self._mine.why)
        if not answer.ok:
            self._mine.why = f"HTTP {answer.status_code}"
            self._mine.again = answer.status_code in (408, 429) or answer.status_code >= 500
        elif code is not None:
            self._mine.why = f"refused with code {code}"
            raise _Refused(self._mine.why)
        return answer


def _refusal(answer: requests.Response) -> int | None:
    """DingTalk's and WeCom's `errcode`, Feishu's `code`; 0 is none. Their words are not for a log."""
    try:
        said = answer.json()
    except ValueError:
        return None
    codes = [said.get(name) for name in ("errcode", "code")] if isinstance(said, dict) else []
    return next((code for code in codes if isinstance(code, int) and code != 0), None)


_HOOKS = {"response": Beginning(_ANSWER_BYTES_AT_MOST)}
_REQUESTS = _Requests()
