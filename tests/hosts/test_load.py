"""Who loads the models when the server under them is replaced."""

from __future__ import annotations

from tests.hosts.site import HostSite, until

SLOW = "/run/systemd/system/ollama-fleet-load.service.d"


def make_slow(site: HostSite, command: str) -> None:
    """A load that takes its time, as on a slow host; it asks a server that is gone meanwhile."""
    text = f"[Service]\\nExecStart=\\nExecStart={command}\\nTimeoutStartSec=20\\n"
    site.sh(f"mkdir -p {SLOW}; printf '{text}' >{SLOW}/slow.conf; systemctl daemon-reload")


def begin_slow_load(site: HostSite) -> None:
    make_slow(site, "/bin/sleep infinity")
    site.sh("systemctl start --no-block ollama-fleet-load")
    until(
        "the load is under way",
        lambda: site.sh("systemctl is-active ollama-fleet-load || true") == "activating",
    )


def test_a_server_that_is_started_anew_has_its_models_loaded_also_while_a_load_is_under_way(
    site: HostSite,
) -> None:
    assert site.deploy().error is None
    begin_slow_load(site)
    site.sh(f"rm -r {SLOW}; systemctl daemon-reload; systemctl restart ollama")
    until("the model is loaded into the new server", site.loaded)


def test_a_load_that_began_before_there_was_a_model_does_not_count(site: HostSite) -> None:
    """It comes with the server, which a first deploy starts long before a model is promoted."""
    once = "[ -e /tmp/begun ] || { touch /tmp/begun; sleep infinity; }"
    make_slow(site, f'/bin/sh -c "{once}; touch /tmp/anew"')
    assert site.deploy().error is None
    site.sh("ls /tmp/begun /tmp/anew")


def test_a_load_that_ends_with_its_server_is_no_failure(site: HostSite) -> None:
    """The server of a first deploy that fails is stopped while its models are looked for."""
    assert site.deploy().error is None
    begin_slow_load(site)
    site.sh("systemctl stop ollama")
    assert site.sh("systemctl is-active ollama-fleet-load || true") == "inactive"
    assert site.sh("systemctl --failed --no-legend") == ""
