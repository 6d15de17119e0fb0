"""A mirror that cuts, corrupts, refuses, hangs or lies during an upgrade: the old release serves on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.errors import ChecksumMismatch, FleetError, MirrorError, NotAnArtefact
from testbed.demo import SERVER_REPO, archive_name, render_pins
from testbed.mirror import Fault, FaultKind
from testbed.mirror_http import Route
from tests.contract.mirror_fixtures import file_requests, quick_client
from tests.hosts.site import HostSite

__all__ = ["quick_client"]

pytestmark = pytest.mark.usefixtures("quick_client")


def archive_of(site: HostSite) -> Path:
    content = site.mirror.repos[SERVER_REPO].revisions[f"v{site.version}"][archive_name()]
    assert isinstance(content, Path)
    return content


def fails(site: HostSite, kind: type[FleetError], said: str) -> FleetError:
    """The upgrade ends with this error and nothing of it is installed."""
    failed = site.deploy()
    assert type(failed.error) is kind, str(failed.error)
    assert said in str(failed.error)
    assert site.sh(f"ls /opt/ollama/releases | grep -cx {site.version} || true") == "0"
    return failed.error


@pytest.mark.parametrize(
    ("fault", "kind", "said", "asked"),
    [
        pytest.param(
            Fault(kind=FaultKind.CUT, after_bytes=1_000),
            MirrorError,
            "broke off",
            None,
            marks=pytest.mark.fault(14),
            id="cut",
        ),
        pytest.param(
            Fault(kind=FaultKind.CORRUPT),
            ChecksumMismatch,
            "the download was deleted",
            1,
            marks=pytest.mark.fault(15),
            id="flipped",
        ),
        pytest.param(
            Fault(kind=FaultKind.STATUS, status=404),
            MirrorError,
            "does not find it",
            1,
            marks=pytest.mark.fault(17),
            id="404",
        ),
        pytest.param(
            Fault(kind=FaultKind.STATUS, status=500),
            MirrorError,
            "HTTP 500",
            None,
            marks=pytest.mark.fault(17),
            id="500",
        ),
        pytest.param(
            Fault(kind=FaultKind.STALL, after_bytes=9_000),
            MirrorError,
            "went silent",
            None,
            marks=pytest.mark.fault(18),
            id="silent",
        ),
        pytest.param(
            Fault(kind=FaultKind.LOGIN_PAGE),
            NotAnArtefact,
            'titled "Sign in to the network"',
            None,
            marks=pytest.mark.fault(19),
            id="page",
        ),
    ],
)
def test_an_upgrade_that_does_not_arrive_leaves_the_old_release_serving(
    serving: HostSite,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    kind: type[FleetError],
    said: str,
    asked: int | None,
) -> None:
    """`asked`: how often the file is asked for; what may pass is asked for more than once."""
    monkeypatch.setattr("modelscope_hub._legacy_api.DOWNLOAD_TIMEOUT", 0.5)
    old, new = serving.version, serving.want_new_release()
    serving.mirror.faults.append(fault)
    serving.mirror.requests.clear()
    fails(serving, kind, said)
    requests = len(file_requests(serving.mirror))
    assert requests == asked if asked is not None else requests > 1
    serving.check_serves(old)
    serving.mirror.faults.clear()
    serving.check_converges(new)


@pytest.mark.fault(16)
def test_a_wrong_checksum_in_the_pins_is_refused_with_both_digests(
    serving: HostSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = serving.version, serving.want_new_release()
    right = hashlib.sha256(archive_of(serving).read_bytes()).hexdigest()
    wrong = hashlib.sha256(b"what somebody else has pinned").hexdigest()
    # The listing is believed by nobody: with and without its help.
    for faults in ([], [Fault(kind=FaultKind.NO_SHA256, route=Route.LISTING)]):
        serving.mirror.faults[:] = faults
        with monkeypatch.context() as patch:
            patch.setattr(
                "tests.hosts.site.render_pins", lambda repos: render_pins(repos).replace(right, wrong)
            )
            error = fails(serving, ChecksumMismatch, f"expected sha256:{wrong}, got sha256:{right}")
        assert error.hint is not None
        serving.check_serves(old)
    serving.mirror.faults.clear()
    serving.check_converges(new)


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        pytest.param(
            [Fault(kind=FaultKind.CUT, after_bytes=9_000, times=1)],
            [(200, None), (206, "bytes=9000-")],
            marks=pytest.mark.fault(14),
            id="goes on",
        ),
        pytest.param(
            [Fault(kind=FaultKind.CUT, after_bytes=9_000, times=1), Fault(kind=FaultKind.NO_RANGE)],
            [(200, None), (200, "bytes=9000-")],
            marks=pytest.mark.fault(20),
            id="from the start",
        ),
    ],
)
def test_a_download_that_was_cut_once_arrives_whole(
    serving: HostSite, faults: Sequence[Fault], ranges: Sequence[tuple[int, str | None]]
) -> None:
    serving.want_new_release()
    serving.mirror.faults += faults
    serving.mirror.requests.clear()
    # Verified by its sha256 before it was unpacked, and the server that runs says its version.
    assert serving.deploy().error is None
    assert file_requests(serving.mirror) == ranges
    serving.check_converges(serving.version)
