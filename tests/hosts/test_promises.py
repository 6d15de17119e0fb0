"""The promises see what they are about: a good host keeps them all, and each that is broken is named."""

from __future__ import annotations

from testbed.promises import (
    NOTHING,
    Ran,
    broken_after_converge,
    broken_after_fault,
    broken_promises,
    footprint,
    look,
)
from tests.hosts.site import HostSite

# Each breaks one promise, and leaves no other one broken.
LEFT = {
    "/opt/ollama/.current-1": "a temporary file is left on",
    "/opt/ollama/releases/.unpack-0.17.7": "a temporary file is left on",
    "/etc/systemd/system/.ollama.service.fleet-1": "a temporary file is left on",
    "/var/lib/ollama-fleet/artefacts/.weights.part": "a temporary file is left on",
    "/var/lib/ollama-fleet/lease.new": "a lease is left on",
}
NO_CHANGE = Ran(exit_code=0, changed=0)


def test_a_host_keeps_its_promises_and_each_that_is_broken_is_named(site: HostSite) -> None:
    assert broken_after_fault(site.host, serves=[NOTHING]) == []
    assert broken_promises(site.host, serves=[NOTHING], new="0.17.5", deploy=site.ran) == []
    before = footprint(site.host)
    assert broken_promises(site.host, serves=["0.17.5"], new="0.17.5", deploy=site.ran) == []
    assert footprint(site.host) == before
    for path, sentence in LEFT.items():
        site.sh(f"touch {path}")
        # Whoever deploys here changes nothing, or leftovers would be tidied up.
        (broken,) = broken_after_converge(site.host, new="0.17.5", deploy=lambda: NO_CHANGE)
        assert broken.startswith(sentence)
        assert path in broken
        assert footprint(site.host) != before
        site.sh(f"rm {path}")
    site.sh("ln -sfn releases/9.9.9 /opt/ollama/current")
    (broken,) = broken_after_fault(site.host, serves=["0.17.5"])
    assert "leads to releases/9.9.9" in broken
    assert site.deploy().error is None
    site.sh("systemctl stop ollama")
    assert look(site.host).release == NOTHING
    assert broken_after_converge(site.host, new="0.17.5", deploy=lambda: NO_CHANGE) == [
        f"{site.host.name} serves nothing in the end, not 0.17.5"
    ]
