"""`fetch`, `list_files` and `list_tags` through the real modelscope client, against the embedded mirror."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from deploy.desired import Artefact
from deploy.errors import (
    ChecksumMismatch,
    DiskTooSmall,
    FleetError,
    MirrorError,
    NotAnArtefact,
    PinError,
    UsageError,
)
from deploy.mirror import MirrorFile, Phase, Progress, fetch, list_files, list_tags
from testbed.mirror import Fault, FaultKind, Mirror, Route
from tests.contract.mirror_fixtures import (
    ARCHIVE,
    GGUF,
    MODELS,
    NO_GGUF,
    SERVER,
    TOKEN,
    WEIGHTS,
    file_requests,
    listing,
    mirror,
    pin,
    quick_client,
    sha256,
)

__all__ = ["mirror", "quick_client"]

pytestmark = pytest.mark.usefixtures("quick_client")
PART = f"sha256-{sha256(GGUF)}.part/files/{WEIGHTS}.incomplete"


def ignore(_progress: Progress) -> None:
    pass


def refusal(artefact: Artefact, cache: Path, *, endpoint: str | None = None) -> FleetError:
    """The error that `fetch` ends with; no error of ours shows the token."""
    with pytest.raises(FleetError) as caught:
        fetch(artefact, cache, on_progress=ignore, endpoint=endpoint)
    error = caught.value
    assert error.cause is not None
    assert error.unchanged is not None
    assert error.hint is not None
    assert TOKEN not in str(error)
    return error


def test_the_listing_has_size_and_sha256_and_no_directories(mirror: Mirror) -> None:
    files = list_files(MODELS, "master")
    assert MirrorFile(path=WEIGHTS, size_bytes=len(GGUF), sha256=sha256(GGUF)) in files
    assert {file.path for file in files} == {"README.md", WEIGHTS, "sub/dir/small.gguf"}


def test_a_listing_without_sha256_says_none(mirror: Mirror) -> None:
    mirror.faults.append(Fault(kind=FaultKind.NO_SHA256, route=Route.LISTING))
    assert {file.sha256 for file in list_files(MODELS, "master")} == {None}


def test_tags_come_newest_first_and_without_branches(mirror: Mirror) -> None:
    assert list_tags(SERVER) == ("v0.17.5", "v0.14.1")


@pytest.mark.parametrize(
    "artefact",
    [
        pin(),
        pin("sub/dir/small.gguf", GGUF[:9_000]),
        pin("ollama-linux-amd64.tgz", ARCHIVE, repo=SERVER, revision="v0.17.5"),
    ],
    ids=["weights", "in a directory", "archive"],
)
def test_a_pinned_file_ends_at_its_place_and_nothing_else_is_left(
    mirror: Mirror, tmp_path: Path, artefact: Artefact
) -> None:
    path = fetch(artefact, tmp_path / "cache", on_progress=ignore)
    assert path == tmp_path / "cache" / f"sha256-{artefact.sha256}" / Path(artefact.file).name
    assert sha256(path.read_bytes()) == artefact.sha256
    assert [file for file in (tmp_path / "cache").rglob("*") if file not in (path, path.parent)] == []


def test_every_request_names_the_revision(mirror: Mirror, tmp_path: Path) -> None:
    fetch(pin(data=GGUF[:70_000], revision="v1.0.0"), tmp_path, on_progress=ignore)
    asked = [request.query for request in mirror.requests if "/repo" in request.path and request.query]
    assert [query["Revision"] for query in asked] == ["v1.0.0", "v1.0.0"]


def test_a_second_fetch_asks_nobody(mirror: Mirror, tmp_path: Path) -> None:
    first = fetch(pin(), tmp_path, on_progress=ignore)
    mirror.requests.clear()
    assert fetch(pin(), tmp_path, on_progress=ignore) == first
    assert mirror.requests == []


def test_a_file_of_another_size_at_the_final_place_is_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    path = fetch(pin(), tmp_path, on_progress=ignore)
    path.write_bytes(GGUF[:-1])
    assert fetch(pin(), tmp_path, on_progress=ignore).read_bytes() == GGUF


def test_the_token_is_sent_to_the_mirror(mirror: Mirror, tmp_path: Path) -> None:
    fetch(pin(), tmp_path, on_progress=ignore)
    assert [request.has_token for request in mirror.requests if request.path.endswith("/repo")] == [True]


def test_a_given_endpoint_wins_over_the_environment(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:1")
    assert fetch(pin(), tmp_path, on_progress=ignore, endpoint=mirror.url + "/").is_file()


def test_progress_grows_to_the_end_and_knows_rate_and_rest(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.SLOW, bytes_per_second=2_000_000))
    seen: list[Progress] = []
    fetch(pin(), tmp_path, on_progress=seen.append)
    loading = [progress for progress in seen if progress.phase is Phase.DOWNLOADING]
    assert {(progress.file, progress.total_bytes) for progress in seen} == {(WEIGHTS, len(GGUF))}
    assert [progress.done_bytes for progress in loading] == sorted(
        progress.done_bytes for progress in loading
    )
    assert len(loading) >= 4
    last = loading[-1]
    assert last.bytes_per_second is not None
    assert 500_000 < last.bytes_per_second < 8_000_000
    assert last.eta_seconds == pytest.approx((len(GGUF) - last.done_bytes) / last.bytes_per_second)
    assert [progress.phase for progress in seen][-2:] == [Phase.VERIFYING, Phase.DONE]
    assert seen[-1].done_bytes == len(GGUF)


@pytest.mark.fault(14)
def test_a_cut_download_goes_on_where_it_stopped(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.CUT, after_bytes=600_000, times=1))
    assert fetch(pin(), tmp_path, on_progress=ignore).read_bytes() == GGUF
    assert file_requests(mirror) == [(200, None), (206, "bytes=600000-")]


@pytest.mark.fault(20)
def test_a_mirror_that_ignores_ranges_is_read_from_the_start(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults += [Fault(kind=FaultKind.CUT, after_bytes=9_000, times=1), Fault(kind=FaultKind.NO_RANGE)]
    assert fetch(pin(), tmp_path, on_progress=ignore).read_bytes() == GGUF
    assert file_requests(mirror) == [(200, None), (200, "bytes=9000-")]


@pytest.mark.fault(14)
def test_a_download_that_never_ends_keeps_its_part_for_the_next_fetch(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.CUT, after_bytes=100_000))
    error = refusal(pin(), tmp_path)
    assert type(error) is MirrorError
    assert "broke off" in error.sentence
    assert listing(tmp_path) == [PART]
    kept_bytes = (tmp_path / PART).stat().st_size
    assert f"{kept_bytes:,} bytes" in str(error.unchanged)

    mirror.faults.clear()
    mirror.requests.clear()
    seen: list[Progress] = []
    path = fetch(pin(), tmp_path, on_progress=seen.append)
    assert file_requests(mirror) == [(206, f"bytes={kept_bytes}-")]
    assert seen[0].resumed_bytes == seen[0].done_bytes == kept_bytes
    assert seen[0].bytes_per_second is None
    assert listing(tmp_path) == [path.relative_to(tmp_path).as_posix()]


def test_a_part_of_other_bytes_is_thrown_away_and_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    part = tmp_path / PART
    part.parent.mkdir(parents=True)
    part.write_bytes(b"GGUF" + bytes(50_000))
    assert fetch(pin(), tmp_path, on_progress=ignore).read_bytes() == GGUF
    assert file_requests(mirror) == [(206, "bytes=50004-"), (200, None)]


def test_a_part_longer_than_the_file_is_thrown_away(mirror: Mirror, tmp_path: Path) -> None:
    part = tmp_path / PART
    part.parent.mkdir(parents=True)
    part.write_bytes(GGUF + b"and more")
    assert fetch(pin(), tmp_path, on_progress=ignore).read_bytes() == GGUF


def test_a_complete_part_needs_no_request_for_the_file(mirror: Mirror, tmp_path: Path) -> None:
    part = tmp_path / PART
    part.parent.mkdir(parents=True)
    part.write_bytes(GGUF)
    assert fetch(pin(), tmp_path, on_progress=ignore).read_bytes() == GGUF
    assert file_requests(mirror) == []


def test_what_a_kill_left_beside_the_finished_file_is_removed(mirror: Mirror, tmp_path: Path) -> None:
    path = fetch(pin(), tmp_path, on_progress=ignore)
    part = tmp_path / PART
    part.parent.mkdir(parents=True)
    part.write_bytes(GGUF[:100])
    (tmp_path / PART.partition("/")[0] / "lock").touch()
    mirror.requests.clear()
    assert fetch(pin(), tmp_path, on_progress=ignore) == path
    assert mirror.requests == []
    assert set(tmp_path.rglob("*")) == {path, path.parent}


@pytest.mark.fault(18)
def test_a_silent_mirror_is_given_up(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelscope_hub._legacy_api.DOWNLOAD_TIMEOUT", 0.2)
    mirror.faults.append(Fault(kind=FaultKind.STALL, after_bytes=50_000))
    error = refusal(pin(), tmp_path)
    assert type(error) is MirrorError
    assert "are kept in" in str(error.unchanged)
    assert listing(tmp_path) == [PART]


@pytest.mark.fault(18)
def test_a_trickle_is_given_up_and_goes_on_later(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_LOW_SPEED_WINDOW_SECONDS", 0.5)
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_RETRY_TIMES", 1)
    mirror.faults.append(Fault(kind=FaultKind.SLOW, bytes_per_second=500))
    error = refusal(pin(), tmp_path)
    assert type(error) is MirrorError
    assert "is too slow" in error.sentence
    assert listing(tmp_path) == [PART]
    mirror.faults.clear()
    assert fetch(pin(), tmp_path, on_progress=ignore).read_bytes() == GGUF


@pytest.mark.parametrize("kind", [FaultKind.WRONG_SIZE, FaultKind.WRONG_SHA256])
def test_a_listing_that_disagrees_with_the_pin_costs_no_byte(
    mirror: Mirror, tmp_path: Path, kind: FaultKind
) -> None:
    mirror.faults.append(Fault(kind=kind, route=Route.LISTING))
    error = refusal(pin(), tmp_path)
    assert type(error) is ChecksumMismatch
    assert None not in (error.expected, error.actual)
    assert error.expected != error.actual
    assert file_requests(mirror) == []
    assert listing(tmp_path) == []


@pytest.mark.fault(16)
def test_a_wrong_pinned_sha256_is_found_without_the_listings_help(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.NO_SHA256, route=Route.LISTING))
    wrong = pin(data=GGUF[:-1] + b"\0")
    error = refusal(wrong, tmp_path)
    assert type(error) is ChecksumMismatch
    assert error.expected == wrong.digest
    assert error.actual == f"sha256:{sha256(GGUF)} after {len(GGUF):,} bytes"
    assert len(file_requests(mirror)) == 1
    assert listing(tmp_path) == []


@pytest.mark.fault(15)
def test_corrupt_bytes_are_deleted(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.CORRUPT))
    assert type(refusal(pin(), tmp_path)) is ChecksumMismatch
    assert listing(tmp_path) == []


@pytest.mark.fault(19)
def test_a_login_page_instead_of_the_listing_is_named(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.LOGIN_PAGE, route=Route.LISTING))
    error = refusal(pin(), tmp_path)
    assert type(error) is NotAnArtefact
    assert 'titled "Sign in to the network"' in str(error.cause)


@pytest.mark.fault(19)
def test_a_login_page_instead_of_the_file_is_named_and_deleted(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.LOGIN_PAGE))
    error = refusal(pin(), tmp_path)
    assert type(error) is NotAnArtefact
    assert 'titled "Sign in to the network"' in str(error.cause)
    assert listing(tmp_path) == []


def test_a_file_that_is_no_gguf_is_deleted(mirror: Mirror, tmp_path: Path) -> None:
    error = refusal(pin("text.gguf", NO_GGUF, revision="v1.0.0"), tmp_path)
    assert type(error) is NotAnArtefact
    assert "GGUF" in error.sentence
    assert listing(tmp_path) == []


def test_an_archive_that_is_none_is_deleted(mirror: Mirror, tmp_path: Path) -> None:
    error = refusal(pin("broken.tgz", NO_GGUF, repo=SERVER, revision="v0.17.5"), tmp_path)
    assert type(error) is NotAnArtefact
    assert "neither gzip nor zstd" in error.sentence
    assert listing(tmp_path) == []


def test_an_unknown_repository_is_told_from_an_unknown_revision(mirror: Mirror, tmp_path: Path) -> None:
    error = refusal(pin(repo="qwen/Qwen3"), tmp_path)
    assert error.sentence == "the mirror has no repository `qwen/Qwen3`"


def test_an_unknown_revision_suggests_a_near_tag(mirror: Mirror, tmp_path: Path) -> None:
    artefact = pin("ollama-linux-amd64.tgz", ARCHIVE, repo=SERVER, revision="0.17.5")
    error = refusal(artefact, tmp_path)
    assert error.sentence == f"`{SERVER}` has no revision `0.17.5`"
    assert "did you mean `v0.17.5`?" in str(error.hint)


def test_an_unknown_file_suggests_a_near_one(mirror: Mirror, tmp_path: Path) -> None:
    error = refusal(pin("qwen2-7b-instruct-q5_k.gguf"), tmp_path)
    assert f"did you mean `{WEIGHTS}`?" in str(error.hint)


def test_a_file_that_is_listed_and_missing_is_told(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.STATUS, status=404))
    assert "then does not find it" in refusal(pin(), tmp_path).sentence


@pytest.mark.fault(17)
@pytest.mark.parametrize("route", [Route.LISTING, Route.FILE])
@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "MODELSCOPE_API_TOKEN"),
        (403, "MODELSCOPE_API_TOKEN"),
        (429, "minute"),
        (500, "later"),
        (503, "later"),
    ],
)
def test_a_status_of_refusal_is_told(
    mirror: Mirror, tmp_path: Path, route: Route, status: int, hint: str
) -> None:
    mirror.faults.append(Fault(kind=FaultKind.STATUS, status=status, route=route))
    error = refusal(pin(), tmp_path)
    assert f"HTTP {status}" in error.sentence
    assert hint in str(error.hint)
    assert listing(tmp_path) == []


@pytest.mark.fault(17)
def test_trouble_that_passes_is_not_told(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults += [
        Fault(kind=FaultKind.STATUS, status=503, route=Route.LISTING, times=1),
        Fault(kind=FaultKind.STATUS, status=503, times=1),
    ]
    assert fetch(pin(), tmp_path, on_progress=ignore).read_bytes() == GGUF


def test_nobody_listening_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = refusal(pin(), tmp_path, endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert "connection refused" in str(error.cause)
    assert listing(tmp_path) == []


@contextlib.contextmanager
def mirror_with_certificate(
    directory: Path, begins_days: float, ends_days: float
) -> Iterator[tuple[str, Path]]:
    """Where a server with TLS listens, and its certificate, which is valid between these days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mirror")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begins_days))
        .not_valid_after(now + timedelta(days=ends_days))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    certificate, both = directory / "mirror.pem", directory / "mirror-with-key.pem"
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    both.write_bytes(certificate.read_bytes() + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_address[1]}", certificate
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.fault(31)
@pytest.mark.parametrize(("begins_days", "ends_days", "said"), [(1, 2, "not yet valid"), (-2, -1, "expired")])
def test_a_clock_that_is_a_day_off_makes_tls_refuse_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins_days: float, ends_days: float, said: str
) -> None:
    """A clock a day behind meets a certificate of tomorrow, one a day ahead meets one of yesterday."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with mirror_with_certificate(tmp_path, begins_days, ends_days) as (url, certificate):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        error = refusal(pin(), tmp_path / "cache", endpoint=url)
    assert type(error) is MirrorError
    assert said in str(error.cause)
    assert "this machine's clock may be wrong (date -u)" in str(error.hint)
    assert listing(tmp_path / "cache") == []


def test_a_mirror_without_tls_is_told(mirror: Mirror, tmp_path: Path) -> None:
    error = refusal(pin(), tmp_path, endpoint=mirror.url.replace("http:", "https:"))
    assert "TLS" in str(error.cause)
    assert f"MODELSCOPE_ENDPOINT={mirror.url}" in str(error.hint)


def test_a_mirror_on_this_machine_needs_no_proxy(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY")
    assert fetch(pin(), tmp_path, on_progress=ignore).is_file()
    assert list_tags(SERVER)


def test_a_broken_proxy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    error = refusal(pin(), tmp_path, endpoint="http://mirror.invalid")
    assert "proxy" in str(error.cause)
    assert "no_proxy" in str(error.hint)


def test_an_unknown_host_is_told(tmp_path: Path) -> None:
    error = refusal(pin(), tmp_path, endpoint="http://mirror.invalid")
    assert "cannot be resolved" in str(error.cause)


@pytest.mark.parametrize(
    "ask", [lambda: list_tags("a/b"), lambda: list_files("a/b", "master")], ids=["tags", "files"]
)
def test_an_endpoint_without_a_scheme_is_refused(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[], object]
) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "127.0.0.1:8080")
    with pytest.raises(UsageError, match="has no `http://`") as caught:
        ask()
    assert "http://127.0.0.1:8080" in str(caught.value.hint)


@pytest.mark.fault(10)
def test_a_disk_too_small_is_told_with_its_figures(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes = 1_000_000
    monkeypatch.setattr("deploy.mirror.shutil.disk_usage", lambda _path: type("U", (), {"free": free_bytes}))
    error = refusal(pin(), tmp_path)
    needed_bytes = len(GGUF) + 64 * 2**20
    assert type(error) is DiskTooSmall
    for figure in (needed_bytes, free_bytes, needed_bytes - free_bytes):
        assert f"{figure:,} bytes ({figure / 2**30:.2f} GiB)" in str(error.cause)
    assert mirror.requests == []


def test_a_part_on_the_disk_counts_as_room(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / PART
    part.parent.mkdir(parents=True)
    part.write_bytes(GGUF[:1_000_000])
    free_bytes = len(GGUF) - 1_000_000 + 64 * 2**20
    monkeypatch.setattr("deploy.mirror.shutil.disk_usage", lambda _path: type("U", (), {"free": free_bytes}))
    assert fetch(pin(), tmp_path, on_progress=ignore).is_file()


def test_a_cache_that_cannot_be_written_is_told(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refusal(pin(), tmp_path / "file")
    assert "cannot be used for downloads" in error.sentence


@pytest.mark.parametrize("file", ["../up.gguf", "/etc/x.gguf", "a/../../b.gguf", ""])
def test_a_pin_that_leaves_the_cache_is_refused(mirror: Mirror, tmp_path: Path, file: str) -> None:
    with pytest.raises(PinError):
        fetch(pin(file), tmp_path, on_progress=ignore)
    assert mirror.requests == []


def test_a_mirror_that_is_none_is_told(mirror: Mirror) -> None:
    with pytest.raises(MirrorError, match="no repository"):
        list_tags("no/body")
