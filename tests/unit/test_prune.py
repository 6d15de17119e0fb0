"""What nothing needs any more is a pure function; what something needs is never in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.facts import Blob, HostFacts, ProcessId, ServerProcess, Unpacked
from deploy.prune import Kind, Previous, PrunePlan, plan_prune, render_prune
from deploy.server_plan import MARK_NAME
from tests.unit.test_plan import ARCHIVE, CONVERGED, DESIRED, EMPTY, SERVER, STORED, WEIGHTS
from tests.unit.test_systemd_plan import DESIRED as SYSTEMD
from tests.unit.test_systemd_plan import converged, with_systemd

RELEASES = {"0.17.1": "1" * 64, "0.17.2": "2" * 64, "0.17.3": "3" * 64, "0.17.5": ARCHIVE.sha256}
UNPACKED = {name: Unpacked(size_bytes=2**20 * 10, at=100 + number) for number, name in enumerate(RELEASES)}
FACTS = replace(CONVERGED, releases=RELEASES, unpacked=UNPACKED)
OTHER = "e" * 64


def gone(plan: PrunePlan, kind: Kind = Kind.RELEASE) -> list[str]:
    return [removal.target.rpartition("/")[2] for removal in plan.removals if removal.kind is kind]


def pruned(
    keep: int = 2, models: Previous = Previous.KEEP, facts: HostFacts = FACTS, **changes: Any
) -> PrunePlan:
    return plan_prune(DESIRED, replace(facts, **changes), keep, models)


def test_the_releases_that_were_unpacked_last_stay_whatever_their_version() -> None:
    assert gone(pruned()) == ["0.17.1", "0.17.2"]
    assert gone(pruned(keep=3)) == ["0.17.1"]
    older = {**UNPACKED, "0.17.3": Unpacked(size_bytes=1, at=1)}
    assert gone(pruned(unpacked=older)) == ["0.17.3", "0.17.1"]


def test_what_serves_and_what_a_rollback_goes_to_stay_however_old() -> None:
    assert gone(pruned(keep=0, facts=replace(FACTS, current="0.17.1", previous="0.17.2"))) == ["0.17.3"]


def test_what_the_inventory_wants_stays_before_it_is_switched_to() -> None:
    older = {**UNPACKED, "0.17.5": Unpacked(size_bytes=1, at=1)}
    assert gone(pruned(keep=0, current="0.17.3", servers=(), unpacked=older)) == ["0.17.1", "0.17.2"]


@pytest.mark.parametrize("place", ["servers", "orphans"])
@pytest.mark.parametrize(
    ("command", "environment"),
    [
        (("/srv/fleet/opt/ollama/releases/0.17.1/bin/ollama", "serve"), {}),
        (("/opt/ollama/current/bin/ollama", "serve"), {MARK_NAME: "1" * 64}),
    ],
)
def test_what_a_process_runs_from_stays(
    place: str, command: tuple[str, ...], environment: dict[str, str]
) -> None:
    process = ServerProcess(
        process=ProcessId(pid=7, create_time=1.0), command=command, environment=environment
    )
    processes: dict[str, Any] = {place: (SERVER, process)}
    assert gone(plan_prune(DESIRED, replace(FACTS, **processes), 0)) == ["0.17.2", "0.17.3"]


def test_under_an_open_lease_all_stays_that_the_host_may_go_back_to() -> None:
    models = {**converged().models, "myqwen2:previous": STORED, "myqwen2:candidate": STORED}
    known = replace(converged(), releases=RELEASES, unpacked=UNPACKED, models=models)
    assert not plan_prune(SYSTEMD, known, 0, Previous.REMOVE).is_empty
    facts = with_systemd(known, is_leased=True)
    found = plan_prune(SYSTEMD, facts, 0, Previous.REMOVE)
    assert found.is_empty
    assert found.notes == ("releases, models and files stay: what was switched to is not confirmed yet",)
    assert gone(plan_prune(SYSTEMD, with_systemd(facts, is_leased=False), 0)) == [
        "0.17.1",
        "0.17.2",
        "0.17.3",
    ]


def test_a_damaged_release_is_none_of_those_that_stay_unless_it_serves() -> None:
    damaged = {**RELEASES, "0.17.3": ""}
    assert gone(pruned(releases=damaged)) == ["0.17.1", "0.17.3"]
    assert gone(pruned(releases=damaged, current="0.17.3")) == ["0.17.1"]


def test_a_host_with_nothing_of_ours_has_nothing_to_prune() -> None:
    assert plan_prune(DESIRED, EMPTY, 0, Previous.REMOVE) == PrunePlan(host="h1", removals=())


def test_what_a_cut_run_left_goes_and_what_can_be_gone_on_with_stays() -> None:
    parts = dict.fromkeys((f"{WEIGHTS.sha256}.part", f"{OTHER}.part", f"{OTHER}/.w.gguf.part"), 4096)
    found = pruned(leftovers=("/srv/fleet/opt/ollama/releases/.unpack-1-2",), parts=parts)
    assert gone(found, Kind.LEFTOVER) == [".unpack-1-2"]
    assert gone(found, Kind.PART) == [f"sha256-{OTHER}.part", f"sha256-{OTHER}"]


def test_files_stay_as_long_as_something_that_stays_was_made_from_them() -> None:
    files = {f"{sha256}/file": 5000 for sha256 in (WEIGHTS.sha256, ARCHIVE.sha256, "1" * 64, OTHER)}
    found = pruned(artefacts=files)
    assert [
        removal.target.split("sha256-")[1][:64] for removal in found.removals if removal.kind is Kind.ARTEFACT
    ] == [
        "1" * 64,
        OTHER,
    ]
    served = {**FACTS.models, "another:latest": replace(STORED, model_sha256=OTHER)}
    assert gone(pruned(keep=9, artefacts=files, facts=replace(FACTS, models=served)), Kind.ARTEFACT) == []


def with_models(**tags: str) -> HostFacts:
    """Models of the inventory's name under these tags, each with these weights."""
    models = {f"myqwen2:{tag}": replace(STORED, model_sha256=sha256) for tag, sha256 in tags.items()}
    blobs = {sha256: Blob(size_bytes=4000, is_gguf=True) for sha256 in tags.values()}
    return replace(FACTS, models={**FACTS.models, **models}, blobs={**blobs, **FACTS.blobs})


