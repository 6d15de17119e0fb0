"""A host and a server for the tests of the health checks: everything is as it was deployed, until changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from healthchecks.child import Ran
from healthchecks.health_config import FileConfig, HealthConfig, ModelConfig
from healthchecks.health_facts import add_facts, empty_facts
from healthchecks.health_report import CheckResult, HealthReport, State
from healthchecks.host_view import Memory, Process, Space
from healthchecks.judgement import Judgement, Look
from healthchecks.nvml import Gpu, GpuProcess, GpuReading
from healthchecks.wire import Answer

NOW = datetime(2026, 11, 26, 3, 0, tzinfo=UTC)
GIB = 1024**3
MODELS = "/var/lib/models"
SERVER, RUNNER = 700, 742
OLLAMA = "/opt/ollama/current/bin/ollama"
WEIGHTS, OTHER_WEIGHTS = "a" * 64, "b" * 64
TEMPLATE = "c" * 64
PARAMETERS = "d" * 64
UNIT = "/etc/systemd/system/ollama.service"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


CANARY = ModelConfig(
    name="canary",
    weights_sha256=WEIGHTS,
    size_bytes=5 * GIB,
    template_sha256=TEMPLATE,
    parameters={"num_ctx": 4096, "stop": ["<end>"]},
    baseline_tokens_per_second=100.0,
)
CONFIG = HealthConfig(
    host="gpu01",
    url="http://127.0.0.1:11434",
    root="/",
    models_dir=MODELS,
    current="/opt/ollama/current",
    previous="/opt/ollama/previous",
    release="0.32.15",
    gpu="nvidia",
    gpu_expected_count=1,
    models=(CANARY,),
    files=(FileConfig(UNIT, sha256("[Unit]\n")),),
    toolkit_version="0.1.0",
    deployed_at="2026-11-25T12:00:00Z",
)
GPU = Gpu(
    index=0,
    name="NVIDIA A10",
    uuid="GPU-0",
    driver="550.54.15",
    pci="00000000:17:00.0",
    memory_total_bytes=24 * GIB,
    memory_used_bytes=6 * GIB,
    memory_free_bytes=17 * GIB,
    processes=(GpuProcess(RUNNER, OLLAMA, 6 * GIB),),
    temperature_celsius=41,
    slowdown_celsius=90,
    utilization_percent=3,
    throttle=0,
    persistence=True,
    ecc_volatile=0,
    ecc_aggregate=0,
    remapped_pending=False,
    remapped_failed=False,
)


def manifest(**layers: tuple[str, int]) -> str:
    kind = "application/vnd.ollama.image."
    found = [
        {"mediaType": kind + name, "digest": f"sha256:{digest}", "size": size}
        for name, (digest, size) in layers.items()
    ]
    return json.dumps({"schemaVersion": 2, "config": {}, "layers": found})


def process(pid: int, parent_pid: int, *command: str, root: str | None = None) -> Process:
    return Process(pid, parent_pid, command, {} if root is None else {"OLLAMA_FLEET_ROOT": root})


@dataclass
class FakeHost:
    """What a healthy host says; `runs` maps a program's first words to its answer or to what it raises."""

    files: dict[str, str] = field(
        default_factory=lambda: {
            UNIT: "[Unit]\n",
            "/proc/sys/kernel/random/boot_id": "boot-1\n",
            "/proc/uptime": "90000.00 1.00\n",
            "/opt/ollama/previous/bin/ollama": "",
            f"{MODELS}/manifests/registry.ollama.ai/library/canary/latest": manifest(
                model=(WEIGHTS, 5 * GIB), template=(TEMPLATE, 10), params=(PARAMETERS, 20)
            ),
            f"{MODELS}/blobs/sha256-{PARAMETERS}": '{"num_ctx": 4096, "stop": ["<end>"]}',
            "/proc/net/tcp": "  sl  local_address rem_address   st\n"
            "   0: 0100007F:2CAA 00000000:0000 0A 00000000:00000000\n"
            "   1: 0100007F:2CAA 0100007F:C000 01 00000000:00000000\n",
            "/proc/net/tcp6": "  sl  local_address rem_address   st\n",
        }
    )
    sizes: dict[str, int] = field(
        default_factory=lambda: {
            f"{MODELS}/blobs/sha256-{WEIGHTS}": 5 * GIB,
            f"{MODELS}/blobs/sha256-{TEMPLATE}": 10,
            f"{MODELS}/blobs/sha256-{PARAMETERS}": 20,
        }
    )
    stamps: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(
        default_factory=lambda: {
            "/opt/ollama/current": "releases/0.32.15",
            "/opt/ollama/previous": "releases/0.24.0",
        }
    )
    unit: dict[str, str] = field(
        default_factory=lambda: {
            "LoadState": "loaded",
            "ActiveState": "active",
            "SubState": "running",
            "Result": "success",
            "NRestarts": "2",
            "MainPID": str(SERVER),
        }
    )
    runs: dict[str, Ran | OSError] = field(default_factory=lambda: {"journalctl": Ran(0, "{}\n")})
    table: list[Process] = field(
        default_factory=lambda: [
            process(1, 0, "/sbin/init"),
            process(SERVER, 1, OLLAMA, "serve", root="/"),
            process(RUNNER, SERVER, OLLAMA, "runner", "--model", "blob"),
        ]
    )
    reading: GpuReading = field(default_factory=lambda: GpuReading((GPU,), driver="550.54.15", cuda="12.4"))
    disk: Space = field(default_factory=lambda: Space(100 * GIB, 200 * GIB, 1_000_000))
    ram: Memory = field(default_factory=lambda: Memory(64 * GIB, 50 * GIB, 8 * GIB, GIB))
    clock_error: float | None = 0.004
    readings: int = 0

    def run(self, argv: Sequence[str], deadline_seconds: float) -> Ran:
        if argv[0] == "systemctl" and "systemctl" not in self.runs:
            return Ran(0, "".join(f"{key}={value}\n" for key, value in self.unit.items()))
        found = self.runs.get(argv[0], FileNotFoundError(argv[0]))
        if isinstance(found, OSError):
            raise found
        return found

    def read_text(self, path: str) -> str | None:
        return self.files.get(path)

    def sha256(self, path: str) -> str | None:
        return None if path not in self.files else sha256(self.files[path])

    def link_target(self, path: str) -> str | None:
        return self.links.get(path)

    def size(self, path: str) -> int | None:
        return self.sizes.get(path, len(self.files[path]) if path in self.files else None)

    def stamp(self, path: str) -> str | None:
        return self.stamps.get(path, "as it came") if path in self.files else None

    def space(self, path: str) -> Space:
        return self.disk

    def memory(self) -> Memory:
        return self.ram

    def clock_error_seconds(self) -> float | None:
        return self.clock_error

    def processes(self) -> Sequence[Process]:
        return self.table

    def gpus(self, deadline_seconds: float) -> GpuReading:
        self.readings += 1
        return self.reading


