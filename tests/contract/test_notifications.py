"""Messages and pings over real HTTP: services that are away, refuse or hang, and what they are asked."""

from __future__ import annotations

import io
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from healthchecks import delivery, notify
from healthchecks.addresses import Addresses, Ping, parse_addresses
from healthchecks.agent import Finished
from healthchecks.dead_man import Signal, send_pings, signal_url
from healthchecks.health import CheckResult, HealthReport, State
from healthchecks.notices import Notice
from healthchecks.spool import Spool
from tests.contract.listening import FLOOD_BYTES, Listener, listening
from tests.unit.health_host import CONFIG

TOKEN = "TIiajkdnlazkcOXrIdevi7"
PROBLEM = Notice(
    "ollama-fleet gpu01: disk failed", "FAIL disk: full", "2026-11-26T03:00:00Z", True, ("disk",)
)
RECOVERY = Notice("ollama-fleet gpu01: disk recovered", "OK disk: room", "2026-11-26T03:05:00Z", False, ())
ADDRESSES = {
    "slack": f"slack://T1JJ3T3L2/A1BRTD4JD/{TOKEN}",
    "feishu": f"feishu://{TOKEN}",
    "dingtalk": f"dingtalk://{TOKEN}",
    "wecombot": f"wecombot://{TOKEN}",
}


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as server:
        yield server


@pytest.fixture(autouse=True)
def _by_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def no_pause(_: float) -> None:
    """Retries follow at once."""


def finished(directory: Path, state: State, check: str = "disk") -> Finished:
    result = CheckResult(check, state, f"{check} is {state}", "./fleet prune")
    report = HealthReport("gpu01", "2026-11-26T03:00:00Z", 0.1, (result,), {})
    return Finished(directory, CONFIG, report, None)


def write_addresses(directory: Path, *lines: str) -> None:
    path = directory / "notify.urls"
    path.touch(mode=0o600)
    path.write_text("".join(f"{line}\n" for line in lines))


def address(server: Listener, path: str = "in") -> str:
    return f"json://127.0.0.1:{server.port}/{path}"


def test_a_problem_is_told_once_and_its_end_once(tmp_path: Path, listener: Listener) -> None:
    write_addresses(tmp_path, address(listener))
    for state in (State.PASS, State.FAIL, State.FAIL, State.UNKNOWN, State.FAIL, State.WARN, State.PASS):
        notify.notify(finished(tmp_path, state))
    assert [(one["title"], one["type"]) for one in listener.bodies()] == [
        ("ollama-fleet gpu01: disk failed", "failure"),
        ("ollama-fleet gpu01: disk recovered", "success"),
    ]
    assert listener.bodies()[0]["message"].startswith("FAIL disk: disk is fail\n  hint: ./fleet prune\n")
    assert Spool(tmp_path).messages == ()


def test_without_a_file_nothing_is_kept_and_with_one_the_first_run_tells_what_fails(
    tmp_path: Path, listener: Listener
) -> None:
    notify.notify(finished(tmp_path, State.FAIL))
    write_addresses(tmp_path, "# nobody yet", "ping http://127.0.0.1:9/u")
    notify.notify(finished(tmp_path, State.FAIL))
    assert [path.name for path in tmp_path.iterdir()] == ["notify.urls"]
    write_addresses(tmp_path, address(listener))
    notify.notify(finished(tmp_path, State.FAIL))
    assert len(listener.got) == 1


def test_what_happens_while_the_network_is_away_arrives_later_in_order(tmp_path: Path) -> None:
    with listening() as server:
        port = server.port
    write_addresses(tmp_path, f"json://127.0.0.1:{port}/in")
    for number, state in enumerate((State.FAIL, State.PASS, State.FAIL), start=1):
        run = finished(tmp_path, state)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(delivery.deliver, "__kwdefaults__", {"seconds": 0.2, "pause": no_pause})
            with pytest.raises(notify.NotTold) as caught:
                notify.notify(run)
        waits = "1 message waits" if number == 1 else f"{number} messages wait"
        assert str(caught.value) == f"json (line 1): ConnectionError; {waits}"
    with listening(port) as server:
        notify.notify(finished(tmp_path, State.FAIL))
        titles = [one["title"].rpartition(": ")[2] for one in server.bodies()]
    assert titles == ["disk failed", "disk recovered", "disk failed"]
    assert Spool(tmp_path).messages == ()


