"""Going back is a plan for the release that is on the host already."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploy.errors import ServiceError
from deploy.facts import HostFacts
from deploy.plan import plan
from deploy.rollback import going_back, release_before, version_of
from tests.unit.test_plan import kinds
from tests.unit.test_systemd_plan import DESIRED, converged


def upgraded(previous: str | None, releases: dict[str, str]) -> HostFacts:
    facts = converged()
    return replace(facts, previous=previous, releases={**facts.releases, **releases})


def test_the_release_before_is_switched_to_under_a_lease_and_nothing_is_fetched() -> None:
    facts = upgraded("0.17.4", {"0.17.4": "c" * 64})
    desired = release_before(DESIRED, facts)
    assert desired.server.version == "0.17.4"
    planned = kinds(plan(desired, facts, going_back))
    assert planned == [
        "TakeLease",
        "SwitchRelease",
        "StartServer",
        "LoadModel",
        "VerifyModel",
        "EndLease",
    ]


def test_the_process_backend_goes_back_the_same_way() -> None:
    from tests.unit.test_plan import CONVERGED
    from tests.unit.test_plan import DESIRED as PROCESS

    facts = replace(CONVERGED, previous="0.17.4", releases={**CONVERGED.releases, "0.17.4": "c" * 64})
    planned = kinds(plan(release_before(PROCESS, facts), facts, going_back))
    assert planned == ["SwitchRelease", "StopServer", "StartServer", "LoadModel", "VerifyModel"]


def test_a_model_that_differs_from_the_inventory_is_proven_as_it_is_stored() -> None:
    facts = upgraded("0.17.4", {"0.17.4": "c" * 64})
    other = replace(facts.models["myqwen2:latest"], template="somebody's own")
    facts = replace(facts, models={**facts.models, "myqwen2:latest": other})
    planned = kinds(plan(release_before(DESIRED, facts), facts, going_back))
    assert planned == [
        "TakeLease",
        "SwitchRelease",
        "StartServer",
        "LoadModel",
        "VerifyModel",
        "EndLease",
    ]


@pytest.mark.parametrize("releases", [{}, {"0.17.4": ""}])
def test_a_release_that_is_gone_or_damaged_is_refused_before_anything_stops(releases: dict[str, str]) -> None:
    with pytest.raises(ServiceError, match=r"`0\.17\.4` is no longer on the host"):
        release_before(DESIRED, upgraded("0.17.4", releases))


def test_a_host_that_never_switched_has_nothing_to_go_back_to() -> None:
    with pytest.raises(ServiceError, match="no release to go back to"):
        release_before(DESIRED, upgraded(None, {}))


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("0.17.5", "0.17.5"),
        ("0.17.5-28b735748dc0", "0.17.5"),
        ("0.33.0-rc2", "0.33.0-rc2"),
        ("0.33.0-rc2-28b735748dc0", "0.33.0-rc2"),
    ],
)
def test_the_version_is_the_name_without_the_digest(release: str, version: str) -> None:
    assert version_of(release) == version
