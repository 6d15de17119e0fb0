"""What holds for every test: a HOME of its own, no setting of whoever runs it, no network but loopback."""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
import tempfile
from collections.abc import Mapping

import hypothesis
import pytest

from tests.fault_rows import NODE_PROPERTY, ROW_PROPERTY, read_rows

# A setting of the person's own must change no test; a test that needs one sets it.
PREFIXES_OF_SETTINGS = ("OLLAMA_", "MODELSCOPE_", "XDG_", "ANSIBLE_", "INVOKE_", "PIP_")
SETTINGS = (
    "FLEET_PYTHON",
    "FLEET_VENV",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_COLOR",
    "FORCE_COLOR",
)
# `OLLAMA_BIN` names a real server that the contract suites then run against as well.
KEPT = ("OLLAMA_BIN",)

CALLER = pytest.StashKey[Mapping[str, str]]()
"""The environment of whoever runs the tests: where packages come from is their setting."""

_home = pytest.StashKey[tempfile.TemporaryDirectory[str]]()

# A busy machine is no failure, and a failing example should fail again. CI looks at a change, with the same
# examples each time; new ones are found by whoever runs the tests otherwise.
hypothesis.settings.register_profile(
    "fleet", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("fleet")


def pytest_configure(config: pytest.Config) -> None:
    """Before anything of ours is imported: several libraries read HOME and their settings on import."""
    config.stash[CALLER] = dict(os.environ)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A script's `&` does that, and a program that a test starts and interrupts would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asks_real_hosts(config):
        # Their names, keys and proxies are those of whoever runs it: tests/smoke/conftest.py.
        return
    for name in list(os.environ):
        if name in SETTINGS or (name.startswith(PREFIXES_OF_SETTINGS) and name not in KEPT):
            del os.environ[name]
    config.stash[_home] = tempfile.TemporaryDirectory(prefix="fleet-test-home-")
    os.environ["HOME"] = config.stash[_home].name
    sys.addaudithook(_refuse_other_hosts)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the HOME of this run."""
    if _home in config.stash:
        config.stash[_home].cleanup()


def pytest_itemcollected(item: pytest.Item) -> None:
    """The rows of the fault matrix that a test shows go into the JUnit report, whichever worker runs it."""
    numbers = [number for mark in item.iter_markers("fault") for number in mark.args]
    for number in dict.fromkeys(numbers):
        if number not in read_rows():
            raise pytest.UsageError(f"{item.nodeid}: the fault matrix has no row {number}")
        item.user_properties.append((ROW_PROPERTY, str(number)))
    if numbers:
        item.user_properties.append((NODE_PROPERTY, item.nodeid))


def asks_real_hosts(config: pytest.Config) -> bool:
    """Whether tests/smoke was told what to test."""
    return any(config.getoption(name, None) is not None for name in ("fleet_inventory", "fleet_url"))


def _refuse_other_hosts(event: str, arguments: tuple[object, ...]) -> None:
    if event != "socket.connect":
        return
    address = arguments[1]
    if isinstance(address, tuple) and not _is_loopback(str(address[0])):
        raise AssertionError(f"a test tried to reach `{address[0]}`: only loopback is allowed")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
