"""Back to what served before, and forward again: release and models, without a byte from the mirror."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from console.paths import CANARY
from console.rollback import rollback_asking
from deploy import ollama_api
from deploy.errors import ExitCode
from deploy.rollback import Asked
from testbed.demo import WEIGHTS_FILE, WEIGHTS_REPO
from testbed.mirror import MirrorRepo
from tests.local.conftest import Site
from tests.local.test_deploy import broken_binary

NAMES = ("myqwen2:latest", "myqwen2:previous")


def edit_model(site: Site, old: str, new: str) -> None:
    """Another value in the project's Modelfile: the next deploy makes another model of it."""
    template = site.modelfiles / "myqwen2.Modelfile.j2"
    assert old in template.read_text()
    template.write_text(template.read_text().replace(old, new))


def upgrade(site: Site, version: str = "0.17.6", **how: Any) -> None:
    site.add_release(version, **how)
    site.pins.unlink()
    site.version = version


def rollback(site: Site, asked: Asked | None = None) -> ExitCode:
    return rollback_asking(site.run, asked or Asked(), yes=True)


def temperature(site: Site, name: str = "myqwen2:latest") -> str:
    """As the server that answers tells it, not as the store has it."""
    shown = site.post("/api/show", {"model": name}).json()["parameters"].splitlines()
    return next(str(line.split()[1]) for line in shown if line.startswith("temperature"))


def state(site: Site) -> tuple[str, str, str]:
    """The release that answers, the one that is current, and the temperature of the served model."""
    current = (site.root / "opt/ollama/current").readlink().name
    return str(site.get("/api/version")["version"]), current, temperature(site)


def notes(site: Site) -> str:
    return "\n".join(event["text"] for event in site.events("note"))


def changed_both(site: Site) -> None:
    """Deployed, then upgraded with another temperature in one deploy."""
    assert site.deploy().error is None
    upgrade(site)
    edit_model(site, "PARAMETER temperature 0.7", "PARAMETER temperature 0.5")
    outcome = site.deploy()
    assert outcome.error is None, str(outcome.error)
    assert state(site) == ("0.17.6", "0.17.6", "0.5")


def test_release_and_model_come_back_together_and_go_forward_again(site: Site) -> None:
    changed_both(site)
    digests = site.served()
    asked_mirror = len(site.mirror.requests)

    assert rollback(site) is ExitCode.DONE, site.output.getvalue()[-2000:]
    assert state(site) == ("0.17.5", "0.17.5", "0.7")
    assert [site.served()[name] for name in NAMES] == [digests[name] for name in reversed(NAMES)]
    assert [entry["name"] for entry in site.get("/api/ps")["models"]] == ["myqwen2:latest"]
    assert "set ollama_version=0.17.5, or the next deploy goes forward again" in notes(site)
    wanted = "myqwen2 is still wanted otherwise: PARAMETER temperature is `0.7`, desired `0.5`"
    assert f"{wanted}; change modelfiles/myqwen2.Modelfile.j2, or" in notes(site)
    kinds = [type(step).__name__ for step in site.plan().steps]
    assert {"SwitchRelease", "CreateModel"} <= set(kinds)
    assert not {"FetchArchive", "FetchWeights", "UnpackRelease"} & set(kinds)

    site.output = io.StringIO()
    assert rollback(site) is ExitCode.DONE
    assert state(site) == ("0.17.6", "0.17.6", "0.5")
    assert site.served() == digests
    assert "still want" not in notes(site)
    assert "otherwise" not in notes(site)
    assert site.plan().is_empty
    assert len(site.mirror.requests) == asked_mirror


def rendered(site: Site) -> str:
    """The prompt that the server makes of a question with what is served."""
    body = {"model": "myqwen2", "messages": [{"role": "user", "content": "hello"}], "stream": False}
    reply = site.post("/api/chat", {**body, "_debug_render_only": True})
    return str(reply.json()["_debug_info"]["rendered_template"])


def loaded(site: Site) -> list[str]:
    return [entry["name"] for entry in site.get("/api/ps")["models"]]


def test_other_weights_and_another_prompt_come_back_and_one_runner_is_left(
    site: Site, tmp_path: Path
) -> None:
    site.deploy()
    before, digests = rendered(site), site.served()
    weights = tmp_path / "other.gguf"
    weights.write_bytes(CANARY.read_bytes() + bytes(16))
    site.mirror.repos[WEIGHTS_REPO] = MirrorRepo(
        repo=WEIGHTS_REPO, revisions={"master": {WEIGHTS_FILE: weights}}
    )
    site.pins.unlink()
    edit_model(site, "PARAMETER temperature 0.7", "SYSTEM You are brief.\nPARAMETER temperature 0.7")
    assert site.deploy().error is None
    assert rendered(site) != before
    # The runner of the old weights would keep its memory beside the new one's.
    assert loaded(site) == ["myqwen2:latest"]
    asked_mirror = len(site.mirror.requests)
    assert rollback(site) is ExitCode.DONE, site.output.getvalue()[-2000:]
    assert rendered(site) == before
    assert site.served()["myqwen2:latest"] == digests["myqwen2:latest"]
    assert loaded(site) == ["myqwen2:latest"]
    assert "change modelfiles/myqwen2.Modelfile.j2, modelfiles/models.toml and its pin, or" in notes(site)
    assert len(site.mirror.requests) == asked_mirror


