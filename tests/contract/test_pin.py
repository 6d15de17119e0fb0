"""`pin` through the real modelscope client against the embedded mirror, honest and lying."""

from __future__ import annotations

import gzip
import io
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from console.paths import MODELFILES
from console.pin import PinTask, cache_directory, pin_asking
from deploy.errors import ChecksumMismatch, FleetError, MirrorError, NotAnArtefact, PinError
from deploy.pins import parse_pins
from deploy.report import Report
from testbed.mirror import Fault, FaultKind, Mirror, MirrorRepo, Route, start_mirror
from testbed.mirror_contents import commit_of
from tests.contract.mirror_fixtures import (
    MODELS,
    ROOT,
    SERVER,
    WEIGHTS,
    file_requests,
    lonely_environment,
    quick_client,
    sha256,
    wait_until,
)

__all__ = ["quick_client"]

pytestmark = pytest.mark.usefixtures("quick_client")

GGUF = b"GGUF" + random.Random(3).randbytes(200_000)
OLD = gzip.compress(b"old release" * 50, mtime=0)
NEW = gzip.compress(b"new release" * 60, mtime=0)
ARM = gzip.compress(b"for arm" * 60, mtime=0)
LIBRARIES = gzip.compress(b"libraries alone" * 60, mtime=0)
AMD64 = "ollama-linux-amd64.tgz"
ARM64 = "ollama-linux-arm64.tgz"
SHIPPED = (MODELFILES / "pins.toml").read_bytes()

RELEASES: dict[str, dict[str, Path | bytes]] = {
    "v0.14.1": {AMD64: OLD},
    "v0.17.5": {AMD64: OLD, "README.md": b"# ollama\n"},
    "v0.32.15": {AMD64: NEW, "ollama-linux-amd64-rocm.tgz": LIBRARIES},
    "v0.33.0-rc2": {AMD64: OLD},
    # A fix of an old line, tagged after the highest release.
    "v0.17.8": {AMD64: OLD, ARM64: ARM},
    "v0.40.0-arm": {ARM64: ARM},  # no version
    "v0.18.1": {ARM64: ARM},
    "v0.18.2": {"ollama-linux-amd64-rocm.tgz": LIBRARIES},
}


