"""What nothing needs any more goes from a host without systemd, and what serves does not notice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from console.prune import prune_asking
from deploy import commands
from deploy.errors import ExitCode, UsageError
from deploy.local import LocalTransport
from deploy.rollback import Asked
from testbed.demo import WEIGHTS_FILE, WEIGHTS_REPO
from testbed.mirror import MirrorRepo
from tests.local.conftest import Site
from tests.local.test_rollback import edit_model, rollback, state, temperature, upgrade

STORE = "var/lib/ollama/models"
FETCHED = "var/lib/ollama-fleet/artefacts"


def prune(site: Site, keep: int = 2, *, models: bool = False) -> ExitCode:
    return prune_asking(site.run, keep, models=models, yes=True)


def releases(site: Site) -> list[str]:
    return sorted(path.name for path in (site.root / "opt/ollama/releases").iterdir())


def deploy_releases(site: Site, *versions: str) -> None:
    for version in versions:
        upgrade(site, version)
        outcome = site.deploy()
        assert outcome.error is None, str(outcome.error)


def test_the_oldest_releases_go_and_what_serves_stays_up(site: Site) -> None:
    site.deploy()
    deploy_releases(site, "0.17.6", "0.17.7", "0.17.8")
    pids = [process.pid for process in site.processes()]
    assert prune(site, keep=3) is ExitCode.DONE, site.output.getvalue()[-2000:]
    assert releases(site) == ["0.17.6", "0.17.7", "0.17.8"]
    assert prune(site) is ExitCode.DONE
    assert releases(site) == ["0.17.7", "0.17.8"]
    assert prune(site, keep=0) is ExitCode.DONE
    assert releases(site) == ["0.17.7", "0.17.8"]
    assert site.events("pruned")[0]["freed_bytes"] >= site.events("plan")[-3]["steps"][0]["bytes"] > 0
    assert [event["outcome"] for event in site.events("host_done")[-3:]] == ["changed", "changed", "ok"]
    assert [process.pid for process in site.processes()] == pids
    assert site.plan().is_empty
    assert rollback(site) is ExitCode.DONE
    assert site.get("/api/version") == {"version": "0.17.7"}


def test_a_release_that_a_process_still_runs_from_stays(site: Site) -> None:
    site.deploy()
    deploy_releases(site, "0.17.6", "0.17.7")
    # Somebody has turned both links by hand; the server runs from where it was started.
    for name, target in (("current", "0.17.6"), ("previous", "0.17.6")):
        link = site.root / "opt/ollama" / name
        link.unlink()
        link.symlink_to(f"releases/{target}")
    site.version = "0.17.6"
    assert prune(site, keep=0) is ExitCode.DONE
    assert releases(site) == ["0.17.6", "0.17.7"]
    assert site.get("/api/version") == {"version": "0.17.7"}


def test_a_directory_that_is_not_ours_stays(site: Site) -> None:
    site.deploy()
    deploy_releases(site, "0.17.6", "0.17.7")
    theirs = site.root / "opt/ollama/releases/mine"
    theirs.mkdir()
    (theirs / "notes").write_text("keep me")
    assert prune(site, keep=0) is ExitCode.DONE
    assert releases(site) == ["0.17.6", "0.17.7", "mine"]


def test_a_removal_that_was_cut_is_ended_by_the_next_one(site: Site) -> None:
    site.deploy()
    deploy_releases(site, "0.17.6", "0.17.7")
    doomed = site.root / "opt/ollama/releases/0.17.5"
    doomed.rename(doomed.with_name(".unpack-0.17.5-pruned"))
    (doomed.with_name(".unpack-0.17.5-pruned") / "bin/ollama").unlink()
    assert prune(site) is ExitCode.DONE
    assert releases(site) == ["0.17.6", "0.17.7"]
    # A name that is taken by what an earlier cut left does not keep a release from going.
    half = doomed.with_name(".unpack-0.17.6-pruned")
    half.mkdir(mode=0o500)
    done = LocalTransport("box").run(commands.remove_release(str(doomed.with_name("0.17.6"))))
    assert (done.exit_code, releases(site)) == (0, ["0.17.7"])


def leave_behind(site: Site) -> tuple[Path, Path]:
    """A candidate of a run that was cut, and a file fetched for a model that nobody wants any more."""
    site.post("/api/copy", {"source": "myqwen2", "destination": "myqwen2:candidate"})
    unwanted = site.root / FETCHED / f"sha256-{'e' * 64}/old.gguf"
    unwanted.parent.mkdir()
    unwanted.write_bytes(os.urandom(3 * 2**20))
    part = site.root / FETCHED / f"sha256-{'d' * 64}.part"
    part.mkdir()
    (part / "half").write_bytes(b"half")
    return unwanted, part


def test_what_cut_runs_and_old_models_left_goes_and_the_bytes_are_told_as_measured(site: Site) -> None:
    site.deploy()
    edit_model(site, "PARAMETER temperature 0.7", "PARAMETER temperature 0.5")
    assert site.deploy().error is None
    before = site.served()
    unwanted, part = leave_behind(site)
    assert prune(site) is ExitCode.DONE, site.output.getvalue()[-2000:]
    assert site.served() == before
    assert not unwanted.parent.exists()
    assert not part.exists()
    # The weights of what is served are a file that was fetched: it stays.
    assert len(list((site.root / FETCHED).rglob("*.gguf"))) == 1
    told = {step["step"]: step["bytes"] for step in site.events("plan")[-1]["steps"]}
    assert told == {"RemoveModel": 0, "RemovePart": 0, "RemoveArtefact": 3 * 2**20}
    freed = site.events("pruned")[-1]["freed_bytes"]
    # On disk, in blocks: the file and half of another; the candidate shares all with what is served.
    assert 3 * 2**20 < freed <= 3 * 2**20 + 2 * 2**16
    assert site.events("summary")[-1]["freed_bytes"] == freed

    assert prune(site, models=True) is ExitCode.DONE
    assert set(site.served()) == {"myqwen2:latest"}
    assert temperature(site) == "0.5"
    assert [entry["name"] for entry in site.get("/api/ps")["models"]] == ["myqwen2:latest"]
    assert rollback(site, Asked(models=True)) is ExitCode.FAILED
    assert site.plan().is_empty


def test_weights_go_with_the_last_model_that_was_made_from_them(site: Site, tmp_path: Path) -> None:
    site.deploy()
    old = next((site.root / STORE / "blobs").glob("sha256-971af595*"))
    # Other weights under the same name on the mirror: another pin, another model.
    weights = tmp_path / "other.gguf"
    weights.write_bytes(old.read_bytes() + bytes(16))
    site.mirror.repos[WEIGHTS_REPO] = MirrorRepo(
        repo=WEIGHTS_REPO, revisions={"master": {WEIGHTS_FILE: weights}}
    )
    site.pins.unlink()
    outcome = site.deploy()
    assert outcome.error is None, str(outcome.error)
    assert prune(site) is ExitCode.DONE
    assert old.exists(), "rollback needs it"
    fetched = list((site.root / FETCHED).rglob("*.gguf"))
    assert len(fetched) == 2
    assert prune(site, models=True) is ExitCode.DONE
    assert not old.exists()
    assert len(list((site.root / FETCHED).rglob("*.gguf"))) == 1
    told = {step["step"]: step["bytes"] for step in site.events("plan")[-1]["steps"]}
    assert told == {"RemoveModel": weights.stat().st_size - 16, "RemoveArtefact": 0}
    # The store's name went first, and freed nothing; the fetched file's was the last.
    freed = {event["step"]: event["freed_bytes"] for event in site.events("step_done")[-2:]}
    assert freed["RemoveModel"] == 0
    assert 0 <= freed["RemoveArtefact"] - told["RemoveModel"] < 2**16
    assert site.plan().is_empty


def test_without_yes_and_without_a_terminal_nothing_goes(site: Site) -> None:
    site.deploy()
    deploy_releases(site, "0.17.6", "0.17.7")
    before = site.files()
    assert prune_asking(site.run, 2, models=False, yes=False) is ExitCode.USAGE
    assert site.files() == before
    assert site.events("plan")[-1]["steps"][0]["subject"] == "release 0.17.5"
    with pytest.raises(UsageError, match="`--keep -1`"):
        prune_asking(site.run, -1, models=False, yes=True)


def test_a_pruned_host_is_what_it_was(site: Site) -> None:
    site.deploy()
    deploy_releases(site, "0.17.6", "0.17.7")
    before = state(site)
    assert prune(site) is ExitCode.DONE
    assert state(site) == before
    entry = (site.root / "var/lib/ollama-fleet/journal.jsonl").read_text().splitlines()[-1]
    assert '"what": "prune", "result": "done", "changes": ["release 0.17.5"]' in entry
