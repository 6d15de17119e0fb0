"""A release that computes on the CPU and claims the GPU is not confirmed: the driver is believed."""

from __future__ import annotations

import pytest

from deploy.errors import VerifyFailed
from tests.contract.scripted_nvml import SMI
from tests.hosts.site import HostSite, broken, until

CLAIMS = 'parse_faults([text("OLLAMA_SIMULATED_FAULT"),'
CLAIMS_GPU = 'parse_faults(["gpu",'
# 0.17.7 lets the GPU idle.
BY_RELEASE = """
used=10
case $(readlink /opt/ollama/current) in */0.17.7) used=0 ;; esac
SCRIPTED_SMI_GPUS="0, GPU-1, 550.54.15, 24576, $used, 24000, [N/A], NVIDIA A10
"
"""


@pytest.mark.fault(29)
def test_an_upgrade_that_falls_back_to_the_cpu_in_silence_is_taken_back(site: HostSite) -> None:
    first, rest = SMI.read_text().split("\n", 1)
    program = site.host.root / "usr/bin/nvidia-smi"
    program.write_text(f"{first}\n{BY_RELEASE}{rest}")
    program.chmod(0o755)
    site.settings["ollama_gpu"] = "nvidia"
    for release in ("0.17.5", "0.17.7"):
        site.add_release(release, broken(site, CLAIMS, CLAIMS_GPU))
    assert site.deploy().error is None
    assert "does not show who holds the GPU memory in a container" in site.output.getvalue()
    assert site.deploy().steps_done == 0

    site.version = "0.17.7"
    error = site.deploy().error
    assert isinstance(error, VerifyFailed)
    assert "a silent CPU fallback" in str(error.cause)
    assert "release 0.17.5 serves again" in str(error.unchanged)
    until("the old release serves with its model", site.loaded)
    assert (site.current(), site.running()) == ("0.17.5", "0.17.5")
