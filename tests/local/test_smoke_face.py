"""tests/smoke, the suite as tests of pytest: run as other people's CI runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from healthchecks.case import load_cases
from testbed.ollama import start_server
from tests.contract.gateway import KEY, gateway
from tests.local.conftest import Site

PROJECT = Path(__file__).resolve().parents[2]
CORE = 2 * len(load_cases(level="core")) + 1
ALL = 2 * len(load_cases()) + 1
TEXT_ONLY = {"no_tools"}


def face(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One process, in the order of the files: what is shared is then really shared."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "tests/smoke", *words],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_every_case_in_every_mode_is_a_test_with_a_readable_name(tmp_path: Path) -> None:
    with start_server() as server:
        words = ["--fleet-url", server.url, "--fleet-model", "canary", "--fleet-level", "extended"]
        done = face(*words, f"--junit-xml={tmp_path}/r.xml")
    assert done.returncode == 0, done.stdout
    assert f"{ALL} passed" in done.stdout
    names = {case.get("name") for case in ET.parse(tmp_path / "r.xml").getroot().iter("testcase")}
    host = urlsplit(server.url).netloc
    assert f"test_tool_calls[{host}-canary-weather_parallel-stream]" in names
    assert f"test_the_model_is_served_and_is_shown_all_that_is_sent[{host}-canary]" in names


def test_a_model_that_is_known_plays_the_cases_of_its_own_level() -> None:
    with start_server() as server:
        done = face("--fleet-url", server.url, "--fleet-model", "canary:latest")
    assert done.returncode == 0, done.stdout
    assert f"{CORE} passed" in done.stdout


def test_a_failing_test_says_the_rule_the_place_the_reason_and_the_raw_exchange() -> None:
    with start_server(faults=["index-zero"]) as server:
        words = ["--fleet-url", server.url, "--fleet-model", "canary", "-k", "weather_parallel"]
        done = face(*words)
    assert done.returncode == 1
    assert "2 failed" in done.stdout
    assert "rule 28 (interop), reply 1: choices[0].message.tool_calls[1].index: " in done.stdout
    assert "the index of a call in a plain reply is its position" in done.stdout
    assert "the raw exchanges:" in done.stdout
    assert '"status": 200' in done.stdout
    assert "get_n_day_weather_forecast" in done.stdout


def test_the_hosts_of_an_inventory_are_tested_each_model_by_name(site: Site) -> None:
    assert site.deploy().error is None
    done = face("--fleet-inventory", str(site.inventory), "-vv")
    assert done.returncode == 0, done.stdout
    assert "[box-myqwen2-ask_database-plain] PASSED" in done.stdout
    site.processes()[0].kill()
    dead = face("--fleet-inventory", str(site.inventory), "-k", "no_tools or is_served")
    assert dead.returncode == 1
    assert "3 failed" in dead.stdout
    assert "no Ollama answers at " in dead.stdout


def test_nothing_to_test_is_said_and_is_no_failure() -> None:
    done = face("-rs")
    assert done.returncode == 0
    assert "2 skipped" in done.stdout
    assert "nothing says what to test: give --fleet-inventory FILE, or --fleet-url URL" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fleet-url", "http://h"], "`--fleet-url` needs the model to ask for"),
        (["--fleet-url", "http://h"], "add --fleet-model NAME"),
        (["--fleet-url", "http://[::1/v1"], "`--fleet-url` is no URL"),
        (["--fleet-inventory", "inventory.ini", "--fleet-level", "low"], "`--fleet-level low` is no level"),
        (
            ["--fleet-inventory", "inventory.ini", "--fleet-limit", "nobody"],
            "no host or group matches `nobody`",
        ),
        (["--fleet-inventory", "no-such.ini"], "no-such.ini"),
        (
            ["--fleet-url", "http://h", "--fleet-model", "m", "--fleet-key-env", "FLEET_NONE"],
            "no such variable",
        ),
    ],
)
def test_options_that_cannot_be_meant_are_usage_errors(words: list[str], said: str) -> None:
    done = face(*words)
    assert done.returncode == 4  # pytest's own code for a usage error
    assert said in done.stdout + done.stderr


def test_it_reaches_hosts_that_are_not_this_machine() -> None:
    # 0.0.0.0 is this machine, and no loopback address to the hook that keeps other tests from the network.
    with start_server() as server:
        port = urlsplit(server.url).port
        words = ["--fleet-url", f"http://0.0.0.0:{port}", "--fleet-model", "canary", "-k", "no_tools"]
        assert face(*words).returncode == 0


def test_the_key_is_in_no_message() -> None:
    with gateway(key="another-secret-4712") as url:
        words = [
            "--fleet-url",
            url,
            "--fleet-model",
            "canary",
            "--fleet-key-env",
            "FLEET_KEY",
            "-k",
            "no_tools",
        ]
        done = face(*words, "-vv", "-l", "--tb=long", "--showlocals", FLEET_KEY=KEY)
    assert done.returncode == 1
    assert "incorrect API key provided: Bearer ***" in done.stdout
    assert "secret" not in done.stdout + done.stderr