@dataclass(kw_only=True)
class Site:
    """A mirror, a `pins.toml` with the project's own content and a cache."""

    mirror: Mirror
    pins: Path
    cache: Path
    events: list[dict[str, Any]] = field(default_factory=list)
    words: str = ""

    def pin(self, *models: str, version: str | None = None, yes: bool = True) -> int:
        stdout, stderr = io.StringIO(), io.StringIO()
        task = PinTask(
            report=Report(as_json=True, stdout=stdout, stderr=stderr),
            pins=self.pins,
            cache=self.cache,
            version=version,
            models=models,
            endpoint=self.mirror.url,
        )
        try:
            return pin_asking(task, yes=yes)
        finally:
            self.events = [json.loads(line) for line in stdout.getvalue().splitlines()]
            self.words = stderr.getvalue()

    def refusal(self, *models: str, version: str | None = None) -> FleetError:
        """The error of a run that must leave every pin as it is."""
        before = self.pins.read_bytes()
        with pytest.raises(FleetError) as caught:
            self.pin(*models, version=version)
        assert self.pins.read_bytes() == before
        assert [path.name for path in self.pins.parent.iterdir()] == [self.pins.name]
        assert caught.value.unchanged is not None
        assert caught.value.hint is not None
        return caught.value

    def lie(self, kind: FaultKind, route: Route = Route.LISTING, **more: Any) -> None:
        self.mirror.faults.append(Fault(kind=kind, route=route, **more))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [found for found in self.events if found["event"] == event]

    @property
    def notes(self) -> str:
        return "\n".join(event["text"] for event in self.of("note"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    repos = (
        MirrorRepo(repo=SERVER, revisions={"master": {"README.md": b"#\n"}, **RELEASES}),
        MirrorRepo(repo=MODELS, revisions={"master": {WEIGHTS: GGUF, "README.md": b"#\n"}}),
    )
    pins = tmp_path / "site" / "pins.toml"
    pins.parent.mkdir()
    pins.write_bytes(SHIPPED)
    with start_mirror(repos) as mirror:
        yield Site(mirror=mirror, pins=pins, cache=tmp_path / "cache")


def replace_file(site: Site, repo: str, revision: str, file: str, content: bytes) -> None:
    """The mirror gets other bytes under the same name."""
    known = site.mirror.repos[repo]
    files = {**known.revisions[revision], file: content}
    site.mirror.repos[repo] = replace(known, revisions={**known.revisions, revision: files})


def test_the_highest_release_and_the_weights_are_pinned(site: Site) -> None:
    assert site.pin() == 0
    pins = parse_pins(site.pins, MODELFILES)
    (server,) = pins.servers
    assert (server.version, server.architecture) == ("0.32.15", "amd64")
    assert (server.archive.repo, server.archive.file) == (SERVER, AMD64)
    assert (server.archive.size_bytes, server.archive.sha256) == (len(NEW), sha256(NEW))
    weights = pins.weights(MODELS, WEIGHTS)
    assert (weights.size_bytes, weights.sha256) == (len(GGUF), sha256(GGUF))
    assert site.pins.read_bytes().startswith(SHIPPED)


def test_the_revision_is_a_commit_that_cannot_move(site: Site) -> None:
    site.pin()
    pins = parse_pins(site.pins, MODELFILES)
    (server,) = pins.servers
    assert server.archive.revision == commit_of(site.mirror.repos[SERVER], "v0.32.15")
    assert pins.weights(MODELS, WEIGHTS).revision == commit_of(site.mirror.repos[MODELS], "master")


def test_a_commit_that_the_mirror_tells_and_does_not_know_is_not_pinned(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name = lambda repo, revision: revision if revision in repo.revisions else None  # noqa: E731
    monkeypatch.setattr(site.mirror, "find_revision", by_name)
    site.pin()
    pins = parse_pins(site.pins, MODELFILES)
    assert [server.archive.revision for server in pins.servers] == ["v0.32.15"]
    assert pins.weights(MODELS, WEIGHTS).revision == "master"


def test_every_pinned_file_was_downloaded(site: Site) -> None:
    site.pin()
    assert len(file_requests(site.mirror)) == 2
    assert (site.cache / f"sha256-{sha256(GGUF)}" / WEIGHTS).read_bytes() == GGUF


def test_a_second_run_changes_nothing_and_says_so(site: Site) -> None:
    site.pin()
    before, stat = site.pins.read_bytes(), site.pins.stat()
    site.mirror.requests.clear()
    assert site.pin() == 0
    assert (site.pins.read_bytes(), site.pins.stat().st_ino) == (before, stat.st_ino)
    assert "nothing to change" in site.words
    assert site.of("pin") == []
    assert site.events[-1]["pinned"] == 0
    assert file_requests(site.mirror) == []


def test_a_version_is_pinned_beside_the_others(site: Site) -> None:
    site.pin()
    assert site.pin(version="v0.17.5") == 0
    versions = [server.version for server in parse_pins(site.pins, MODELFILES).servers]
    assert versions == ["0.32.15", "0.17.5"]
    assert "newest pinned release: 0.32.15, as before" in site.notes


def test_a_higher_release_is_announced_to_the_hosts_that_follow(site: Site) -> None:
    site.pin(version="0.17.5")
    site.pin()
    assert "newest pinned release: 0.17.5 -> 0.32.15" in site.notes


def test_an_old_release_brings_a_warning_and_one_that_cannot_be_deployed_yet_another(site: Site) -> None:
    site.pin(version="0.17.5")
    assert "warning: ollama 0.17.5 is older than 0.32.15" in site.notes
    assert "cannot be deployed yet" not in site.notes
    site.pin()
    assert "warning: ollama `0.32.15` cannot be deployed yet" in site.notes
    assert "is older than" not in site.notes


def test_a_release_with_the_memory_leak_is_refused_before_anything_is_asked(site: Site) -> None:
    error = site.refusal(version="0.14.1")
    assert isinstance(error, PinError)
    assert "CVE-2026-7482" in str(error)
    assert site.mirror.requests == []


def test_a_mirror_whose_highest_release_is_refused_gives_no_pin(site: Site) -> None:
    site.mirror.repos[SERVER] = MirrorRepo(repo=SERVER, revisions={"v0.14.1": RELEASES["v0.14.1"]})
    assert "CVE-2026-7482" in str(site.refusal())


def test_every_architecture_that_has_an_archive_is_pinned(site: Site) -> None:
    site.pin(version="0.17.8")
    pinned = {server.architecture: server.archive for server in parse_pins(site.pins, MODELFILES).servers}
    assert pinned["amd64"].sha256 == sha256(OLD)
    assert pinned["arm64"].sha256 == sha256(ARM)
    assert "has no archive" not in site.notes


def test_an_architecture_without_an_archive_is_told(site: Site) -> None:
    site.pin()
    assert "v0.32.15 has no archive for arm64" in site.notes


def test_a_release_for_arm64_alone_is_pinned_and_told(site: Site) -> None:
    site.pin(version="0.18.1")
    assert [server.architecture for server in parse_pins(site.pins, MODELFILES).servers] == ["arm64"]
    assert "v0.18.1 has no archive for amd64" in site.notes


def test_a_release_without_any_server_archive_is_refused(site: Site) -> None:
    error = site.refusal(version="0.18.2")
    assert "no Ollama server archive" in error.sentence
    assert file_requests(site.mirror) == []


def test_an_unknown_version_is_refused_with_the_tags(site: Site) -> None:
    error = site.refusal(version="0.17.6")
    assert isinstance(error, MirrorError)
    assert "v0.32.15" in str(error.cause)


@pytest.mark.parametrize("kind", [FaultKind.WRONG_SIZE, FaultKind.WRONG_SHA256])
def test_a_listing_that_lies_is_refused(site: Site, kind: FaultKind) -> None:
    site.lie(kind)
    error = site.refusal()
    assert isinstance(error, ChecksumMismatch)
    assert "lists one thing and sends another" in error.sentence
    assert error.expected != error.actual
    assert not any(site.cache.rglob("*.tgz"))


def test_bad_weights_leave_the_good_archive_unpinned_too(site: Site) -> None:
    replace_file(site, MODELS, "master", WEIGHTS, b"just text, no weights\n" * 40)
    site.refusal()
    assert (site.cache / f"sha256-{sha256(NEW)}" / AMD64).exists()


def test_bytes_that_were_changed_on_the_way_are_refused(site: Site) -> None:
    site.lie(FaultKind.CORRUPT, Route.FILE)
    error = site.refusal()
    assert isinstance(error, ChecksumMismatch)
    assert error.expected == f"sha256:{sha256(NEW)}"


def test_a_listing_without_sha256_is_refused_before_a_download(site: Site) -> None:
    site.lie(FaultKind.NO_SHA256)
    error = site.refusal()
    assert "lists no sha256" in error.sentence
    assert file_requests(site.mirror) == []


def test_a_listing_that_was_honest_once_is_not_believed_later(site: Site) -> None:
    """The pin is there; a mirror that now claims something else gets nothing written."""
    site.pin()
    site.lie(FaultKind.WRONG_SHA256)
    assert isinstance(site.refusal(), ChecksumMismatch)


@pytest.mark.parametrize("route", [Route.REVISIONS, Route.LISTING, Route.FILE])
def test_a_login_page_is_refused_wherever_it_comes(site: Site, route: Route) -> None:
    site.lie(FaultKind.LOGIN_PAGE, route)
    error = site.refusal()
    assert isinstance(error, NotAnArtefact)
    assert "web page" in error.sentence


@pytest.mark.parametrize("route", [Route.REVISIONS, Route.LISTING, Route.FILE])
def test_a_404_is_an_error_and_leaves_the_pins(site: Site, route: Route) -> None:
    site.lie(FaultKind.STATUS, route, status=404)
    assert isinstance(site.refusal(), MirrorError)


def test_a_repository_without_the_weights_says_which_files_it_has(site: Site) -> None:
    site.mirror.repos[MODELS] = MirrorRepo(repo=MODELS, revisions={"master": {"other.gguf": GGUF}})
    error = site.refusal()
    assert f"has no file `{WEIGHTS}`" in error.sentence
    assert "other.gguf" in str(error.cause)


def test_a_file_under_that_name_that_is_no_gguf_is_refused(site: Site) -> None:
    replace_file(site, MODELS, "master", WEIGHTS, b"just text\n" * 100)
    assert isinstance(site.refusal(), NotAnArtefact)


def test_a_file_replaced_under_the_same_tag_is_shown_and_warned_of(site: Site) -> None:
    site.pin()
    replace_file(site, SERVER, "v0.32.15", AMD64, OLD)
    assert site.pin() == 0
    (event,) = site.of("pin")
    assert {"key": "sha256", "old": sha256(NEW), "new": sha256(OLD)} in event["changes"]
    assert "other bytes under the same name" in site.notes
    (server,) = parse_pins(site.pins, MODELFILES).servers
    assert server.archive.sha256 == sha256(OLD)


def test_without_yes_and_terminal_nothing_is_downloaded_or_written(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("console.run.is_terminal", lambda: False)
    assert site.pin(yes=False) == 1
    assert site.pins.read_bytes() == SHIPPED
    assert file_requests(site.mirror) == []
    assert [event["subject"] for event in site.of("pin")] == ["ollama 0.32.15 (amd64)", WEIGHTS]
    assert site.events[-1] | {"seconds": 0} == {
        "event": "summary",
        "hosts": 0,
        "changed": 0,
        "failed": 0,
        "unreachable": 0,
        "pins": 2,
        "path": str(site.pins),
        "pinned": 0,
        "to_pin": 2,
        "seconds": 0,
    }


def test_a_damaged_copy_in_the_cache_is_not_believed(site: Site) -> None:
    site.pin()
    copy = site.cache / f"sha256-{sha256(GGUF)}" / WEIGHTS
    copy.write_bytes(GGUF[:-1] + b"!")
    site.pins.write_bytes(SHIPPED)
    assert "damaged" in site.refusal().sentence
    assert not copy.exists()
    assert site.pin() == 0


def test_what_is_in_the_cache_is_not_downloaded_again(site: Site) -> None:
    site.pin()
    site.pins.write_bytes(SHIPPED)
    site.mirror.requests.clear()
    assert site.pin() == 0
    assert file_requests(site.mirror) == []


def test_a_broken_download_goes_on_in_the_next_run(site: Site) -> None:
    site.pin(version="0.17.5")
    site.pins.write_bytes(SHIPPED)
    (site.cache / f"sha256-{sha256(GGUF)}" / WEIGHTS).unlink()
    site.lie(FaultKind.CUT, Route.FILE, after_bytes=10_000)
    error = site.refusal(version="0.17.5")
    (part,) = site.cache.rglob("*.incomplete")
    kept_bytes = part.stat().st_size
    assert error.unchanged == f"every pin; the {kept_bytes:,} bytes that arrived are kept in {part}"
    site.mirror.faults.clear()
    site.mirror.requests.clear()
    assert site.pin(version="0.17.5") == 0
    assert file_requests(site.mirror) == [(206, f"bytes={kept_bytes}-")]


def test_a_contained_model_is_pinned_only_when_asked_and_from_its_file(site: Site) -> None:
    site.pins.write_text("# empty\n")
    assert site.pin("canary") == 0
    pins = parse_pins(site.pins, MODELFILES)
    (weights,) = pins.artefacts
    assert weights.sha256 == sha256((MODELFILES / "canary/canary.gguf").read_bytes())
    assert weights == parse_pins(MODELFILES / "pins.toml").artefacts[0]


def test_a_model_alone_brings_no_other_release(site: Site) -> None:
    site.pin(version="0.17.5")
    site.pins.write_bytes(SHIPPED)
    assert site.pin("myqwen2") == 0
    pins = parse_pins(site.pins, MODELFILES)
    assert (pins.servers, pins.weights(MODELS, WEIGHTS).sha256) == ((), sha256(GGUF))
    assert not [request for request in site.mirror.requests if "v0.32.15" in request.query.values()]


def test_broken_pins_are_told_before_the_mirror_is_asked(site: Site) -> None:
    site.pins.write_text("[[server]]\nversion = 3\n")
    with pytest.raises(FleetError, match="wrong value"):
        site.pin()
    assert site.mirror.requests == []


def fleet(site: Site, *words: str) -> subprocess.Popen[str]:
    """`./fleet pin` as a process of its own, from the directory of the pins."""
    return subprocess.Popen(
        [sys.executable, str(ROOT), "pin", "--pins", "pins.toml", *words],
        cwd=site.pins.parent,
        env=lonely_environment(site.cache / "home", site.mirror.url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_task_pins_what_its_flags_say(site: Site) -> None:
    words = (
        "--version=0.17.5",
        "--model=canary",
        "--model=myqwen2",
        f"--endpoint={site.mirror.url}",
        "--yes",
    )
    stdout, stderr = fleet(site, *words).communicate(timeout=60)
    assert (stderr, "pins.toml written" in stdout) == ("", True)
    assert [server.version for server in parse_pins(site.pins, MODELFILES).servers] == ["0.17.5"]


def test_ctrl_c_leaves_the_pins_and_keeps_what_arrived(site: Site) -> None:
    site.lie(FaultKind.SLOW, Route.FILE, bytes_per_second=20_000)
    process = fleet(site, "--model=myqwen2", "--json", "--yes")
    wait_until(lambda: any(part.stat().st_size for part in site.cache.rglob(f"{WEIGHTS}.incomplete")))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    events = [json.loads(line) for line in stdout.splitlines()]
    assert process.returncode == 130, stderr
    assert [event["event"] for event in events[-2:]] == ["error", "summary"]
    assert events[-2]["kind"] == "Interrupted"
    assert site.pins.read_bytes() == SHIPPED
    assert any(part.stat().st_size for part in site.cache.rglob(f"{WEIGHTS}.incomplete"))


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "ollama-fleet"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == Path.home() / ".cache/ollama-fleet"
