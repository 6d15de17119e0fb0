"""People are told of what changes on a host, once, whatever is away or full meanwhile; by the real unit."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from deploy.desired import AgentFile
from healthchecks.health_report import State
from tests.hosts.site import HostSite, until
from tests.hosts.test_health import STATE, UNIT, agents, deploy, last, states

__all__ = ["agents"]

PORT = 18099
TOKEN = "kept-secret-4711"
GOT = "/run/got.jsonl"
# It is on the host itself: a network that is away is then a service that is stopped.
LISTENER = f"""
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        with open("{GOT}", "a") as file:
            print(json.dumps([self.path, body]), file=file)
        self.send_response(200)
        self.end_headers()
    do_GET = do_POST
http.server.HTTPServer(("127.0.0.1", {PORT}), Handler).serve_forever()
"""


def listen(site: HostSite) -> None:
    site.sh(f"systemd-run --quiet --unit listener python3 -c {shlex.quote(LISTENER)}")
    until(
        "it listens", lambda: site.sh(f"curl -s -o /dev/null 127.0.0.1:{PORT}/up && echo up || true") == "up"
    )


def got(site: HostSite) -> list[tuple[str, str]]:
    return [tuple(json.loads(line)) for line in site.sh(f"cat {GOT} 2>/dev/null || true").splitlines()]


def messages(site: HostSite, path: str = f"/{TOKEN}") -> list[dict[str, Any]]:
    return [json.loads(body) for where, body in got(site) if where.partition("?")[0] == path]


def run_checks(site: HostSite) -> None:
    """As the timer does; systemd would refuse more than five starts in ten seconds."""
    site.sh(f"systemctl reset-failed {UNIT}; systemctl start {UNIT} || true")


def check(site: HostSite) -> State:
    run_checks(site)
    return states(last(site))["service"]


def titles(site: HostSite) -> list[str]:
    """What happened to the service; other checks fail and recover with it."""
    found = [one["title"].removeprefix("ollama-fleet box: ") for one in messages(site)]
    return [title.partition(" ")[0].rstrip(",") + " " + title.rpartition(" ")[2] for title in found]


def waiting(site: HostSite) -> int:
    return int(site.sh(f"ls {STATE}/spool/*.json 2>/dev/null | wc -l"))


def test_a_service_that_stops_is_told_once_and_once_that_it_runs_again(
    site: HostSite, agents: dict[str, AgentFile]
) -> None:
    addresses = site.directory / "notify.urls"
    addresses.touch(mode=0o600)
    addresses.write_text(f"json://127.0.0.1:{PORT}/{TOKEN}\nping http://127.0.0.1:{PORT}/ping\n")
    site.settings["ollama_notify_file"] = "notify.urls"
    assert deploy(site, agents).error is None
    assert site.plan().is_empty
    assert site.sh(f"stat -c '%a %U' {STATE}/notify.urls") == "600 root"
    site.sh(f"chmod 644 {STATE}/notify.urls")
    assert [step.reason for step in site.plan().steps] == ["mode is 644, owner is root"]
    assert deploy(site, agents).error is None

    listen(site)
    assert check(site) is not State.FAIL
    assert [path for path, _ in got(site)] == ["/up", "/ping/start", "/ping"]

    # The network is away when it happens.
    site.sh("systemctl stop listener ollama")
    assert check(site) is State.FAIL
    assert waiting(site) == 1
    listen(site)
    assert check(site) is State.FAIL
    assert check(site) is State.FAIL
    assert titles(site) == ["service failed"]
    assert waiting(site) == 0
    assert [path for path, _ in got(site)][-2:] == ["/ping/start", "/ping/fail"]
    site.sh("systemctl start ollama")
    until("green again", lambda: check(site) is not State.FAIL)
    assert titles(site) == ["service failed", "service recovered"]
    assert check(site) is not State.FAIL
    assert len(titles(site)) == 2

    # The disk is full when it happens.
    site.sh(
        f"cp -a {STATE} /run/kept && mount -t tmpfs -o size=200m tmpfs {STATE} && cp -a /run/kept/. {STATE}/"
        f" && {{ dd if=/dev/zero of={STATE}/filler bs=4k 2>/dev/null || true; }} && systemctl stop ollama"
    )
    for _ in range(3):
        run_checks(site)
    assert titles(site)[2:] == ["service failed"]
    site.sh(f"rm {STATE}/filler && systemctl start ollama")
    until("green again", lambda: check(site) is not State.FAIL)
    assert titles(site)[2:] == ["service failed", "service recovered"]

    # An operator's own credential goes before the file.
    site.sh(
        f"printf 'json://127.0.0.1:{PORT}/credential\\n' >/etc/notify.urls && chmod 600 /etc/notify.urls"
        f" && mkdir -p /etc/systemd/system/{UNIT}.d && printf '[Service]\\nLoadCredential="
        f"ollama-fleet-notify:/etc/notify.urls\\n' >/etc/systemd/system/{UNIT}.d/notify.conf"
        " && systemctl daemon-reload && systemctl stop ollama"
    )
    assert check(site) is State.FAIL
    assert len(messages(site, "/credential")) == 1
    assert len(titles(site)) == 4

    assert TOKEN not in site.output.getvalue()
    assert site.sh(f"journalctl -q -o cat -u {UNIT} | grep -c {TOKEN} || true") == "0"
    assert site.sh(f"grep -rl {TOKEN} {STATE} --include='*.json*' || true") == ""


@pytest.mark.parametrize("change", ["off", "health off"])
def test_who_is_no_longer_to_be_told_is_forgotten_by_the_host(
    site: HostSite, agents: dict[str, AgentFile], change: str
) -> None:
    addresses = site.directory / "notify.urls"
    addresses.touch(mode=0o600)
    addresses.write_text(f"json://127.0.0.1:{PORT}/{TOKEN}\n")
    site.settings["ollama_notify_file"] = "notify.urls"
    assert deploy(site, agents).error is None
    site.settings["ollama_notify_file" if change == "off" else "ollama_health_every"] = "off"
    assert deploy(site, agents).error is None
    assert site.plan().is_empty
    assert site.sh(f"grep -rl {TOKEN} /var/lib/ollama-fleet /etc 2>/dev/null || true") == ""
