"""What goes wrong on a host is red in its next run, and told once: by message, metrics and page alike."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable

from console.page import write_page
from deploy.desired import AgentFile
from healthchecks.health_report import HealthReport, State
from tests.contract.scripted_nvml import SMI, build_library
from tests.hosts.site import HostSite, broken, until
from tests.hosts.test_disks import STORE, fill_with, make_room, own_disk
from tests.hosts.test_health import TEXTFILES, UNIT, agents, deploy, last, states
from tests.hosts.test_notifications import PORT, TOKEN, listen, messages

__all__ = ["agents"]

GPUS, FAULT = "/run/scripted-gpus", "/run/scripted-fault"
# A setting that nobody gave the unit would be drift.
ASKS = 'parse_faults([text("OLLAMA_SIMULATED_FAULT"),'
READS = f'parse_faults([open("{FAULT}").read().strip(),'


def give_gpus(site: HostSite) -> None:
    """The scripted driver, as the checks and a deploy ask it, and a server that claims to use its GPUs."""
    library = site.host.root / "usr/lib/x86_64-linux-gnu"
    shutil.copyfile(build_library(site.directory) / "libnvidia-ml.so.1", library / "libnvidia-ml.so.1")
    smi = site.host.root / "usr/bin/nvidia-smi"
    first, rest = SMI.read_text().split("\n", 1)
    rows = "".join(f"{n}, GPU-0000000{n}, 550.54.15, 24576, 10, 24000, [N/A], NVIDIA A10\n" for n in range(2))
    smi.write_text(f"{first}\nSCRIPTED_SMI_GPUS='{rows}'\n{rest}")
    smi.chmod(0o755)
    settings = site.host.root / f"etc/systemd/system/{UNIT}.d"
    settings.mkdir()
    (settings / "10-scripted.conf").write_text(f"[Service]\nEnvironmentFile=-{GPUS}\n")
    site.sh(f"echo gpu >{FAULT}; systemctl daemon-reload")
    site.add_release(site.version, broken(site, ASKS, READS))


def show_gpus(site: HostSite, count: int = 2, used_mib: int = 10) -> None:
    """What NVML says from now on: the server's process holds what is in use."""
    cards = ";".join(["NVIDIA A10,24576,512,0"] * (count - 1))
    pid = site.sh("systemctl show -p MainPID --value ollama")
    lines = f"""SCRIPTED_NVML_GPUS="NVIDIA A10,24576,512,{used_mib};{cards}"
SCRIPTED_NVML_PROCESSES="0,{pid},{used_mib},ollama"
"""
    site.sh(f"cat >{GPUS} <<'END'\n{lines}END")


def failing(site: HostSite) -> set[str]:
    """What the next run by the timer's own unit finds; the unit fails with it."""
    # Nobody starts it so often in earnest: systemd refuses more than five starts in ten seconds.
    done = site.host.shell(f"systemctl reset-failed {UNIT}; systemctl start {UNIT}")
    found = {check for check, state in states(last(site)).items() if state is State.FAIL}
    assert (done.returncode != 0) is bool(found)
    return found


def run_once(site: HostSite) -> HealthReport:
    assert failing(site) == set(), last(site)
    return last(site)


def in_metrics(site: HostSite) -> set[str]:
    """The failing checks, as Prometheus would scrape them."""
    text = site.sh(f"cat {TEXTFILES}/ollama_fleet.prom")
    return set(
        re.findall(r'^ollama_fleet_check_state\{check="(\w+)",state="fail"\} 1\.0$', text, re.MULTILINE)
    )


def on_page(site: HostSite) -> set[str]:
    """The failing checks, as the table of the host on the fleet's page has them."""
    page = site.directory / "page.html"
    write_page(site.run, page)
    table = page.read_text().partition('<section aria-labelledby="findings">')[2]
    rows = re.findall(r'class="state (\S+)".*?<th scope="row" class="lead">(\w+)</th>', table)
    return {check for state, check in rows if state == "fail"}


