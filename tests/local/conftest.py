"""A whole site in a temporary directory: a mirror, pins, an inventory, and `deploy` in this process."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from console.changes import deploy_hosts, make_plans
from console.paths import CANARY
from console.run import Run
from deploy.compose import Sources
from deploy.converge import probe_host
from deploy.facts import HostFacts
from deploy.local import LocalTransport
from deploy.outcomes import HostOutcome
from deploy.plan import Plan, Selection, everything
from deploy.report import Report
from testbed.archive import make_release_archive
from testbed.demo import SERVER_REPO, WEIGHTS_FILE, WEIGHTS_REPO, free_port, render_pins
from testbed.mirror import Mirror, MirrorRepo, start_mirror
from tests.own_modelfiles import core_cases

PROJECT = Path(__file__).resolve().parents[2]
SIMULATED = PROJECT / "testbed/ollama.py"


@dataclass(kw_only=True)
class Site:
    """One host that nothing else knows, and what it is deployed from."""

    directory: Path
    mirror: Mirror
    port: int = field(default_factory=free_port)
    version: str = "0.17.5"
    model: str = "myqwen2"
    settings: dict[str, str] = field(default_factory=dict)
    modelfiles: Path
    output: io.StringIO = field(default_factory=io.StringIO)

    @property
    def root(self) -> Path:
        return self.directory / "host"

    @property
    def pins(self) -> Path:
        return self.directory / "pins.toml"

    @property
    def inventory(self) -> Path:
        return self.directory / "inventory.ini"

    def add_release(self, version: str, *, binary: Path = SIMULATED, archive: Path | None = None) -> None:
        """Offer another release on the mirror."""
        packed = archive or make_release_archive(
            self.directory / f"archives/{version}/ollama-linux-amd64.tar.zst",
            version=version,
            compression="tar.zst",
            binary=binary,
        )
        known = self.mirror.repos.get(SERVER_REPO)
        revisions = dict(known.revisions) if known is not None else {}
        revisions[f"v{version}"] = {packed.name: packed}
        self.mirror.repos[SERVER_REPO] = MirrorRepo(repo=SERVER_REPO, revisions=revisions)

    def write(self) -> None:
        """Pins of what the mirror offers and the inventory of the one host."""
        if not self.pins.exists():
            self.pins.write_text(render_pins(list(self.mirror.repos.values())))
        lines = {
            "ollama_service": "process",
            "ollama_gpu": "none",
            "ollama_models": self.model,
            "ollama_version": self.version,
            "ollama_host": f"127.0.0.1:{self.port}",
            "ollama_root": str(self.root),
            # The machine of whoever runs the tests may have a cron.
            "ollama_health_every": "off",
            **self.settings,
        }
        settings = "".join(f"{name}={value}\n" for name, value in lines.items())
        self.inventory.write_text(f"[all]\nbox ansible_connection=local\n\n[all:vars]\n{settings}")

    @property
    def run(self) -> Run:
        self.write()
        return Run(
            report=Report(as_json=True, stdout=self.output, stderr=io.StringIO()),
            sources=Sources(inventory=self.inventory, modelfiles=self.modelfiles, pins=self.pins),
            limit=None,
            forks=1,
            stop_requested=threading.Event(),
            endpoint=self.mirror.url,
        )

    def deploy(self, selection: Selection = everything) -> HostOutcome:
        """One deploy; raises what `./fleet deploy` would report before it reaches a host."""
        run = self.run
        return deploy_hosts(run, run.hosts(), "deploy", selection)[0]

    def plan(self) -> Plan:
        run = self.run
        found = make_plans(run, run.hosts())[0].plan
        assert found is not None
        return found

    def facts(self) -> HostFacts:
        return probe_host(self.run.hosts()[0], LocalTransport("box"))

    def events(self, name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.output.getvalue().splitlines()]
        return [event for event in found if event["event"] == name]

    def get(self, path: str) -> Any:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=10).json()

    def post(self, path: str, body: dict[str, Any]) -> requests.Response:
        return requests.post(f"http://127.0.0.1:{self.port}{path}", json=body, timeout=10)

    def served(self) -> dict[str, str]:
        """The digests of the models by name, as the running server tells them."""
        return {entry["name"]: entry["digest"] for entry in self.get("/api/tags")["models"]}

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*"))

    def processes(self) -> list[psutil.Process]:
        """The servers below its directory: of its host, and of those that a test has put beside it."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("OLLAMA_FLEET_ROOT", "").startswith(f"{self.directory}/"):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


def changed_binary(tmp_path: Path, old: str, new: str) -> Path:
    """The simulated server with one place of its text changed."""
    text = SIMULATED.read_text()
    assert old in text
    path = tmp_path / "changed-ollama"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.fixture
def modelfiles(tmp_path: Path) -> Path:
    """What `site` deploys; a file whose tests are about the whole suite has its own."""
    return core_cases(tmp_path)


@pytest.fixture
def site(tmp_path: Path, modelfiles: Path) -> Iterator[Site]:
    weights = MirrorRepo(repo=WEIGHTS_REPO, revisions={"master": {WEIGHTS_FILE: CANARY}})
    with start_mirror([weights]) as mirror:
        made = Site(directory=tmp_path, mirror=mirror, modelfiles=modelfiles)
        made.add_release("0.17.5")
        yield made
        for process in made.processes():
            process.kill()
            process.wait(10)
