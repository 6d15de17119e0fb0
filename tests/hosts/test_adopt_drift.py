"""What another hand does to the unit, its environment and its program is named, and mended or refused."""

from __future__ import annotations

from deploy.errors import EditedByHand
from deploy.steps import OverwriteFile
from testbed.official import UNIT_FILE, official_install
from tests.hosts.site import HostSite

UNIT = f"/{UNIT_FILE}"


def overwritten(site: HostSite) -> list[str]:
    return [str(step.file.path) for step in site.plan().steps if isinstance(step, OverwriteFile)]


def test_our_unit_is_ours_whatever_it_executes_and_a_unit_in_its_place_is_drift(deployed: HostSite) -> None:
    site = deployed
    theirs = official_install(b"").files[UNIT_FILE][0].decode()
    edits = {
        "systemctl edit --full": f"sed -i 's,^ExecStart=.*,ExecStart=/usr/local/bin/ollama serve,;"
        f"s,^User=.*,User=root,' {UNIT}",
        "install.sh": f"printf '%s' '{theirs}' >{UNIT}",
    }
    for who, edit in edits.items():
        site.sh(f"{edit}; systemctl daemon-reload")
        assert overwritten(site) == [UNIT], who
        facts = site.facts().systemd
        assert facts is not None
        assert facts.adopted_program is None, who
        # Only what has no signature of ours is left to whoever wrote it: `remove` keeps it.
        assert (facts.foreign_program is not None) == (who == "install.sh")
        assert isinstance(site.deploy().error, EditedByHand), who
        site.overwrite = True
        assert site.deploy().error is None, who
        site.overwrite = False
        assert site.plan().is_empty, who
        assert "/opt/ollama/current/bin/ollama" in site.sh(f"cat {UNIT}")
