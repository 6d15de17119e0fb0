"""The client's verbs of the simulated binary: held to recorded words, and to a real one if there is one."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import ollama
from testbed.ollama import RunningServer, start_server
from tests.contract.ollama_binaries import (
    BINARIES,
    NOBODY_LISTENS,
    SIMULATED,
    Server,
    ask,
    free_address,
    serve,
    wait_ready,
)
from tests.contract.test_simulated_ollama_life import create, gguf, place, post, read_cli
from tests.contract.test_simulated_ollama_replay import VERSIONS
from tests.contract.test_smoke_suite import create_canary

__all__ = ["gguf"]  # a fixture

# `ollama run NAME </dev/null` of 0.17.5 and 0.24.0, without the turns of the spinner in between.
SPINNER_OF_SUCCESS = "\x1b[2K\x1b[1G\x1b[?25h\x1b[?25l\x1b[?25h"


@pytest.fixture(params=BINARIES, ids=lambda path: "simulated" if path == SIMULATED else "real")
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with serve(request.param, tmp_path / "state", free_address()) as running:
        wait_ready(running)
        create_canary(running.url)
        yield running


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """What the server of `recorded` plays."""
    return str(request.param)


@pytest.fixture
def recorded(version: str, gguf: tuple[Path, str], tmp_path: Path) -> Iterator[RunningServer]:
    """The recorded model `smol`, on a simulated server."""
    with start_server(models_dir=str(tmp_path), version=version) as running:
        place(tmp_path, gguf)
        parameters = {"num_ctx": 512, "seed": 7, "stop": ["<|im_end|>"], "temperature": 0.1}
        body = {"model": "smol", "files": {"m.gguf": f"sha256:{gguf[1]}"}, "parameters": parameters}
        system = {"template": ollama.CHATML_TEMPLATE, "system": "You are a helpful AI assistant."}
        assert post(running.port, "/api/create", {**body, **system, "stream": False}).status == 200
        yield running


def said(server: Server | RunningServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    if isinstance(server, RunningServer):
        return ask(SIMULATED, f"127.0.0.1:{server.port}", *arguments)
    return ask(server.binary, server.address, *arguments)


def without_id(text: str) -> list[str]:
    return [re.sub(r" [0-9a-f]{12} ", " ID ", line) for line in text.strip().splitlines()]


# ---- held to the records
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("verb", ["list", "ps"])
def test_without_a_server_the_recorded_words_are_said(verb: str, version: str) -> None:
    code, out, err = read_cli(version, f"{verb}_server_down")
    done = ask(SIMULATED, NOBODY_LISTENS, verb)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (code, out, err)


def test_an_absent_model_is_shown_and_run_as_recorded(recorded: RunningServer, version: str) -> None:
    code, _, err = read_cli(version, "show_missing")
    done = said(recorded, "show", "nope")
    assert (done.returncode, done.stderr.strip()) == (code, err)
    code, _, err = read_cli(version, "run_missing")
    done = said(recorded, "run", "nope-missing")
    assert done.returncode == code
    escaped = done.stderr.strip().replace("\x1b", r"\x1b")
    assert escaped.replace(" on simulated:", ":") == err.replace(" on $DNS:", ":")


def test_a_model_is_shown_as_recorded(recorded: RunningServer, version: str) -> None:
    code, out, _ = read_cli(version, "show")
    done = said(recorded, "show", "smol")
    assert done.returncode == code
    assert sorted(done.stdout.strip().splitlines()) == sorted(out.splitlines())
    assert [line for line in done.stdout.splitlines() if line[2:3].strip()] == [
        line for line in f"  {out}".splitlines() if line[2:3].strip()
    ]


@pytest.mark.parametrize(("name", "keep_alive"), [("ps_forever", -1), ("ps_loaded", "599s")])
def test_what_is_loaded_is_listed_as_recorded(
    recorded: RunningServer, version: str, name: str, keep_alive: int | str
) -> None:
    post(recorded.port, "/api/generate", {"model": "smol", "keep_alive": keep_alive})
    code, out, _ = read_cli(version, name)
    done = said(recorded, "ps")
    assert done.returncode == code
    # The size of a loaded model is what the runner's log says: the newest has another runner.
    size = "123 MB" if version == "0.32.15" else "108 MB"
    assert size in out
    assert without_id(done.stdout) == without_id(out.replace(size, "108 MB"))


def test_models_are_listed_and_chosen_as_recorded(
    recorded: RunningServer, version: str, gguf: tuple[Path, str]
) -> None:
    for name in ("qw", "qwbare"):
        create(recorded.port, name, gguf[1])
    _, out, _ = read_cli(version, "list_filter")
    ages = re.compile(r"(Less than a second|\d+ seconds?|\d+ minutes) ago\s*$", re.MULTILINE)

    def rows(text: str) -> list[str]:
        return sorted(line.split("MODIFIED")[0] for line in without_id(ages.sub("AGE", text)))

    assert rows(said(recorded, "list", "QW").stdout) == rows(out)
    assert len(said(recorded, "ls").stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second ago"),
        (61, "About a minute ago"),
        (130, "2 minutes ago"),
        (3700, "About an hour ago"),
        (47 * 3600, "47 hours ago"),
        (3 * 86400, "3 days ago"),
        (20 * 86400, "2 weeks ago"),
        (90 * 86400, "3 months ago"),
        (800 * 86400, "2 years ago"),
        (-299, "4 minutes from now"),
        (-200 * 365 * 86400, "Forever"),
    ],
)
def test_times_are_told_as_the_source_says(seconds: int, text: str) -> None:
    now = time.time_ns()
    assert ollama.human_time(ollama.render_time(now - seconds * 10**9, utc=False)) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(999, "999 B"), (1000, "1 KB"), (1_974_432, "2.0 MB"), (98_362_432, "98 MB"), (4_700_000_000, "4.7 GB")],
)
def test_sizes_are_told_as_the_source_says(size: int, text: str) -> None:
    assert ollama.human_bytes(size) == text


# ---- simulated and real
def test_running_a_model_without_a_prompt_loads_it_for_ever_and_prints_nothing(server: Server) -> None:
    assert said(server, "ps").stdout == "NAME    ID    SIZE    PROCESSOR    CONTEXT    UNTIL \n"
    done = said(server, "run", "canary")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith(SPINNER_OF_SUCCESS)
    header, row = said(server, "ps").stdout.splitlines()
    assert re.split(r"  +", header.strip()) == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert row.startswith("canary:latest    ")
    assert row.endswith("100% CPU     4096       Forever    ")


def test_the_canary_is_listed_and_shown(server: Server) -> None:
    listed = said(server, "list").stdout.splitlines()
    assert re.fullmatch(r"NAME {13}ID {14}SIZE {6}MODIFIED +", listed[0])
    assert re.fullmatch(r"canary:latest {4}[0-9a-f]{12} {4}2\.0 MB {4}.* ago {4}", listed[1])
    shown = said(server, "show", "canary").stdout
    assert "  Model\n    architecture        qwen2    \n    parameters          960" in shown
    assert "  Capabilities\n    completion    \n    tools         \n\n" in shown
    assert "    num_thread        1                 \n" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "requires at least 1 arg(s), only received 0"),
        (["show"], "accepts 1 arg(s), received 0"),
        (["show", "a", "b"], "accepts 1 arg(s), received 2"),
        (["list", "--nope"], "unknown flag: --nope"),
        (["run", "--nope", "canary"], "unknown flag: --nope"),
        (["-x"], "unknown shorthand flag: 'x' in -x"),
        (["list", "-v"], "unknown shorthand flag: 'v' in -v"),
        (["nosuch"], 'unknown command "nosuch" for "ollama"'),
        (["show", "--", "nope"], "model 'nope' not found"),
    ],
)
def test_mistakes_are_told_in_the_same_words(server: Server, arguments: list[str], message: str) -> None:
    done = said(server, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: {message}\n")


def test_without_home_and_models_every_verb_panics(server: Server) -> None:
    for verb in ("--version", "-v", "ps"):
        done = subprocess.run(
            [server.binary, verb], env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=False
        )
        assert done.returncode == 2
        assert done.stderr.startswith(b"panic: $HOME is not defined\n")


# ---- what is not simulated
@pytest.mark.parametrize("version", VERSIONS[-1:])
@pytest.mark.parametrize(
    "arguments",
    [["run", "canary", "hello"], ["pull", "x"], ["create", "x"], ["stop", "canary"], ["rm", "canary"]],
)
def test_what_it_does_not_play_fails_and_says_that_it_is_simulated(
    recorded: RunningServer, arguments: list[str]
) -> None:
    done = said(recorded, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: simulated: `ollama ")


@pytest.mark.parametrize("version", VERSIONS[-1:])
def test_a_prompt_on_standard_input_is_refused_too(recorded: RunningServer) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/",
        "OLLAMA_HOST": f"127.0.0.1:{recorded.port}",
    }
    done = subprocess.run(
        [SIMULATED, "run", "smol"], env=environment, input=b"hi", capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"simulated" in done.stderr
