"""The checks of GPUs, made from afar: what a transport tells of processes, and whom a deploy believes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest

from console.gpu_checks import HostFromAfar, believing_the_driver, examine_gpus
from deploy.desired import HostPaths, ServiceBackend
from deploy.local import LocalTransport
from deploy.outcomes import ModelVerdict, VerifyRequest
from healthchecks.api import load_model
from healthchecks.health import State
from testbed.ollama import RunningServer, start_server
from tests.contract.scripted_nvml import smi

__all__ = ["smi"]

GPU = "0, GPU-1, 550.54.15, 24576, {0}, 18064, [N/A], NVIDIA A10\n"


@pytest.fixture
def paths(tmp_path: Path) -> HostPaths:
    return HostPaths(root=PurePosixPath(tmp_path), models_dir=PurePosixPath(tmp_path / "models"))


def test_processes_are_seen_with_parents_and_a_server_with_its_mark(tmp_path: Path) -> None:
    program = tmp_path / "ollama"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with subprocess.Popen([program, "60"], env={"OLLAMA_FLEET_ROOT": "/a root"}) as started:
        try:
            found = {one.pid: one for one in HostFromAfar(LocalTransport("box")).processes()}
        finally:
            started.kill()
    server, this = found[started.pid], found[os.getpid()]
    assert (server.parent_pid, server.command) == (os.getpid(), (str(program), "60"))
    assert server.environment == {"OLLAMA_FLEET_ROOT": "/a root"}
    assert this.parent_pid == os.getppid()
    assert 1 in found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ollama", ["60", "a\nprogram\n\tof lines) S 1 2 3\t\t\x0b\x85"]),
        ("odd) S 1 (", ["60"]),
        ("tab\there", ["60"]),
        ("line\nend", ["60"]),
    ],
)
def test_no_process_hides_the_others_by_what_it_is_called(
    tmp_path: Path, name: str, words: list[str]
) -> None:
    program = tmp_path / name
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    with subprocess.Popen([program, *words], start_new_session=True) as started:
        try:
            found = {one.pid: one for one in HostFromAfar(LocalTransport("box")).processes()}
        finally:
            os.killpg(started.pid, signal.SIGKILL)
    assert found[os.getpid()].parent_pid == os.getppid()
    if "\n" not in name:
        assert found[started.pid].parent_pid == os.getpid()


def test_what_is_not_there_and_what_nobody_asks_for_is_an_error(tmp_path: Path) -> None:
    host: Any = HostFromAfar(LocalTransport("box"))
    with pytest.raises(FileNotFoundError):
        host.run(["no-such-program"], 10)
    with pytest.raises(TimeoutError):
        host.run(["sleep", "60"], 0.2)
    with pytest.raises(OSError, match="`memory` is not asked from afar"):
        host.memory()
    assert host.size(str(tmp_path / "absent")) is None
    (tmp_path / "there").write_text("four")
    assert host.size(str(tmp_path / "there")) == 4


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """It claims to have its model in GPU memory."""
    with start_server(faults=["gpu"]) as made:
        assert load_model(made.url, "canary", 20).ok
        yield made


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    ("used_mib", "state", "said"),
    [(0, State.FAIL, "a silent CPU fallback"), (6000, State.UNKNOWN, "does not show who holds")],
)
def test_a_claim_that_the_driver_contradicts_is_a_failure_and_one_it_cannot_judge_a_note(
    smi: pytest.MonkeyPatch, paths: HostPaths, server: RunningServer, used_mib: int, state: State, said: str
) -> None:
    smi.setenv("SCRIPTED_SMI_GPUS", GPU.format(used_mib))
    transport = LocalTransport("box")
    report = examine_gpus("box", transport, paths, ServiceBackend.PROCESS, server.url, is_here=False)
    driver, truth = report.checks
    assert (driver.check, driver.state, truth.check, truth.state) == ("gpu", State.PASS, "gpu_truth", state)
    assert said in truth.reason

    desired: Any = SimpleNamespace(
        paths=paths, server=SimpleNamespace(backend=ServiceBackend.PROCESS), login="of another machine"
    )
    request = VerifyRequest(
        host="box", url=server.url, model="canary", uses_tools=True, version="0.17.5", gpu="nvidia"
    )

    def verdict(*, passed: bool, gpu: str = "nvidia") -> ModelVerdict:
        verify = believing_the_driver(
            lambda _: ModelVerdict(passed=passed), {"box": desired}, lambda _: transport
        )
        return verify(replace(request, gpu=gpu))

    found = verdict(passed=True)
    assert found.passed is (state is not State.FAIL)
    assert said in "".join(found.notes if found.passed else found.reasons)
    # Nobody asks the driver where that would change nothing.
    smi.setenv("SCRIPTED_SMI_EXIT", "9")
    assert verdict(passed=False) == ModelVerdict(passed=False)
    assert verdict(passed=True, gpu="none") == ModelVerdict(passed=True)
    assert "the driver is not loaded" in "".join(verdict(passed=True).reasons)
