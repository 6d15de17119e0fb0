"""A fetch may be killed, doubled or watched: it resumes, waits, and touches nothing but its cache."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.errors import MirrorError
from deploy.mirror import fetch
from testbed.mirror import Fault, FaultKind, Mirror, Route
from tests.contract.mirror_fixtures import (
    GGUF,
    TOKEN,
    WEIGHTS,
    fetch_command,
    file_requests,
    listing,
    lonely_environment,
    mirror,
    pin,
    sha256,
    wait_until,
)

__all__ = ["mirror"]
FINAL = f"sha256-{sha256(GGUF)}/{WEIGHTS}"
STAGING = f"sha256-{sha256(GGUF)}.part"


def start(mirror: Mirror, tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        fetch_command(pin(), tmp_path / "cache"),
        env=lonely_environment(tmp_path / "home", mirror.url) | {"MODELSCOPE_API_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return out.splitlines()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def test_a_killed_download_is_resumed_with_a_range(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.SLOW, bytes_per_second=500_000))
    part = tmp_path / "cache" / STAGING / "files" / f"{WEIGHTS}.incomplete"
    process = start(mirror, tmp_path)
    wait_until(lambda: part.is_file() and part.stat().st_size > 100_000)
    kill(process)
    kept_bytes = part.stat().st_size
    assert 100_000 < kept_bytes < len(GGUF)
    assert not (tmp_path / "cache" / FINAL).exists()

    mirror.faults.clear()
    mirror.requests.clear()
    finish(start(mirror, tmp_path))
    assert file_requests(mirror) == [(206, f"bytes={kept_bytes}-")]
    assert (tmp_path / "cache" / FINAL).read_bytes() == GGUF
    assert listing(tmp_path / "cache") == [FINAL]
    assert not (tmp_path / "cache" / STAGING).exists()


@pytest.mark.parametrize("route", [Route.LISTING, Route.FILE])
def test_a_fetch_killed_before_the_first_byte_leaves_nothing_behind_after_the_next(
    mirror: Mirror, tmp_path: Path, route: Route
) -> None:
    mirror.faults.append(Fault(kind=FaultKind.STATUS, route=route))
    process = start(mirror, tmp_path)
    wait_until(lambda: any(request.status == 503 for request in mirror.requests))
    kill(process)
    mirror.faults.clear()
    finish(start(mirror, tmp_path))
    assert listing(tmp_path / "cache") == [FINAL]
    assert not (tmp_path / "cache" / STAGING).exists()


def test_two_processes_download_once(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.SLOW, bytes_per_second=1_000_000))
    first = start(mirror, tmp_path)
    wait_until(lambda: bool(file_requests(mirror)))
    second = start(mirror, tmp_path)
    outputs = [finish(first), finish(second)]
    assert file_requests(mirror) == [(200, None)]
    assert {output[-1] for output in outputs} == {str(tmp_path / "cache" / FINAL)}
    assert outputs[1][:-1] == ["waiting", "done"]
    assert listing(tmp_path / "cache") == [FINAL]
    assert not (tmp_path / "cache" / STAGING).exists()


def test_fetches_that_end_while_others_begin_do_not_meet(tmp_path: Path) -> None:
    """Many hosts at once: each finds the file, and what a cut fetch has left beside it."""
    staging = tmp_path / STAGING
    (tmp_path / FINAL).parent.mkdir()
    (tmp_path / FINAL).write_bytes(GGUF)

    def fetch_again_and_again(_number: int) -> None:
        for _ in range(50):
            with contextlib.suppress(FileExistsError):
                staging.mkdir(exist_ok=True)
            fetch(pin(), tmp_path, on_progress=lambda _progress: None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fetch_again_and_again, range(8)))
    assert not staging.exists()


@pytest.mark.parametrize("place", ["cache", f"cache/{STAGING}"])
def test_a_place_for_downloads_that_is_none_is_told(tmp_path: Path, place: str) -> None:
    """As a link to a disk that is not mounted."""
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).symlink_to(tmp_path / "absent")
    with pytest.raises(MirrorError, match="cannot be used for downloads"):
        fetch(pin(), tmp_path / "cache", on_progress=lambda _progress: None)


def test_who_waits_takes_over_from_a_killed_one(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.SLOW, bytes_per_second=200_000))
    first = start(mirror, tmp_path)
    part = tmp_path / "cache" / STAGING / "files" / f"{WEIGHTS}.incomplete"
    wait_until(lambda: part.is_file() and part.stat().st_size > 0)
    second = start(mirror, tmp_path)
    assert second.stdout is not None
    assert second.stdout.readline() == "waiting\n"
    mirror.faults.clear()
    kill(first)
    finish(second)
    assert [status for status, _range in file_requests(mirror)] == [200, 206]
    assert (tmp_path / "cache" / FINAL).read_bytes() == GGUF


def test_a_fetch_writes_nothing_outside_its_cache_and_says_nothing(mirror: Mirror, tmp_path: Path) -> None:
    output = finish(start(mirror, tmp_path))
    assert set(output[:-1]) <= {"downloading", "verifying", "done"}
    assert listing(tmp_path) == [f"cache/{FINAL}"]


def test_a_failing_fetch_writes_nothing_outside_its_cache_and_hides_the_token(
    mirror: Mirror, tmp_path: Path
) -> None:
    mirror.faults.append(Fault(kind=FaultKind.CUT, after_bytes=1_000))
    process = start(mirror, tmp_path)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "broke off" in err
    assert TOKEN not in err
    assert listing(tmp_path) == [f"cache/{STAGING}/files/{WEIGHTS}.incomplete"]


def test_ctrl_c_keeps_the_part_and_frees_the_lock(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.SLOW, bytes_per_second=200_000))
    part = tmp_path / "cache" / STAGING / "files" / f"{WEIGHTS}.incomplete"
    process = start(mirror, tmp_path)
    wait_until(lambda: part.is_file() and part.stat().st_size > 10_000)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(KeyboardInterrupt):
        _out, err = process.communicate(timeout=20)
        assert "KeyboardInterrupt" in err
    assert listing(tmp_path / "cache") == [part.relative_to(tmp_path / "cache").as_posix()]
