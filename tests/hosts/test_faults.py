"""What goes wrong on a host that systemd runs: drift, failing releases, two deploys at once, power cuts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest

from console.changes import exit_code
from console.paths import CANARY, PROJECT
from deploy import systemd
from deploy.errors import ExitCode, ServiceError
from deploy.facts import HostFacts, ProcessId
from deploy.outcomes import HostOutcome
from deploy.steps import PromoteModel, Step, VerifyModel
from testbed.hosts_host import Host
from testbed.hosts_tree import PYTHON
from testbed.official import official_install
from testbed.promises import ADOPTED, NOTHING, broken_after_converge, broken_after_fault, broken_promises
from tests.hosts.site import HostSite, broken, forget_connections, just_before, until

PROGRAM = "/opt/ollama/releases/0.17.5/bin/ollama"
# Only the server: the client of the same release loads its models.
WHEN_SERVING = 'python=\nif [ "$1" = serve ]; then {}; fi\n'


def api(site: HostSite, path: str, body: dict[str, object] | None = None) -> str:
    """A request from the host itself, to the server that its clients ask."""
    script = (
        "import sys, urllib.request as u; "
        "r = u.Request('http://127.0.0.1:11434' + sys.argv[1], sys.argv[2].encode() or None); "
        "print(u.urlopen(r, timeout=20).read().decode())"
    )
    return site.sh(shlex.join([PYTHON, "-c", script, path, json.dumps(body) if body else ""]))


def served(site: HostSite) -> set[str]:
    return {entry["name"] for entry in json.loads(api(site, "/api/tags"))["models"]}


def version(site: HostSite) -> str:
    return str(json.loads(api(site, "/api/version"))["version"])


def reasons(site: HostSite) -> str:
    return "\n".join(f"{type(step).__name__}: {step.reason}" for step in site.plan().steps)


def start_deploy(site: HostSite) -> subprocess.Popen[str]:
    """A real process, as a person starts it."""
    words = ["--yes", "--soak=0", "--json", "--limit=box", "--inventory", str(site.write())]
    return subprocess.Popen(
        [sys.executable, str(PROJECT), "deploy", *words],
        env={**os.environ, "MODELSCOPE_ENDPOINT": site.mirror.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Drift.

# In the process and in no file any more.
OTHER_ENVIRONMENT = """
mkdir -p /run/systemd/system/ollama.service.d
printf '[Service]\\nEnvironment=OLLAMA_NUM_PARALLEL=7\\n' >/run/systemd/system/ollama.service.d/10-x.conf
systemctl daemon-reload
systemctl restart ollama
rm -r /run/systemd/system/ollama.service.d
systemctl daemon-reload
"""
DRIFTS: dict[str, tuple[str, str]] = {
    "a stopped unit": ("systemctl stop ollama", "the unit is inactive"),
    "a disabled unit": ("systemctl disable -q ollama", "EnableUnits: not started at boot"),
    "an edited unit": (
        "sed -i s/^Description=.*/Description=mine/ /etc/systemd/system/ollama.service",
        "edited by hand: line is `Description=mine`",
    ),
    "a unit with another user": (
        "sed -i s/^User=.*/User=root/ /etc/systemd/system/ollama.service; systemctl daemon-reload",
        "edited by hand: line is `User=root`",
    ),
    "a longer program": (f"echo >>{PROGRAM}", "UnpackRelease: damaged"),
    "a program of the same size": (
        f"sed -i 's/needs Python 3.9/needs Python 3.8/' {PROGRAM}",
        "UnpackRelease: damaged",
    ),
    "a program that was touched back": (
        f"sed -i 's/needs Python 3.9/needs Python 3.8/' {PROGRAM}; touch -d '2020-01-01' {PROGRAM}",
        "StartServer: release directory is `damaged`",
    ),
    "a moved link": ("ln -sfn releases/9.9.9 /opt/ollama/current", "current release is `9.9.9`"),
    "a removed link": ("rm /opt/ollama/current", "current release is absent"),
    "a setting of the running process": (OTHER_ENVIRONMENT, "OLLAMA_NUM_PARALLEL is `7`, desired absent"),
}


@pytest.mark.fault(40, 41)
@pytest.mark.parametrize(
    ("by_hand", "named"), [pytest.param(*drift, id=name) for name, drift in DRIFTS.items()]
)
def test_drift_by_hand_is_found_named_and_repaired(deployed: HostSite, by_hand: str, named: str) -> None:
    deployed.sh(by_hand)
    assert named in reasons(deployed)
    deployed.overwrite = True
    deployed.check_converges("0.17.5")
    assert (deployed.current(), deployed.running()) == ("0.17.5", "0.17.5")


def test_a_parameter_that_was_changed_through_the_api_is_found_and_repaired(deployed: HostSite) -> None:
    api(deployed, "/api/create", change_temperature())
    assert "PARAMETER temperature is `0.1`, desired" in reasons(deployed)
    assert deployed.deploy().error is None
    assert deployed.plan().is_empty
    # What was there goes on as `previous`.
    assert served(deployed) == {"myqwen2:latest", "myqwen2:previous"}


def change_temperature() -> dict[str, object]:
    return {"model": "myqwen2", "from": "myqwen2", "parameters": {"temperature": 0.1}, "stream": False}


# Releases that fail.

FAILURES: dict[str, tuple[str, str]] = {
    "it exits at once": ("echo 'panic: broken'; exit 2", "panic: broken"),
    "it says another version": (
        "export OLLAMA_SIMULATED_VERSION=0.17.9",
        "the archive under this tag holds another build",
    ),
    "it fails the suite": ("export OLLAMA_SIMULATED_FAULT=text-calls", "the text holds `<tool_call>`"),
    "it dies while it is verified": (
        "export OLLAMA_SIMULATED_FAULT=slow=1; (sleep 5; kill -9 $$) &",
        "",
    ),
}


def check_old_release_serves(site: HostSite, failed: HostOutcome) -> None:
    assert exit_code([failed]) is ExitCode.FAILED
    assert "release 0.17.5 serves again" in str(failed.error and failed.error.unchanged)
    assert (site.current(), site.running(), version(site)) == ("0.17.5", "0.17.5", "0.17.5")
    assert site.sh(
        "find /var/lib/ollama-fleet -name 'lease*'; systemctl is-active ollama-fleet-lease.timer || :"
    ) == ("inactive")
    assert site.sh("systemctl is-active ollama.service") == "active"
    assert not {name for name in served(site) if name.endswith(":candidate")}
    until("the model is loaded again", site.loaded)


@pytest.mark.fault(22, 23, 24)
@pytest.mark.parametrize(("fault", "cause"), list(FAILURES.values()), ids=list(FAILURES))
def test_a_release_that_fails_leaves_the_old_one_serving(deployed: HostSite, fault: str, cause: str) -> None:
    name = f"0.17.{60 + list(FAILURES.values()).index((fault, cause))}"
    deployed.add_release(name, broken(deployed, "python=\n", WHEN_SERVING.format(fault)))
    deployed.version = name
    failed = deployed.deploy()
    assert cause in str(failed.error and failed.error.cause)
    check_old_release_serves(deployed, failed)
    deployed.version = "0.17.5"
    assert broken_promises(deployed.host, serves=["0.17.5"], new="0.17.5", deploy=deployed.ran) == []


def test_a_model_made_on_a_release_that_fails_goes_with_it(deployed: HostSite) -> None:
    api(deployed, "/api/create", change_temperature())
    before = api(deployed, "/api/show", {"model": "myqwen2"})
    text_calls = WHEN_SERVING.format("export OLLAMA_SIMULATED_FAULT=text-calls")
    deployed.add_release("0.17.70", broken(deployed, "python=\n", text_calls))
    deployed.version = "0.17.70"
    assert "CreateModel" in deployed.kinds()
    check_old_release_serves(deployed, deployed.deploy())
    assert (
        json.loads(before)["parameters"]
        == json.loads(api(deployed, "/api/show", {"model": "myqwen2"}))["parameters"]
    )


# Others, and the way back up.


def short_lease(site: HostSite) -> None:
    """A drop-in of the operator's own is no drift of ours."""
    timer = "/etc/systemd/system/ollama-fleet-lease.timer.d"
    text = "[Timer]\\nOnActiveSec=\\nOnActiveSec=4s\\n"
    site.sh(f"mkdir -p {timer}; printf '{text}' >{timer}/short.conf; systemctl daemon-reload")


