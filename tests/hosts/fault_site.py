"""Some practice hosts and `./fleet` as a process of its own, whose events are read while it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from console.paths import CANARY, PROJECT
from testbed.demo import WEIGHTS_FILE, WEIGHTS_REPO, render_pins
from testbed.hosts_host import Host
from testbed.mirror import Mirror, MirrorRepo
from testbed.promises import Ran, broken_promises
from tests.hosts.site import SIMULATED, offer_release

OLD, NEW = "0.17.5", "0.17.7"
WAITS = "/run/server-waits"
"""As long as a host has this file its server does not come up: a deploy is between switch and proof then."""
# What a lease lasts in these tests, so that nobody waits for three minutes; no drift of ours.
SHORT_LEASE = """
mkdir -p /etc/systemd/system/ollama-fleet-lease.timer.d
printf '[Timer]\\nOnActiveSec=\\nOnActiveSec=4s\\n' >/etc/systemd/system/ollama-fleet-lease.timer.d/short.conf
systemctl daemon-reload
"""
DEADLINE_SECONDS = 150.0

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A `./fleet` that has ended: its code, all its events, and when each came, in seconds of this clock."""

    exit_code: int
    events: tuple[tuple[float, Event], ...]
    stderr: str

    def of(self, host: str, event: str) -> list[Event]:
        return [told for _, told in self.events if (told["event"], told.get("host")) == (event, host)]

    def outcome(self, host: str) -> str:
        return str(self.of(host, "host_done")[-1]["outcome"])

    def at(self, host: str) -> float:
        """When the host's end was told."""
        return next(
            at for at, told in self.events if (told["event"], told.get("host")) == ("host_done", host)
        )

    def error(self, host: str) -> Event:
        (told,) = self.of(host, "error")
        return told

    @property
    def notes(self) -> str:
        return "\n".join(told["text"] for _, told in self.events if told["event"] == "note")


class Running:
    """A `./fleet` that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._events: list[tuple[float, Event]] = []
        self._stderr: list[str] = []
        self._readers = [
            threading.Thread(target=work, daemon=True) for work in (self._read, self._read_errors)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.append((time.monotonic(), json.loads(line)))

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._stderr.append(line)

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it; returns when it was heard."""
        self.process.send_signal(signal.SIGINT)
        self.until_true("it says so", lambda: "press Ctrl-C again" in "".join(self._stderr))

    def until(self, event: str, step: str, host: str = "box") -> None:
        """Until it has told this; it must not end before."""

        def told() -> bool:
            return any(
                (item["event"], item.get("step"), item.get("host")) == (event, step, host)
                for _, item in list(self._events)
            )

        self.until_true(f"{event} of {step} on {host}", told)

    def until_true(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not holds():
            assert self.process.poll() is None, f"it ended before {what}: {self._events[-3:]} {self._stderr}"
            assert time.monotonic() < deadline, f"not in time: {what}"
            threading.Event().wait(0.02)

    def end(self) -> Ended:
        """Wait for its end, which must come in time."""
        code = self.process.wait(DEADLINE_SECONDS)
        for reader in self._readers:
            reader.join()
        return Ended(exit_code=code, events=tuple(self._events), stderr="".join(self._stderr))


@dataclass(kw_only=True)
class FaultSite:
    """Hosts by their names in the inventory. `address` may put something between us and one of them.

    `others` stand in the inventory too, as a group, and are left alone.
    """

    hosts: dict[str, Host]
    others: Sequence[Host] = ()
    directory: Path
    mirror: Mirror
    version: str = OLD
    settings: dict[str, str] = field(default_factory=dict)
    address: dict[str, tuple[str, int]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def box(self) -> Host:
        """The host of a site that has only one."""
        return self.hosts["box"]

    @property
    def other(self) -> str:
        """The release to deploy next."""
        return NEW if self.version == OLD else OLD

    def add_releases(self) -> None:
        """The old and the new one; both wait on a host as long as it has the file `WAITS`."""
        text = SIMULATED.read_text()
        assert text.count("python=\n") == 1
        binary = self.directory / "waiting-ollama"
        waits = f'python=\nif [ "$1" = serve ]; then while [ -e {WAITS} ]; do sleep 0.1; done; fi\n'
        binary.write_text(text.replace("python=\n", waits))
        for version in (OLD, NEW):
            offer_release(self.mirror, self.directory, version, binary)

    def offer_weights(self, megabytes: int = 0) -> None:
        """The weights that are pinned; with so many random bytes behind them they are others each time."""
        weights = CANARY
        if megabytes:
            weights = self.directory / "weights" / os.urandom(4).hex()
            weights.parent.mkdir(exist_ok=True)
            weights.write_bytes(CANARY.read_bytes() + os.urandom(megabytes * 1_000_000))
        self.mirror.repos[WEIGHTS_REPO] = MirrorRepo(
            repo=WEIGHTS_REPO, revisions={"master": {WEIGHTS_FILE: weights}}
        )

    def write(self) -> Path:
        (self.directory / "pins.toml").write_text(render_pins(list(self.mirror.repos.values())))
        any_host = next(iter(self.hosts.values()))
        keys = any_host.access.known_hosts.read_text()
        lines = ["[all]"]
        for name, host in self.hosts.items():
            address, port = self.address.get(name, (host.address, 22))
            if port != 22:
                key = (host.home / "host_key.pub").read_text().rpartition(" ")[0]
                keys += f"[{address}]:{port} {key}\n"
            lines.append(f"{name} ansible_host={address} ansible_port={port} ansible_user={host.user}")
        if self.others:
            lines += ["", "[others]"]
            lines += [
                f"{host.name} ansible_host={host.address} ansible_user={host.user}" for host in self.others
            ]
        settings = {
            "ollama_gpu": "none",
            "ollama_models": "myqwen2",
            "ollama_version": self.version,
            "ansible_ssh_private_key_file": str(any_host.access.key),
            **self.settings,
        }
        lines += ["", "[all:vars]", *(f"{name}={value}" for name, value in settings.items())]
        (self.directory / "known_hosts").write_text(keys)
        inventory = self.directory / "inventory.ini"
        inventory.write_text("\n".join(lines) + "\n")
        return inventory

    def start(self, *words: str) -> subprocess.Popen[str]:
        limit = [] if "--limit" in words or not self.others else ["--limit", "all:!others"]
        return subprocess.Popen(
            [sys.executable, str(PROJECT), *words, *limit, "--json", "--inventory", str(self.write())],
            env={**os.environ, "MODELSCOPE_ENDPOINT": self.mirror.url, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @contextmanager
    def running(self, *words: str) -> Iterator[Running]:
        """`./fleet WORDS`, ended with the context whatever happens in it."""
        with self.start(*words) as process:
            try:
                yield Running(process)
            finally:
                process.kill()

    def fleet(self, *words: str) -> Ended:
        with self.running(*words) as running:
            return running.end()

    def deploy(self, *words: str) -> Ended:
        return self.fleet("deploy", "--yes", *words)

    def broken(self, *serves: str, new: str, name: str = "box") -> list[str]:
        """`testbed.promises` about one of the hosts, which is then deployed with `new`."""
        self.version = new

        def ran() -> Ran:
            ended = self.deploy("--limit", name)
            done = ended.of(name, "host_done")
            return Ran(exit_code=ended.exit_code, changed=done[-1]["steps_done"] if done else -1)

        return broken_promises(self.hosts[name], serves=serves, new=new, deploy=ran)