def turns_red(
    site: HostSite, broken: Callable[[], object], red: set[str], mended: Callable[[], object]
) -> None:
    """One message when it breaks, none while it stays so, one when it is mended."""
    assert failing(site) == set()
    told = len(messages(site))
    broken()
    for _ in range(2):
        assert failing(site) == in_metrics(site) == on_page(site) == red, last(site)
        [message] = messages(site)[told:]
        failed = re.findall(r"^FAIL (\w+):", message["message"], re.MULTILINE)
        assert (set(failed), "failed" in message["title"]) == (red, True)
    mended()
    assert failing(site) == in_metrics(site) == on_page(site) == set(), last(site)
    [_, message] = messages(site)[told:]
    recovered = re.findall(r"^OK (\w+):", message["message"], re.MULTILINE)
    assert (set(recovered), "recovered" in message["title"]) == (red, True)


def start(site: HostSite) -> None:
    site.sh("systemctl start ollama")
    until("it serves again", site.loaded)
    show_gpus(site)


def serve_with(site: HostSite, fault: str) -> None:
    # Newer systemd counts starts across a daemon-reload: these are more than the limit of the unit.
    site.sh(f"echo {fault} >{FAULT}; systemctl reset-failed ollama; systemctl restart ollama")
    until("it serves again", site.loaded)
    show_gpus(site)


def swap_model(site: HostSite) -> None:
    """Other weights under the served name, through the API, as anybody on the host can."""
    api = "http://127.0.0.1:11434/api"
    body = '{\\"model\\": \\"myqwen2\\", \\"stream\\": false, \\"files\\": {\\"other.gguf\\": \\"$digest\\"}}'
    site.sh(
        f"cd /tmp && cat $(grep -l --binary-files=text ^GGUF {STORE}/blobs/sha256-*) >other.gguf"
        " && echo more >>other.gguf && digest=sha256:$(sha256sum other.gguf | cut -c 1-64)"
        f' && curl -sf --data-binary @other.gguf {api}/blobs/$digest && curl -sf {api}/create -d "{body}"'
    )


def deploy_again(site: HostSite, agents: dict[str, AgentFile]) -> None:
    assert deploy(site, agents).error is None
    show_gpus(site)


def test_what_goes_wrong_on_a_host_is_red_and_told_once_and_green_once_it_is_mended(
    site: HostSite, agents: dict[str, AgentFile]
) -> None:
    addresses = site.directory / "notify.urls"
    addresses.touch(mode=0o600)
    addresses.write_text(f"json://127.0.0.1:{PORT}/{TOKEN}\n")
    site.settings.update(ollama_gpu="nvidia", ollama_notify_file="notify.urls")
    site.sh(f"mkdir -p {TEXTFILES}")
    listen(site)
    give_gpus(site)
    first = deploy(site, agents)
    assert first.error is None, first.error.cause
    show_gpus(site)
    passed = {check for check, state in states(run_once(site)).items() if state is State.PASS}
    assert {"service", "api", "models", "generate", "toolcall", "gpu", "gpu_truth", "disk"} <= passed

    turns_red(
        site,
        lambda: site.sh("systemctl stop ollama"),
        {"service", "api", "generate", "toolcall"},
        lambda: start(site),
    )
    turns_red(site, lambda: swap_model(site), {"models", "toolcall"}, lambda: deploy_again(site, agents))
    program = f"/opt/ollama/releases/{site.current()}/bin/ollama"
    turns_red(
        site,
        lambda: site.sh(f"cp -p {program} /run/program && sed -i '$a #' {program}"),
        {"drift"},
        lambda: site.sh(f"mv /run/program {program}"),
    )
    turns_red(site, lambda: show_gpus(site, count=1), {"gpu"}, lambda: show_gpus(site))
    turns_red(site, lambda: show_gpus(site, used_mib=0), {"gpu_truth"}, lambda: show_gpus(site))
    turns_red(site, lambda: serve_with(site, "cpu"), {"gpu_truth"}, lambda: serve_with(site, "gpu"))
    # Against the speed of its first runs.
    turns_red(site, lambda: serve_with(site, "gpu,slow=5"), {"generate"}, lambda: serve_with(site, "gpu"))
    with own_disk(site, STORE, "size=520m"):
        turns_red(site, lambda: fill_with(site, STORE, "16M"), {"disk"}, lambda: make_room(site, STORE))
