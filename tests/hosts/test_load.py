"""Who loads the models when the server under them is replaced."""

from __future__ import annotations

from tests.hosts.site import HostSite, until

# A load that takes its time, as on a slow host; it asks a server that is gone meanwhile.
SLOW = "/run/systemd/system/ollama-fleet-load.service.d"


def test_a_server_that_is_started_anew_has_its_models_loaded_also_while_a_load_is_under_way(
    site: HostSite,
) -> None:
    assert site.deploy().error is None
    site.sh(
        f"mkdir -p {SLOW}; printf '[Service]\\nExecStart=\\nExecStart=/bin/sleep 1000\\n' >{SLOW}/slow.conf;"
        f" systemctl daemon-reload; systemctl start --no-block ollama-fleet-load"
    )
    until(
        "the load is under way",
        lambda: site.sh("systemctl is-active ollama-fleet-load || true") == "activating",
    )
    site.sh(f"rm -r {SLOW}; systemctl daemon-reload; systemctl restart ollama")
    until("the model is loaded into the new server", site.loaded)
