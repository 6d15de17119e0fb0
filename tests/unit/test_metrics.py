"""What a run says as metrics: what is known and nothing else, by fixed names, and counters that survive."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from healthchecks.agent import Finished
from healthchecks.health import CheckResult, HealthConfig, HealthReport, State, run_checks
from healthchecks.health_facts import empty_facts
from healthchecks.metrics import METRICS, PREFIX, Counters, collect_samples, count_run
from healthchecks.textfile import read_counters, textfile_directories, write_metrics, write_textfile
from tests.unit.health_host import (
    CONFIG,
    GIB,
    NOW,
    OTHER_WEIGHTS,
    UNIT,
    WEIGHTS,
    FakeHost,
    FakeServer,
    with_gpu,
)

Values = Mapping[tuple[str, tuple[str, ...]], float]


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer()
    monkeypatch.setattr("healthchecks.api.send", server.send)
    monkeypatch.setattr("healthchecks.generate.send", server.send, raising=False)
    return server


def values_of(config: HealthConfig, report: HealthReport, counters: Counters | None = None) -> Values:
    counted = count_run(Counters(), report) if counters is None else counters
    return {(one.name, one.labels): one.value for one in collect_samples(config, report, counted)}


def a_report(*checks: CheckResult, config: HealthConfig = CONFIG, **facts: Any) -> HealthReport:
    return HealthReport("gpu01", "2026-11-26T03:00:00Z", 2.5, checks, {**empty_facts(config), **facts})


def result(check: str, state: State, **evidence: Any) -> CheckResult:
    return CheckResult(check, state, "because", evidence=evidence, seconds=0.25)


def test_a_healthy_gpu_host_fills_the_table(host: FakeHost, server: FakeServer) -> None:
    host.reading = with_gpu(memory_used_bytes=6 * GIB)
    host.runs["journalctl"] = replace(
        host.runs["journalctl"],  # type: ignore[type-var]
        stdout=json.dumps({"MESSAGE": "NVRM: Xid (PCI:0000:17:00): 63, pid=1", "__REALTIME_TIMESTAMP": "1"}),
    )
    config = replace(CONFIG, every_seconds=300.0)
    found = values_of(config, run_checks(config, host, NOW))
    without_a_tool_call = {"toolcall_success", "toolcall_duration_seconds"}
    assert {name for name, _ in found} | without_a_tool_call == set(METRICS)
    assert found["build_info", ("0.32.15", "0.1.0", "0.32.15")] == 1
    assert found["unit_restarts_total", ("ollama.service",)] == 2
    assert found["gpu_memory_used_bytes", ("0", "GPU-0")] == 6 * GIB
    assert found["gpu_xid_last_code", ("0", "GPU-0")] == 63
    assert found["model_vram_bytes", ("canary",)] == 5 * GIB
    assert found["generation_tokens_per_second", ("canary",)] == 100
    assert found["config_drift", (UNIT,)] == 0
    assert found["listener_exposed", ("127.0.0.1:11434",)] == 0
    assert found["check_interval_seconds", ()] == 300
    assert found["deploy_last_success_timestamp_seconds", ()] == 1764072000 + 365 * 86400


def test_every_sample_has_the_labels_that_the_table_promises(host: FakeHost, server: FakeServer) -> None:
    for sample in collect_samples(CONFIG, run_checks(CONFIG, host, NOW), Counters()):
        assert len(sample.labels) == len(METRICS[sample.name].labels), sample
        assert math.isfinite(sample.value), sample
    assert {label for metric in METRICS.values() for label in metric.labels} == {
        *("check", "state", "unit", "endpoint", "model", "gpu", "uuid", "path", "file", "addr"),
        *("ollama_version", "toolkit_version", "release", "driver_version", "cuda_version"),
    }


def test_names_follow_the_rules_of_prometheus() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.text.endswith("."), name


def test_what_is_not_known_is_left_out_and_is_no_zero() -> None:
    nothing = values_of(CONFIG, a_report(result("api", State.UNKNOWN)))
    assert {name for name, _ in nothing} == {
        *("runs_total", "run_duration_seconds", "check_last_run_timestamp_seconds", "check_state"),
        *("check_duration_seconds", "check_deadline_seconds", "check_failures_total", "build_info"),
        *("model_weights_bytes", "generation_baseline_tokens_per_second", "gpu_expected_count"),
        "deploy_last_success_timestamp_seconds",
    }
    assert nothing["check_state", ("api", "unknown")] == 1


@pytest.mark.parametrize(
    ("state", "success"), [(State.PASS, 1), (State.WARN, 1), (State.FAIL, 0), (State.UNKNOWN, None)]
)
def test_a_warning_is_a_success_and_unknown_is_neither(state: State, success: int | None) -> None:
    found = values_of(CONFIG, a_report(result("disk", state)))
    assert found.get(("check_success", ("disk",))) == success
    assert {labels[1] for (name, labels), value in found.items() if name == "check_state" and value} == {
        state.value
    }


def test_a_driver_that_hangs_has_no_count_and_one_that_fails_has_none_left() -> None:
    assert ("gpu_count", ()) not in values_of(CONFIG, a_report(result("gpu", State.UNKNOWN)))
    assert values_of(CONFIG, a_report(result("gpu", State.FAIL)))["gpu_count", ()] == 0
    without = replace(CONFIG, gpu="none")
    names = {name for name, _ in values_of(without, a_report(result("gpu", State.FAIL), config=without))}
    assert not {name for name in names if name.startswith("gpu_")}


def test_a_file_that_may_not_be_read_has_not_drifted_and_is_not_as_it_was_either() -> None:
    unread = result("drift", State.UNKNOWN, unread=[UNIT])
    assert ("config_drift", (UNIT,)) not in values_of(CONFIG, a_report(unread, drifted_files=[]))
    drifted = result("drift", State.FAIL, unread=[])
    assert values_of(CONFIG, a_report(drifted, drifted_files=[UNIT]))["config_drift", (UNIT,)] == 1


def test_a_port_that_is_open_on_two_addresses_is_told_of_each() -> None:
    listeners = ["127.0.0.1:11434", "0.0.0.0:11434", "[::1]:11434", "[::]:11434", "127.0.0.1:11434"]
    found = values_of(CONFIG, a_report(listeners=listeners))
    exposed = {labels[0]: value for (name, labels), value in found.items() if name == "listener_exposed"}
    assert exposed == {
        "127.0.0.1:11434": 0,
        "0.0.0.0:11434": 1,
        "[::1]:11434": 0,
        "[::]:11434": 1,
    }


def test_a_swapped_model_is_there_and_does_not_match(host: FakeHost, server: FakeServer) -> None:
    manifest = next(path for path in host.files if "/manifests/" in path)
    host.files[manifest] = host.files[manifest].replace(WEIGHTS, OTHER_WEIGHTS)
    found = values_of(CONFIG, run_checks(CONFIG, host, NOW))
    assert found["model_present", ("canary",)] == 1
    assert found["model_digest_match", ("canary",)] == 0
    assert found["check_success", ("models",)] == 0


def test_failures_are_counted_and_a_row_of_them_ends_with_a_success_only() -> None:
    counters = Counters()
    rows = []
    for state in (State.FAIL, State.FAIL, State.UNKNOWN, State.FAIL, State.WARN, State.FAIL):
        counters = count_run(counters, a_report(result("api", state)))
        rows.append((counters.failures.get("api", 0), counters.consecutive_failures["api"]))
    assert rows == [(1, 1), (2, 2), (2, 2), (3, 3), (3, 0), (4, 1)]
    assert counters.runs == 6
    assert counters.last_success_seconds == {"api": 1795662002.5}


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """As the unit sees it: its umask keeps everything to root."""
    before = os.umask(0o077)
    (tmp_path / "health").mkdir()
    yield tmp_path
    os.umask(before)


def a_run(room: Path, state: State = State.PASS, **config: Any) -> Finished:
    settings = replace(CONFIG, root=str(room), **config)
    return Finished(room / "health", settings, a_report(result("api", state)), None)


def parse(path: Path) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(path.read_text())
    return {
        (sample.name.removeprefix(PREFIX), tuple(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_counters_survive_runs_and_begin_anew_where_their_file_is_none(room: Path) -> None:
    metrics = room / "health/ollama_fleet.prom"
    for runs in (1, 2, 3):
        write_metrics(a_run(room, State.FAIL))
        assert parse(metrics)["runs_total", ()] == runs
        assert parse(metrics)["check_failures_total", ("api",)] == runs
    for text in ("", "[]", '{"runs": "many"}', '{"runs": 1, "failures": {"api": null}}'):
        (room / "health/counters.json").write_text(text)
        assert read_counters(room / "health/counters.json") == Counters()
        write_metrics(a_run(room))
        assert parse(metrics)["runs_total", ()] == 1


def test_the_directory_of_node_exporter_gets_a_file_that_everybody_may_read(room: Path) -> None:
    write_metrics(a_run(room))
    assert [path.name for path in room.iterdir()] == ["health"]
    there = room / "var/lib/prometheus/node-exporter"
    there.mkdir(parents=True)
    write_metrics(a_run(room))
    assert stat.S_IMODE((there / "ollama_fleet.prom").stat().st_mode) == 0o644
    assert parse(there / "ollama_fleet.prom") == parse(room / "health/ollama_fleet.prom")
    assert stat.S_IMODE((room / "health/counters.json").stat().st_mode) == 0o600


def test_a_directory_that_the_inventory_names_must_be_there(room: Path) -> None:
    asked = room / "metrics"
    run = a_run(room, textfile_dir=str(asked))
    assert textfile_directories(run.config) == (asked,)
    with pytest.raises(FileNotFoundError):
        write_metrics(run)
    asked.mkdir()
    write_metrics(run)
    assert (asked / "ollama_fleet.prom").is_file()


def test_what_a_run_that_was_killed_left_behind_goes_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "ollama_fleet.prom"
    (tmp_path / "ollama_fleet.prom.4711.1").write_text("# HELP half")
    (tmp_path / "other.prom.1").write_text("")
    write_textfile(path, collect_samples(CONFIG, a_report(), Counters()))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ollama_fleet.prom", "other.prom.1"]


def test_labels_with_quotes_and_line_breaks_are_read_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "ollama_fleet.prom"
    strange = 'a "b"\\c\nü'
    config = replace(CONFIG, models=(replace(CONFIG.models[0], name=strange),))
    write_textfile(path, collect_samples(config, a_report(config=config), Counters()))
    assert parse(path)["model_weights_bytes", (strange,)] == 5 * GIB


def test_the_file_has_neither_the_host_nor_metrics_of_the_process(room: Path) -> None:
    write_metrics(a_run(room))
    text = (room / "health/ollama_fleet.prom").read_text()
    assert "gpu01" not in text
    names = {line.split("{")[0].split()[0] for line in text.splitlines() if not line.startswith("#")}
    assert {name for name in names if not name.startswith(PREFIX)} == set()
    # A line is a name with its labels and a value: what followed would be a timestamp.
    for line in text.splitlines():
        assert line.startswith("#") or re.fullmatch(r"\w+(\{.*\})? [-+.\de]+", line), line
