"""The plan is a pure function: every kind of difference, and nothing for a host that is as desired."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest

from deploy.desired import (
    Artefact,
    Desired,
    DesiredModel,
    DesiredServer,
    GpuKind,
    HostPaths,
    Modelfile,
    ServiceBackend,
)
from deploy.errors import DiskReadOnly, DiskTooSmall, PinError, PortTaken, ServiceError
from deploy.facts import Blob, Disk, HostFacts, Listener, ProcessId, ServerProcess, StoredModel
from deploy.plan import (
    Plan,
    only_create,
    only_download,
    only_install,
    only_service,
    plan,
    render_plan,
)
from deploy.server_plan import choose_release, server_environment
from deploy.steps import PromoteModel, UnpackRelease

ROOT = PurePosixPath("/srv/fleet")
ARCHIVE = Artefact(repo="o/l", revision="v1", file="ollama-linux-amd64.tgz", size_bytes=1000, sha256="a" * 64)
WEIGHTS = Artefact(repo="q/w", revision="r1", file="w.gguf", size_bytes=5000, sha256="b" * 64)
PARAMETERS: dict[str, Any] = {"temperature": 0.7, "stop": ["<|im_end|>"]}
MODEL = DesiredModel(
    name="MyQwen2",
    weights=WEIGHTS,
    modelfile=Modelfile(text="", template="line 1\nline 2", parameters=PARAMETERS),
    uses_tools=True,
)
DESIRED = Desired(
    host="h1",
    connection="local",
    paths=HostPaths(root=ROOT, models_dir=ROOT / "models"),
    server=DesiredServer(
        version="0.17.5",
        archives={"amd64": ARCHIVE},
        environment={"OLLAMA_HOST": "127.0.0.1:5000", "OLLAMA_MODELS": str(ROOT / "models")},
        backend=ServiceBackend.PROCESS,
    ),
    models=(MODEL,),
    gpu=GpuKind.NONE,
)
PLENTY = Disk(mount="/", available_bytes=10**12)
EMPTY = HostFacts(
    architecture="x86_64",
    kernel="6.1",
    user_id=1000,
    boot_id="boot",
    tools={},
    disks={
        str(path): PLENTY for path in (DESIRED.paths.state, DESIRED.paths.releases, DESIRED.paths.models_dir)
    },
)
SERVER = ServerProcess(
    process=ProcessId(pid=42, create_time=1000.0),
    command=("python3", str(ROOT / "opt/ollama/releases/0.17.5/bin/ollama"), "serve"),
    environment=server_environment(DESIRED, EMPTY, choose_release(DESIRED, EMPTY)),
)
STORED = StoredModel(model_sha256=WEIGHTS.sha256, template="line 1\nline 2", parameters=PARAMETERS)
CONVERGED = replace(
    EMPTY,
    releases={"0.17.5": ARCHIVE.sha256},
    current="0.17.5",
    servers=(SERVER,),
    listener=Listener(pid=42, command="ollama serve"),
    blobs={WEIGHTS.sha256: Blob(size_bytes=5000, is_gguf=True)},
    models={"myqwen2:latest": STORED},
)


def kinds(planned: Plan) -> list[str]:
    return [type(step).__name__ for step in planned.steps]


def reasons(planned: Plan) -> str:
    return "; ".join(step.reason for step in planned.steps)


def test_an_empty_host_gets_every_phase_in_order() -> None:
    assert kinds(plan(DESIRED, EMPTY)) == [
        "FetchArchive",
        "FetchWeights",
        "UnpackRelease",
        "SwitchRelease",
        "StartServer",
        "CreateModel",
        "VerifyModel",
        "PromoteModel",
        "LoadModel",
    ]


def test_a_converged_host_gets_nothing() -> None:
    assert plan(DESIRED, CONVERGED).is_empty


def test_model_names_are_compared_without_case_as_the_server_does() -> None:
    assert plan(DESIRED, replace(CONVERGED, models={"myqwen2:latest": STORED})).is_empty


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (
            replace(STORED, parameters=PARAMETERS | {"temperature": 0.5}),
            "PARAMETER temperature is `0.5`, desired `0.7`",
        ),
        (replace(STORED, parameters=PARAMETERS | {"seed": 1}), "PARAMETER seed is `1`, desired absent"),
        (replace(STORED, template="line 1\nother"), "TEMPLATE line 2 is `other`, desired `line 2`"),
        (replace(STORED, template="line 1"), "TEMPLATE line 2 is absent, desired `line 2`"),
        (replace(STORED, template=None), "TEMPLATE is absent, desired `present`"),
        (replace(STORED, system="be kind"), "SYSTEM is `be kind`, desired absent"),
        (replace(STORED, model_sha256="c" * 64), f"weights is `sha256:{'c' * 64}`"),
        (replace(STORED, other_layers=("application/license",)), "layer application/license is `present`"),
    ],
)
def test_a_drifted_model_is_made_again_and_the_difference_named(stored: StoredModel, said: str) -> None:
    planned = plan(DESIRED, replace(CONVERGED, models={"myqwen2:latest": stored}))
    assert kinds(planned) == ["CreateModel", "VerifyModel", "PromoteModel", "LoadModel"]
    assert said in planned.steps[0].reason


def test_a_truncated_blob_is_healed() -> None:
    facts = replace(CONVERGED, blobs={WEIGHTS.sha256: Blob(size_bytes=4999, is_gguf=True)})
    planned = plan(DESIRED, facts)
    assert kinds(planned)[0] == "FetchWeights"
    assert "weights in the store is `4999 bytes`, desired `5000 bytes`" in reasons(planned)


def test_weights_that_are_on_the_host_are_not_fetched_again() -> None:
    facts = replace(CONVERGED, blobs={}, artefacts={f"{WEIGHTS.sha256}/{WEIGHTS.file}": WEIGHTS.size_bytes})
    assert "FetchWeights" not in kinds(plan(DESIRED, facts))


def test_a_changed_setting_restarts_the_server_and_proves_the_model_again() -> None:
    changed = replace(SERVER, environment={**SERVER.environment, "OLLAMA_KEEP_ALIVE": "5m"})
    planned = plan(DESIRED, replace(CONVERGED, servers=(changed,)))
    assert kinds(planned) == ["StopServer", "StartServer", "LoadModel", "VerifyModel"]
    assert "OLLAMA_KEEP_ALIVE is `5m`, desired absent" in planned.steps[0].reason


def test_a_process_that_is_to_be_another_one_is_replaced_and_the_model_loaded_again() -> None:
    found = CONVERGED.servers[0].process
    wish = replace(DESIRED, server=replace(DESIRED.server, retired=(found,)))
    planned = plan(wish, CONVERGED, only_service)
    assert kinds(planned) == ["StopServer", "StartServer", "LoadModel"]
    assert f"server process is `pid {found.pid}`, desired `another one`" in reasons(planned)
    later = replace(found, pid=found.pid + 1)
    restarted = replace(CONVERGED, servers=(replace(CONVERGED.servers[0], process=later),))
    assert plan(wish, restarted, only_service).is_empty


def test_a_server_that_was_started_with_its_gpus_hidden_is_started_anew() -> None:
    hidden = replace(SERVER, environment={**SERVER.environment, "CUDA_VISIBLE_DEVICES": "-1"})
    planned = plan(DESIRED, replace(CONVERGED, servers=(hidden,)))
    assert kinds(planned)[:2] == ["StopServer", "StartServer"]
    assert "CUDA_VISIBLE_DEVICES is `-1`, desired absent" in planned.steps[0].reason


def test_a_server_of_another_release_is_restarted() -> None:
    old = replace(SERVER, command=("python3", str(ROOT / "opt/ollama/releases/0.17.4/bin/ollama"), "serve"))
    planned = plan(DESIRED, replace(CONVERGED, servers=(old,), current="0.17.4"))
    assert kinds(planned)[:3] == ["SwitchRelease", "StopServer", "StartServer"]
    assert "running release is `0.17.4`, desired `0.17.5`" in reasons(planned)


def test_a_second_server_on_the_same_store_is_stopped_and_the_right_one_kept() -> None:
    stray = replace(SERVER, process=ProcessId(pid=43, create_time=1.0), environment={"OLLAMA_HOST": "x"})
    planned = plan(DESIRED, replace(CONVERGED, servers=(stray, SERVER)))
    assert kinds(planned) == ["StopServer"]
    assert "second server" in reasons(planned)


def test_a_runner_whose_server_is_gone_is_stopped() -> None:
    runner = replace(
        SERVER, process=ProcessId(pid=50, create_time=1.0), command=("ollama", "runner", "--port", "1")
    )
    planned = plan(DESIRED, replace(CONVERGED, orphans=(runner,)))
    assert kinds(planned) == ["StopServer"]
    assert "keeps its memory" in reasons(planned)


def test_healed_weights_do_not_overwrite_the_previous_model() -> None:
    healed = plan(
        DESIRED,
        replace(CONVERGED, blobs={}, artefacts={f"{WEIGHTS.sha256}/{WEIGHTS.file}": WEIGHTS.size_bytes}),
    )
    drifted = plan(DESIRED, replace(CONVERGED, models={"myqwen2:latest": replace(STORED, template="x")}))
    keeps = [
        step.keeps_previous
        for item in (healed, drifted)
        for step in item.steps
        if isinstance(step, PromoteModel)
    ]
    assert keeps == [False, True]


def test_other_bytes_of_the_same_version_get_a_directory_of_their_own() -> None:
    other = replace(SERVER, environment={**SERVER.environment, "OLLAMA_FLEET_RELEASE": "d" * 64})
    planned = plan(DESIRED, replace(CONVERGED, releases={"0.17.5": "d" * 64}, servers=(other,)))
    restart = ["SwitchRelease", "StopServer", "StartServer", "LoadModel", "VerifyModel"]
    assert kinds(planned) == ["FetchArchive", "UnpackRelease", *restart]
    assert [step.version for step in planned.steps if isinstance(step, UnpackRelease)] == [
        f"0.17.5-{ARCHIVE.sha256[:12]}"
    ]


def test_a_damaged_release_is_replaced_and_its_server_restarted() -> None:
    planned = plan(DESIRED, replace(CONVERGED, releases={"0.17.5": ""}))
    # A server whose binary is gone starts no runner any more (measured on 0.17.5 and 0.24.0).
    restart = ["StopServer", "StartServer", "LoadModel", "VerifyModel"]
    assert kinds(planned) == ["FetchArchive", "UnpackRelease", *restart]


def test_weights_that_are_no_gguf_are_removed_before_the_server_starts() -> None:
    facts = replace(
        CONVERGED, servers=(), listener=None, blobs={WEIGHTS.sha256: Blob(size_bytes=5000, is_gguf=False)}
    )
    planned = kinds(plan(DESIRED, facts))
    assert planned.index("RemoveDamagedBlob") < planned.index("StartServer") < planned.index("CreateModel")


def test_what_a_cut_run_left_is_taken_away() -> None:
    facts = replace(
        CONVERGED, leftovers=("/srv/fleet/x",), models={**CONVERGED.models, "myqwen2:candidate": STORED}
    )
    assert kinds(plan(DESIRED, facts)) == ["RemoveLeftovers", "RemoveCandidate"]


def test_a_port_that_another_process_holds_is_refused_with_its_pid() -> None:
    facts = replace(CONVERGED, servers=(), listener=Listener(pid=77, command="nginx: master"))
    with pytest.raises(PortTaken, match=r"`5000` is taken by pid 77 \(nginx: master\)"):
        plan(DESIRED, facts)


def test_our_own_server_on_the_port_is_no_obstacle_to_its_restart() -> None:
    changed = replace(SERVER, environment={**SERVER.environment, "OLLAMA_DEBUG": "1"})
    assert "StartServer" in kinds(plan(DESIRED, replace(CONVERGED, servers=(changed,))))


def test_a_disk_too_small_says_how_much_is_missing() -> None:
    small = Disk(mount="/", available_bytes=1000)
    with pytest.raises(DiskTooSmall) as refused:
        plan(DESIRED, replace(EMPTY, disks=dict.fromkeys(EMPTY.disks, small)))
    needed = 1000 + 5000 + 3 * 1000 + 64 * 1024 * 1024
    assert f"{needed:,} bytes" in str(refused.value.expected)
    assert f"{needed - 1000:,} bytes" in str(refused.value.cause)


def test_a_store_on_another_disk_needs_room_for_a_copy_there() -> None:
    disks = {**EMPTY.disks, str(DESIRED.paths.models_dir): Disk(mount="/data", available_bytes=4000)}
    with pytest.raises(DiskTooSmall, match="`/data`"):
        plan(DESIRED, replace(EMPTY, disks=disks))


def test_what_a_cut_run_has_copied_already_needs_no_room_a_second_time() -> None:
    needed = 1000 + 5000 + 3 * 1000 + 64 * 1024 * 1024
    tight = replace(EMPTY, disks=dict.fromkeys(EMPTY.disks, Disk(mount="/", available_bytes=needed - 4096)))
    with pytest.raises(DiskTooSmall):
        plan(DESIRED, tight)
    for part in (f"{WEIGHTS.sha256}/.{WEIGHTS.place.name}.part", f"{WEIGHTS.sha256}.part"):
        assert "FetchWeights" in kinds(plan(DESIRED, replace(tight, parts={part: 4096})))


def test_a_disk_without_inodes_says_so_however_many_bytes_are_free() -> None:
    used_up = replace(PLENTY, free_inodes=7)
    with pytest.raises(DiskTooSmall, match="`/` has too few free inodes") as refused:
        plan(DESIRED, replace(EMPTY, disks=dict.fromkeys(EMPTY.disks, used_up)))
    assert (refused.value.expected, refused.value.actual) == ("256 free inodes", "7")
    assert "249 are missing" in str(refused.value.cause)
    # What writes no file of a size needs none.
    assert plan(DESIRED, replace(CONVERGED, disks=dict.fromkeys(EMPTY.disks, used_up))).is_empty


@pytest.mark.parametrize("path", [DESIRED.paths.state, DESIRED.paths.releases, DESIRED.paths.models_dir])
def test_a_read_only_disk_is_refused_where_the_plan_writes(path: PurePosixPath) -> None:
    read_only = {**EMPTY.disks, str(path): Disk(mount="/data", available_bytes=10**12, is_read_only=True)}
    with pytest.raises(DiskReadOnly, match="`/data` is mounted read-only"):
        plan(DESIRED, replace(EMPTY, disks=read_only))
    assert plan(DESIRED, replace(CONVERGED, disks=read_only)).is_empty


def test_an_architecture_without_a_pinned_archive_is_refused() -> None:
    with pytest.raises(PinError, match="`arm64`"):
        plan(DESIRED, replace(EMPTY, architecture="aarch64"))


@pytest.mark.parametrize(
    ("selection", "expected"),
    [(only_install, ["FetchArchive", "UnpackRelease"]), (only_download, ["FetchWeights"])],
)
def test_a_single_task_is_the_plan_restricted_to_its_phases(selection: Any, expected: list[str]) -> None:
    assert kinds(plan(DESIRED, EMPTY, selection)) == expected


@pytest.mark.parametrize(("selection", "task"), [(only_service, "install"), (only_create, "download")])
def test_a_phase_without_its_precondition_names_the_task_that_makes_it(selection: Any, task: str) -> None:
    with pytest.raises(ServiceError) as refused:
        plan(DESIRED, EMPTY, selection)
    assert f"./fleet {task} --limit h1" in str(refused.value.hint)


def test_a_started_server_loads_the_models_that_are_as_desired_in_the_same_phase() -> None:
    stopped = replace(CONVERGED, servers=(), listener=None)
    assert kinds(plan(DESIRED, stopped, only_service)) == ["StartServer", "LoadModel"]


def test_the_same_input_gives_the_same_plan_and_its_json_has_stable_keys() -> None:
    rendered = render_plan(plan(DESIRED, EMPTY))
    assert rendered == render_plan(plan(DESIRED, EMPTY))
    assert rendered["host"] == "h1"
    assert rendered["steps"][0] == {
        "phase": "fetch",
        "step": "FetchArchive",
        "subject": "ollama-linux-amd64.tgz",
        "reason": "release 0.17.5 is not on the host",
        "differences": [],
        "bytes": 1000,
    }
