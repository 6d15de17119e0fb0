"""The suite as tests of pytest, for anybody's CI: these options say what is tested.

    pytest tests/smoke --fleet-inventory inventory.ini [--fleet-limit PATTERN] [--fleet-level LEVEL]
    pytest tests/smoke --fleet-url https://HOST/v1 --fleet-model NAME [--fleet-key-env VARIABLE]
        [--fleet-server NAME/VERSION] [--fleet-level LEVEL]

With one of them the tests keep HOME and the settings of whoever runs them, and may reach every host: see
`tests/conftest.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from console.proof import Suite, smoke_database
from deploy.errors import FleetError, render_error
from healthchecks.runner import MODES
from tests.smoke.subjects import Stage, Subject, as_options, make_subjects, silent_report

NOT_ASKED = (
    "nothing says what to test: give --fleet-inventory FILE, or --fleet-url URL and --fleet-model NAME"
)

_subjects = pytest.StashKey[tuple[Subject, ...]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Heard only where this directory is named on the command line."""
    group = parser.getgroup("fleet", "what the tests of tests/smoke are about")
    group.addoption("--fleet-inventory", metavar="FILE", help="what the hosts of this inventory serve")
    group.addoption("--fleet-limit", metavar="PATTERN", help="hosts of it, as `--limit` of ./fleet")
    group.addoption("--fleet-url", metavar="URL", help="this OpenAI-compatible endpoint")
    group.addoption("--fleet-model", metavar="NAME", help="the model to ask it for")
    group.addoption("--fleet-key-env", metavar="VARIABLE", help="the variable that holds its key")
    group.addoption("--fleet-level", metavar="LEVEL", help="its cases, not those of the model's own")
    group.addoption("--fleet-server", metavar="NAME/VERSION", help="what it is, so that known faults warn")


def pytest_configure(config: pytest.Config) -> None:
    """What cannot be meant is told before any test is collected."""
    try:
        config.stash[_subjects] = make_subjects(config)
    except FleetError as error:
        raise pytest.UsageError(as_options(render_error(error))) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every model of every host, and one for every case of it in each mode."""
    wanted = [name for name in ("subject", "case", "mode") if name in metafunc.fixturenames]
    if not wanted:
        return
    subjects = metafunc.config.stash[_subjects]
    if not subjects:
        nothing = pytest.param(*[None] * len(wanted), marks=pytest.mark.skip(NOT_ASKED), id="nothing")
        metafunc.parametrize(wanted, [nothing])
    elif wanted == ["subject"]:
        metafunc.parametrize("subject", subjects, ids=[subject.name for subject in subjects])
    else:
        plays = [
            pytest.param(subject, case, mode, id=f"{subject.name}-{case.name}-{mode}")
            for subject in subjects
            for case in subject.cases
            for mode in MODES
        ]
        metafunc.parametrize(wanted, plays)


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    with smoke_database(None) as database, ExitStack() as opened:
        yield Stage(suite=Suite(database=database, report=silent_report()), opened=opened)
