"""The whole pipeline on one host: what converges, and what leaves the old state serving."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest

from console.changes import deploy_asking, service_asking
from console.paths import CANARY
from console.run import Run
from console.smoke import SmokeTask, smoke_hosts, smoke_inventory
from deploy import apply
from deploy.errors import (
    ArchiveRefused,
    ChecksumMismatch,
    DiskTooSmall,
    ExitCode,
    FleetError,
    GpuUnusable,
    HostLocked,
    InputErrors,
    MirrorError,
    NotAnArtefact,
    PortTaken,
    ServiceError,
    UsageError,
    VerifyFailed,
)
from deploy.facts import Disk
from deploy.gpu import Gpu, GpuReading
from deploy.host_lock import host_lock
from deploy.local import LocalTransport
from deploy.outcomes import Outcome
from deploy.plan import everything, only_create, only_download, only_install, only_service
from deploy.steps import LoadModel, VerifyModel, subject_of
from testbed.demo import WEIGHTS_FILE, WEIGHTS_REPO, free_port
from testbed.mirror import Fault, FaultKind, MirrorRepo
from testbed.mirror_http import Route
from tests.local.conftest import SIMULATED, Site, changed_binary

CANARY_SHA256 = hashlib.sha256(CANARY.read_bytes()).hexdigest()


def error_of(site: Site) -> FleetError:
    outcome = site.deploy()
    assert outcome.outcome is Outcome.FAILED
    assert outcome.error is not None
    return outcome.error


def test_a_deploy_serves_the_model_and_the_second_one_changes_nothing(site: Site) -> None:
    first = site.deploy()
    assert first.error is None
    assert first.outcome is Outcome.CHANGED
    assert set(site.served()) == {"myqwen2:latest"}
    before, pids = site.files(), [process.pid for process in site.processes()]

    second = site.deploy()
    assert second.outcome is Outcome.OK
    assert second.steps_done == 0
    assert site.files() == before
    assert [process.pid for process in site.processes()] == pids


def test_the_weights_are_in_the_store_by_hard_link(site: Site) -> None:
    site.deploy()
    blobs = list((site.root / "var/lib/ollama/models/blobs").glob("sha256-971af595*"))
    sources = list((site.root / "var/lib/ollama-fleet/artefacts").glob(f"*/{WEIGHTS_FILE}"))
    assert blobs[0].stat().st_ino == sources[0].stat().st_ino


def test_weights_that_pin_has_proven_are_not_downloaded_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    proven = tmp_path / f"cache/ollama-fleet/sha256-{CANARY_SHA256}" / WEIGHTS_FILE
    proven.parent.mkdir(parents=True)
    shutil.copyfile(CANARY, proven)
    site.write()
    del site.mirror.repos[WEIGHTS_REPO]
    assert site.deploy().error is None
    blob = site.root / f"var/lib/ollama/models/blobs/sha256-{CANARY_SHA256}"
    assert blob.stat().st_ino == proven.stat().st_ino


def test_a_damaged_file_in_the_cache_is_not_taken(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    damaged = tmp_path / f"cache/ollama-fleet/sha256-{CANARY_SHA256}" / WEIGHTS_FILE
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(bytes(CANARY.stat().st_size))
    assert site.deploy().error is None
    assert site.mirror.requests


def test_nothing_is_writable_for_others(site: Site) -> None:
    site.deploy()
    loose = [path for path in site.root.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    assert loose == []


def test_the_single_tasks_in_the_articles_order_do_what_deploy_does(site: Site) -> None:
    for selection in (only_install, only_download, only_service, only_create):
        outcome = site.deploy(selection)
        assert outcome.error is None, str(outcome.error)
        assert outcome.outcome is Outcome.CHANGED
    assert site.plan().is_empty


def test_a_parameter_edited_in_the_project_is_drift_with_a_name_and_is_promoted(site: Site) -> None:
    site.deploy()
    old = site.served()["myqwen2:latest"]
    template = site.modelfiles / "myqwen2.Modelfile.j2"
    template.write_text(
        template.read_text().replace("PARAMETER temperature 0.7", "PARAMETER temperature 0.5")
    )

    assert "PARAMETER temperature is `0.7`, desired `0.5`" in site.plan().steps[0].reason
    assert site.deploy().error is None
    served = site.served()
    assert served["myqwen2:previous"] == old
    assert served["myqwen2:latest"] != old
    assert site.plan().is_empty


def test_a_parameter_changed_on_the_server_is_drift_too(site: Site) -> None:
    site.deploy()
    reply = site.post(
        "/api/create",
        {"model": "myqwen2", "from": "myqwen2", "parameters": {"temperature": 0.1}, "stream": False},
    )
    assert reply.status_code == 200, reply.text
    assert "PARAMETER temperature is `0.1`, desired `0.7`" in site.plan().steps[0].reason
    assert site.deploy().error is None
    assert site.plan().is_empty


def test_an_upgrade_switches_the_release_and_keeps_the_model(site: Site) -> None:
    site.deploy()
    model = site.served()
    site.add_release("0.17.6")
    site.pins.unlink()
    site.version = "0.17.6"
    outcome = site.deploy()
    assert outcome.error is None, str(outcome.error)
    assert site.get("/api/version") == {"version": "0.17.6"}
    assert site.served() == model
    assert (site.root / "opt/ollama/current").readlink().name == "0.17.6"
    assert sorted(path.name for path in (site.root / "opt/ollama/releases").iterdir()) == ["0.17.5", "0.17.6"]


def broken_binary(tmp_path: Path, line: str) -> Path:
    """The simulated Ollama with one statement before its own."""
    path = tmp_path / "broken-ollama"
    text = SIMULATED.read_text()
    path.write_text(text.replace("python=\n", f"{line}\npython=\n", 1))
    return path


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("echo 'panic: no such table'; exit 2", "panic: no such table"),
        ("OLLAMA_SIMULATED_VERSION=0.1.2; export OLLAMA_SIMULATED_VERSION", "another version"),
        ("OLLAMA_SIMULATED_FAULT=text-calls; export OLLAMA_SIMULATED_FAULT", "rule"),
        ("OLLAMA_SIMULATED_FAULT=missing-argument; export OLLAMA_SIMULATED_FAULT", "rule 21"),
        ("OLLAMA_SIMULATED_FAULT=swallow; export OLLAMA_SIMULATED_FAULT", "rule 12"),
    ],
)
def test_a_broken_release_is_taken_back_and_the_old_one_serves(
    site: Site, tmp_path: Path, line: str, cause: str
) -> None:
    site.deploy()
    before = site.served()
    site.add_release("0.17.6", binary=broken_binary(tmp_path, line))
    site.pins.unlink()
    site.version = "0.17.6"

    error = error_of(site)
    assert isinstance(error, ServiceError | VerifyFailed)
    assert cause in str(error)
    assert "release 0.17.5 serves again, as before" in str(error.unchanged)
    assert site.get("/api/version") == {"version": "0.17.5"}
    assert site.served() == before
    assert (site.root / "opt/ollama/current").readlink().name == "0.17.5"
    assert len(site.processes()) == 1


@pytest.mark.fault(24, 30)
def test_a_candidate_that_fails_is_removed_and_the_old_model_keeps_its_name(site: Site) -> None:
    site.deploy()
    before = site.served()
    # A TEMPLATE that the lint finds nothing in and that is wrong all the same: the suite has the last word.
    template = site.modelfiles / "qwen2-tools.template"
    template.write_text(
        template.read_text().replace("<|im_start|>assistant\n{{ else }}", "<|im_start|>robot\n{{ else }}")
    )
    error = error_of(site)
    assert isinstance(error, VerifyFailed)
    assert "`myqwen2:latest` is the one that was there before" in str(error.unchanged)
    assert site.served() == before
    # The candidate was unloaded, and both names had one runner.
    assert [entry["name"] for entry in site.get("/api/ps")["models"]] == ["myqwen2:latest"]


def test_a_server_that_a_cut_deploy_has_started_is_proven_by_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without systemd there is no lease: nothing else would tell it from one that has passed."""
    site.deploy()
    site.settings["ollama_num_parallel"] = "3"
    with monkeypatch.context() as patch:
        # As a kill, which nothing can catch.
        patch.setattr(apply, "_verify", lambda _step, _site: sys.exit(137))
        with pytest.raises(SystemExit):
            site.deploy()
    # A single phase does not confirm what another run has left.
    site.deploy(only_service)
    assert [subject_of(step) for step in site.plan().steps] == ["myqwen2:latest"]
    assert isinstance(site.plan().steps[0], VerifyModel)
    site.deploy()
    assert site.plan().is_empty