def test_a_service_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    tmp_path: Path, listener: Listener
) -> None:
    addresses = parse_addresses(address(listener))
    spool = Spool(tmp_path)
    spool.add(PROBLEM)
    listener.answers = [503, 429, 500]
    assert delivery.deliver(spool, addresses.targets, pause=no_pause) == []
    assert len(listener.got) == 4
    spool.add(RECOVERY)
    listener.answers = [403]
    told = delivery.deliver(spool, addresses.targets, pause=no_pause)
    assert told == ["json (line 1): HTTP 403; 1 message waits"]
    assert len(listener.got) == 5


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_loses_the_message_is_no_delivery(
    tmp_path: Path, listener: Listener, status: int
) -> None:
    targets = parse_addresses(address(listener)).targets
    spool = Spool(tmp_path)
    spool.add(PROBLEM)
    listener.answers = [status]
    told = delivery.deliver(spool, targets, pause=no_pause)
    assert told == ["json (line 1): redirected; 1 message waits"]
    assert [(method, path) for method, path, _ in listener.got] == [("POST", "/in"), ("GET", "/moved")]


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_that_takes_the_message_along_is_a_delivery(
    tmp_path: Path, listener: Listener, status: int
) -> None:
    spool = Spool(tmp_path)
    spool.add(PROBLEM)
    listener.answers = [status]
    assert delivery.deliver(spool, parse_addresses(address(listener)).targets, pause=no_pause) == []
    assert [(method, path) for method, path, _ in listener.got] == [("POST", "/in"), ("POST", "/moved")]
    assert [one["title"] for one in listener.bodies()] == [PROBLEM.title] * 2


@pytest.mark.parametrize("answer", ['{"code": 200, "msg": "success"}', '{"errcode": 1}'])
def test_a_code_of_a_service_of_ones_own_means_nothing(
    tmp_path: Path, listener: Listener, answer: str
) -> None:
    spool = Spool(tmp_path)
    spool.add(PROBLEM)
    listener.answers = [answer]
    assert delivery.deliver(spool, parse_addresses(address(listener)).targets, pause=no_pause) == []
    assert spool.messages == ()


def test_of_an_answer_that_does_not_end_only_the_beginning_is_read(
    tmp_path: Path, listener: Listener
) -> None:
    spool = Spool(tmp_path)
    spool.add(PROBLEM)
    listener.answers = ["flood"]
    assert delivery.deliver(spool, parse_addresses(address(listener)).targets, pause=no_pause) == []
    assert listener.flood_ended.wait(10)
    # The rest is what the kernel takes on both sides.
    assert listener.flooded_bytes < FLOOD_BYTES / 2


def test_of_what_a_ping_answers_only_the_beginning_is_read(listener: Listener) -> None:
    listener.answers = ["flood"]
    assert send_pings((Ping(1, f"{listener.url}/u"),), Signal.SUCCESS, pause=no_pause) == []
    assert listener.flood_ended.wait(10)
    assert listener.flooded_bytes < FLOOD_BYTES / 2


def test_one_service_that_hangs_keeps_no_other_waiting_and_gets_its_message_later(
    tmp_path: Path, listener: Listener
) -> None:
    with listening() as other:
        addresses = parse_addresses(f"{address(other)}\n{address(listener)}")
        spool = Spool(tmp_path)
        spool.add(PROBLEM)
        other.answers = ["hang"]
        told = delivery.deliver(spool, addresses.targets, seconds=1.0, pause=no_pause)
        assert told == ["json (line 1): no answer within 1 s; 1 message waits"]
        assert len(listener.got) == 1
    later = Spool(tmp_path)
    first, second = addresses.targets
    assert (len(later.waiting_for(first.identity)), len(later.waiting_for(second.identity))) == (1, 0)
    with listening(other.port) as back:
        assert delivery.deliver(later, addresses.targets, pause=no_pause) == []
        assert len(back.got) == 1
    assert len(listener.got) == 1, "who had it does not get it again"
    assert Spool(tmp_path).messages == ()


