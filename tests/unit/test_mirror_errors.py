"""What the modelscope client raises, as a designed error: the cases that no embedded mirror can play."""

from __future__ import annotations

import errno
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.errors import DiskTooSmall, FleetError, MirrorError
from deploy.mirror_errors import Place, check_magic, disk_explained, explained, not_a_url

PLACE = Place(repo="a/b", endpoint="https://mirror.example", revision="v1", file="w.gguf", size_bytes=1_000)


def explain(error: BaseException, place: Place = PLACE) -> FleetError:
    with pytest.raises(FleetError) as caught, explained(place, None):
        raise error
    return caught.value


def test_an_unknown_certificate_names_the_variable_for_it() -> None:
    wrapped = ConnectionError("Connection failed")
    wrapped.__cause__ = ssl.SSLCertVerificationError("certificate verify failed: self-signed certificate")
    error = explain(wrapped)
    assert "certificate verify failed" in str(error.cause)
    assert "REQUESTS_CA_BUNDLE" in str(error.hint)


def test_an_error_hidden_in_the_arguments_is_found() -> None:
    assert "connection refused" in str(explain(ConnectionError(ConnectionRefusedError())).cause)


def test_the_token_is_never_in_a_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-secret")
    error = explain(RuntimeError("GET https://x?token=ms-secret failed"))
    assert "ms-secret" not in str(error)
    assert "***" in str(error)


@pytest.mark.parametrize("error", [AttributeError("get"), KeyError("Revision"), TypeError("None")])
def test_an_answer_of_another_shape_is_no_modelscope(error: Exception) -> None:
    assert "does not answer like a ModelScope mirror" in explain(error).sentence


def test_a_disk_that_fills_up_says_how_much_is_missing(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(bytes(400))
    place = Place(repo="a/b", endpoint="http://x", revision="v1", file="w.gguf", size_bytes=1_000, part=part)
    error = explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), place)
    assert type(error) is DiskTooSmall
    assert "600 bytes" in str(error.cause)


def test_a_directory_without_rights_is_told(tmp_path: Path) -> None:
    with pytest.raises(MirrorError, match="cannot be used for downloads"), disk_explained(PLACE, tmp_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))


def test_what_is_kept_is_told_with_its_size(tmp_path: Path) -> None:
    part = tmp_path / "w.gguf.incomplete"
    place = Place(repo="a/b", endpoint="http://x", part=part)
    assert place.kept == "nothing was downloaded"
    part.write_bytes(bytes(1_234))
    assert place.kept == f"the 1,234 bytes that arrived are kept in {part}"


@pytest.mark.parametrize(
    ("file", "head"),
    [
        ("w.gguf", b"GGUF\x03"),
        ("a.tgz", b"\x1f\x8b\x08"),
        ("a.tar.zst", b"\x28\xb5\x2f\xfd"),
        ("a.tgz", b"\x28\xb5\x2f\xfd"),
        ("README.md", b"<html>"),
    ],
)
def test_the_magic_of_each_kind_is_known(file: str, head: bytes) -> None:
    check_magic(file, head, PLACE)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("modelscope.cn", "https://modelscope.cn"),
        ("127.0.0.1:80", "http://127.0.0.1:80"),
        ("localhost:80", "http://localhost:80"),
        ("ftp://x", "https://x"),
    ],
)
def test_an_address_without_a_scheme_gets_a_suggestion(text: str, hint: str) -> None:
    assert f"MODELSCOPE_ENDPOINT={hint}" in str(not_a_url(text).hint)


IMPORTING = """
import os, sys, json
before = dict(os.environ)
import deploy.mirror
assert "modelscope_hub" not in sys.modules and "requests" not in sys.modules
import tqdm, logging
deploy.mirror._import_client()
assert dict(os.environ) == before
from modelscope_hub import _download, constants
with _download.tqdm(total=3) as bar:
    bar.update(1)
logging.getLogger("modelscope_hub.download").error("hidden")
limits = constants.DOWNLOAD_TOTAL_TIMEOUT, constants.DOWNLOAD_TIMEOUT, constants.DOWNLOAD_PARALLELS
print(json.dumps(limits))
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "[604800, 60, 1]"),
        ({"MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT": "5"}, "[5, 60, 1]"),
        ({"MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "8"}, "[604800, 60, 1]"),
    ],
    ids=["nothing said", "a budget of the user's", "never in parallel"],
)
def test_the_client_is_imported_late_with_our_limits_and_silently(
    tmp_path: Path, given: dict[str, str], expected: str
) -> None:
    root = str(Path(__file__).resolve().parents[2])
    environment = {"HOME": str(tmp_path), "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"} | given
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORTING],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stderr, done.stdout.strip()) == ("", expected)
    assert list(tmp_path.iterdir()) == []
