"""A fleet to look at: reports of real runs of the checks, and hosts made from them by varying figures."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from healthchecks.api import load_model, wait_ready
from healthchecks.fleet_page import FleetHost
from healthchecks.health import FileConfig, HealthConfig, HealthReport, LocalHost, parse_report, run_checks
from healthchecks.health_report import render_report
from healthchecks.kept_reports import KeptReports, parse_kept
from healthchecks.results import history_entry
from tests.contract.ollama_binaries import SIMULATED, free_address, serve
from tests.contract.scripted_nvml import build_library
from tests.contract.test_health_checks import canary_config, stored_weights
from tests.contract.test_smoke_suite import create_canary

NOW = datetime(2026, 11, 26, 21, 40, tzinfo=UTC)
PERIOD_SECONDS = 300.0
GIB = 1024**3
HOSTILE = "<script>document.title='hacked'</script>\"'><img src=x onerror=alert(1)>\u202e\x1b[31m"
Document = dict[str, Any]


def real_reports(directory: Path) -> dict[str, HealthReport]:
    """`well`, `cpu` (it computes on the CPU) and `drifted` (its program was changed), with two GPUs."""
    library = build_library(directory)
    return {
        "well": _run(directory / "well", library, "version=0.32.15", "gpu", held_mib=14_000),
        "cpu": _run(directory / "cpu", library, "version=0.32.15", "gpu", held_mib=0),
        "drifted": _run(directory / "drifted", library, "version=0.17.0", "gpu", held_mib=9_000),
    }


def _run(directory: Path, library: Path, *faults: str, held_mib: int) -> HealthReport:
    program = directory / "opt/ollama/releases/0.32.15/bin/ollama"
    program.parent.mkdir(parents=True)
    shutil.copy(SIMULATED, program)
    current, previous = directory / "opt/ollama/current", directory / "opt/ollama/previous"
    current.symlink_to("releases/0.32.15")
    settings = {"OLLAMA_FLEET_ROOT": str(directory), "OLLAMA_SIMULATED_FAULT": ",".join(faults)}
    with serve(program, directory / "state", free_address(), **settings) as server:
        assert wait_ready(server.url, 60).ok, server.log.read_text()
        create_canary(server.url)
        assert load_model(server.url, "canary", 60).ok
        sha256 = hashlib.sha256(program.read_bytes()).hexdigest()
        if directory.name == "drifted":
            program.write_bytes(program.read_bytes() + b"\n")
        config = HealthConfig(
            host="gpu01",
            url=server.url,
            root=str(directory),
            models_dir=str(server.models),
            current=str(current),
            previous=str(previous),
            release="0.32.15",
            backend="process",
            gpu="nvidia",
            gpu_expected_count=2,
            models=(canary_config(weights_sha256=stored_weights(server)),),
            files=(FileConfig(str(program), sha256),),
            toolkit_version="0.1.0",
            deployed_at="2026-11-24T09:12:00Z",
        )
        with _driver(library, directory, held_mib):
            report = run_checks(config, LocalHost(), NOW)
    return _elsewhere(report, directory, server.address)


@contextmanager
def _driver(library: Path, root: Path, held_mib: int) -> Iterator[None]:
    """The scripted driver, in this process's environment while the context lasts."""
    [pid] = [
        one.pid for one in LocalHost().processes() if one.environment.get("OLLAMA_FLEET_ROOT") == str(root)
    ]
    told = {
        "LD_LIBRARY_PATH": str(library),
        "SCRIPTED_NVML_GPUS": f"NVIDIA A10,24576,512,{held_mib};NVIDIA A10,24576,512,{held_mib // 8}",
        "SCRIPTED_NVML_PROCESSES": f"0,{pid},{held_mib},ollama" if held_mib else "",
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _elsewhere(report: HealthReport, directory: Path, address: str) -> HealthReport:
    """The same report as of a provisioned host: with its paths and its port."""
    text = json.dumps(render_report(report))
    port = address.rpartition(":")[2]
    for found, said in ((str(directory), ""), (address, "127.0.0.1:11434"), (f"port {port}", "port 11434")):
        text = text.replace(found, said)
    return parse_report(json.loads(text))


def kept(report: HealthReport, seed: int, *, runs: int = 288, age_seconds: float = 140.0) -> KeptReports:
    """What a host would have kept after a day: through the parser that reads it from a real one."""
    dice = random.Random(seed)
    started = NOW.timestamp() - age_seconds
    document = {**render_report(report), "started": _moment(started)}
    lines = [str(int(NOW.timestamp())), "scheduled", json.dumps(document)]
    trouble = dice.randrange(runs) if runs > 20 and dice.random() < 0.3 else None
    for number in range(runs):
        past = copy.deepcopy(document)
        past["started"] = _moment(started - (runs - 1 - number) * PERIOD_SECONDS)
        is_bad = trouble is not None and 0 <= number - trouble < 9
        _drift(past, dice, 6.0 if is_bad else 1.0)
        if is_bad:
            past["checks"][0]["state"] = "fail"
        elif number < runs - 5:
            for check in past["checks"]:
                check["state"] = "warn" if check["state"] == "fail" and dice.random() < 0.02 else "pass"
        lines.append(json.dumps(history_entry(parse_report(past))))
    return parse_kept("\n".join(lines).encode() + b"\n")


def _drift(document: Document, dice: random.Random, slower: float) -> None:
    facts = document["facts"]
    facts["api_seconds"] = round((facts["api_seconds"] or 0.002) * dice.uniform(0.8, 1.6) * slower, 5)
    for model in facts["models"]:
        if model["tokens_per_second"] is not None:
            model["tokens_per_second"] = model["tokens_per_second"] * dice.uniform(0.94, 1.04) / slower
            model["first_token_seconds"] = model["first_token_seconds"] * dice.uniform(0.8, 1.5) * slower


def varied(report: HealthReport, seed: int, change: Callable[[Document], None] | None = None) -> HealthReport:
    """Another host of the same kind: models of a size, rates that differ, checks of the machine passed."""
    dice = random.Random(seed)
    document = copy.deepcopy(render_report(report))
    facts = document["facts"]
    facts["deploy_last_success_at"] = "2026-11-24T09:12:00Z"
    facts["rollback_available"] = dice.random() < 0.8
    facts["unit"] = {"active": True, "restarts": dice.randrange(3)}
    facts["filesystem"] = {
        "path": "/var/lib/models",
        "avail_bytes": dice.randrange(40, 900) * GIB,
        "avail_inodes": 10**7,
    }
    for check in document["checks"]:
        if check["check"] in ("service", "clock", "memory", "disk", "owners", "rollback", "gpu_persistence"):
            check.update(state="pass", reason=f"{check['check']} is as it should be", hint=None)
        check["reason"] = check["reason"].replace("`canary", "`myqwen2")
    [canary] = facts["models"]
    scale = 1.0 if canary["vram_bytes"] else 0.0
    for name, size, rate in (("myqwen2", 4.7, 96.0), ("qwen2.5-coder", 7.9, 58.0)):
        speed = rate * dice.uniform(0.95, 1.05)
        facts["models"].append(
            {
                **canary,
                "name": name,
                "size_bytes": int(size * GIB),
                "vram_bytes": int(size * scale * GIB),
                "tokens_per_second": speed,
                "first_token_seconds": 9.0 / speed,
                "load_seconds": 0.05,
            }
        )
    facts["models"].remove(canary)
    if change is not None:
        change(document)
    return parse_report(document)


def fail(check: str, reason: str, hint: str, **facts: Any) -> Callable[[Document], None]:
    """A change: this check fails."""

    def change(document: Document) -> None:
        for one in document["checks"]:
            if one["check"] == check:
                one.update(state="fail", reason=reason, hint=hint)
        document["facts"].update(facts)

    return change


def host(name: str, found: KeptReports | None, **more: Any) -> FleetHost:
    return FleetHost(name, found, PERIOD_SECONDS, **more)


def mixed_fleet(real: Mapping[str, HealthReport]) -> Sequence[FleetHost]:
    """One host of each kind."""
    gone = "/etc/systemd/system/ollama.service.d/50-fleet.conf"
    drift = fail("drift", f"`{gone}` was changed", "./fleet plan --limit gpu03", drifted_files=[gone])
    return [
        host("gpu01", kept(varied(real["well"], 1), 1)),
        host("gpu02", kept(varied(real["cpu"], 2), 2)),
        host("gpu03", kept(varied(real["drifted"], 3, drift), 5)),
        host("gpu04", kept(varied(real["well"], 4), 4, age_seconds=5400)),
        host("gpu05", KeptReports(NOW.timestamp(), scheduled=False), hint="./fleet schedule --limit gpu05"),
        host(
            "gpu06",
            None,
            problem="`gpu06` cannot be reached: no route to host",
            hint="ssh gpu06 says more",
        ),
        host("gpu07", kept(varied(real["well"], 7), 7)),
    ]


def large_fleet(real: Mapping[str, HealthReport], count: int = 200) -> Sequence[FleetHost]:
    """Every ninth host is one of those above; the others are well."""
    strange = mixed_fleet(real)
    return [
        replace(strange[number // 9 % len(strange)], name=f"rack{number // 20 + 1}-gpu{number:03}")
        if number % 9 == 5
        else host(
            f"rack{number // 20 + 1}-gpu{number:03}", kept(varied(real["well"], number), number, runs=60)
        )
        for number in range(count)
    ]


def hostile_fleet(real: Mapping[str, HealthReport]) -> Sequence[FleetHost]:
    """A host in other hands, that says what could run, wherever it can say something."""

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(one) for key, one in value.items()}
        if isinstance(value, list):
            return [poison(one) for one in value]
        return f"{value}{HOSTILE}" if isinstance(value, str) else value

    document = render_report(varied(real["cpu"], 2))
    facts, checks = poison(document["facts"]), [dict(check) for check in document["checks"]]
    for check in checks:
        check.update(check=f"{check['check']}{HOSTILE}", reason=HOSTILE, hint=HOSTILE)
    report = parse_report({**document, "facts": facts, "checks": checks})
    return [
        host(f"evil{HOSTILE}", kept(report, 1, runs=10)),
        host(f"gone{HOSTILE}", None, problem=HOSTILE, hint=HOSTILE),
    ]


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
