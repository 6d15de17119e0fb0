"""The script that checks a host without Python: the same report and names, and unknown is never a pass."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from healthchecks.agent import Finished
from healthchecks.health import (
    CHECKS,
    CheckResult,
    Effort,
    HealthConfig,
    HealthReport,
    State,
    parse_report,
    render_config,
)
from healthchecks.health_facts import FACTS, empty_facts
from healthchecks.metrics import METRICS, PREFIX
from healthchecks.results import read_history, read_last
from healthchecks.textfile import write_metrics
from tests.contract.ollama_binaries import NOBODY_LISTENS, SIMULATED, Server, free_address, serve, wait_ready
from tests.contract.shells import need
from tests.contract.test_probe import probe
from tests.contract.test_smoke_suite import create_canary
from tests.unit.health_host import CONFIG

SCRIPT = Path(__file__).parents[2] / "deploy/templates/health.sh"
SHELLS = (("sh",), ("bash", "--posix"), ("busybox", "sh"))
# Everything but a Python: what is tested is what is done without.
TOOLS = (
    "cat cut awk sed tr grep head tail df date mkdir mv rm wc readlink printf timeout curl flock mktemp env"
)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tools")
    for name in TOOLS.split():
        found = shutil.which(name)
        if found is not None:
            (directory / name).symlink_to(found)
    return directory


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(SIMULATED, tmp_path_factory.mktemp("server") / "state", free_address()) as served:
        wait_ready(served)
        create_canary(served.url)
        yield served


def health(
    action: str,
    tools: Path,
    *,
    root: Path | str = "/nonexistent",
    models: Path | str = "/tmp",
    address: str = NOBODY_LISTENS,
    gpu: str = "none",
    names: tuple[str, ...] = ("canary",),
    shell: tuple[str, ...] = ("sh",),
    script: Path = SCRIPT,
) -> subprocess.CompletedProcess[str]:
    need(shell[0])
    program = [shutil.which(shell[0]) or "", *shell[1:]]
    words = [action, 'b"ox\\', str(root), str(models), address, "process", gpu, *names]
    done = subprocess.run(
        [*program, script, *words],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done


@contextmanager
def answer_all(body: str) -> Iterator[str]:
    """A server that says this to everybody; its address."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        serving = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()


def report_of(done: subprocess.CompletedProcess[str]) -> HealthReport:
    return parse_report(json.loads(done.stdout))


def states(report: HealthReport) -> dict[str, State]:
    return {result.check: result.state for result in report.checks}


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
def test_every_shell_finds_a_server_that_serves(shell: tuple[str, ...], server: Server, tools: Path) -> None:
    done = health("report", tools, models=server.models, address=server.address, shell=shell)
    report = report_of(done)
    assert report.host == 'b"ox\\'
    found = states(report)
    assert [found[name] for name in ("api", "models", "exposure")] == [State.PASS] * 3, done.stdout
    assert report.facts["ollama_version"] == "0.17.5"
    assert report.facts.keys() == FACTS.keys()
    told = next(result for result in report.checks if result.check == "toolcall")
    assert told.state is State.UNKNOWN
    assert told.reason == "was not checked: no python3 on this host"
    assert report.state is not State.PASS


@pytest.mark.parametrize("gpu", ["none", "nvidia"])
@pytest.mark.parametrize("action", ["report", "report-quick"])
def test_it_tells_of_every_check_that_the_agent_makes(action: str, gpu: str, tools: Path) -> None:
    config = replace(CONFIG, gpu=gpu)
    made = {
        check.name
        for check in CHECKS
        if check.concerns(config) and (action == "report" or check.effort is Effort.LOOK)
    }
    assert states(report_of(health(action, tools, gpu=gpu))).keys() == made


def test_a_server_that_is_down_and_a_model_that_is_gone_fail(tools: Path) -> None:
    done = health("report", tools)
    assert done.returncode == 2
    found = states(report_of(done))
    assert (found["api"], found["models"], found["exposure"]) == (State.FAIL, State.FAIL, State.UNKNOWN)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    "body",
    [
        "<!DOCTYPE html>\n<title>Portal</title>\n",
        '<script>\nvar page = {"version": "7"}\n</script>\n',
        '{"version": ""}',
        '{"version": "1 <b>"}',
        "",
    ],
)
def test_another_service_on_the_port_fails(
    body: str, shell: tuple[str, ...], tools: Path, tmp_path: Path
) -> None:
    with answer_all(body) as address:
        report = report_of(health("report-quick", tools, address=address, shell=shell))
    told = {result.check: result for result in report.checks}
    assert told["api"].state is State.FAIL
    assert told["api"].reason == f"http://{address}/api/version states no version"
    assert report.facts["ollama_version"] is None


