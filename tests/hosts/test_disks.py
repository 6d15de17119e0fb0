"""Disks that are full, out of inodes, read-only or elsewhere: refused with figures, or nothing half done."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import pytest

from console.paths import CANARY
from deploy.errors import DiskReadOnly, DiskTooSmall, ServiceError
from deploy.steps import CreateModel, FetchWeights, Step, TakeLease, UnpackRelease, WriteFile
from testbed.demo import WEIGHTS_FILE, WEIGHTS_REPO
from testbed.mirror import MirrorRepo
from testbed.promises import footprint, look
from tests.hosts.site import HostSite, just_before, until

STATE = "/var/lib/ollama-fleet"
RELEASES = "/opt/ollama"
UNITS = "/etc/systemd/system"
STORE = "/usr/share/ollama/.ollama/models"


def want_other_weights(site: HostSite) -> None:
    """Weights that no host has yet: the same model with other bytes at its end."""
    path = site.directory / "weights.gguf"
    path.write_bytes(CANARY.read_bytes() + random.randbytes(16))
    site.mirror.repos[WEIGHTS_REPO] = MirrorRepo(
        repo=WEIGHTS_REPO, revisions={"master": {WEIGHTS_FILE: path}}
    )


@contextlib.contextmanager
def own_disk(site: HostSite, directory: str, options: str) -> Iterator[None]:
    """What lies in a directory lies on a file system of its own, and afterwards where it was."""
    keep = f"rm -rf {directory}/filler && mkdir /run/kept && cp -a {directory}/. /run/kept"
    put = f"cp -a /run/kept/. {directory} && rm -r /run/kept"
    site.sh(f"{keep} && mount -t tmpfs -o {options} tmpfs {directory} && {put}")
    try:
        yield
    finally:
        site.sh(f"{keep} && umount -l {directory} && find {directory} -mindepth 1 -delete && {put}")


def make_read_only(site: HostSite, directory: str) -> None:
    site.sh(f"mount --bind {directory} {directory} && mount -o remount,bind,ro {directory}")


def fill(site: HostSite, directory: str) -> None:
    site.sh(f"mkdir -p {directory}/filler && cat /dev/zero >{directory}/filler/zeros || :")


def fill_with(site: HostSite, directory: str, size: str) -> None:
    site.sh(f"mkdir -p {directory}/filler && head -c {size} /dev/zero >{directory}/filler/zeros")


def use_up_inodes(site: HostSite, directory: str) -> None:
    script = f"mkdir -p {directory}/filler; n=0; while : >{directory}/filler/$n; do n=$((n + 1)); done"
    assert "No space left" in site.host.shell(script).stderr


def make_room(site: HostSite, directory: str) -> None:
    site.sh(f"rm -r {directory}/filler")


def texts_of_units(site: HostSite) -> str:
    return site.sh(f"cd {UNITS} && find . -path '*ollama*' -type f -exec sha256sum {{}} + | sort")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        pytest.param("size=32m", "too little free space", marks=pytest.mark.fault(10), id="bytes"),
        pytest.param("nr_inodes=200", "too few free inodes", marks=pytest.mark.fault(12), id="inodes"),
    ],
)
def test_a_disk_without_room_is_refused_with_figures_before_a_byte_is_copied(
    serving: HostSite, options: str, told: str
) -> None:
    want_other_weights(serving)
    with own_disk(serving, STATE, options):
        before, asked = footprint(serving.host), len(serving.mirror.requests)
        error = serving.deploy().error
        assert isinstance(error, DiskTooSmall)
        assert f"`{STATE}` has {told}" in error.sentence
        assert "are missing" in str(error.cause)
        assert (footprint(serving.host), len(serving.mirror.requests)) == (before, asked)
        serving.check_serves(serving.version)
        serving.sh(f"mount -o remount,size=512m,nr_inodes=100k {STATE}")
        serving.check_converges(serving.version)


@pytest.mark.parametrize(
    ("directory", "step", "use_up"),
    [
        pytest.param(STATE, FetchWeights, fill, marks=pytest.mark.fault(10), id="the copy"),
        pytest.param(STORE, CreateModel, fill, marks=pytest.mark.fault(10), id="the store"),
        pytest.param(RELEASES, UnpackRelease, fill, marks=pytest.mark.fault(10), id="the release"),
        pytest.param(STATE, FetchWeights, use_up_inodes, marks=pytest.mark.fault(12), id="inodes"),
    ],
)
def test_a_disk_that_fills_up_meanwhile_keeps_nothing_of_what_did_not_fit(
    serving: HostSite,
    monkeypatch: pytest.MonkeyPatch,
    directory: str,
    step: type[Step],
    use_up: Callable[[HostSite, str], None],
) -> None:
    want_other_weights(serving)
    old, version = serving.version, serving.want_new_release()
    with own_disk(serving, directory, "size=256m,nr_inodes=1000"):
        with monkeypatch.context() as patch:
            just_before(patch, step, lambda: use_up(serving, directory))
            failed = serving.deploy()
        assert isinstance(failed.error, DiskTooSmall), str(failed.error)
        assert "No space left on device" in str(failed.error.cause)
        assert "df -i" in str(failed.error.hint)
        assert look(serving.host).temporary == ()
        serving.check_serves(old)
        make_room(serving, directory)
        serving.check_converges(version)


@pytest.mark.fault(11)
@pytest.mark.parametrize("directory", [UNITS, STATE])
def test_a_full_disk_never_cuts_a_unit_short(serving: HostSite, directory: str) -> None:
    before = texts_of_units(serving)
    serving.settings["ollama_num_parallel"] = "2"
    old = serving.version
    with own_disk(serving, directory, "size=64m"):
        fill(serving, directory)
        failed = serving.deploy()
        assert failed.error is not None
        assert "No space left on device" in str(failed.error.cause)
        assert texts_of_units(serving) == before
        assert look(serving.host).temporary == ()
        assert look(serving.host).leases == ()
        serving.check_serves(old)
        make_room(serving, directory)
        serving.check_converges(serving.version)
    assert texts_of_units(serving) != before


@pytest.mark.fault(13)
def test_a_read_only_disk_is_one_clear_error_and_nothing_is_half_done(serving: HostSite) -> None:
    want_other_weights(serving)
    old, version = serving.version, serving.want_new_release()
    serving.settings["ollama_num_parallel"] = "3"
    before, asked = footprint(serving.host), len(serving.mirror.requests)
    for directory in (STATE, RELEASES, UNITS, STORE):
        make_read_only(serving, directory)
        try:
            error = serving.deploy().error
        finally:
            serving.sh(f"umount -l {directory}")
        assert isinstance(error, DiskReadOnly)
        assert error.sentence == f"`{directory}` is mounted read-only"
        assert error.unchanged == "everything"
        assert (footprint(serving.host), len(serving.mirror.requests)) == (before, asked)
    serving.check_serves(old)
    serving.check_converges(version)


@pytest.mark.fault(13)
@pytest.mark.parametrize(
    ("directory", "step"), [(STATE, TakeLease), (RELEASES, UnpackRelease), (UNITS, WriteFile)]
)
def test_a_disk_that_becomes_read_only_meanwhile_leaves_the_old_release_serving(
    serving: HostSite, monkeypatch: pytest.MonkeyPatch, directory: str, step: type[Step]
) -> None:
    """As ext4 does after an error: `errors=remount-ro`."""
    before = texts_of_units(serving)
    old, version = serving.version, serving.want_new_release()
    serving.settings["ollama_num_parallel"] = "4"
    with monkeypatch.context() as patch:
        just_before(patch, step, lambda: make_read_only(serving, directory))
        failed = serving.deploy()
    try:
        assert failed.error is not None
        assert "Read-only file system" in str(failed.error.cause)
        assert texts_of_units(serving) == before
        serving.check_serves(old)
    finally:
        serving.sh(f"umount -l {directory}")
    serving.check_converges(version)


# A model store that is not an ordinary directory of the server's.


@pytest.mark.fault(47)
def test_a_store_behind_a_link_on_another_disk_is_used_where_it_is(serving: HostSite) -> None:
    elsewhere = "/srv/models"
    serving.sh(
        f"systemctl stop ollama && mkdir -p {elsewhere} && mount -t tmpfs -o size=512m tmpfs {elsewhere}"
        f" && cp -a {STORE}/. {elsewhere} && chown ollama: {elsewhere}"
        f" && mv {STORE} {STORE}.before && ln -s {elsewhere} {STORE} && systemctl start ollama"
    )
    try:
        until("its model is loaded", serving.loaded)
        assert serving.facts().disks[STORE].mount == elsewhere
        want_other_weights(serving)
        serving.check_converges(serving.version)
        assert serving.sh(f"readlink {STORE}") == elsewhere
        assert serving.sh(f"find {elsewhere} ! -user ollama") == ""
    finally:
        serving.sh(
            f"systemctl stop ollama && rm {STORE} && mv {STORE}.before {STORE} && umount -l {elsewhere}"
            " && systemctl start ollama"
        )


@pytest.mark.fault(47)
def test_a_store_of_another_account_is_refused_and_nobody_else_gets_it(serving: HostSite) -> None:
    want_other_weights(serving)
    serving.sh(f"chown -R nobody: {STORE}")
    owners = serving.sh(f"find {STORE} -printf '%p %u:%g\\n' | sort")
    before, asked = footprint(serving.host), len(serving.mirror.requests)
    error = serving.deploy().error
    assert isinstance(error, ServiceError)
    assert (error.expected, error.actual) == ("ollama", "nobody")
    assert f"chown -R ollama: {STORE}" in str(error.hint)
    assert serving.sh(f"find {STORE} -printf '%p %u:%g\\n' | sort") == owners
    assert (footprint(serving.host), len(serving.mirror.requests)) == (before, asked)
    serving.check_serves(serving.version)
    serving.sh(f"chown -R ollama: {STORE}")
    serving.check_converges(serving.version)
