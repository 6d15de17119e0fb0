"""One practice host and what is deployed onto it: `deploy`, `plan` and what is seen on the host itself."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from console.changes import deploy_hosts, exit_code, make_plans
from console.paths import PROJECT
from console.run import _TRANSPORTS, Run, transport_for
from deploy import apply
from deploy.compose import Sources
from deploy.converge import probe_host
from deploy.facts import HostFacts
from deploy.outcomes import HostOutcome
from deploy.plan import Plan
from deploy.report import Report
from deploy.steps import Step
from testbed.archive import make_release_archive
from testbed.demo import SERVER_REPO, archive_name, render_pins
from testbed.hosts_host import Host
from testbed.hosts_tree import PYTHON
from testbed.mirror import Mirror, MirrorRepo
from testbed.promises import Ran, broken_after_converge, broken_after_fault, broken_to_others, footprints
from testbed.reached import ReachedHost

SIMULATED = PROJECT / "testbed/ollama.py"


def offer_release(mirror: Mirror, directory: Path, version: str, binary: Path) -> None:
    """A release of the simulated Ollama, beside those that the mirror has."""
    packed = make_release_archive(
        directory / f"archives/{version}/{archive_name()}",
        version=version,
        compression="tar.zst",
        binary=binary,
        python=PYTHON,
    )
    known = mirror.repos.get(SERVER_REPO)
    revisions = dict(known.revisions) if known is not None else {}
    revisions[f"v{version}"] = {packed.name: packed}
    mirror.repos[SERVER_REPO] = MirrorRepo(repo=SERVER_REPO, revisions=revisions)


@dataclass(kw_only=True)
class Site:
    """One host and what is deployed onto it; `others` stand in the inventory too and are left alone."""

    host: ReachedHost
    others: Sequence[ReachedHost] = ()
    directory: Path
    mirror: Mirror
    version: str = "0.17.5"
    settings: dict[str, str] = field(default_factory=dict)
    overwrite: bool = False
    modelfiles: Path
    output: io.StringIO = field(default_factory=io.StringIO)

    def add_release(self, version: str, binary: Path = SIMULATED) -> None:
        offer_release(self.mirror, self.directory, version, binary)

    def want_new_release(self, binary: Path = SIMULATED) -> str:
        """The next deploy upgrades to a release that no host has had yet; returns its version."""
        self.version = f"0.17.{100 + len(self.mirror.repos[SERVER_REPO].revisions)}"
        self.add_release(self.version, binary)
        return self.version

    def write(self) -> Path:
        (self.directory / "pins.toml").write_text(render_pins(list(self.mirror.repos.values())))
        shutil.copyfile(self.host.access.known_hosts, self.directory / "known_hosts")
        lines = {
            "ollama_gpu": "none",
            "ollama_models": "myqwen2",
            "ollama_version": self.version,
            "ansible_ssh_private_key_file": str(self.host.access.key),
            **self.settings,
        }
        settings = "".join(f"{name}={value}\n" for name, value in lines.items())
        here = _line("box", self.host)
        there = "".join(f"{_line(host.name, host)}\n" for host in self.others)
        inventory = self.directory / "inventory.ini"
        inventory.write_text(f"[all]\n{here}\n{there}\n[all:vars]\n{settings}")
        return inventory

    @property
    def run(self) -> Run:
        inventory = self.write()
        return Run(
            report=Report(as_json=True, stdout=self.output, stderr=io.StringIO()),
            sources=Sources(
                inventory=inventory, modelfiles=self.modelfiles, pins=self.directory / "pins.toml"
            ),
            limit="box" if self.others else None,
            forks=1,
            stop_requested=threading.Event(),
            endpoint=self.mirror.url,
            overwrite=self.overwrite,
        )

    def deploy(self) -> HostOutcome:
        run = self.run
        return deploy_hosts(run, run.hosts(), "deploy")[0]

    def ran(self) -> Ran:
        """A deploy as `testbed.promises` wants to hear of it."""
        ended = self.deploy()
        return Ran(exit_code=exit_code([ended]), changed=ended.steps_done)

    def check_serves(self, release: str) -> None:
        """What holds right after a fault: this release serves, nothing is half done."""
        broken = broken_after_fault(self.host, serves=[release])
        assert not broken, "; ".join(broken)

    def check_converges(self, new: str) -> None:
        """What holds once the cause is gone: the next deploy converges, the one after it changes nothing."""
        broken = broken_after_converge(self.host, new=new, deploy=self.ran)
        assert not broken, f"{'; '.join(broken)}; {self.output.getvalue()[-2000:]}"

    def plan(self) -> Plan:
        run = self.run
        found = make_plans(run, run.hosts())[0].plan
        assert found is not None, self.output.getvalue()[-2000:]
        return found

    def facts(self) -> HostFacts:
        desired = self.run.hosts()[0]
        return probe_host(desired, transport_for(desired))

    def kinds(self) -> list[str]:
        return [type(step).__name__ for step in self.plan().steps]

    def sh(self, script: str) -> str:
        done = self.host.shell(script)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def edit_model(self, old: str, new: str) -> None:
        """Another text in the Modelfile of the project: the next deploy makes another model of it."""
        template = self.modelfiles / "myqwen2.Modelfile.j2"
        text = template.read_text()
        assert old in text
        template.write_text(text.replace(old, new))

    def current(self) -> str:
        return self.sh("readlink /opt/ollama/current || true").removeprefix("releases/")

    def running(self) -> str:
        """The mark of the release that the unit's process really runs, by the release's name."""
        environment = self.sh(
            "tr '\\0' '\\n' </proc/$(systemctl show -p MainPID ollama | cut -d= -f2)/environ || true"
        )
        marks = dict(line.split("=", 1) for line in environment.splitlines() if "=" in line)
        names = {sha256: name for name, sha256 in self.facts().releases.items()}
        return names.get(marks.get("OLLAMA_FLEET_RELEASE", ""), "")

    def loaded(self) -> bool:
        return "myqwen2:latest" in self.sh(
            f"{PYTHON} -c 'import urllib.request as u; "
            'print(u.urlopen("http://127.0.0.1:11434/api/ps", timeout=5).read().decode())\' || true'
        )


def _line(name: str, host: ReachedHost) -> str:
    return f"{name} ansible_host={host.address} ansible_port={host.port} ansible_user={host.user}"


@dataclass(kw_only=True)
class HostSite(Site):
    """One practice host: its cable can be pulled, and its files are seen from outside."""

    host: Host


@contextmanager
def untouched(*others: ReachedHost) -> Iterator[None]:
    """Whatever is done meanwhile leaves these hosts alone: their servers' processes and their files."""
    before = footprints(others)
    yield
    broken = broken_to_others(others, before)
    assert not broken, "; ".join(broken)


def until(what: str, holds: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        threading.Event().wait(0.2)


def just_before(patch: pytest.MonkeyPatch, kind: type[Step], act: Callable[[], object]) -> None:
    """Act when a deploy is about to make its first step of this kind."""
    has_acted = threading.Event()

    def apply_round(steps: Sequence[Step], site: apply.Site) -> None:
        if any(isinstance(step, kind) for step in steps) and not has_acted.is_set():
            has_acted.set()
            act()
        apply.apply_round(steps, site)

    patch.setattr("deploy.converge.apply_round", apply_round)


def forget_connections() -> None:
    for transport in _TRANSPORTS.values():
        transport.close()
    _TRANSPORTS.clear()


def broken(site: Site, old: str, new: str) -> Path:
    text = SIMULATED.read_text()
    assert old in text
    path = site.directory / "broken"
    path.write_text(text.replace(old, new, 1))
    return path