def test_weights_that_are_gone_fail(server: Server, tools: Path, tmp_path: Path) -> None:
    store = shutil.copytree(server.models, tmp_path / "models")
    largest = max((store / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    largest.unlink()
    told = {result.check: result for result in report_of(health("report", tools, models=store)).checks}
    assert told["models"].state is State.FAIL
    assert told["models"].reason == "absent: the weights of canary"


def test_a_port_that_is_open_to_others_fails(tools: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        found = states(report_of(health("report-quick", tools, address=address)))
    assert found["exposure"] is State.FAIL


def add_nvidia_smi(tools: Path, tmp_path: Path, text: str) -> Path:
    """The tools, and an nvidia-smi that does `text`."""
    directory = shutil.copytree(tools, tmp_path / "tools", symlinks=True)
    smi = directory / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{text}\n")
    smi.chmod(0o755)
    return directory


@pytest.mark.parametrize(
    ("code", "says", "hint"),
    [
        (18, "Failed to initialize NVML: Driver/library version mismatch", "reboot"),
        # The others in the words of nvidia-smi 580.159.04.
        (4, "Failed to initialize NVML: Insufficient Permissions", "ls -l /dev/nvidia*"),
        (
            9,
            "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.",
            "modprobe nvidia",
        ),
        (12, "NVIDIA-SMI could not find libnvidia-ml.so library in your system.", "install the driver"),
    ],
)
def test_an_nvidia_smi_that_fails_is_told_in_its_words_with_the_next_step(
    tools: Path, tmp_path: Path, code: int, says: str, hint: str
) -> None:
    directory = add_nvidia_smi(tools, tmp_path, f"echo '{says}'\necho 'and more'\nexit {code}")
    told = {result.check: result for result in report_of(health("report", directory, gpu="nvidia")).checks}
    assert (told["gpu"].state, told["gpu"].reason) == (State.FAIL, f"nvidia-smi: {says}")
    assert hint in (told["gpu"].hint or "")


def write_config(root: Path, config: HealthConfig) -> None:
    directory = root / "var/lib/ollama-fleet/health"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(render_config(config), indent=1) + "\n")


ONE_GPU = "echo GPU-4d1c8a52-0000-0000-0000-000000000001"


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("smi", "expected", "state", "says"),
    [
        ("exit 0", None, State.FAIL, "0 GPUs answer"),
        ("echo 'No devices were found'", None, State.FAIL, "0 GPUs answer"),
        ("exit 0", 2, State.FAIL, "0 GPUs of 2 are there"),
        (ONE_GPU, None, State.PASS, "1 GPU answers"),
        (
            f"{ONE_GPU}; echo 'WARNING: infoROM is corrupted at gpu 0000:00:1E.0' >&2",
            1,
            State.PASS,
            "1 GPU answers",
        ),
        (ONE_GPU, 2, State.FAIL, "1 GPUs of 2 are there"),
        (f"{ONE_GPU}; {ONE_GPU}", 2, State.PASS, "2 GPUs answer"),
    ],
)
def test_the_gpus_that_are_listed_are_counted_against_those_that_were_deployed_on(
    shell: tuple[str, ...],
    smi: str,
    expected: int | None,
    state: State,
    says: str,
    tools: Path,
    tmp_path: Path,
) -> None:
    directory = add_nvidia_smi(tools, tmp_path, smi)
    root = tmp_path / "root"
    write_config(root, replace(CONFIG, gpu_expected_count=expected))
    done = health("report-quick", directory, root=root, gpu="nvidia", shell=shell)
    told = {result.check: result for result in report_of(done).checks}
    assert (told["gpu"].state, told["gpu"].reason.startswith(says)) == (state, True), told["gpu"]


# busybox asks its own df, whatever lies on the PATH.
@pytest.mark.parametrize("shell", SHELLS[:2], ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("inodes", "state", "says"),
    [
        ("6553600 6553600 0 100%", State.FAIL, "but only 0 inodes"),
        ("6553600 6553537 63 100%", State.FAIL, "but only 63 inodes"),
        ("6553600 6553536 64 99%", State.WARN, "but only 64 inodes"),
        ("6553600 53600 6500000 1%", State.PASS, "free for the models"),
        ("0 0 0 -", State.PASS, "free for the models"),
        ("- - - -", State.PASS, "free for the models"),
    ],
)
def test_a_disk_where_no_more_files_fit_fails(
    shell: tuple[str, ...], inodes: str, state: State, says: str, tools: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(tools, tmp_path / "tools", symlinks=True)
    (directory / "df").unlink()
    (directory / "df").write_text(
        "#!/bin/sh\necho Filesystem\n"
        f"case $1 in -Pi) echo '/dev/vda {inodes} /' ;; *) echo '/dev/vda 9000000 1 8999999 1% /' ;; esac\n"
    )
    (directory / "df").chmod(0o755)
    done = health("report-quick", directory, shell=shell)
    told = {result.check: result for result in report_of(done).checks}
    assert (told["disk"].state, told["disk"].reason.endswith(says)) == (state, True), told["disk"]


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
def test_an_nvidia_smi_that_no_signal_but_the_last_one_ends_has_a_deadline(
    shell: tuple[str, ...], tools: Path, tmp_path: Path
) -> None:
    never = tmp_path / "never"
    os.mkfifo(never)
    directory = add_nvidia_smi(tools, tmp_path, f"trap '' TERM; exec cat {never}")
    script = tmp_path / "health.sh"
    script.write_text(SCRIPT.read_text().replace("ask_seconds=10\n", "ask_seconds=1\n"))
    try:
        done = health("report-quick", directory, gpu="nvidia", shell=shell, script=script)
    finally:
        # Whoever still waits for it reads its end.
        os.close(os.open(never, os.O_RDWR | os.O_NONBLOCK))
    told = {result.check: result for result in report_of(done).checks}
    assert told["gpu"].state is State.FAIL
    assert told["gpu"].reason == "nvidia-smi does not answer within 1 s"


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
def test_runs_keep_their_results_as_the_agent_does(
    shell: tuple[str, ...], server: Server, tools: Path, tmp_path: Path
) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        return health("run", tools, root=tmp_path, models=server.models, address=server.address, shell=shell)

    first = run()
    directory = tmp_path / "var/lib/ollama-fleet/health"
    report = read_last(directory / "last.json")
    assert report is not None
    assert first.stdout.splitlines()[-1].startswith(f"{report.state}: ")
    seen = probe(tmp_path, tmp_path).health
    assert seen is not None
    assert (seen.state, f"{seen.started:%FT%TZ}") == (str(report.state), report.started)
    assert "unknown, since not checked (no python3 on this host): version" in first.stdout
    with (directory / "history.jsonl").open("a") as file:
        file.write('{"started": "cut')
    run()
    entries: list[dict[str, Any]] = list(read_history(directory / "history.jsonl"))
    assert [entry["checks"] for entry in entries] == [{k: str(v) for k, v in states(report).items()}] * 2
    assert len((directory / "history.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
def test_runs_write_metrics_as_the_agent_does_and_go_on_counting_where_it_stopped(
    shell: tuple[str, ...], tools: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "var/lib/ollama-fleet/health"
    node_exporter = tmp_path / "var/lib/prometheus/node-exporter"
    directory.mkdir(parents=True)
    node_exporter.mkdir(parents=True)
    config = replace(CONFIG, root=str(tmp_path), every_seconds=300.0)
    (directory / "config.json").write_text(json.dumps(render_config(config), indent=1) + "\n")
    failed = CheckResult("api", State.FAIL, "no answer")
    unknown = CheckResult("service", State.UNKNOWN, "who knows")
    report = HealthReport("box", "2026-11-26T03:00:00Z", 0.1, (failed, unknown), empty_facts(config))
    write_metrics(Finished(directory, config, report, None))
    (node_exporter / "ollama_fleet.prom.1.1").write_text("half")

    def run() -> dict[tuple[str, ...], float]:
        done = health("run", tools, root=tmp_path, shell=shell)
        assert "metrics" not in done.stdout
        assert [path.name for path in node_exporter.iterdir()] == ["ollama_fleet.prom"]
        assert stat.S_IMODE((node_exporter / "ollama_fleet.prom").stat().st_mode) == 0o644
        families = list(text_string_to_metric_families((node_exporter / "ollama_fleet.prom").read_text()))
        for family in families:
            metric = METRICS[family.name.removeprefix(PREFIX)]
            assert (family.documentation, family.type) == (metric.text, metric.kind)
            assert {tuple(sample.labels) for sample in family.samples} == {metric.labels}
        return {
            (sample.name.removeprefix(PREFIX), *sample.labels.values()): sample.value
            for family in families
            for sample in family.samples
        }

    for row in (2, 3):
        found = run()
        assert found["check_success", "api"] == 0
        assert found["check_success", "rollback"] == 1
        assert ("check_success", "toolcall") not in found
        assert found["check_state", "toolcall", "unknown"] == 1
        assert found["check_consecutive_failures", "api"] == row
        assert ("check_consecutive_failures", "service") not in found
        assert found["check_interval_seconds",] == 300
        assert time.time() - found["check_last_run_timestamp_seconds",] < 60

    asked = tmp_path / "asked for"
    config = replace(config, textfile_dir=str(asked))
    (directory / "config.json").write_text(json.dumps(render_config(config), indent=1) + "\n")
    assert f"the metrics could not be written to {asked}" in health("run", tools, root=tmp_path).stdout
    asked.mkdir()
    health("run", tools, root=tmp_path)
    assert (asked / "ollama_fleet.prom").is_file()


# busybox has an mv of its own.
@pytest.mark.parametrize("shell", SHELLS[:2], ids=lambda words: words[0])
def test_a_run_that_cannot_keep_its_results_tells_them(
    shell: tuple[str, ...], tools: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(tools, tmp_path / "tools", symlinks=True)
    (directory / "mv").unlink()
    (directory / "mv").write_text("#!/bin/sh\nexit 1\n")
    (directory / "mv").chmod(0o755)
    done = health("run", directory, root=tmp_path, shell=shell)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert f"fail api: no answer from http://{NOBODY_LISTENS}/api/version within 10 s; ./fleet logs" in lines
    assert lines[-1].startswith("fail: ")
    assert not (tmp_path / "var/lib/ollama-fleet/health/last.json").exists()


def add_broken_agent(tools: Path, root: Path) -> Path:
    """The tools with a Python, and below `root` an agent that ends with exit code 70."""
    agents = root / "usr/local/lib/ollama-fleet/agent"
    agents.mkdir(parents=True)
    (agents / "0123456789abcdef.pex").write_text("raise SystemExit(70)")
    directory = shutil.copytree(tools, root / "tools", symlinks=True)
    python = directory / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return directory


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
def test_a_run_whose_agent_breaks_does_not_end_well(
    shell: tuple[str, ...], server: Server, tools: Path, tmp_path: Path
) -> None:
    directory = add_broken_agent(tools, tmp_path)

    def end(action: str, tools: Path) -> int:
        return health(
            action, tools, root=tmp_path, models=server.models, address=server.address, shell=shell
        ).returncode

    assert end("run-quick", directory) == 1
    report = read_last(tmp_path / "var/lib/ollama-fleet/health/last.json")
    assert report is not None
    assert State.FAIL not in states(report).values()
    # A report says it itself, and with no Python at all there is nothing that broke.
    assert end("report-quick", directory) == 0
    assert end("run-quick", tools) == 0


def test_an_agent_that_does_not_run_is_told_and_the_shell_checks(tools: Path, tmp_path: Path) -> None:
    directory = add_broken_agent(tools, tmp_path)
    told = {r.check: r for r in report_of(health("report", directory, root=tmp_path)).checks}
    assert told["toolcall"].reason == "was not checked: the agent ended with exit code 70"
    told = {r.check: r for r in report_of(health("report", tools, root=tmp_path)).checks}
    assert told["toolcall"].reason == "was not checked: no python3 on this host"


def test_a_second_run_leaves_while_another_is_under_way(tools: Path, tmp_path: Path) -> None:
    directory = tmp_path / "var/lib/ollama-fleet/health"
    directory.mkdir(parents=True)
    holder = subprocess.Popen(["flock", directory / "lock", "cat"], stdin=subprocess.PIPE)
    try:
        while subprocess.run(["flock", "-n", directory / "lock", "true"], check=False).returncode == 0:
            continue
        done = health("run", tools, root=tmp_path)
    finally:
        holder.communicate(b"")
    assert (done.returncode, done.stdout) == (0, "another run is under way\n")
    assert not (directory / "last.json").exists()
