"""Going back is a plan for what is on the host already: the release before, the models before, or both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deploy.desired import Desired
from deploy.errors import ServiceError, UsageError
from deploy.facts import Blob, HostFacts
from deploy.plan import everything, only_create, plan
from deploy.rollback import Asked, going_back, served_before, state_before, version_of
from tests.unit.test_plan import CONVERGED, STORED, kinds, reasons
from tests.unit.test_plan import DESIRED as PROCESS
from tests.unit.test_systemd_plan import DESIRED, converged, official, with_systemd

OLD = replace(STORED, template="line 1\nold", model_sha256="c" * 64, model_bytes=4000)
OLD_BLOB = Blob(size_bytes=4000, is_gguf=True)
RELEASE = Asked(release=True)
MODELS = Asked(models=True)
SERVER_STEPS = ["TakeLease", "SwitchRelease", "StartServer"]
MODEL_STEPS = ["VerifyModel", "RestoreModel", "LoadModel"]


def upgraded(previous: str | None, releases: dict[str, str]) -> HostFacts:
    facts = converged()
    return replace(facts, previous=previous, releases={**facts.releases, **releases})


def with_previous(facts: HostFacts, **changes: Any) -> HostFacts:
    """The host keeps another model as `myqwen2:previous`."""
    models = {**facts.models, "myqwen2:previous": replace(OLD, **changes)}
    return replace(facts, models=models, blobs={**facts.blobs, "c" * 64: OLD_BLOB})


def both() -> HostFacts:
    """The last deploy has switched the release and replaced the model."""
    return with_previous(upgraded("0.17.4", {"0.17.4": "d" * 64}))


def entry(facts_before: HostFacts, desired: Desired, **more: Any) -> dict[str, Any]:
    """What the journal says of a rollback, by which the next one finds what to take back."""
    steps = plan(state_before(desired, facts_before, Asked()), facts_before, going_back).steps
    return {"what": "rollback", "result": "done", "before": served_before(facts_before, steps), **more}


def planned(desired: Desired, facts: HostFacts, asked: Asked, *entries: dict[str, Any]) -> list[str]:
    return kinds(plan(state_before(desired, facts, asked, entries), facts, going_back))


def test_the_release_before_is_switched_to_under_a_lease_and_nothing_is_fetched() -> None:
    facts = upgraded("0.17.4", {"0.17.4": "c" * 64})
    desired = state_before(DESIRED, facts, Asked())
    assert desired.server.version == "0.17.4"
    assert kinds(plan(desired, facts, going_back)) == [*SERVER_STEPS, "LoadModel", "VerifyModel", "EndLease"]


def test_what_is_not_confirmed_yet_is_not_gone_back_from() -> None:
    facts = with_systemd(both(), is_leased=True)
    for asked in (Asked(), RELEASE, MODELS):
        with pytest.raises(ServiceError, match="is not confirmed yet") as refused:
            state_before(DESIRED, facts, asked)
        assert refused.value.unchanged == "everything"
        assert "systemctl start ollama-fleet-lease.service" in str(refused.value.hint)


def test_the_process_backend_goes_back_the_same_way() -> None:
    facts = replace(CONVERGED, previous="0.17.4", releases={**CONVERGED.releases, "0.17.4": "c" * 64})
    assert planned(PROCESS, facts, Asked()) == [
        "SwitchRelease",
        "StopServer",
        "StartServer",
        "LoadModel",
        "VerifyModel",
    ]


def test_a_model_that_differs_from_the_inventory_is_proven_as_it_is_stored() -> None:
    facts = upgraded("0.17.4", {"0.17.4": "c" * 64})
    other = replace(facts.models["myqwen2:latest"], template="somebody's own")
    facts = replace(facts, models={**facts.models, "myqwen2:latest": other})
    assert planned(DESIRED, facts, Asked()) == [*SERVER_STEPS, "LoadModel", "VerifyModel", "EndLease"]


def test_a_model_that_the_host_has_not_is_not_made_by_going_back() -> None:
    facts = replace(upgraded("0.17.4", {"0.17.4": "c" * 64}), models={})
    assert kinds(plan(state_before(DESIRED, facts, Asked()), facts)) == [*SERVER_STEPS, "EndLease"]


def test_release_and_model_go_back_together_and_the_model_is_proven_before_it_is_served() -> None:
    facts = both()
    found = plan(state_before(DESIRED, facts, Asked()), facts, going_back)
    assert kinds(found) == [*SERVER_STEPS, "VerifyModel", "RestoreModel", "EndLease", "LoadModel"]
    assert [step.tag for step in found.steps if type(step).__name__ == "VerifyModel"] == ["previous"]  # type: ignore[union-attr]
    assert "TEMPLATE line 2 is `line 2`, desired `old`" in reasons(found)


def test_a_model_alone_goes_back_without_a_new_server() -> None:
    facts = with_previous(converged())
    assert planned(DESIRED, facts, Asked()) == MODEL_STEPS
    assert planned(PROCESS, with_previous(CONVERGED), Asked()) == MODEL_STEPS


def test_the_release_stays_the_current_one_whatever_the_inventory_wants() -> None:
    facts = with_previous(converged())
    wanted = replace(DESIRED, server=replace(DESIRED.server, version="9.9.9"))
    assert planned(wanted, facts, MODELS) == MODEL_STEPS


def test_flags_choose_one_of_both() -> None:
    assert planned(DESIRED, both(), RELEASE) == [*SERVER_STEPS, "LoadModel", "VerifyModel", "EndLease"]
    assert planned(DESIRED, both(), MODELS) == MODEL_STEPS
    assert planned(DESIRED, both(), Asked(names=("MYQWEN2",))) == MODEL_STEPS
    everything_asked = Asked(release=True, names=("MyQwen2",))
    assert planned(DESIRED, both(), everything_asked) == planned(DESIRED, both(), Asked())


def test_once_it_is_back_nothing_is_left_to_do() -> None:
    facts = both()
    back = state_before(DESIRED, facts, MODELS)
    models = {
        "myqwen2:latest": facts.models["myqwen2:previous"],
        "myqwen2:previous": facts.models["myqwen2:latest"],
    }
    assert plan(back, replace(facts, models=models), everything).is_empty


def test_a_layer_that_only_the_model_before_has_is_brought_back_too() -> None:
    facts = with_previous(converged(), other_layers=("application/license",), template=None)
    found = plan(state_before(DESIRED, facts, Asked()), facts, going_back)
    assert "layer application/license is absent, desired `present`" in reasons(found)
    assert "TEMPLATE is `present`, desired absent" in reasons(found)


# What the last change was.


def journal_of(facts_before: HostFacts, *selection: Any) -> dict[str, Any]:
    """The entry of a deploy that found these facts."""
    return {
        "what": "deploy",
        "before": served_before(facts_before, plan(DESIRED, facts_before, *selection).steps),
    }


def old_release() -> HostFacts:
    """The host as it was on release 0.17.4, whose archive is another one, with the model of now."""
    facts = upgraded(None, {"0.17.4": "d" * 64})
    return replace(facts, current="0.17.4")


def old_model() -> HostFacts:
    facts = converged()
    blobs = {**facts.blobs, "c" * 64: OLD_BLOB}
    return replace(facts, models={"myqwen2:latest": OLD}, blobs=blobs)


def test_only_what_the_last_change_replaced_is_taken_back() -> None:
    release, model = journal_of(old_release()), journal_of(old_model())
    assert release["before"] == {"release": "0.17.4"}
    assert list(model["before"]) == ["models"]
    assert planned(DESIRED, both(), Asked(), release, model) == MODEL_STEPS
    with_release = [*SERVER_STEPS, "LoadModel", "VerifyModel", "EndLease"]
    assert planned(DESIRED, both(), Asked(), model, release) == with_release


def test_one_change_of_both_is_taken_back_as_one() -> None:
    before = replace(old_release(), models=old_model().models, blobs=old_model().blobs)
    told = journal_of(before)
    assert set(told["before"]) == {"release", "models"}
    expected = [*SERVER_STEPS, "VerifyModel", "RestoreModel", "EndLease", "LoadModel"]
    assert (
        planned(DESIRED, both(), Asked(), told, {"what": "service stop"}, {"text": "half a li"}) == expected
    )


def test_an_entry_of_what_is_not_kept_any_more_does_not_count() -> None:
    release = journal_of(old_release())
    never_made = {"what": "deploy", "before": {"release": "0.17.3", "models": {"myqwen2": "another"}}}
    expected = [*SERVER_STEPS, "LoadModel", "VerifyModel", "EndLease"]
    assert planned(DESIRED, both(), Asked(), release, never_made) == expected


@pytest.mark.parametrize("entries", [(), ({"before": "nonsense"},), ({"before": {"models": 1}},)])
def test_without_a_usable_entry_all_that_was_replaced_is_taken_back(
    entries: tuple[dict[str, Any], ...],
) -> None:
    expected = [*SERVER_STEPS, "VerifyModel", "RestoreModel", "EndLease", "LoadModel"]
    assert planned(DESIRED, both(), Asked(), *entries) == expected


def test_a_second_rollback_takes_back_the_first() -> None:
    facts = both()
    first = entry(facts, DESIRED)
    back = replace(
        old_release(),
        previous="0.17.5",
        models={"myqwen2:latest": OLD, "myqwen2:previous": STORED},
        blobs=both().blobs,
    )
    forward = state_before(DESIRED, back, Asked(), [first])
    assert (forward.server.release, forward.models[0].stored) == ("0.17.5", STORED)


# What cannot be gone back to.


@pytest.mark.parametrize("releases", [{}, {"0.17.4": ""}])
def test_a_release_that_is_gone_or_damaged_is_refused_before_anything_stops(releases: dict[str, str]) -> None:
    with pytest.raises(ServiceError, match=r"`0\.17\.4` is no longer on the host"):
        state_before(DESIRED, upgraded("0.17.4", releases), Asked())


def test_an_adopted_binary_that_is_gone_is_refused_before_anything_stops() -> None:
    there = replace(converged(facts=official("0.17.4")), previous="adopted")
    assert state_before(DESIRED, there, RELEASE).server.version == "0.17.4"
    gone = with_systemd(there, foreign_version=None)
    with pytest.raises(ServiceError, match="release `adopted` is no longer on the host") as caught:
        state_before(DESIRED, gone, RELEASE)
    assert "`/usr/local/bin/ollama` does not say its version" in str(caught.value.cause)
    assert "the server was not stopped" in str(caught.value.unchanged)
    no_unit = with_systemd(gone, foreign_program=None)
    with pytest.raises(ServiceError, match="release `adopted` is no longer on the host"):
        state_before(DESIRED, no_unit, RELEASE)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(), "has nothing to go back to"),
        (RELEASE, "has no release to go back to"),
        (MODELS, "has no model to go back to"),
        (Asked(names=("myqwen2",)), "keeps no other `myqwen2` to go back to"),
    ],
)
def test_a_host_on_which_nothing_was_replaced_has_nothing_to_go_back_to(asked: Asked, said: str) -> None:
    with pytest.raises(ServiceError, match=said):
        state_before(DESIRED, upgraded(None, {}), asked)
    same = {**converged().models, "myqwen2:previous": STORED}
    with pytest.raises(ServiceError, match=said):
        state_before(DESIRED, replace(upgraded("0.17.5", {}), models=same), asked)


def test_a_name_that_the_inventory_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="`--model other` is no model"):
        state_before(DESIRED, both(), Asked(names=("other",)))


@pytest.mark.parametrize(
    ("blob", "said"),
    [
        (None, "expected 4000 bytes, got absent"),
        (Blob(size_bytes=3999, is_gguf=True), "got 3999 bytes"),
        (Blob(size_bytes=4000, is_gguf=False), "got 4000 bytes, no GGUF"),
    ],
)
def test_damaged_weights_are_refused_before_anything_stops(blob: Blob | None, said: str) -> None:
    facts = both()
    others = {digest: item for digest, item in facts.blobs.items() if digest != "c" * 64}
    facts = replace(facts, blobs={**others, **({"c" * 64: blob} if blob else {})})
    with pytest.raises(ServiceError, match="weights of `myqwen2:previous` are damaged") as caught:
        plan(state_before(DESIRED, facts, Asked()), facts, going_back)
    assert said in str(caught.value)


def test_a_model_that_was_replaced_meanwhile_is_not_brought_back() -> None:
    back = state_before(DESIRED, both(), Asked())
    now = with_previous(both(), system="another")
    with pytest.raises(ServiceError, match="is not what it was a moment ago"):
        plan(back, now, going_back)


def test_a_damaged_current_release_is_not_proven_again_by_a_rollback_of_models() -> None:
    facts = replace(with_previous(converged()), releases={"0.17.5": ""})
    with pytest.raises(ServiceError, match=r"`0\.17\.5` is no longer on the host"):
        state_before(DESIRED, facts, MODELS)


def test_a_deploy_after_it_goes_forward_again() -> None:
    facts = replace(converged(), models={"myqwen2:latest": OLD, "myqwen2:previous": STORED})
    assert kinds(plan(DESIRED, facts, only_create)) == [
        "CreateModel",
        "VerifyModel",
        "PromoteModel",
        "LoadModel",
    ]


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
