"""Who loads the models when the server under them is replaced."""

from __future__ import annotations

from tests.hosts.site import HostSite, until

SLOW = "/run/systemd/system/ollama-fleet-load.service.d"


def make_slow(site: HostSite, command: str) -> None:
    """A load that takes its time, as on a slow host; it asks a server that is gone meanwhile."""
    site.sh(f"mkdir -p {SLOW}; printf '[Service]\\nExecStart=\\nExecStart={command}\\n' >{SLOW}/slow.conf")
    site.sh("systemctl daemon-reload")


def test_a_server_that_is_started_anew_has_its_models_loaded_also_while_a_load_is_under_way(
    site: HostSite,
) -> None:
    assert site.deploy().error is None
    make_slow(site, "/bin/sleep 1000")
    site.sh("systemctl start --no-block ollama-fleet-load")
    until(
        "the load is under way",
        lambda: site.sh("systemctl is-active ollama-fleet-load || true") == "activating",
    )
    site.sh(f"rm -r {SLOW}; systemctl daemon-reload; systemctl restart ollama")
    until("the model is loaded into the new server", site.loaded)


def test_a_load_that_began_before_there_was_a_model_does_not_count(site: HostSite) -> None:
    """It comes with the server, which a first deploy starts long before a model is promoted."""
    make_slow(site, '/bin/sh -c "[ -e /tmp/begun ] || { touch /tmp/begun; sleep 1000; }"')
    assert site.deploy().error is None
    assert site.sh("cat /tmp/begun; systemctl is-active ollama-fleet-load || true") == "inactive"
