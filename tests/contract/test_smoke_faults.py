"""The smoke suite against servers that misbehave: each ends as a finding, in time, never as an exception."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from healthchecks.database import make_database
from healthchecks.runner import CaseResult, Endpoint, load_cases, run_suite
from healthchecks.wire import LARGEST_BODY_BYTES, send

DEADLINE_SECONDS = 0.4
IN_TIME_SECONDS = 10.0
"""Generous, for a busy machine; a run without a deadline would never end."""

CHUNK = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": "so"}, "finish_reason": None}],
    }
)
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"

Behaviour = Callable[[socket.socket, threading.Event], None]


def hang(_: socket.socket, over: threading.Event) -> None:
    over.wait()


def hang_in_the_body(client: socket.socket, over: threading.Event) -> None:
    client.sendall(SSE_HEAD + f"data: {CHUNK}\n\n".encode())
    over.wait()


def drip_the_head(client: socket.socket, over: threading.Event) -> None:
    for byte in SSE_HEAD * 1000:
        if over.wait(0.02):
            return
        client.sendall(bytes([byte]))


def never_end(client: socket.socket, over: threading.Event) -> None:
    client.sendall(SSE_HEAD)
    while not over.is_set():
        client.sendall(f"data: {CHUNK}\n\n".encode() * 100)


def cut_the_stream(client: socket.socket, _: threading.Event) -> None:
    client.sendall(SSE_HEAD + f"data: {CHUNK}\n\n".encode())


def cut_the_json(client: socket.socket, _: threading.Event) -> None:
    client.sendall(JSON_HEAD + b'{"id": "chat')


def hang_up(_: socket.socket, __: threading.Event) -> None:
    return


def fail(client: socket.socket, _: threading.Event) -> None:
    client.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")


def answer_a_hundred_megabytes(client: socket.socket, _: threading.Event) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 104857600\r\n\r\n")
    for _piece in range(100):
        client.sendall(b"[" * 1024 * 1024)


def send_forever_one_event(client: socket.socket, over: threading.Event) -> None:
    client.sendall(SSE_HEAD + b"data: {")
    while not over.wait(0.01):
        client.sendall(b'"a": ')


def answer_a_login_page(client: socket.socket, _: threading.Event) -> None:
    page = b"<html>login</html>"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\n\r\n"
    client.sendall(head.encode() + page)


def read_request(client: socket.socket) -> None:
    """All of it: closing a socket with unread bytes would reset the connection."""
    with client.makefile("rb") as incoming:
        head = b"".join(iter(incoming.readline, b"\r\n")).lower()
        length = head.partition(b"content-length:")[2].split(b"\r\n")[0]
        incoming.read(int(length or 0))


@contextlib.contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """A server on a free loopback port that behaves so on every connection, after it has read the request."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def talk(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            read_request(client)
            behaviour(client, over)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                client, _ = listener.accept()
                threads.append(threading.Thread(target=talk, args=(client,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=listen))
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., CaseResult]:
    make_database(tmp_path / "music.sqlite", seed=1)

    def run_one(url: str, mode: str, deadline_seconds: float = DEADLINE_SECONDS) -> CaseResult:
        (result,) = run_suite(
            Endpoint(url, "m"),
            load_cases(["no_tools"]),
            database=tmp_path / "music.sqlite",
            modes=[mode],
            deadline_seconds=deadline_seconds,
        )
        return result

    return run_one