def test_a_candidate_of_a_cut_run_goes_and_the_model_before_only_when_asked() -> None:
    both = with_models(candidate=OTHER, previous="d" * 64)
    assert gone(pruned(facts=both), Kind.MODEL) == ["myqwen2:candidate"]
    assert gone(pruned(models=Previous.REMOVE, facts=both), Kind.MODEL) == [
        "myqwen2:candidate",
        "myqwen2:previous",
    ]


def test_a_model_that_the_inventory_does_not_have_is_somebody_elses() -> None:
    theirs = {**FACTS.models, "theirs:candidate": STORED, "theirs:previous": STORED}
    assert gone(pruned(models=Previous.REMOVE, facts=replace(FACTS, models=theirs)), Kind.MODEL) == []


def test_without_a_server_no_model_is_removed_and_it_is_said() -> None:
    found = pruned(servers=(), facts=with_models(candidate=OTHER))
    assert gone(found, Kind.MODEL) == []
    assert found.notes == ("no server runs that could remove myqwen2:candidate",)


def freed(plan: PrunePlan) -> dict[Kind, int]:
    totals: dict[Kind, int] = {}
    for removal in plan.removals:
        totals[removal.kind] = totals.get(removal.kind, 0) + removal.frees_bytes
    return totals


def test_bytes_are_counted_once_and_only_where_their_last_name_goes() -> None:
    both = with_models(candidate=OTHER, previous=OTHER)
    fetched = {f"{OTHER}/w.gguf": 4000}
    found = freed(pruned(keep=9, models=Previous.REMOVE, artefacts=fetched, facts=both))
    assert found == {Kind.MODEL: 4000, Kind.ARTEFACT: 0}
    # The same weights as those that are served: nothing is freed.
    same = with_models(candidate=WEIGHTS.sha256)
    assert freed(pruned(keep=9, facts=same)) == {Kind.MODEL: 0}
    # A file of its own, which the store has not.
    assert freed(pruned(keep=9, artefacts=fetched)) == {Kind.ARTEFACT: 4000}


def test_the_plan_has_the_form_of_every_plan() -> None:
    (step, _) = render_prune(pruned())["steps"]
    assert step == {
        "phase": "prune",
        "step": "RemoveRelease",
        "subject": "release 0.17.1",
        "reason": "not one of the 2 unpacked last; 10.0 MiB",
        "differences": [],
        "bytes": 10 * 2**20,
    }


NAMES = st.sampled_from([*RELEASES, None])


@given(
    current=NAMES,
    previous=NAMES,
    keep=st.integers(min_value=0, max_value=5),
    times=st.lists(st.integers(min_value=0, max_value=3), min_size=4, max_size=4),
    damaged=st.sets(st.sampled_from([*RELEASES])),
    wants=st.sampled_from(Previous),
)
def test_whatever_the_host_is_like_it_serves_on_and_can_go_back(
    current: str | None, previous: str | None, keep: int, times: list[int], damaged: set[str], wants: Previous
) -> None:
    facts: HostFacts = replace(
        FACTS,
        current=current,
        previous=previous,
        releases={name: "" if name in damaged else sha256 for name, sha256 in RELEASES.items()},
        unpacked={name: Unpacked(size_bytes=1, at=at) for name, at in zip(RELEASES, times, strict=True)},
    )
    doomed = set(gone(plan_prune(DESIRED, facts, keep, wants)))
    assert not doomed & {current, previous}
    # The running server's: its command names it.
    assert "0.17.5" not in doomed
    whole = set(RELEASES) - damaged
    assert len(whole - doomed) >= min(keep, len(whole))