def test_a_file_in_place_of_the_spool_keeps_no_message_back_and_is_told(
    tmp_path: Path, listener: Listener
) -> None:
    write_addresses(tmp_path, address(listener))
    (tmp_path / "spool").touch()
    listener.answers = [403]
    for told in ("HTTP 403; 1 message waits; the spool cannot be written", "the spool cannot be written"):
        with pytest.raises(notify.NotTold, match=told):
            notify.notify(finished(tmp_path, State.FAIL))
    assert [one["title"] for one in listener.bodies()] == ["ollama-fleet gpu01: disk failed"] * 2
    notify.notify(finished(tmp_path, State.FAIL))
    assert len(listener.got) == 2


def test_a_file_that_others_may_read_is_not_used_and_what_happens_meanwhile_waits(
    tmp_path: Path, listener: Listener
) -> None:
    write_addresses(tmp_path, address(listener))
    (tmp_path / "notify.urls").chmod(0o644)
    with pytest.raises(notify.NotTold, match="chmod 600"):
        notify.notify(finished(tmp_path, State.FAIL))
    assert listener.got == []
    (tmp_path / "notify.urls").chmod(0o600)
    notify.notify(finished(tmp_path, State.FAIL))
    assert len(listener.got) == 1


def test_a_line_that_is_no_address_is_told_with_every_run_and_the_others_work(
    tmp_path: Path, listener: Listener
) -> None:
    write_addresses(
        tmp_path, "mailto://a", address(listener), f"jsons://{TOKEN}@h/?verify=no", "wecombot://?"
    )
    with pytest.raises(notify.NotTold) as caught:
        notify.notify(finished(tmp_path, State.FAIL))
    told = str(caught.value)
    assert "line 1 is no address" in told
    assert "jsons (line 3): `verify=no` is refused" in told
    assert "wecombot (line 4): apprise cannot read the address" in told
    assert TOKEN not in told
    assert len(listener.got) == 1


class Sent:
    """The requests that would have left this machine, answered here."""

    def __init__(self, patch: pytest.MonkeyPatch, answer: str, status: int = 200) -> None:
        self.requests: list[tuple[requests.PreparedRequest, dict[str, Any]]] = []
        self._answer, self._status = answer, status
        patch.setattr(requests.adapters.HTTPAdapter, "send", self._send)

    def _send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        self.requests.append((request, options))
        answer = requests.Response()
        answer.status_code, answer.request, answer.url = self._status, request, str(request.url)
        answer.raw = io.BytesIO(self._answer.encode())
        return answer


@pytest.mark.parametrize(
    ("service", "answer", "url", "text_of"),
    [
        (
            "slack",
            "ok",
            f"https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/{TOKEN}",
            lambda sent: sent["attachments"][0]["title"] + sent["attachments"][0]["text"],
        ),
        (
            "feishu",
            '{"code": 0, "msg": "success"}',
            f"https://open.feishu.cn/open-apis/bot/v2/hook/{TOKEN}/",
            lambda sent: sent["content"]["text"],
        ),
        (
            "dingtalk",
            '{"errcode": 0, "errmsg": "ok"}',
            f"https://oapi.dingtalk.com/robot/send?access_token={TOKEN}",
            lambda sent: sent["text"]["content"],
        ),
        (
            "wecombot",
            '{"errcode": 0, "errmsg": "ok"}',
            f"https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key={TOKEN}",
            lambda sent: sent["text"]["content"],
        ),
    ],
)
def test_each_service_is_asked_as_it_documents_over_tls_that_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str, answer: str, url: str, text_of: Any
) -> None:
    sent = Sent(monkeypatch, answer)
    spool = Spool(tmp_path)
    spool.add(PROBLEM)
    assert delivery.deliver(spool, parse_addresses(ADDRESSES[service]).targets, pause=no_pause) == []
    ((request, options),) = sent.requests
    assert (request.method, request.url) == ("POST", url)
    assert options["verify"] not in (False, None)
    assert max(options["timeout"]) <= 4.0
    text = text_of(json.loads(request.body or b""))
    assert "ollama-fleet gpu01: disk failed" in text
    assert "FAIL disk: full" in text
    assert spool.messages == ()