def test_a_model_that_is_promoted_with_the_same_weights_stays_loaded(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is cut between promotion and load would leave a server that has none."""
    site.deploy()
    file = site.modelfiles / "myqwen2.Modelfile.j2"
    file.write_text(file.read_text().replace("PARAMETER top_p 0.8", "PARAMETER top_p 0.9"))
    loaded, load = [], apply._load

    def look_first(step: LoadModel, at: apply.Site) -> None:
        loaded.append(len(site.get("/api/ps")["models"]))
        load(step, at)

    monkeypatch.setattr(apply, "_load", look_first)
    site.deploy()
    assert loaded == [1]


@pytest.fixture
def claimed_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that tells of one large, empty GPU: whether the server computes there is another question."""
    gpu = Gpu(
        index=0,
        name="scripted",
        uuid="GPU-0",
        memory_total_bytes=80 * 2**30,
        memory_used_bytes=0,
        memory_free_bytes=80 * 2**30,
        driver="0",
    )
    monkeypatch.setattr("deploy.nvml.read_gpus", lambda: GpuReading(gpus=(gpu,)))


@pytest.mark.fault(27)
def test_a_host_without_the_gpu_it_should_have_is_refused_before_the_first_byte(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.nvml.read_gpus", GpuReading)
    site.settings["ollama_gpu"] = "nvidia"
    assert isinstance(error_of(site), GpuUnusable)
    assert not site.mirror.requests


@pytest.mark.usefixtures("claimed_gpu")
def test_what_is_served_is_loaded_under_its_own_name_after_a_candidate_failed(site: Site) -> None:
    site.deploy()
    template = site.modelfiles / "myqwen2.Modelfile.j2"
    template.write_text(template.read_text().replace("PARAMETER top_p 0.8", "PARAMETER top_p 0.9"))
    site.settings["ollama_gpu"] = "nvidia"
    assert isinstance(error_of(site), VerifyFailed)
    site.settings["ollama_gpu"] = "none"
    assert (
        smoke_hosts(site.run, site.run.hosts(), SmokeTask(cases=["no_tools"]))[0].outcome.outcome
        is Outcome.OK
    )


def test_a_candidate_that_fails_on_an_empty_host_promotes_nothing(site: Site, tmp_path: Path) -> None:
    line = "OLLAMA_SIMULATED_FAULT=index-zero; export OLLAMA_SIMULATED_FAULT"
    site.add_release("0.17.5", binary=broken_binary(tmp_path, line))
    error = error_of(site)
    assert isinstance(error, VerifyFailed)
    assert error.unchanged == "no server ran before and none runs now"
    assert site.processes() == []
    manifests = site.root / "var/lib/ollama/models/manifests"
    assert [path.name for path in manifests.rglob("*") if path.is_file()] == []


@pytest.mark.fault(27)
def test_a_converged_host_that_lost_its_gpu_fails_although_nothing_is_to_change(site: Site) -> None:
    assert site.deploy().error is None
    site.settings["ollama_gpu"] = "nvidia"
    error = error_of(site)
    assert isinstance(error, VerifyFailed)
    assert "runs on the CPU" in str(error.cause)
    assert (error.hint or "").startswith("./fleet logs --limit box: `inference compute` names")
    assert site.events("plan")[-1]["steps"] == []


@pytest.mark.fault(29)
@pytest.mark.usefixtures("claimed_gpu")
def test_silent_cpu_inference_is_a_failure_where_a_gpu_is_expected(site: Site, tmp_path: Path) -> None:
    site.settings["ollama_gpu"] = "nvidia"
    line = "OLLAMA_SIMULATED_FAULT=cpu; export OLLAMA_SIMULATED_FAULT"
    site.add_release("0.17.5", binary=broken_binary(tmp_path, line))
    error = error_of(site)
    assert isinstance(error, VerifyFailed)
    assert "runs on the CPU" in str(error.cause)
    assert (error.hint or "").startswith("./fleet logs --limit box: `inference compute` names")


def test_a_server_that_does_not_answer_is_to_be_started_anew_and_nothing_was_changed(site: Site) -> None:
    """Its model's bytes are not to blame."""
    site.deploy()
    (server,) = site.processes()
    server.suspend()
    try:
        error = error_of(site)
    finally:
        server.resume()
    assert error.hint == "./fleet logs --limit box; ./fleet service restart --limit box"
    assert error.unchanged == "everything"


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(kind=FaultKind.LOGIN_PAGE), NotAnArtefact),
        (Fault(kind=FaultKind.LOGIN_PAGE, route=Route.LISTING), NotAnArtefact),
        (Fault(kind=FaultKind.CORRUPT), ChecksumMismatch),
        (Fault(kind=FaultKind.WRONG_SHA256, route=Route.LISTING), ChecksumMismatch),
        (Fault(kind=FaultKind.STATUS, route=Route.LISTING, status=404), MirrorError),
    ],
)
def test_a_bad_download_of_an_upgrade_leaves_the_old_release_serving(
    site: Site, fault: Fault, kind: type[FleetError]
) -> None:
    site.deploy()
    pids = [process.pid for process in site.processes()]
    site.add_release("0.17.6")
    site.pins.unlink()
    site.version = "0.17.6"
    site.mirror.faults.append(fault)
    error = error_of(site)
    assert isinstance(error, kind), repr(error)
    assert [process.pid for process in site.processes()] == pids
    assert not (site.root / "opt/ollama/releases/0.17.6").exists()

    site.mirror.faults.clear()
    assert site.deploy().error is None
    assert site.get("/api/version") == {"version": "0.17.6"}


