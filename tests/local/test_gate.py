"""What keeps a model from being served: every fault of form, and being worse than what is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from console.smoke import SmokeTask, smoke_hosts, smoke_inventory
from deploy.errors import ExitCode, VerifyFailed
from deploy.outcomes import HostOutcome, Outcome
from tests.local.conftest import Site, changed_binary
from tests.own_modelfiles import all_cases

FAULTS = {
    "text-calls": 30,
    "missing-argument": 21,
    "swallow": 12,
    "duplicate-id": 14,
    "leak-tags": 30,
    "index-zero": 28,
    "no-done": 32,
    "503": None,  # the model does not even load
    "die": None,
    "die-after-call": 1,
}
# What a single run shows in a few trials only, and what it then comes to; of cross-talk, one is enough.
RARE = {"guess": 56, "give-up": 54, "repeat-call": 53, "always-call": 53, "cross-talk": 63}
# A model that forgets an argument of the forecast only: 6 of the suite's 10 calls.
WORSE = ('if "missing-argument" in faults:', 'if call.name == "get_n_day_weather_forecast":')
# One that never asks for the place.
PRESUMING = ("return ASK_PLACE\n", 'return "It is sunny."\n')


@pytest.fixture
def modelfiles(tmp_path: Path) -> Path:
    """The gate is about every case."""
    return all_cases(tmp_path)


def faulty_binary(tmp_path: Path, fault: str) -> Path:
    line = f"OLLAMA_SIMULATED_FAULT={fault}; export OLLAMA_SIMULATED_FAULT\npython=\n"
    return changed_binary(tmp_path, "python=\n", line)


def offer(site: Site, version: str, binary: Path) -> None:
    site.add_release(version, binary=binary)
    site.pins.unlink(missing_ok=True)
    site.version = version


def change_model(site: Site, top_p: str = "0.9") -> None:
    template = site.modelfiles / "myqwen2.Modelfile.j2"
    text = template.read_text()
    before = text.split("PARAMETER top_p ")[1].split("\n")[0]
    template.write_text(text.replace(f"PARAMETER top_p {before}", f"PARAMETER top_p {top_p}"))


def error_of(outcome: HostOutcome) -> VerifyFailed:
    assert outcome.outcome is Outcome.FAILED
    assert outcome.exit_code is ExitCode.FAILED
    assert isinstance(outcome.error, VerifyFailed)
    return outcome.error


def baselines(site: Site) -> Any:
    return json.loads((site.root / "var/lib/ollama-fleet/baselines.json").read_text())["myqwen2"]


def notes(site: Site) -> list[str]:
    return [event["text"] for event in site.events("note")]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_new_model_on_a_misbehaving_server_leaves_the_old_one_under_its_name(
    site: Site, tmp_path: Path, fault: str
) -> None:
    assert site.deploy().error is None
    before, kept = site.served(), baselines(site)
    change_model(site)
    offer(site, "0.17.6", faulty_binary(tmp_path, fault))
    outcome = site.deploy()
    assert outcome.exit_code is ExitCode.FAILED
    assert outcome.error is not None
    rule = FAULTS[fault]
    if rule is not None:
        error = error_of(outcome)
        assert "`myqwen2:candidate` did not pass verification" in error.sentence
        assert f"rule {rule}, " in str(error.cause)
    assert site.served() == before
    assert site.get("/api/version") == {"version": "0.17.5"}
    assert baselines(site) == kept


@pytest.mark.parametrize("fault", RARE)
def test_what_shows_in_a_few_plays_only_keeps_a_model_from_being_served_too(
    site: Site, tmp_path: Path, fault: str
) -> None:
    assert site.deploy().error is None
    before, kept = site.served(), baselines(site)
    change_model(site)
    offer(site, "0.17.6", faulty_binary(tmp_path, fault))
    error = error_of(site.deploy())
    assert "`myqwen2:candidate` did not pass verification" in error.sentence
    assert f"rule {RARE[fault]}" in str(error.cause)
    again = {event["case"] for event in site.events("case") if event["run"] > 1}
    assert ("weather_one_call" in again) == (fault == "guess")
    assert "calls_8" not in again
    assert site.served() == before
    assert site.get("/api/version") == {"version": "0.17.5"}
    assert baselines(site) == kept


@pytest.mark.parametrize("fault", ["text-calls", "missing-argument", "swallow", "no-done"])
def test_a_misbehaving_server_gets_no_first_model(site: Site, tmp_path: Path, fault: str) -> None:
    offer(site, "0.17.6", faulty_binary(tmp_path, fault))
    outcome = site.deploy()
    assert outcome.exit_code is ExitCode.FAILED
    assert "PromoteModel" not in [event["step"] for event in site.events("step_started")]
    assert not (site.root / "var/lib/ollama-fleet/baselines.json").exists()


def test_a_first_model_is_served_although_it_presumes_and_that_is_told(site: Site, tmp_path: Path) -> None:
    offer(site, "0.17.6", changed_binary(tmp_path, *PRESUMING))
    assert site.deploy().error is None
    assert set(site.served()) == {"myqwen2:latest"}
    told = [text for text in notes(site) if "weather_one_call (plain): rule 56" in text]
    assert len(told) == 1
    (entry,) = baselines(site)
    assert entry["release"] == "0.17.6"
    assert entry["rates"]["21"]["successes"] == entry["rates"]["21"]["trials"] > 0
    assert entry["rates"]["56"]["successes"] < entry["rates"]["56"]["trials"]


def test_a_model_that_has_become_worse_is_not_served(site: Site, tmp_path: Path) -> None:
    assert site.deploy().error is None
    before = site.served()
    change_model(site)
    offer(site, "0.17.6", changed_binary(tmp_path, *WORSE))
    error = error_of(site.deploy())
    first = str(error.cause).splitlines()[0]
    assert first.startswith("rule 21: ")
    assert "; the served model had " in first
    assert site.served() == before


def test_a_server_under_which_the_served_model_becomes_worse_is_taken_back(
    site: Site, tmp_path: Path
) -> None:
    assert site.deploy().error is None
    offer(site, "0.17.6", changed_binary(tmp_path, *WORSE))
    assert "`myqwen2:latest` did not pass" in error_of(site.deploy()).sentence
    assert site.get("/api/version") == {"version": "0.17.5"}


def test_the_first_model_may_be_as_bad_as_it_is_if_it_makes_one_good_call(site: Site, tmp_path: Path) -> None:
    offer(site, "0.17.6", changed_binary(tmp_path, *WORSE))
    assert site.deploy().error is None
    change_model(site)
    # The next one is no worse than what is served.
    assert site.deploy().error is None
    assert [entry["release"] for entry in baselines(site)] == ["0.17.6", "0.17.6"]


def test_every_model_that_was_served_keeps_its_own_baseline(site: Site) -> None:
    assert site.deploy().error is None
    (first,) = baselines(site)
    change_model(site)
    assert site.deploy().error is None
    change_model(site, "0.8")
    assert site.deploy().error is None
    prints = [entry["fingerprint"] for entry in baselines(site)]
    assert prints[0] == first["fingerprint"]
    assert len(prints) == len(set(prints)) == 2


def test_smoke_compares_with_the_baseline_and_is_strict_without_one(site: Site, tmp_path: Path) -> None:
    offer(site, "0.17.6", changed_binary(tmp_path, *PRESUMING))
    assert site.deploy().error is None
    assert smoke_inventory(site.run, SmokeTask()) is ExitCode.DONE
    assert any("is compared with what is served: promoted " in text for text in notes(site))
    # Other cases than those that were promoted: nothing to compare with.
    assert smoke_inventory(site.run, SmokeTask(cases=["weather_one_call"])) is ExitCode.FAILED
    (site.root / "var/lib/ollama-fleet/baselines.json").unlink()
    assert smoke_inventory(site.run, SmokeTask()) is ExitCode.FAILED
    assert any("there is no baseline of these cases" in text for text in notes(site))


def test_a_host_without_changes_does_not_read_its_baseline(site: Site) -> None:
    assert site.deploy().error is None
    (site.root / "var/lib/ollama-fleet/baselines.json").write_text("{")
    assert site.deploy().error is None
    (smoked,) = smoke_hosts(site.run, site.run.hosts(), SmokeTask())
    assert "baselines.json` cannot be read" in str(smoked.outcome.error)
    (told,) = smoked.reports
    assert not told.passed


def test_removing_everything_removes_the_baselines(site: Site) -> None:
    from console.changes import remove_asking

    assert site.deploy().error is None
    assert remove_asking(site.run, yes=True, models=True) is ExitCode.DONE
    assert not site.root.exists()
