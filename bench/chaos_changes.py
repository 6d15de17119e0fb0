"""What a round changes, and what may serve while it does."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.chaos_schedule import Change, Round
from bench.chaos_site import FAILING, STORE, VERSIONS, ChaosSite
from testbed.hosts_host import Host
from testbed.hosts_tree import PYTHON
from testbed.promises import NOTHING

_FORGET = "rm -rf /opt/ollama/releases/{0} /opt/ollama/previous /var/lib/ollama-fleet/artefacts"
_ASK = (
    "import sys, urllib.request as u; "
    "r = u.Request('http://127.0.0.1:11434' + sys.argv[1], sys.argv[2].encode()); "
    "print(u.urlopen(r, timeout=20).read().decode())"
)
_BY_API: Mapping[str, object] = {
    "model": "myqwen2",
    "from": "myqwen2",
    "parameters": {"temperature": 0.1},
    "stream": False,
}
DRIFTS = (
    "systemctl stop ollama",
    "systemctl disable -q ollama",
    "sed -i s/^Description=.*/Description=mine/ /etc/systemd/system/ollama.service",
    "sed -i s/^User=.*/User=root/ /etc/systemd/system/ollama.service; systemctl daemon-reload",
    "echo >>/opt/ollama/releases/{version}/bin/ollama",
    "ln -sfn releases/9.9.9 /opt/ollama/current",
    "rm /opt/ollama/current",
    f"rm {STORE}/blobs/sha256-* /var/lib/ollama-fleet/artefacts -rf",
    "rm /usr/local/lib/ollama-fleet/* /etc/systemd/system/ollama-fleet-*.service",
)
"""What other hands do."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The words of the run, the flags of the deploys after it, and by host which releases it may leave.

    `after` is what the inventory says after it, where it says something else than during it.
    """

    words: tuple[str, ...]
    serves: Mapping[str, tuple[str, ...]]
    flags: tuple[str, ...] = ()
    after: Mapping[str, str] = field(default_factory=dict)

    def wanted(self, site: ChaosSite) -> None:
        """Have the inventory say what is wanted from now on."""
        for name, version in self.after.items():
            site.wanted[name].version = version
        site.write_inventory()


def prepare(
    site: ChaosSite, hosts: Sequence[Host], drawn: Round, converge: Callable[[Host], None]
) -> Prepared:
    """Do by hand what comes before the run, and say in the inventory what it shall do."""
    old = {host.name: site.wanted[host.name].version for host in hosts}
    other = {name: _other(version) for name, version in old.items()}
    serves: dict[str, tuple[str, ...]] = {name: (version,) for name, version in old.items()}
    words: tuple[str, ...] = ("deploy",)
    flags: tuple[str, ...] = ()
    after: dict[str, str] = {}
    match drawn.change:
        case Change.UPGRADE | Change.BOTH:
            site.forget_downloads()
            for host in hosts:
                host.shell(_FORGET.format(other[host.name]))
                site.wanted[host.name].version = other[host.name]
                if drawn.change is Change.BOTH:
                    _change_model(host)
            serves = {name: (old[name], other[name]) for name in old}
        case Change.FAILING:
            site.forget_downloads()
            failing = sorted(FAILING)[drawn.drift % len(FAILING)]
            for host in hosts:
                host.shell(_FORGET.format(failing))
                site.wanted[host.name].version = failing
            # What was not proven does not stay.
            after = old
        case Change.MODEL:
            for host in hosts:
                _change_model(host)
        case Change.SETTING:
            for host in hosts:
                site.wanted[host.name].parallel = site.wanted[host.name].parallel % 4 + 1
        case Change.ROLLBACK:
            for host in hosts:
                site.wanted[host.name].version = other[host.name]
                converge(host)
            words = ("rollback", "--release")
            serves = {name: (old[name], other[name]) for name in old}
            after = old
        case Change.RESTART:
            words = ("service", "restart")
        case Change.DRIFT:
            words, flags = ("deploy", "--overwrite"), ("--overwrite",)
            for host in hosts:
                host.shell(DRIFTS[drawn.drift % len(DRIFTS)].format(version=old[host.name]))
            serves = {name: (old[name], NOTHING) for name in old}
        case Change.NOTHING:
            pass
    site.write_inventory()
    return Prepared(words=words, serves=serves, flags=flags, after=after)


def _other(version: str) -> str:
    return VERSIONS[1 - VERSIONS.index(version)]


def _change_model(host: Host) -> None:
    """Another temperature through the API, as a user of the server changes it; the deploy makes it anew."""
    host.shell(shlex.join([PYTHON, "-c", _ASK, "/api/create", json.dumps(_BY_API)]))