@pytest.mark.fault(16)
def test_a_wrong_pinned_sha256_is_refused_before_anything_is_installed(site: Site) -> None:
    site.write()
    site.pins.write_text(re.sub(r'sha256 = "[0-9a-f]{8}', 'sha256 = "00000000', site.pins.read_text()))
    error = error_of(site)
    assert isinstance(error, ChecksumMismatch)
    assert site.processes() == []


def test_a_release_that_rewrites_the_weights_is_refused_before_a_host_is_reached(site: Site) -> None:
    site.add_release("0.30.0")
    site.version = "0.30.0"
    with pytest.raises(InputErrors) as refused:
        site.deploy()
    assert "cannot be deployed yet" in str(refused.value)
    assert not site.root.exists()


def test_weights_that_are_no_gguf_are_refused(site: Site, tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_text("<html>please log in</html>")
    site.mirror.repos[WEIGHTS_REPO] = MirrorRepo(
        repo=WEIGHTS_REPO, revisions={"master": {WEIGHTS_FILE: page}}
    )
    error = error_of(site)
    assert isinstance(error, NotAnArtefact)
    assert "served" not in site.output.getvalue()


def test_a_hostile_archive_is_refused(site: Site, tmp_path: Path) -> None:
    import gzip
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("../../../escaped")
        tar.addfile(info, io.BytesIO())
    archive = tmp_path / "ollama-linux-amd64.tgz"
    archive.write_bytes(gzip.compress(buffer.getvalue()))
    site.add_release("0.17.5", archive=archive)
    error = error_of(site)
    assert isinstance(error, ArchiveRefused)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.fault(21)
def test_a_taken_port_names_the_pid_and_touches_nothing(site: Site) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        site.port = other.getsockname()[1]
        error = error_of(site)
    assert isinstance(error, PortTaken)
    assert f"pid {os.getpid()}" in error.sentence
    assert not (site.root / "opt").exists()


@pytest.mark.fault(10)
def test_a_disk_too_small_is_refused_before_the_first_byte(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.probe.Disk", lambda **fields: Disk(**{**fields, "available_bytes": 1024}))
    error = error_of(site)
    assert isinstance(error, DiskTooSmall)
    assert "are missing" in str(error.cause)
    assert not site.mirror.requests


def test_a_locked_host_is_refused_with_its_owner_and_exit_code_5(site: Site) -> None:
    lock = site.run.hosts()[0].paths.lock
    with host_lock(LocalTransport("box"), lock, "another deploy"):
        outcome = site.deploy()
    assert isinstance(outcome.error, HostLocked)
    assert outcome.error.exit_code is ExitCode.LOCKED
    assert "another deploy" in outcome.error.sentence
    assert site.deploy().error is None


def test_a_restart_that_could_not_start_again_stops_nothing(site: Site) -> None:
    site.deploy()
    pids = [process.pid for process in site.processes()]
    (site.root / "opt/ollama/releases/0.17.5/release.json").unlink()
    assert service_asking(site.run, "restart", yes=True) is ExitCode.FAILED
    assert "release `0.17.5` is no longer on the host" in site.output.getvalue()
    assert [event["outcome"] for event in site.events("host_done")[-1:]] == ["failed"]
    assert [process.pid for process in site.processes()] == pids


@pytest.mark.parametrize("is_installed", [False, True])
def test_a_restart_keeps_the_release_that_serves_whatever_the_inventory_wants(
    site: Site, is_installed: bool
) -> None:
    """Another release would be switched to unproven."""
    site.deploy()
    pids = [process.pid for process in site.processes()]
    site.add_release("0.17.6")
    site.pins.unlink()
    site.version = "0.17.6"
    if is_installed:
        assert site.deploy(only_install).error is None
    assert service_asking(site.run, "restart", yes=True) == ExitCode.DONE
    assert [process.pid for process in site.processes()] != pids
    assert site.get("/api/version") == {"version": "0.17.5"}


def test_a_restart_without_yes_and_without_a_terminal_starts_nothing(site: Site) -> None:
    site.deploy()
    assert service_asking(site.run, "stop", yes=True) == 0
    assert service_asking(site.run, "restart", yes=False) == 1
    assert site.processes() == []


def test_a_case_that_does_not_exist_is_a_usage_error(site: Site) -> None:
    with pytest.raises(UsageError, match="`--case nope` is no case"):
        smoke_inventory(site.run, SmokeTask(cases=["nope"]))


def test_smoke_without_a_server_fails_and_claims_no_kind_of_ollama(site: Site) -> None:
    assert smoke_inventory(site.run, SmokeTask()) == ExitCode.FAILED
    assert "ollama" not in site.events("summary")[0]


def test_a_restart_loads_the_model_again(site: Site) -> None:
    site.deploy()
    pids = [process.pid for process in site.processes()]
    assert service_asking(site.run, "restart", yes=True) == 0
    assert [process.pid for process in site.processes()] != pids
    assert [entry["name"] for entry in site.get("/api/ps")["models"]] == ["myqwen2:latest"]


# A server whose host says, by a file, that it shall not start.
REFUSES = 'if [ "$1" = serve ] && [ -e "$OLLAMA_FLEET_ROOT/refuse" ]; then exit 1; fi\npython=\n'


def test_a_restart_goes_batch_by_batch_and_ends_where_a_server_does_not_come_back(
    site: Site, tmp_path: Path
) -> None:
    site.add_release("0.17.6", binary=changed_binary(tmp_path, "python=\n", REFUSES))
    site.version = "0.17.6"
    site.settings |= {"ollama_batch": "1"}
    first = f"first ansible_connection=local ollama_root={tmp_path}/first ollama_host=127.0.0.1:{free_port()}"

    def run() -> Run:
        made = site.run
        site.inventory.write_text(site.inventory.read_text().replace("[all]\n", f"[all]\n{first}\n"))
        return made

    assert deploy_asking(run(), "deploy", everything, yes=True, verify=False) == ExitCode.DONE
    (served,) = [item for item in site.processes() if item.environ()["OLLAMA_FLEET_ROOT"] == str(site.root)]
    (tmp_path / "first/refuse").touch()
    assert service_asking(run(), "restart", yes=True) is ExitCode.FAILED
    ended = {event["host"]: event["outcome"] for event in site.events("host_done")[-2:]}
    assert ended == {"first": "failed", "box": "skipped"}
    assert site.processes() == [served]


def test_a_server_killed_between_deploys_is_started_again(site: Site) -> None:
    site.deploy()
    for process in site.processes():
        process.kill()
        process.wait(10)
    outcome = site.deploy()
    assert outcome.error is None, str(outcome.error)
    assert set(site.served()) == {"myqwen2:latest"}


@pytest.mark.parametrize("damage", [b"", b"<html>", CANARY.read_bytes()[:-100]])
def test_damaged_weights_in_the_store_are_healed(site: Site, damage: bytes) -> None:
    site.deploy()
    blob = next((site.root / "var/lib/ollama/models/blobs").glob("sha256-971af595*"))
    blob.unlink()
    blob.write_bytes(damage)
    outcome = site.deploy()
    assert outcome.error is None, str(outcome.error)
    assert blob.read_bytes() == CANARY.read_bytes()


def test_a_promoted_model_is_loaded_under_its_own_name(site: Site) -> None:
    # Names on one GGUF share a runner, and /api/ps would go on naming the deleted candidate (measured).
    site.deploy()
    assert [entry["name"] for entry in site.get("/api/ps")["models"]] == ["myqwen2:latest"]
    template = site.modelfiles / "myqwen2.Modelfile.j2"
    template.write_text(template.read_text().replace("PARAMETER top_p 0.8", "PARAMETER top_p 0.9"))
    site.deploy()
    assert [entry["name"] for entry in site.get("/api/ps")["models"]] == ["myqwen2:latest"]


def test_a_changed_setting_restarts_the_server_with_exactly_that_environment(site: Site) -> None:
    site.deploy()
    site.settings["ollama_num_parallel"] = "2"
    assert site.deploy().error is None
    assert site.processes()[0].environ()["OLLAMA_NUM_PARALLEL"] == "2"
    assert site.plan().is_empty


def test_a_template_without_tools_is_refused_before_a_host_is_reached(site: Site) -> None:
    (site.modelfiles / "qwen2-tools.template").write_text("{{ .Prompt }}")
    with pytest.raises(InputErrors):
        site.deploy()
    assert not site.root.exists()