class Killed(BaseException):
    """The controller ends here; nothing of ours runs any more."""


@pytest.mark.fault(8)
def test_a_controller_killed_between_promote_and_the_end_of_the_lease_leaves_the_old_release_and_model(
    deployed: HostSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    api(deployed, "/api/create", change_temperature())
    short_lease(deployed)

    def die(*_: object) -> None:
        raise Killed

    deployed.add_release("0.17.7")
    deployed.version = "0.17.7"
    monkeypatch.setattr("deploy.systemd.end_lease", die)
    with pytest.raises(Killed):
        deployed.deploy()
    monkeypatch.undo()
    assert deployed.current() == "0.17.7"
    shown = json.loads(api(deployed, "/api/show", {"model": "myqwen2"}))
    assert "temperature                    0.7" in shown["parameters"]
    forget_connections()
    until("the old release serves again", lambda: deployed.running() == "0.17.5")
    until("its lease is over", lambda: not deployed.facts().systemd.is_leased)  # type: ignore[union-attr]
    shown = json.loads(api(deployed, "/api/show", {"model": "myqwen2"}))
    assert "temperature                    0.1" in shown["parameters"]
    assert "myqwen2:candidate" not in served(deployed)
    assert broken_promises(deployed.host, serves=["0.17.5"], new="0.17.7", deploy=deployed.ran) == []


@pytest.mark.fault(8)
def test_a_controller_killed_when_it_has_unloaded_the_model_leaves_it_to_the_host_to_load(
    deployed: HostSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidate has the weights of what is served, and so its runner."""
    api(deployed, "/api/create", change_temperature())

    def die(*_: object) -> None:
        assert not deployed.loaded()
        raise Killed

    monkeypatch.setattr("deploy.apply.prove", die)
    monkeypatch.setattr("deploy.host_lock._release", lambda channel: channel.close())
    with pytest.raises(Killed):
        deployed.deploy()
    monkeypatch.undo()
    forget_connections()
    until("the model is loaded again", deployed.loaded)
    assert broken_promises(deployed.host, serves=["0.17.5"], new="0.17.5", deploy=deployed.ran) == []


def test_a_server_that_systemd_has_started_again_long_ago_is_confirmed_too(deployed: HostSite) -> None:
    deployed.sh("kill -9 $(systemctl show -p MainPID --value ollama)")
    until("it is started again", lambda: deployed.facts().systemd.unit.restarts > 0)  # type: ignore[union-attr]
    until("with its model", deployed.loaded)
    deployed.sh("rm /opt/ollama/current")
    assert deployed.deploy().error is None
    assert deployed.current() == "0.17.5"


@pytest.mark.fault(23)
def test_a_server_that_ends_after_it_was_verified_is_not_confirmed(
    deployed: HostSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.add_release("0.17.7")
    deployed.version = "0.17.7"
    check = systemd.check_still_serves

    def kill_first(host: str, _: HostFacts, verified: Sequence[ProcessId]) -> None:
        deployed.sh("kill -9 $(systemctl show -p MainPID --value ollama)")
        until("it is started again", lambda: deployed.facts().systemd.unit.restarts > 0)  # type: ignore[union-attr]
        check(host, deployed.facts(), verified)

    monkeypatch.setattr("deploy.systemd.check_still_serves", kill_first)
    failed = deployed.deploy()
    monkeypatch.undo()
    assert failed.error is not None
    assert failed.error.sentence == "the server ended after it was verified"
    assert failed.error.unchanged == "release 0.17.5 serves again, as before"
    assert (deployed.current(), deployed.running()) == ("0.17.5", "0.17.5")


@pytest.mark.fault(32)
def test_a_second_deploy_at_the_same_time_exits_5_and_names_the_first(deployed: HostSite) -> None:
    # Its server starts when it is told to: the first deploy certainly holds the lock until then.
    waits = "until [ -e /run/second-has-ended ]; do sleep 0.1; done"
    deployed.add_release("0.17.80", broken(deployed, "python=\n", WHEN_SERVING.format(waits)))
    deployed.version = "0.17.80"
    with start_deploy(deployed) as first:
        until("the first holds the lock", lambda: deployed.sh("cat /var/lib/ollama-fleet/lock") != "")
        with start_deploy(deployed) as second:
            out, err = second.communicate(timeout=60)
            assert second.returncode == ExitCode.LOCKED, err
            (told,) = [item for item in map(json.loads, out.splitlines()) if item["event"] == "error"]
            assert f"pid {first.pid}, deploy, since" in told["sentence"]
        assert first.poll() is None
        deployed.sh("touch /run/second-has-ended")
        _, err = first.communicate(timeout=60)
        assert first.returncode == ExitCode.DONE, err
    assert deployed.sh("cat /var/lib/ollama-fleet/lock") == ""
    assert broken_promises(deployed.host, serves=["0.17.80"], new="0.17.80", deploy=deployed.ran) == []


def test_after_a_clean_reboot_the_model_is_loaded_and_nobody_asked(deployed: HostSite) -> None:
    forget_connections()
    deployed.host.reboot()
    until("it serves with the model loaded", deployed.loaded)
    assert deployed.host.wait_for_system() == "running"
    assert deployed.plan().is_empty
    # The server's own log knows who asked.
    log = deployed.sh("journalctl -b -u ollama -o cat; journalctl -b -u ollama-fleet-load -o cat")
    assert "loaded myqwen2:latest" in log


def test_a_server_that_is_killed_comes_back_with_its_model(deployed: HostSite) -> None:
    pid = deployed.sh("systemctl show -P MainPID ollama")
    deployed.sh(f"kill -9 {pid}")
    until("another server has the model loaded", lambda: is_another(deployed, pid) and deployed.loaded())
    assert deployed.plan().is_empty


def is_another(site: HostSite, pid: str) -> bool:
    return site.sh("systemctl show -P MainPID ollama") not in (pid, "0")


# Each on a host of its own.


@pytest.fixture
def fresh(host: Host, shared: HostSite) -> Iterator[HostSite]:
    """A host that nobody has deployed to yet."""
    forget_connections()
    shared.host, before = host, shared.host
    shared.version, shared.overwrite, shared.settings = "0.17.5", False, {}
    yield shared
    forget_connections()
    shared.host = before


def install_officially(site: HostSite) -> None:
    """As Ollama's install.sh does it, until the server answers: its directories are its own then."""
    binary = broken(site, "python=\n", f"python='{PYTHON}'\n")
    install = official_install(binary.read_bytes())
    done = subprocess.run(
        [*site.host.ssh_argv(), "sudo", shlex.join(install.argv)], input=install.archive, check=False
    )
    assert done.returncode == 0
    until("it answers", lambda: answers(site))


@pytest.mark.fault(39)
def test_the_models_of_an_adopted_server_are_not_touched(fresh: HostSite) -> None:
    install_officially(fresh)
    store = "/usr/share/ollama/.ollama/models"
    digest = hashlib.sha256(CANARY.read_bytes()).hexdigest()
    put = f"install -D -o ollama -g ollama /dev/stdin {store}/blobs/sha256-{digest}; chown -R ollama: {store}"
    done = subprocess.run(
        [*fresh.host.ssh_argv(), "sudo", "sh", "-c", shlex.quote(put)], input=CANARY.read_bytes(), check=False
    )
    assert done.returncode == 0
    api(fresh, "/api/create", {"model": "theirs", "files": {"m.gguf": f"sha256:{digest}"}, "stream": False})
    listing = f"find {store}/blobs -type f -printf '%p %i %T@ %u\\n' | sort"
    before = fresh.sh(listing)
    assert f"sha256-{digest}" in before
    assert not {"FetchArchive", "FetchWeights", "UnpackRelease", "SwitchRelease"} & set(fresh.kinds())
    assert fresh.deploy().error is None
    fresh.check_converges(ADOPTED)
    assert set(before.splitlines()) <= set(fresh.sh(listing).splitlines())
    assert {"theirs:latest", "myqwen2:latest"} <= served(fresh)
    assert fresh.sh("systemctl show -P ExecStart ollama").count("/usr/local/bin/ollama serve") == 1


def cut_power(site: HostSite, wait: Callable[[subprocess.Popen[str]], None]) -> None:
    """Deploy, pull the plug when `wait` returns, switch the host on again: it lets somebody in then."""
    with start_deploy(site) as deploy:
        wait(deploy)
        site.host.kill9()
        deploy.kill()
        deploy.communicate()
    forget_connections()
    site.host.start()
    site.host.wait_for_ssh()


def after_seconds(seconds: float) -> Callable[[subprocess.Popen[str]], None]:
    def wait(deploy: subprocess.Popen[str]) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            deploy.wait(seconds)

    return wait


def after_step(name: str) -> Callable[[subprocess.Popen[str]], None]:
    def wait(deploy: subprocess.Popen[str]) -> None:
        assert deploy.stdout is not None
        events = map(json.loads, deploy.stdout)
        assert any(event["event"] == "step_done" and event["step"] == name for event in events)

    return wait


def test_a_first_deploy_cut_after_its_units_were_enabled_leaves_no_failed_unit(fresh: HostSite) -> None:
    cut_power(fresh, after_step("EnableUnits"))
    try:
        # `active` says little: for a moment a server is that which cannot even be executed.
        until("it answers or is given up", lambda: answers(fresh) or is_failed(fresh))
        assert not is_failed(fresh), fresh.sh("journalctl -b -u ollama -n 5 --no-pager")
        # Nor is what loads the models: none is promoted yet.
        assert at_rest(fresh) == "running", fresh.sh("systemctl --failed --no-legend")
    finally:
        repaired = fresh.deploy()
    assert repaired.error is None
    assert fresh.plan().is_empty


@pytest.mark.parametrize("step", ["TakeLease", "StartServer"])
def test_an_adoption_that_a_power_cut_ends_is_taken_back_by_the_next_boot(fresh: HostSite, step: str) -> None:
    install_officially(fresh)
    cut_power(fresh, after_step(step))
    until("it answers", lambda: answers(fresh))
    there = (
        "ls -d /var/lib/ollama-fleet/lease /etc/systemd/system/ollama.service.d/*.conf 2>/dev/null || true"
    )
    assert fresh.sh(there) == ""
    fresh.check_converges(ADOPTED)


UNITS = "ollama ollama-fleet-load ollama-fleet-boot"
CANDIDATES = "find /usr/share/ollama/.ollama/models/manifests -name candidate"


def at_rest(site: HostSite) -> str:
    """How the boot ended, once nothing of it is under way any more."""
    until("the boot has ended", lambda: site.sh("systemctl list-jobs --no-legend") == "")
    return site.sh("systemctl is-system-running || true")


def refuse() -> None:
    raise ServiceError(sentence="the step fails here")


@pytest.mark.parametrize("step", [VerifyModel, PromoteModel])
def test_a_first_deploy_that_fails_leaves_nothing_that_the_next_boot_would_start(
    fresh: HostSite, monkeypatch: pytest.MonkeyPatch, step: type[Step]
) -> None:
    with monkeypatch.context() as patch:
        just_before(patch, step, refuse)
        failed = fresh.deploy().error
    assert failed is not None
    assert failed.unchanged == "no server ran before and none runs now"
    assert fresh.sh(f"systemctl is-enabled {UNITS} || true").split() == ["disabled", "static", "disabled"]
    assert fresh.sh(CANDIDATES) == ""
    forget_connections()
    fresh.host.kill9()
    fresh.host.start()
    fresh.host.wait_for_ssh()
    assert (at_rest(fresh), fresh.sh("systemctl is-active ollama || true")) == ("running", "inactive")
    fresh.check_converges("0.17.5")


def test_a_first_deploy_cut_before_its_proof_is_not_started_by_the_next_boot(fresh: HostSite) -> None:
    cut_power(fresh, after_step("CreateModel"))
    assert (at_rest(fresh), fresh.sh("systemctl is-active ollama || true")) == ("running", "inactive")
    fresh.check_converges("0.17.5")
    assert fresh.sh(CANDIDATES) == ""


def test_a_first_deploy_cut_after_its_promotion_serves_after_the_next_boot(fresh: HostSite) -> None:
    cut_power(fresh, after_step("PromoteModel"))
    until("the model is loaded", fresh.loaded)
    assert at_rest(fresh) == "running"
    fresh.check_converges("0.17.5")


def test_an_upgrade_of_a_stopped_server_that_is_cut_or_fails_ends_on_the_old_release(
    fresh: HostSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fresh.version
    assert fresh.deploy().error is None
    fresh.sh("systemctl stop ollama")
    new = fresh.want_new_release()
    cut_power(fresh, after_step("LoadModel"))
    assert at_rest(fresh) == "running"
    stopped = "release {} is current again and its server stopped, as before"
    assert (fresh.current(), fresh.sh("systemctl is-active ollama || true")) == (old, "inactive")
    assert "VerifyModel" in fresh.kinds()
    with monkeypatch.context() as patch:
        just_before(patch, VerifyModel, refuse)
        failed = fresh.deploy().error
    assert failed is not None
    assert failed.unchanged == stopped.format(old)
    assert (fresh.current(), fresh.sh("systemctl is-active ollama || true")) == (old, "inactive")
    fresh.check_converges(new)


def test_a_first_deploy_that_fails_before_there_is_a_unit_says_nothing_of_stopping_one(
    fresh: HostSite,
) -> None:
    fresh.sh("mount --bind -o ro /usr/local/lib /usr/local/lib; mount -o remount,bind,ro /usr/local/lib")
    failed = fresh.deploy().error
    assert failed is not None
    assert "lease` could not be written" in failed.sentence
    assert failed.unchanged == "no server ran before and none runs now"
    fresh.sh("umount /usr/local/lib")
    fresh.check_converges("0.17.5")


def answers(site: HostSite) -> bool:
    script = "import urllib.request as u; u.urlopen('http://127.0.0.1:11434/api/version', timeout=5)"
    return site.host.shell(shlex.join([PYTHON, "-c", script])).returncode == 0


def is_failed(site: HostSite) -> bool:
    return site.sh("systemctl is-failed ollama || true") == "failed"


@pytest.mark.fault(7)
@pytest.mark.parametrize("number", range(int(os.environ.get("FLEET_HOST_KILLS", "1"))))
def test_a_first_deploy_that_a_power_cut_ends_goes_on_and_leaves_nothing(
    fresh: HostSite, number: int
) -> None:
    moment = random.uniform(0.6, 6.0)
    cut_power(fresh, after_seconds(moment))
    told = f"cut at {moment:.2f} s"
    fresh.host.wait_for_system()
    # Whoever has never had a model may serve without one.
    assert broken_after_fault(fresh.host, serves=[NOTHING, "0.17.5"], models=()) == [], told
    assert broken_after_converge(fresh.host, new="0.17.5", deploy=fresh.ran) == [], told
