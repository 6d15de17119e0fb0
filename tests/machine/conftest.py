"""One emulated machine for the whole run: each start of it costs half a minute."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from console.paths import CANARY
from testbed.demo import WEIGHTS_FILE, WEIGHTS_REPO
from testbed.machine import Machine, make_machine
from testbed.mirror import MirrorRepo, start_mirror
from tests.hosts.site import Site, forget_connections
from tests.killed_runs import name_of_run, remove_killed_runs
from tests.own_modelfiles import core_cases

_PREFIX = "fleet-test-machine-"
RELEASES = ("0.17.5", "0.17.7")


@pytest.fixture(scope="session")
def only_machine() -> Iterator[Machine]:
    """Switched on; it ends with this process, its disk with the next run where this one was killed."""
    # A machine ends with the process that started it: its files are all that can be left.
    remove_killed_runs(_PREFIX, take_down=lambda directory: None)
    with tempfile.TemporaryDirectory(prefix=name_of_run(_PREFIX)) as directory:
        made = make_machine("machine", Path(directory), tell=print)
        try:
            switch_on(made)
            yield made
        finally:
            made.down()


def switch_on(machine: Machine) -> None:
    machine.start()
    machine.wait_for_ssh()


@pytest.fixture
def machine(only_machine: Machine) -> Machine:
    """On, whatever the test before has done to it."""
    if not only_machine.is_running:
        switch_on(only_machine)
    return only_machine


@pytest.fixture
def site(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The machine with two releases to choose from; one of them serves already, with its model loaded."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = MirrorRepo(repo=WEIGHTS_REPO, revisions={"master": {WEIGHTS_FILE: CANARY}})
    with start_mirror([weights]) as mirror, contextlib.ExitStack() as ending:
        made = Site(host=machine, directory=tmp_path, mirror=mirror, modelfiles=core_cases(tmp_path))
        for release in RELEASES:
            made.add_release(release)
        ending.callback(forget_connections)
        made.version = made.current() or RELEASES[0]
        if not made.plan().is_empty:
            assert made.deploy().error is None
        yield made


def other(release: str) -> str:
    """The one to go to from the one that serves."""
    return RELEASES[1 - RELEASES.index(release)]
