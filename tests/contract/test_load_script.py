"""The script that loads the models after each start of the server, with the server's own binary."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.contract.ollama_binaries import (
    BINARIES,
    NOBODY_LISTENS,
    Server,
    ask,
    environment_with,
    free_address,
    serve,
    wait_ready,
)
from tests.contract.shells import need
from tests.contract.test_smoke_suite import create_canary

SCRIPT = Path(__file__).parents[2] / "deploy/templates/load.sh"
SHELLS = (("sh",), ("bash", "--posix"), ("busybox", "sh"))

NOTHING: Mapping[str, str] = {}
NO_PATIENCE = {"LOAD_WAIT_SECONDS": "0"}

# Records its words in $CALLS and fails every `run` until $FAILURES of them have failed.
SCRIPTED_BINARY = r"""
printf '<%s>' "$@" >>"$CALLS"; echo >>"$CALLS"
[ "$1" = run ] || exit 0
[ "$(grep -c '^<run>' "$CALLS")" -gt "$FAILURES" ] && exit 0
printf '\033[?25l\033[K\342\240\231 \033[?25hError: 500 Internal Server Error: out of memory\n' >&2
exit 1
"""


def load(
    binary: Path,
    address: str,
    *models: str,
    shell: tuple[str, ...] = ("sh",),
    env: Mapping[str, str] = NOTHING,
) -> tuple[int, list[str]]:
    """Exit code and lines of one run. Every word it says is on stdout."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "OLLAMA_HOST": address, **env}
    done = subprocess.run(
        [*shell, SCRIPT, binary, *models],
        env={name: value for name, value in environment.items() if value},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    return done.returncode, done.stdout.splitlines()


@pytest.fixture(params=BINARIES, ids=lambda path: "simulated" if path == BINARIES[0] else "real")
def binary(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def server(binary: Path, tmp_path: Path) -> Iterator[Server]:
    """A fresh server that has the canary, not loaded."""
    with serve(binary, tmp_path / "state", free_address()) as running:
        wait_ready(running)
        create_canary(running.url)
        yield running


@pytest.fixture
def scripted(tmp_path: Path) -> dict[str, str]:
    """PATH with a binary `ollama` that plays, and a `sleep` that only notes how long it should have been."""
    tools = {"ollama": SCRIPTED_BINARY, "sleep": 'echo "sleep $1" >>"$CALLS"'}
    return {
        "PATH": environment_with(tools, tmp_path / "bin"),
        "CALLS": str(tmp_path / "calls"),
        "FAILURES": "0",
    }


@pytest.fixture(autouse=True)
def _shell_is_there(request: pytest.FixtureRequest) -> None:
    if "shell" in request.fixturenames:
        need(request.getfixturevalue("shell")[0])


def calls(scripted: dict[str, str]) -> list[str]:
    return Path(scripted["CALLS"]).read_text().splitlines()


# ---- a server, simulated and real
@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: str(shell[0]))
def test_a_model_is_loaded_for_as_long_as_the_server_runs(server: Server, shell: tuple[str, ...]) -> None:
    code, lines = load(server.binary, server.address, "canary", shell=shell)
    assert (code, len(lines)) == (0, 1)
    assert re.fullmatch(r"loaded canary in \d+ s", lines[0])
    shown = ask(server.binary, server.address, "ps").stdout.splitlines()
    assert len(shown) == 2
    assert shown[1].startswith("canary:latest ")
    assert shown[1].endswith("Forever    ")


@pytest.mark.parametrize("shell", [SHELLS[0], SHELLS[-1]], ids=lambda shell: str(shell[0]))
def test_an_absent_model_is_told_and_not_pulled_and_the_others_are_loaded(
    server: Server, shell: tuple[str, ...]
) -> None:
    code, lines = load(server.binary, server.address, "absent", "canary", shell=shell)
    assert code == 3
    told = r"error: absent: model 'absent(:latest)?' not found on this server; nothing was pulled"
    assert re.fullmatch(told, lines[0])
    assert lines[1].startswith("loaded canary in ")
    asked = [line for line in server.log.read_text().splitlines() if line.startswith("[GIN] ")]
    assert any("/api/show" in line for line in asked)
    assert not any("/api/pull" in line for line in asked)


def test_a_model_whose_weights_are_gone_is_a_failure(server: Server, tmp_path: Path) -> None:
    max((server.models / "blobs").iterdir(), key=lambda path: path.stat().st_size).unlink()
    path = environment_with({"sleep": ""}, tmp_path / "bin")
    code, lines = load(server.binary, server.address, "Canary:latest", env={"PATH": path})
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("error: Canary:latest: ")


def test_a_damaged_model_is_told_in_the_servers_words(server: Server, tmp_path: Path) -> None:
    weights = max((server.models / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(weights, weights.stat().st_size // 2)
    path = environment_with({"sleep": ""}, tmp_path / "bin")
    code, lines = load(server.binary, server.address, "canary", env={"PATH": path})
    assert code == 1
    assert re.fullmatch(r"error: canary: .*tensor .* exceeds file size .*", lines[0])
    assert len(lines) == 1


def test_a_server_that_answers_late_is_waited_for(binary: Path, tmp_path: Path) -> None:
    address = free_address()
    with serve(binary, tmp_path / "state", address) as running:
        wait_ready(running)
        create_canary(running.url)
    found: list[tuple[int, list[str]]] = []
    asked = tmp_path / "asked"
    path = environment_with(
        {"sleep": f'echo >>"{asked}"; exec {shutil.which("sleep")} 0.05'}, tmp_path / "bin"
    )
    waiting = threading.Thread(
        target=lambda: found.append(load(binary, address, "canary", env={"PATH": path}))
    )
    waiting.start()
    while not asked.exists():
        assert waiting.is_alive()
    with serve(binary, tmp_path / "state", address) as running:
        waiting.join(60)
    assert [code for code, _ in found] == [0], (found, running.log.read_text())


def test_without_a_server_it_gives_up_in_one_line(binary: Path) -> None:
    code, lines = load(binary, NOBODY_LISTENS, "canary", "other", env=NO_PATIENCE)
    cause = "could not connect to ollama server, run 'ollama serve' to start it"
    assert (code, lines) == (1, [f"error: no answer from the server in 0 s: {cause}"])


def test_it_needs_neither_a_home_nor_a_direct_way_past_a_proxy(server: Server) -> None:
    everywhere = server.address.replace("127.0.0.1", "0.0.0.0")
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY"), f"http://{NOBODY_LISTENS}")
    code, _ = load(server.binary, everywhere, "canary", env={"HOME": "", **proxies, **NO_PATIENCE})
    assert code == 0


# ---- a scripted binary
@pytest.mark.parametrize(
    "shell", SHELLS[:2], ids=lambda shell: str(shell[0])
)  # busybox has a sleep of its own
def test_a_load_that_fails_is_tried_again_after_growing_pauses(
    scripted: dict[str, str], shell: tuple[str, ...]
) -> None:
    code, lines = load(Path("ollama"), "", "m", shell=shell, env=scripted | {"FAILURES": "9"})
    assert (code, lines) == (1, ["error: m: 500 Internal Server Error: out of memory"])
    attempt = ["<show><--><m>", "<run><--><m>"]
    pauses = [["sleep 1"], ["sleep 5"], ["sleep 15"], []]
    assert calls(scripted) == ["<ps>", *(line for pause in pauses for line in [*attempt, *pause])]


def test_a_load_that_works_at_last_is_a_success(scripted: dict[str, str]) -> None:
    code, lines = load(Path("ollama"), "", "m", "n", env=scripted | {"FAILURES": "2"})
    assert code == 0
    assert [line.split()[:2] for line in lines] == [["loaded", "m"], ["loaded", "n"]]
    assert [line for line in calls(scripted) if line.startswith("sleep")] == ["sleep 1", "sleep 5"]


def test_names_reach_the_binary_as_they_are(scripted: dict[str, str], tmp_path: Path) -> None:
    name = f"-x $(touch {tmp_path}/bad) 'q' *"
    code, _ = load(Path("ollama"), "", name, env=scripted)
    assert code == 0
    assert calls(scripted)[1:] == [f"<show><--><{name}>", f"<run><--><{name}>"]
    assert not (tmp_path / "bad").exists()


def test_questions_and_loads_have_deadlines_of_their_own(scripted: dict[str, str], tmp_path: Path) -> None:
    environment_with({"timeout": 'echo "timeout $1" >>"$CALLS"; shift; exec "$@"'}, tmp_path / "bin")
    assert load(Path("ollama"), "", "m", env=scripted)[0] == 0
    assert calls(scripted)[::2] == ["timeout 30", "timeout 30", "timeout 600"]


@pytest.mark.parametrize("code", [124, 143])
def test_a_server_that_hangs_is_told_as_such(scripted: dict[str, str], tmp_path: Path, code: int) -> None:
    environment_with({"timeout": f"exit {code}"}, tmp_path / "bin")
    told = load(Path("ollama"), "", "m", env=scripted | NO_PATIENCE)
    assert told == (1, ["error: no answer from the server in 0 s: no answer in 30 s"])


def test_it_works_without_timeout(scripted: dict[str, str], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for tool in ("sh", "grep"):
        (bare / tool).symlink_to(shutil.which(tool) or tool)
    (bare / "ollama").symlink_to(tmp_path / "bin/ollama")
    shell = (shutil.which("sh") or "sh",)
    assert load(Path("ollama"), "", "m", shell=shell, env=scripted | {"PATH": str(bare)})[0] == 0


def test_a_binary_that_is_gone_is_told(tmp_path: Path) -> None:
    code, lines = load(tmp_path / "gone", "", "m", env=NO_PATIENCE)
    assert code == 1
    assert lines[0].startswith("error: no answer from the server in 0 s: exit code 127: ")


def test_without_models_there_is_nothing_to_do_and_without_a_binary_it_says_how(tmp_path: Path) -> None:
    assert load(tmp_path / "gone", "") == (0, [])
    done = subprocess.run(["sh", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: load BINARY MODEL...\n")
