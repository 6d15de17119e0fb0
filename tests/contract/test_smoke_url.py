"""`./fleet smoke --url`: any endpoint, every report, and never a word of the key."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from healthchecks.database import make_database
from healthchecks.exchange_file import parse_saved, render_exchange_file
from healthchecks.runner import Endpoint, load_cases, run_suite
from healthchecks.toolcalls import WARN, judge
from healthchecks.toolcalls.conversation import judge_conversation
from healthchecks.wire import send
from testbed.ollama import start_server
from tests.contract.gateway import KEY, gateway

PROJECT = Path(__file__).resolve().parents[2]
CASES = ["--case", "weather_parallel", "--case", "no_tools"]
OTHER_KEY = 'sk-other"secret\\wombat-2'


def smoke(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROJECT), "smoke", *words],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def events(done: subprocess.CompletedProcess[str], name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [event for event in found if event["event"] == name]


def test_an_ollama_says_its_version_and_passes(tmp_path: Path) -> None:
    with start_server() as server:
        for url in (server.url, server.url + "/v1", server.url + "/v1/"):
            done = smoke("--url", url, "--model", "canary", *CASES, "--json", cwd=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
            (summary,) = events(done, "summary")
            assert (summary["cases_passed"], summary["ollama"]) == (4, "simulated")
            assert {event["mode"] for event in events(done, "case")} == {"plain", "stream"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("model", "plays"), [("canary", 10), ("canary:latest", 10), ("myqwen2", 82)])
def test_a_model_that_is_known_plays_the_cases_of_its_own_level(
    tmp_path: Path, model: str, plays: int
) -> None:
    with start_server() as server:
        done = smoke("--url", server.url, "--model", model, "--json", cwd=tmp_path)
    assert len(events(done, "case")) == plays


def test_an_endpoint_that_only_knows_chat_completions_is_judged_without_mercy(tmp_path: Path) -> None:
    with gateway() as url:
        words = ["--url", url, "--model", "canary", "--key-env", "FLEET_KEY", *CASES, "--json"]
        strict = smoke(*words, cwd=tmp_path, FLEET_KEY=KEY)
        told = smoke(*words, "--server", "ollama/0.17.5", cwd=tmp_path, FLEET_KEY=KEY)
    # What the simulated 0.17.5 does to roles is forgiven only to a server of which that is known.
    assert strict.returncode == 2
    broken = {
        (event["mode"], finding["rule"])
        for event in events(strict, "case")
        for finding in event["findings"]
        if finding["severity"] != WARN
    }
    assert broken == {("stream", 36)}
    assert "ollama" not in events(strict, "summary")[0]
    assert told.returncode == 0, told.stdout


def test_nobody_there_is_unreachable_and_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    done = smoke("--url", url, "--model", "m", "--junit", "r.xml", "--html", "r.html", "--json", cwd=tmp_path)
    assert done.returncode == 4
    assert events(done, "summary")[0]["unreachable"] == 1
    assert "connection refused" in (tmp_path / "r.html").read_text()
    assert ET.parse(tmp_path / "r.xml").getroot().get("failures") == "1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--url", "http://h"], "`--url` needs the model"),
        (["--url", "h:1", "--model", "m"], "is no base URL"),
        (["--url", "http://[::1/v1", "--model", "m"], "`--url` is no URL"),
        (["--url", "http://h:99999/v1", "--model", "m"], "`--url` is no URL"),
        (["--url", "http://me:hunter22", "--model", "m"], "`--url` is no URL"),
        (["--url", "http://h/v1?key=hunter22", "--model", "m"], "is no base URL"),
        (["--url", "http://me:hunter22@h", "--model", "m"], "holds a name or a password"),
        (["--url", "http://h", "--model", "m", "--server", "ollama"], "names no version"),
        (["--url", "http://h", "--model", "m", "--server", "ollama/0.17"], "names no version"),
        (["--url", "http://h", "--model", "m", "--server", "0.17.5"], "names no version"),
        (
            ["--url", "http://h", "--model", "m", "--key-env", "FLEET_NONE"],
            "no such variable, or it is empty",
        ),
        (["--url", "http://h", "--model", "m", "--key-env", "FLEET_BAD"], "holds what no header can carry"),
        (["--url", "http://h", "--model", "m", "--limit", "box"], "instead of the inventory's hosts"),
        (["--model", "m"], "`--model` is for `--url` only"),
        (["--key-env", "FLEET_KEY"], "`--key-env` is for `--url` only"),
        (["--url", "http://h", "--model", "m", "--runs", "0"], "`--runs 0` plays nothing"),
        (["--url", "http://h", "--model", "m", "--case", "nope"], "`--case nope` is no case"),
        (["--url", "http://h", "--model", "m", "--junit", "no/such/r.xml"], "its directory does not exist"),
        (["--url", "http://h", "--model", "m", "--html", "."], "it is a directory"),
        (["--url", "http://h", "--model", "m", "--exchanges", "a-file"], "is no directory"),
    ],
)
def test_what_cannot_be_meant_is_told_before_anything_is_sent(
    tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "a-file").touch()
    done = smoke(*words, cwd=tmp_path, FLEET_BAD="two hunter22 words")
    assert done.returncode == 1, done.stderr
    assert said in done.stderr
    assert "hunter22" not in done.stdout + done.stderr


def test_what_was_played_before_an_interruption_is_reported(tmp_path: Path) -> None:
    words = ["--model", "canary", "--case", "weather_parallel", "--runs", "2000"]
    words += ["--junit", "r.xml", "--html", "r.html", "--json"]
    with start_server() as server:
        process = subprocess.Popen(
            [sys.executable, str(PROJECT), "smoke", "--url", server.url, *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        seen = [next(process.stdout) for _ in range(5)]
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    told = [json.loads(line) for line in [*seen, *rest.splitlines()]]
    assert told[-1]["event"] == "summary"
    assert (told[-1]["hosts"], told[-1]["failed"]) == (1, 1)
    plays = told[-1]["cases_passed"]
    # One may be told already and not be kept yet.
    assert sum(event["event"] == "case" for event in told) - plays in (0, 1)
    assert 0 < plays < 4000
    assert "switch" not in said
    cases = list(ET.parse(tmp_path / "r.xml").getroot().iter("testcase"))
    assert len([case for case in cases if "weather_parallel" in (case.get("name") or "")]) == plays
    why = f"interrupted after {plays} plays; the others were not played"
    assert why in (tmp_path / "r.xml").read_text()
    assert why in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("given", [KEY, OTHER_KEY], ids=["right key", "wrong key"])
def test_the_key_is_in_nothing_that_is_printed_or_written(tmp_path: Path, given: str) -> None:
    words = ["--model", "canary", "--key-env", "FLEET_KEY", *CASES, "--runs", "2"]
    words += ["--exchanges", "raw", "--junit", "r.xml", "--html", "r.html"]
    with gateway() as url:
        done = [
            smoke("--url", url, *words, *more, cwd=tmp_path, FLEET_KEY=given) for more in ([], ["--json"])
        ]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2 * 2 * 2 + 2
    seen = [path.read_text() for path in files] + [one.stdout + one.stderr for one in done]
    for text in seen:
        assert "secret" not in text
        assert "wombat" not in text
    if given == OTHER_KEY:
        # The server quoted it, and that is where the stars are.
        assert all(one.returncode == 2 for one in done)
        assert "incorrect API key provided: Bearer ***" in done[0].stdout
    assert "Bearer ***" in next(path for path in files if path.suffix == ".json").read_text()


def spelled_out(key: str, *, stream: bool) -> tuple[str, bytes]:
    """A reply that says the key, and whose bytes do not: in escapes, or in pieces."""
    shared = {"id": "1", "created": 1, "model": "canary"}
    if not stream:
        message = {"role": "assistant", "content": "Your key is KEY"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        whole = json.dumps({**shared, "object": "chat.completion", "choices": [choice]})
        escaped = "".join(f"\\u{ord(letter):04x}" for letter in key)
        return "application/json", whole.replace("KEY", escaped).encode()
    pieces = [
        {"index": 0, "delta": {"content": piece}, "finish_reason": None} for piece in (key[:6], key[6:])
    ]
    chunks = [{**shared, "object": "chat.completion.chunk", "choices": [piece]} for piece in pieces]
    return "text/event-stream", "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode()


class Spelling(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Authorization"].removeprefix("Bearer ")
        kind, body = spelled_out(key, stream=asked["stream"])
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_key_that_the_server_spells_out_is_in_nothing_either(tmp_path: Path) -> None:
    words = ["--model", "canary", "--key-env", "FLEET_KEY", "--case", "weather_one_call"]
    words += ["--exchanges", "raw", "--junit", "r.xml", "--html", "r.html"]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Spelling)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        done = [smoke("--url", url, *words, *more, cwd=tmp_path, FLEET_KEY=KEY) for more in ([], ["--json"])]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert [one.returncode for one in done] == [2, 2]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2 + 2
    for text in [path.read_text() for path in files] + [one.stdout + one.stderr for one in done]:
        assert "secret" not in text
        assert "u0073" not in text
    assert done[0].stdout.count("the answer spells out the API key, so it is not kept") >= 2
    for path in tmp_path.rglob("*.json"):
        (exchange,) = parse_saved(path.read_bytes()).exchanges
        assert exchange.body == b"withheld: this answer spells out the API key"


def test_a_key_is_withheld_wherever_the_answer_has_it_but_not_a_mere_placeholder() -> None:
    with gateway(key="ollama") as url:
        chat = f"{url}/chat/completions"
        refused = send("POST", chat, {}, deadline_seconds=10, key=KEY)
        assert KEY not in f"{refused.headers} {refused.body!r}"
        taken = send("POST", chat, {"model": "canary", "messages": []}, deadline_seconds=10, key="ollama")
        assert taken.headers is not None
        assert taken.headers["X-Seen-Key"] == "Bearer ollama"
    broken = send("POST", chat, {}, deadline_seconds=10, key=KEY + "\n")
    assert KEY not in str(broken.error)


def test_every_play_leaves_an_exchange_file_that_is_judged_to_the_same_verdict(tmp_path: Path) -> None:
    with start_server(faults=["index-zero"]) as server:
        words = ["--url", server.url, "--model", "canary", *CASES, "--exchanges", "raw", "--json"]
        done = smoke(*words, cwd=tmp_path)
    assert done.returncode == 2
    found = events(done, "case")
    assert len(found) == 4
    for event in found:
        host = server.url.removeprefix("http://").replace(":", "_")
        file = tmp_path / "raw" / host / "canary" / f"{event['case']}.{event['mode']}.1.json"
        verdicts = [
            judge(exchange, server="ollama/0.17.5") for exchange in parse_saved(file.read_bytes()).exchanges
        ]
        again = [(f.rule, f.severity, f.reason) for verdict in verdicts for f in verdict.findings]
        said = [(f["rule"], f["severity"], f["reason"]) for f in event["findings"]]
        assert again == said
    assert any(f["rule"] == 28 for event in found for f in event["findings"])


def test_judge_reads_what_smoke_wrote(tmp_path: Path) -> None:
    def judged(file: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROJECT), "judge", str(file), "--server", "ollama/0.17.5", "--json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = []
    for faults, folder in (([], "good"), (["missing-argument"], "bad")):
        with start_server(faults=faults) as server:
            words = ["--url", server.url, "--model", "canary", "--case", "weather_parallel"]
            smoke(*words, "--exchanges", folder, cwd=tmp_path)
        (file,) = (tmp_path / folder).rglob("*.plain.1.json")
        done.append(judged(file))
    assert [one.returncode for one in done] == [0, 2], done[0].stdout
    fired = json.loads(done[1].stdout)["fired"]
    assert {finding["rule"] for finding in fired if finding["severity"] != WARN} == {21, 55}


@pytest.mark.parametrize(
    ("faults", "server"),
    [
        ([], "ollama/0.17.5"),
        (["text-calls"], "ollama/0.17.5"),
        (["no-done"], "ollama/0.17.5"),
        (["die-after-call"], "ollama/0.17.5"),
        (["no-growth"], "ollama/0.17.5"),
        # The suite excuses no loss, and neither does a judge that is told no server.
        (["swallow"], None),
        (["cut-stream"], None),
    ],
    ids=str,
)
def test_every_case_is_judged_alike_when_it_is_played_and_when_it_is_read(
    tmp_path: Path, faults: list[str], server: str | None
) -> None:
    make_database(tmp_path / "music.sqlite", seed=1)
    with start_server(faults=faults) as simulated:
        endpoint = Endpoint(simulated.url, "myqwen2", server="ollama/0.17.5")
        results = run_suite(endpoint, load_cases(), database=tmp_path / "music.sqlite")
    for result in results:
        read = parse_saved(render_exchange_file(result.exchanges)).exchanges
        assert judge_conversation(read, server=server).ok is result.passed, (result.case, result.mode)


def test_several_runs_give_rates_with_intervals(tmp_path: Path) -> None:
    with start_server(faults=["missing-argument"]) as server:
        words = ["--url", server.url, "--model", "canary", "--case", "weather_parallel", "--runs", "3"]
        done = smoke(*words, "--json", cwd=tmp_path)
        shown = smoke(*words, cwd=tmp_path)
    (told,) = events(done, "rates")
    rules = {rate["rule"]: rate for rate in told["rules"]}
    assert (rules[21]["successes"], rules[21]["trials"]) == (0, 12)
    assert (rules[21]["low"], rules[21]["high"]) == (0.0, pytest.approx(0.2425, abs=1e-4))
    assert (rules[55]["successes"], rules[55]["trials"]) == (0, 6)
    assert told["schema_accuracy"]["trials"] == 6
    assert {event["run"] for event in events(done, "case")} == {1, 2, 3}
    assert "0 of 12, 0 % (0 to 24 %)" in shown.stdout
    assert "'location' is a required property (2 times) (in 3 runs)" in shown.stdout