@pytest.mark.parametrize(
    ("behaviour", "mode", "error", "rule"),
    [
        (hang, "plain", "no answer within 0.4 s", 1),
        (hang, "stream", "no answer within 0.4 s", 1),
        (drip_the_head, "stream", "no answer within 0.4 s", 1),
        (hang_in_the_body, "stream", "the answer did not end within 0.4 s", 47),
        (never_end, "stream", "the answer ", 47),
        (send_forever_one_event, "stream", "the answer did not end within 0.4 s", 47),
        (cut_the_json, "plain", "IncompleteRead", 47),
        (hang_up, "plain", "Remote end closed connection without response", 1),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error_in_time(
    run: Callable[[str, str], CaseResult], behaviour: Behaviour, mode: str, error: str, rule: int
) -> None:
    with serving(behaviour) as url:
        started = time.monotonic()
        result = run(url, mode)
        assert time.monotonic() - started < IN_TIME_SECONDS
    assert not result.passed
    assert error in str(result.error)
    assert rule in {finding.rule for finding in result.findings if finding.severity in ("must", "interop")}
    assert len(result.exchanges) == 1


@pytest.mark.parametrize(
    ("behaviour", "mode", "rule"),
    [
        (fail, "plain", 1),
        (fail, "stream", 1),
        (answer_a_login_page, "plain", 1),
        (cut_the_stream, "stream", 32),
    ],
)
def test_a_whole_answer_that_is_no_reply_breaks_its_rule(
    run: Callable[[str, str], CaseResult], behaviour: Behaviour, mode: str, rule: int
) -> None:
    with serving(behaviour) as url:
        result = run(url, mode)
    assert (result.passed, result.error) == (False, None)
    assert rule in {finding.rule for finding in result.findings}


@pytest.mark.parametrize("mode", ["plain", "stream"])
def test_a_reply_of_a_hundred_megabytes_is_not_read_to_its_end(
    run: Callable[..., CaseResult], mode: str
) -> None:
    with serving(answer_a_hundred_megabytes) as url:
        result = run(url, mode, 60.0)
    assert not result.passed
    assert result.error == f"the answer is larger than {LARGEST_BODY_BYTES} bytes"
    assert 47 in {finding.rule for finding in result.findings}
    assert len(result.exchanges[0].body) < LARGEST_BODY_BYTES + 1024 * 1024


def test_concurrent_conversations_with_a_server_that_hangs_end_in_time(tmp_path: Path) -> None:
    make_database(tmp_path / "music.sqlite", seed=1)
    with serving(hang) as url:
        started = time.monotonic()
        results = run_suite(
            Endpoint(url, "m"),
            load_cases(["concurrent_calls"]),
            database=tmp_path / "music.sqlite",
            deadline_seconds=DEADLINE_SECONDS,
            runs=2,
        )
        assert time.monotonic() - started < IN_TIME_SECONDS
    assert [(result.run, result.passed, len(result.findings)) for result in results] == [
        (1, False, 4),
        (1, False, 4),
        (2, False, 4),
    ]
    *first, last = [result.error for result in results]
    assert first == ["no answer within 0.4 s"] * 2
    assert last == "no answer within 0.4 s; the suite ends here, as 3 plays in a row waited for nothing"


def test_a_server_that_is_not_there_is_an_error(run: Callable[[str, str], CaseResult]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    result = run(f"http://127.0.0.1:{port}", "plain")
    assert (result.passed, result.error) == (False, "connection refused")


def test_the_bytes_that_arrived_before_the_deadline_are_kept() -> None:
    with serving(hang_in_the_body) as url:
        answer = send("POST", url, {}, deadline_seconds=DEADLINE_SECONDS)
    assert (answer.status, answer.body) == (200, f"data: {CHUNK}\n\n".encode())


def test_an_answer_without_an_end_is_cut_at_the_size_limit() -> None:
    with serving(never_end) as url:
        answer = send("POST", url, {}, deadline_seconds=60)
    assert answer.error == f"the answer is larger than {LARGEST_BODY_BYTES} bytes"


def test_a_key_that_no_header_can_carry_is_an_error() -> None:
    with serving(fail) as url:
        answer = send("GET", url, key="schl\u00fcssel\u4e2d", deadline_seconds=10)
    assert answer.status is None
    assert "codec can't encode" in str(answer.error)


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(answer_a_login_page) as url:
        assert send("GET", url, deadline_seconds=10).body == b"<html>login</html>"