def test_only_what_the_last_deploy_changed_is_taken_back(site: Site) -> None:
    site.deploy()
    upgrade(site)
    assert site.deploy().error is None
    edit_model(site, "PARAMETER temperature 0.7", "PARAMETER temperature 0.5")
    assert site.deploy().error is None
    assert rollback(site) is ExitCode.DONE
    assert state(site) == ("0.17.6", "0.17.6", "0.7")
    assert rollback(site, Asked(release=True)) is ExitCode.DONE
    assert state(site) == ("0.17.5", "0.17.5", "0.7")
    # Two rollbacks: the last one was of the release.
    assert rollback(site) is ExitCode.DONE
    assert state(site) == ("0.17.6", "0.17.6", "0.7")
    assert rollback(site, Asked(names=("myqwen2",))) is ExitCode.DONE
    assert state(site) == ("0.17.6", "0.17.6", "0.5")


def test_without_a_journal_all_that_was_replaced_is_taken_back(site: Site) -> None:
    changed_both(site)
    (site.root / "var/lib/ollama-fleet/journal.jsonl").unlink()
    assert rollback(site) is ExitCode.DONE
    assert state(site) == ("0.17.5", "0.17.5", "0.7")


def test_a_host_that_was_only_deployed_has_nothing_to_go_back_to(site: Site) -> None:
    site.deploy()
    before = site.served(), site.files(), [process.pid for process in site.processes()]
    assert rollback(site) is ExitCode.FAILED
    assert "has nothing to go back to" in site.events("error")[0]["sentence"]
    assert (site.served(), site.files(), [process.pid for process in site.processes()]) == before


def test_a_release_that_does_not_pass_any_more_leaves_what_served(site: Site, tmp_path: Path) -> None:
    # A server of the version before that answers wrongly: it is not put into service again.
    line = '[ -e "$OLLAMA_FLEET_ROOT/wrong" ] && export OLLAMA_SIMULATED_FAULT=missing-argument'
    site.add_release("0.17.5", binary=broken_binary(tmp_path, line))
    changed_both(site)
    digests = site.served()
    (site.root / "wrong").touch()
    assert rollback(site) is ExitCode.FAILED
    (site.root / "wrong").unlink()
    error = site.events("error")[0]
    assert "`myqwen2:previous` did not pass verification" in error["sentence"]
    assert "release 0.17.6 serves again, as before" in error["unchanged"]
    assert state(site) == ("0.17.6", "0.17.6", "0.5")
    assert site.served() == digests
    assert [entry["name"] for entry in site.get("/api/ps")["models"]] == ["myqwen2:latest"]
    assert rollback(site) is ExitCode.DONE
    assert state(site) == ("0.17.5", "0.17.5", "0.7")


def fail_at(number: int, method: Callable[..., None]) -> Callable[..., None]:
    """The API's call of this number fails, before it is sent; the ones after it are made."""
    calls = []

    def fail(self: ollama_api.OllamaApi, *arguments: str) -> None:
        calls.append(arguments)
        if len(calls) == number:
            raise ConnectionResetError("cut")
        method(self, *arguments)

    return fail


@pytest.mark.parametrize(
    ("method", "number"),
    # The three copies of a swap, then what comes after it: the candidate's end, the runner's, the load.
    [("copy", 1), ("copy", 2), ("copy", 3), ("delete", 1), ("unload", 2), ("load", 1)],
)
def test_a_swap_that_fails_at_any_call_leaves_both_models_where_they_were(
    site: Site, monkeypatch: pytest.MonkeyPatch, method: str, number: int
) -> None:
    changed_both(site)
    digests = site.served()
    with monkeypatch.context() as patch:
        original = getattr(ollama_api.OllamaApi, method)
        patch.setattr(ollama_api.OllamaApi, method, fail_at(number, original))
        assert rollback(site, Asked(models=True)) is ExitCode.FAILED
    assert "`myqwen2:latest` is the one that was there before" in site.events("error")[0]["unchanged"]
    assert site.served() == digests
    assert [entry["name"] for entry in site.get("/api/ps")["models"]] == ["myqwen2:latest"]
    assert site.plan().is_empty


@pytest.mark.parametrize(("number", "served"), [(1, "0.5"), (2, "0.5"), (3, "0.7")])
def test_a_swap_whose_controller_dies_at_any_call_loses_no_model(
    site: Site, monkeypatch: pytest.MonkeyPatch, number: int, served: str
) -> None:
    changed_both(site)
    digests = set(site.served().values())
    with monkeypatch.context() as patch:
        patch.setattr(ollama_api.OllamaApi, "copy", fail_at(number, ollama_api.OllamaApi.copy))
        # Nobody is there any more to go back.
        patch.setattr("deploy.converge.go_back", lambda *_: "nothing")
        rollback(site, Asked(models=True))
    assert set(site.served().values()) == digests
    assert temperature(site) == served
    if served == "0.5":
        assert rollback(site, Asked(models=True)) is ExitCode.DONE
        assert temperature(site) == "0.7"
    assert site.deploy().error is None
    assert (temperature(site), temperature(site, "myqwen2:previous")) == ("0.5", "0.7")
    assert set(site.served()) == set(NAMES)


def test_weights_that_rotted_are_refused_before_anything_stops(site: Site) -> None:
    changed_both(site)
    pids = [process.pid for process in site.processes()]
    blob = next((site.root / "var/lib/ollama/models/blobs").glob("sha256-971af595*"))
    blob.unlink()
    blob.write_bytes(b"GGUF")
    assert rollback(site) is ExitCode.FAILED
    assert "weights of `myqwen2:previous` are damaged" in site.events("error")[0]["sentence"]
    assert [process.pid for process in site.processes()] == pids
