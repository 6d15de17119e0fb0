"""Real systemd hosts on this machine: a network for the whole run, a fresh host for each test that asks."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.conftest as everywhere
from console.paths import CANARY
from testbed.demo import WEIGHTS_FILE, WEIGHTS_REPO
from testbed.hosts import NoFleet, PracticeFleet, open_fleet, take_down
from testbed.hosts_host import Host
from testbed.hosts_kinds import Kind
from testbed.mirror import MirrorRepo, start_mirror
from tests.hosts.site import HostSite, forget_connections, untouched
from tests.killed_runs import name_of_run, remove_killed_runs
from tests.own_modelfiles import core_cases

_PREFIX = "fleet-test-hosts-"
WEIGHTS = MirrorRepo(repo=WEIGHTS_REPO, revisions={"master": {WEIGHTS_FILE: CANARY}})
_LONGEST_FIRST = ("network_faults", "life", "many_faults", "rollback", "faults", "disks", "cron")
"""The files that take minutes: begun last, one of them keeps one worker busy when the others have ended."""


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would begin with the files of many tests.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def fleet() -> Iterator[PracticeFleet]:
    """A fleet without hosts: `fleet.add(Kind.POOR)` makes one, `fleet.remove(host)` takes it away.

    Each worker of a parallel run has its own, and none disturbs a fleet that a person has up.
    """
    remove_killed_runs(_PREFIX, _end_fleet)
    with tempfile.TemporaryDirectory(prefix=name_of_run(_PREFIX)) as directory:
        made = open_fleet(Path(directory, "fleet"), [f"t{os.getpid()}h"], tell=print)
        with pytest.MonkeyPatch.context() as patch:
            subnet, before = made.network.subnet, everywhere._is_loopback
            patch.setattr(
                everywhere,
                "_is_loopback",
                lambda host: before(host) or ipaddress.ip_address(host) in subnet,
            )
            try:
                yield made
            finally:
                made.down()


@pytest.fixture
def host(request: pytest.FixtureRequest, fleet: PracticeFleet) -> Iterator[Host]:
    """A fresh host that answers by SSH. `@pytest.mark.parametrize("host", [Kind.POOR], indirect=True)`."""
    made = fleet.add(getattr(request, "param", Kind.RICH))
    try:
        made.wait_for_ssh()
        yield made
    finally:
        fleet.remove(made)


def _end_fleet(directory: Path) -> None:
    with contextlib.suppress(NoFleet):
        take_down(directory / "fleet")


@pytest.fixture(scope="session")
def bystander(fleet: PracticeFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host that serves, in the inventory beside the one that a test is about: nothing of it may change."""
    directory = tmp_path_factory.mktemp("bystander")
    made = fleet.add(Kind.RICH)
    try:
        with pytest.MonkeyPatch.context() as patch, start_mirror([WEIGHTS]) as mirror:
            patch.setenv("HOME", str(directory))
            patch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
            site = HostSite(host=made, directory=directory, mirror=mirror, modelfiles=core_cases(directory))
            site.add_release(site.version)
            made.wait_for_ssh()
            assert site.deploy().error is None
            forget_connections()
        yield made
    finally:
        fleet.remove(made)


@pytest.fixture
def modelfiles(tmp_path: Path) -> Path:
    """What `site` deploys; a file whose tests are about the whole suite has its own."""
    return core_cases(tmp_path)


@pytest.fixture
def site(
    host: Host, bystander: Host, tmp_path: Path, modelfiles: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HostSite]:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with start_mirror([WEIGHTS]) as mirror, untouched(bystander):
        made = HostSite(
            host=host, others=[bystander], directory=tmp_path, mirror=mirror, modelfiles=modelfiles
        )
        made.add_release("0.17.5")
        yield made
        forget_connections()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(directory / "home"))
        patch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
        (directory / "home").mkdir()
        yield directory


@pytest.fixture(scope="module")
def shared(fleet: PracticeFleet, bystander: Host, environment: Path) -> Iterator[HostSite]:
    """One host for the whole file; `deployed` brings it back to what every test begins with."""
    with start_mirror([WEIGHTS]) as mirror, untouched(bystander):
        host, modelfiles = fleet.add(Kind.RICH), core_cases(environment)
        made = HostSite(
            host=host, others=[bystander], directory=environment, mirror=mirror, modelfiles=modelfiles
        )
        made.add_release("0.17.5")
        try:
            made.host.wait_for_ssh()
            yield made
        finally:
            forget_connections()
            fleet.remove(made.host)


@pytest.fixture
def deployed(shared: HostSite, fleet: PracticeFleet) -> HostSite:
    """Release 0.17.5 serves, and a plan finds nothing to do."""
    shared.version = "0.17.5"
    _settle(shared, fleet)
    return shared


@pytest.fixture
def serving(shared: HostSite, fleet: PracticeFleet) -> HostSite:
    """The same where it does not matter which release it is: the test before has deployed it already."""
    _settle(shared, fleet)
    return shared


def _settle(shared: HostSite, fleet: PracticeFleet) -> None:
    shared.overwrite, shared.settings = True, {}
    shared.mirror.faults.clear()
    if shared.deploy().error is not None:
        # What a test that failed has left is not the next one's.
        forget_connections()
        fleet.remove(shared.host)
        shared.version, shared.host = "0.17.5", fleet.add(Kind.RICH)
        shared.host.wait_for_ssh()
        assert shared.deploy().error is None
    shared.overwrite = False
    assert shared.plan().is_empty