def ok(value: Any) -> Answer:
    return Answer(200, {}, json.dumps(value).encode())


def loaded(*names: str, size: Any = 5 * GIB, vram: Any = 5 * GIB) -> Answer:
    return ok({"models": [{"name": name, "model": name, "size": size, "size_vram": vram} for name in names]})


def generation(
    *, load: float = 0.05, tokens: int = 32, seconds: float = 0.32, first: float = 0.1, text: str = "one"
) -> Answer:
    pieces = [
        {"model": "canary", "response": text, "done": False},
        {
            "model": "canary",
            "response": "",
            "done": True,
            "load_duration": int(load * 1e9),
            "eval_count": tokens,
            "eval_duration": int(seconds * 1e9),
        },
    ]
    body = "".join(json.dumps(piece) + "\n" for piece in pieces)
    return Answer(200, {}, body.encode(), first_byte_seconds=first)


NOBODY = Answer(None, None, b"", "connection refused")


@dataclass
class FakeServer:
    """What a healthy server answers, by path; /api/show by the model asked for."""

    answers: dict[str, Answer] = field(
        default_factory=lambda: {
            "/api/version": ok({"version": "0.32.15"}),
            "/api/tags": ok({"models": [{"model": "canary:latest", "digest": "m1"}]}),
            "/api/ps": loaded("canary:latest"),
            "/api/generate": generation(),
        }
    )
    weights: dict[str, str] = field(default_factory=lambda: {"canary": WEIGHTS})

    def send(
        self,
        _method: str,
        url: str,
        payload: Mapping[str, Any] | None = None,
        *,
        deadline_seconds: float,
        key: str | None = None,
    ) -> Answer:
        path = "/" + url.split("/", 3)[3]
        if path == "/api/show":
            assert payload is not None
            name = str(payload["model"]).removesuffix(":latest")
            if name not in self.weights:
                return Answer(404, {}, b'{"error":"not found"}')
            return ok({"modelfile": f"FROM {MODELS}/blobs/sha256-{self.weights[name]}\n"})
        return self.answers.get(path, NOBODY)


def look(host: FakeHost, config: HealthConfig = CONFIG, **more: Any) -> Look:
    return Look(config, host, NOW, 10.0, **more)


def facts_of(judgement: Judgement, config: HealthConfig = CONFIG) -> dict[str, Any]:
    """The report's facts with what this check found."""
    facts = empty_facts(config)
    add_facts(facts, judgement.facts)
    return facts


def report(config: HealthConfig = CONFIG, **facts: Any) -> HealthReport:
    """Of the run before."""
    checks = (CheckResult("api", State.PASS, "Ollama answers"),)
    return HealthReport("gpu01", "2026-11-26T02:55:00Z", 1.0, checks, {**empty_facts(config), **facts})


def with_gpu(**fields: Any) -> GpuReading:
    return GpuReading((replace(GPU, **fields),), driver="550.54.15", cuda="12.4")
