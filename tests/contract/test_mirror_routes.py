"""The embedded mirror keeps to the contract that the modelscope client relies on, route by route."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from testbed.mirror import Fault, FaultKind, Mirror, MirrorRepo, Route, read_repos, start_mirror
from tests.contract.mirror_fixtures import GGUF, MODELS, SERVER, TOKEN, WEIGHTS, mirror, sha256

__all__ = ["mirror"]


def get(mirror: Mirror, path: str, query: Mapping[str, str] | None = None) -> requests.Response:
    return requests.get(mirror.url + path, params=query, timeout=10)


def get_file(mirror: Mirror, span: str | None = None, **query: str) -> requests.Response:
    asked = {"Revision": "master", "FilePath": WEIGHTS} | query
    url = f"{mirror.url}/api/v1/models/{MODELS}/repo"
    return requests.get(url, params=asked, headers={"Range": span} if span else None, timeout=10)


def get_listing(mirror: Mirror, **query: str) -> dict[str, Any]:
    reply = get(mirror, f"/api/v1/models/{MODELS}/repo/files", query)
    assert reply.status_code == 200
    body = reply.json()
    assert (body["Code"], body["Success"]) == (200, True)
    return {entry["Path"]: entry for entry in body["Data"]["Files"]}


def test_a_file_comes_whole_with_its_length(mirror: Mirror) -> None:
    reply = get_file(mirror)
    assert (reply.status_code, reply.content) == (200, GGUF)
    assert reply.headers["Content-Length"] == str(len(GGUF))
    assert "Content-Range" not in reply.headers


@pytest.mark.parametrize(
    ("span", "first", "end"),
    [
        ("bytes=0-", 0, len(GGUF)),
        ("bytes=1000-", 1000, len(GGUF)),
        ("bytes=5-9", 5, 10),
        ("bytes=9-99999999", 9, len(GGUF)),
    ],
)
def test_a_range_comes_as_206(mirror: Mirror, span: str, first: int, end: int) -> None:
    reply = get_file(mirror, span)
    assert (reply.status_code, reply.content) == (206, GGUF[first:end])
    assert reply.headers["Content-Range"] == f"bytes {first}-{end - 1}/{len(GGUF)}"


def test_a_range_past_the_end_is_416_with_the_size(mirror: Mirror) -> None:
    reply = get_file(mirror, f"bytes={len(GGUF)}-")
    assert reply.status_code == 416
    assert reply.headers["Content-Range"] == f"bytes */{len(GGUF)}"


def test_the_listing_names_size_sha256_revision_and_mode(mirror: Mirror) -> None:
    files = get_listing(mirror, Revision="master", Recursive="True")
    entry = files[WEIGHTS]
    assert (entry["Size"], entry["Sha256"]) == (len(GGUF), sha256(GGUF))
    assert (entry["Type"], entry["Mode"], entry["Name"]) == ("blob", "33188", WEIGHTS)
    assert len(entry["Revision"]) == 40
    assert files["sub/dir"]["Type"] == files["sub"]["Type"] == "tree"
    assert "Size" not in files["sub"]


def test_the_listing_of_a_root_is_limited_to_it(mirror: Mirror) -> None:
    assert set(get_listing(mirror, Revision="master", Recursive="True", Root="sub")) == {
        "sub/dir",
        "sub/dir/small.gguf",
    }
    assert set(get_listing(mirror, Revision="master", Recursive="False", Root="sub")) == {"sub/dir"}


def test_a_listing_that_is_not_recursive_stops_at_directories(mirror: Mirror) -> None:
    assert set(get_listing(mirror, Revision="master", Recursive="False")) == {"README.md", WEIGHTS, "sub"}


def test_each_revision_has_its_own_files(mirror: Mirror) -> None:
    assert get_listing(mirror, Revision="v1.0.0", Recursive="True")[WEIGHTS]["Size"] == 70_000
    assert get_file(mirror, Revision="v1.0.0").content == GGUF[:70_000]


def test_a_commit_is_a_revision_too(mirror: Mirror) -> None:
    commit = get_listing(mirror, Revision="v1.0.0", Recursive="True")[WEIGHTS]["Revision"]
    assert get_file(mirror, Revision=commit).content == GGUF[:70_000]


def test_revisions_tell_branches_from_tags(mirror: Mirror) -> None:
    data = get(mirror, f"/api/v1/models/{SERVER}/revisions").json()["Data"]["RevisionMap"]
    assert [row["Revision"] for row in data["Branches"]] == ["master"]
    assert [row["Revision"] for row in data["Tags"]] == ["v0.14.1", "v0.17.5"]
    assert data["Tags"][0]["CreatedAt"] < data["Tags"][1]["CreatedAt"]


def test_a_model_has_information(mirror: Mirror) -> None:
    assert get(mirror, f"/api/v1/models/{MODELS}").json()["Data"]["Name"] == "Qwen2-7B-Instruct-GGUF"


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/api/v1/models/no/body/repo/files", {"Revision": "master"}),
        ("/api/v1/models/no/body/revisions", {}),
        (f"/api/v1/models/{MODELS}/repo/files", {"Revision": "v9"}),
        (f"/api/v1/models/{MODELS}/repo/files", {"Revision": "master", "Root": "nowhere"}),
        (f"/api/v1/models/{MODELS}/repo", {"Revision": "v9", "FilePath": WEIGHTS}),
        (f"/api/v1/models/{MODELS}/repo", {"Revision": "master", "FilePath": "../../etc/passwd"}),
        (f"/api/v1/models/{MODELS}/repo", {"Revision": "master", "FilePath": "sub"}),
        ("/api/v1/repos/internalAccelerationInfo", {}),
        ("/openapi/v1/models/a/b", {}),
        ("/", {}),
    ],
)
def test_what_is_not_there_is_404_in_json_and_recorded(
    mirror: Mirror, path: str, query: dict[str, str]
) -> None:
    reply = get(mirror, path, query)
    assert (reply.status_code, reply.json()["Success"]) == (404, False)
    assert reply.json()["Code"] == 10990101010
    assert (mirror.requests[-1].path, mirror.requests[-1].status) == (path, 404)


def test_a_parameter_that_the_client_never_sends_is_refused(mirror: Mirror) -> None:
    assert get_file(mirror, Page="2").status_code == 400


def test_a_range_that_the_client_never_sends_is_refused(mirror: Mirror) -> None:
    assert get_file(mirror, "bytes=-5").status_code == 400


def test_a_method_that_the_client_never_sends_is_refused(mirror: Mirror) -> None:
    reply = requests.post(f"{mirror.url}/api/v1/models/{MODELS}", json={}, timeout=10)
    assert (reply.status_code, reply.json()["Success"]) == (501, False)


def test_a_request_that_is_no_http_is_refused(mirror: Mirror) -> None:
    with socket.create_connection(("127.0.0.1", mirror.port), timeout=10) as connection:
        connection.sendall(b"hello\r\n\r\n")
        assert b"Bad request syntax" in connection.recv(1000)


def test_the_mirror_names_itself_and_the_file_behind_a_name(tmp_path: Path) -> None:
    canary = tmp_path / "canary.gguf"
    canary.write_bytes(GGUF)
    lines: list[str] = []
    with start_mirror(
        [MirrorRepo(repo=MODELS, revisions={"master": {WEIGHTS: canary}})], log=lines.append
    ) as mirror:
        reply = get_file(mirror)
    assert reply.headers["Server"] == "ollama-fleet-testbed"
    assert reply.headers["X-Testbed-Source"] == "canary.gguf"
    assert f"{MODELS} master: `{WEIGHTS}` is really the bytes of `canary.gguf`" in lines


def test_a_token_is_noticed_and_never_kept(mirror: Mirror) -> None:
    url = f"{mirror.url}/api/v1/models/{MODELS}"
    requests.get(url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10)
    assert mirror.requests[-1].has_token
    assert TOKEN not in repr(mirror.requests)


def test_a_changed_file_is_listed_with_its_new_sha256(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    path.write_bytes(b"GGUF one")
    with start_mirror([MirrorRepo(repo=MODELS, revisions={"master": {WEIGHTS: path}})]) as mirror:
        before = get_listing(mirror, Revision="master")[WEIGHTS]["Sha256"]
        path.write_bytes(b"GGUF three")
        after = get_listing(mirror, Revision="master")[WEIGHTS]["Sha256"]
    assert (before, after) == (sha256(b"GGUF one"), sha256(b"GGUF three"))


def test_a_directory_is_served_as_owner_name_revision(tmp_path: Path) -> None:
    folder = tmp_path / SERVER / "v0.17.5" / "sub"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"a")
    with start_mirror(read_repos(tmp_path)) as mirror:
        query = {"Revision": "v0.17.5", "FilePath": "sub/a.txt"}
        reply = get(mirror, f"/api/v1/models/{SERVER}/repo", query)
    assert reply.content == b"a"


def test_an_empty_directory_is_no_mirror(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no OWNER/NAME/REVISION"):
        read_repos(tmp_path)


def test_a_fault_is_used_as_often_as_it_says(mirror: Mirror) -> None:
    mirror.faults.append(Fault(kind=FaultKind.STATUS, status=500, times=1))
    assert [get_file(mirror).status_code for _ in range(2)] == [500, 200]


def test_a_cut_ends_the_body_early(mirror: Mirror) -> None:
    mirror.faults.append(Fault(kind=FaultKind.CUT, after_bytes=1000))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        get_file(mirror)


def test_a_slow_mirror_keeps_its_rate(mirror: Mirror) -> None:
    mirror.faults.append(Fault(kind=FaultKind.SLOW, bytes_per_second=40_000))
    started = time.monotonic()
    assert len(get_file(mirror, "bytes=0-7999").content) == 8_000
    assert time.monotonic() - started >= 0.14


def test_closing_ends_a_stalled_download(mirror: Mirror) -> None:
    mirror.faults.append(Fault(kind=FaultKind.STALL, after_bytes=10))
    with requests.get(
        f"{mirror.url}/api/v1/models/{MODELS}/repo",
        params={"Revision": "master", "FilePath": WEIGHTS},
        stream=True,
        timeout=10,
    ) as reply:
        assert reply.raw.read(10) == GGUF[:10]
        mirror.close()


@pytest.mark.parametrize("route", list(Route))
def test_every_route_can_be_a_login_page(mirror: Mirror, route: Route) -> None:
    mirror.faults.append(Fault(kind=FaultKind.LOGIN_PAGE, route=route))
    path = {"info": "", "revisions": "/revisions", "listing": "/repo/files", "file": "/repo"}[route.value]
    reply = get(mirror, f"/api/v1/models/{MODELS}{path}")
    assert (reply.status_code, reply.text[:15]) == (200, "<!DOCTYPE html>")