@pytest.mark.parametrize(
    ("service", "answer", "told"),
    [
        ("dingtalk", '{"errcode": 310000, "errmsg": "keywords not in content"}', "refused with code 310000"),
        ("wecombot", '{"errcode": 93000, "errmsg": "invalid webhook url"}', "refused with code 93000"),
        ("feishu", '{"code": 9499, "msg": "Bad Request"}', "refused with code 9499"),
        ("slack", "no_service", "refused"),
    ],
)
def test_a_refusal_with_http_200_is_no_delivery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str, answer: str, told: str
) -> None:
    sent = Sent(monkeypatch, answer)
    spool = Spool(tmp_path)
    spool.add(PROBLEM)
    found = delivery.deliver(spool, parse_addresses(ADDRESSES[service]).targets, pause=no_pause)
    assert found == [f"{service} (line 1): {told}; 1 message waits"]
    assert len(sent.requests) == 1
    assert len(Spool(tmp_path).messages) == 1


@pytest.mark.parametrize("service", ADDRESSES)
@pytest.mark.parametrize("ends", ["delivered", "refused", "cut", "unreadable"])
def test_no_log_says_an_address_however_it_ends(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    service: str,
    ends: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    if ends == "cut":

        def lookup(*_: Any, **__: Any) -> None:
            raise socket.gaierror(-3, "Temporary failure in name resolution")

        monkeypatch.setattr(socket, "getaddrinfo", lookup)
    else:
        Sent(monkeypatch, "ok" if service == "slack" else "{}", 500 if ends == "refused" else 200)
    line = ADDRESSES[service].replace(TOKEN, f"{TOKEN}!/!!") if ends == "unreadable" else ADDRESSES[service]
    spool = Spool(tmp_path)
    spool.add(PROBLEM)
    told = delivery.deliver(spool, parse_addresses(line).targets, seconds=0.3, pause=no_pause)
    assert bool(told) is (ends != "delivered")
    written = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))
    captured = capfd.readouterr()
    for text in (*told, caplog.text, captured.out, captured.err, written, repr(spool.messages)):
        assert TOKEN not in text


def test_a_ping_is_told_the_start_the_end_and_a_failure_and_nothing_of_the_host(
    tmp_path: Path, listener: Listener
) -> None:
    write_addresses(tmp_path, f"ping {listener.url}/u-u-i-d?create=1")
    for state in (State.PASS, State.FAIL, State.UNKNOWN):
        notify.ping_start(tmp_path)
        notify.ping_end(finished(tmp_path, state))
    paths = [path for _, path, _ in listener.got]
    assert paths == [f"/u-u-i-d{end}?create=1" for end in ("/start", "", "/start", "/fail", "/start", "")]
    assert {(method, body) for method, _, body in listener.got} == {("GET", b"")}


def test_a_ping_is_tried_again_and_one_that_nobody_hears_is_told_without_its_address(
    tmp_path: Path, listener: Listener
) -> None:
    pings = (Ping(1, f"{listener.url}/{TOKEN}"),)
    listener.answers = [500, 503]
    assert send_pings(pings, Signal.SUCCESS, pause=no_pause) == []
    assert len(listener.got) == 3
    listener.answers = ["OK (not found)"] * 500
    assert send_pings(pings, Signal.SUCCESS, seconds=0.2, pause=no_pause) == ["ping (line 1): OK (not found)"]
    listener.answers = ["hang"]
    assert send_pings(pings, Signal.SUCCESS, seconds=0.2) == ["ping (line 1): no answer within 0.2 s"]


def test_a_ping_that_fails_keeps_no_run_from_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_pings, "__kwdefaults__", {"seconds": 0.2, "pause": no_pause})
    write_addresses(tmp_path, f"ping http://127.0.0.1:9/{TOKEN}")
    notify.ping_start(tmp_path)
    with pytest.raises(notify.NotTold) as caught:
        notify.ping_end(finished(tmp_path, State.PASS))
    assert str(caught.value) == "ping (line 1): ConnectionError"
    (tmp_path / "notify.urls").chmod(0o644)
    notify.ping_start(tmp_path)
    notify.ping_end(finished(tmp_path, State.PASS))
    assert send_pings((), Signal.SUCCESS) == []
    assert parse_addresses("") == Addresses()


def test_the_signal_ends_the_path_of_an_address() -> None:
    assert signal_url("https://hc-ping.com/key/slug/?create=1", Signal.FAIL) == (
        "https://hc-ping.com/key/slug/fail?create=1"
    )
    assert signal_url("https://hc-ping.com/u", Signal.SUCCESS) == "https://hc-ping.com/u"
