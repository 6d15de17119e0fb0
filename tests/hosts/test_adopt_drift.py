"""What another hand does to the unit, its environment and its program is named, and mended or refused."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from deploy.errors import EditedByHand, ServiceError
from deploy.steps import OverwriteFile, StartServer
from testbed.hosts_kinds import Kind
from testbed.hosts_tree import PYTHON
from testbed.official import UNIT_FILE, official_install
from testbed.promises import ADOPTED
from tests.hosts.site import SIMULATED, HostSite

UNIT = f"/{UNIT_FILE}"
DROP_INS = "/etc/systemd/system/ollama.service.d"
SETTINGS = "/etc/default/ollama"


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


@pytest.mark.parametrize("host", [Kind.RICH, Kind.OLD, Kind.NEW], indirect=True)
def test_an_environment_file_is_refused_before_anything_is_changed_and_a_replaced_program_is_drift(
    site: HostSite,
) -> None:
    program = SIMULATED.read_text().replace("python=\n", f"python='{PYTHON}'\n", 1)
    install = official_install(program.encode())
    argv = [*site.host.ssh_argv(), "sudo", shlex.join(install.argv)]
    assert subprocess.run(argv, input=install.archive, check=False).returncode == 0
    site.sh(
        f"mkdir {DROP_INS}; printf '[Service]\\nEnvironmentFile=-{SETTINGS}*\\n' >{DROP_INS}/10-theirs.conf;"
        f" echo OLLAMA_HOST=0.0.0.0 >{SETTINGS}; systemctl daemon-reload; systemctl restart ollama"
    )
    refused = site.deploy().error
    assert isinstance(refused, ServiceError)
    assert (f"`{SETTINGS}`" in refused.sentence, refused.cause) == (True, "OLLAMA_HOST=0.0.0.0")
    made = site.sh(f"ls {DROP_INS}; ls -A /usr/local/lib/ollama-fleet 2>/dev/null || true")
    assert made == "10-theirs.conf"

    # What a stopped server would serve is kept too: a space and all.
    site.sh(f"""echo 'OLLAMA_MODELS="/data/my models"' >{SETTINGS}; systemctl stop ollama""")
    refused = site.deploy().error
    assert refused is not None
    assert refused.actual == "/data/my models"
    site.sh(f"echo HTTPS_PROXY=http://proxy.invalid >{SETTINGS}; systemctl start ollama")
    assert site.deploy().error is None
    assert site.plan().is_empty
    environment = site.sh("tr '\\0' '\\n' </proc/$(systemctl show -p MainPID --value ollama)/environ")
    assert "HTTPS_PROXY=http://proxy.invalid" in environment

    site.sh("cp -p /usr/local/bin/ollama /usr/local/bin/o && mv /usr/local/bin/o /usr/local/bin/ollama")
    (start,) = [step for step in site.plan().steps if isinstance(step, StartServer)]
    assert "from a program that was replaced since" in start.reason
    pid = site.sh("systemctl show -p MainPID --value ollama")
    assert site.deploy().error is None
    assert site.sh("systemctl show -p MainPID --value ollama") != pid
    site.check_converges(ADOPTED)
