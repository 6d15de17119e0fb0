"""`health` on hosts that are this machine: nothing is installed there, and nothing changed."""

from __future__ import annotations

import pytest

from console.changes import deploy_hosts
from console.health import show_health
from deploy.errors import ExitCode, UsageError
from tests.local.conftest import Site


def test_a_host_that_serves_is_green_and_one_that_was_stopped_is_red(site: Site) -> None:
    run = site.run
    assert deploy_hosts(run, run.hosts(), "deploy")[0].error is None
    before = site.files()
    assert show_health(site.run, None, quick=False) is ExitCode.DONE, site.output.getvalue()[-3000:]
    (told,) = site.events("health")
    found = {check["check"]: check["state"] for check in told["checks"]}
    assert [found[name] for name in ("service", "api", "models", "generate", "toolcall")] == ["pass"] * 5
    assert told["facts"]["release"] == "0.17.5"

    assert show_health(site.run, None, quick=True) is ExitCode.DONE
    quick = {check["check"] for check in site.events("health")[-1]["checks"]}
    assert found.keys() - quick == {"generate", "toolcall"}
    assert site.files() == before

    for process in site.processes():
        process.kill()
        process.wait(10)
    assert show_health(site.run, None, quick=True) is ExitCode.FAILED
    found = {check["check"]: check["state"] for check in site.events("health")[-1]["checks"]}
    assert (found["service"], found["api"]) == ("fail", "fail")
    failed = [state for state in found.values() if state == "fail"]
    assert site.events("summary")[-1]["checks_fail"] == len(failed)


def test_a_period_checks_again_and_again_until_it_is_stopped(site: Site) -> None:
    run = site.run
    run.stop_requested.set()
    assert show_health(run, "1m", quick=True) is ExitCode.FAILED
    assert len(site.events("health")) == 1


@pytest.mark.parametrize("every", ["7m", "off", "now"])
def test_a_period_that_divides_nothing_is_refused(site: Site, every: str) -> None:
    with pytest.raises(UsageError, match="is no period"):
        show_health(site.run, every, quick=True)
