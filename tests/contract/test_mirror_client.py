"""The real modelscope client, as a library and on the command line, works against the embedded mirror."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from testbed.mirror import Fault, FaultKind, Mirror, Route
from tests.contract.mirror_fixtures import (
    ARCHIVE,
    GGUF,
    MODELS,
    SERVER,
    WEIGHTS,
    file_requests,
    lonely_environment,
    mirror,
)

__all__ = ["mirror"]


def run(mirror: Mirror, tmp_path: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = lonely_environment(tmp_path / "home", mirror.url)
    return subprocess.run(
        argv, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )


def run_cli(mirror: Mirror, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("modelscope"))
    return run(mirror, tmp_path, program, "download", *arguments, "--local_dir", str(tmp_path / "D"))


def run_library(mirror: Mirror, tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    done = run(mirror, tmp_path, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return done


def test_the_command_line_downloads_one_file_of_a_revision(mirror: Mirror, tmp_path: Path) -> None:
    done = run_cli(mirror, tmp_path, "--model", MODELS, WEIGHTS, "--revision", "v1.0.0")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "D" / WEIGHTS).read_bytes() == GGUF[:70_000]


def test_the_command_line_downloads_master_where_no_revision_is_given(mirror: Mirror, tmp_path: Path) -> None:
    done = run_cli(mirror, tmp_path, "--model", MODELS, "sub/dir/small.gguf")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "D/sub/dir/small.gguf").read_bytes() == GGUF[:9_000]


def test_the_command_line_downloads_a_whole_revision(mirror: Mirror, tmp_path: Path) -> None:
    done = run_cli(mirror, tmp_path, f"--model={SERVER}", "--revision", "v0.14.1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "D/ollama-linux-amd64.tgz").read_bytes() == ARCHIVE


def test_the_command_line_resumes_after_a_cut(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.CUT, after_bytes=500_000, times=1))
    done = run_cli(mirror, tmp_path, "--model", MODELS, WEIGHTS, "--revision", "master")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "D" / WEIGHTS).read_bytes() == GGUF
    assert file_requests(mirror) == [(200, None), (206, "bytes=500000-")]


@pytest.mark.parametrize(
    "arguments", [("--revision", "v9", WEIGHTS), ("--revision", "v9"), ("nothing.gguf",)]
)
def test_the_command_line_reports_what_is_not_there(
    mirror: Mirror, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = run_cli(mirror, tmp_path, "--model", MODELS, *arguments)
    assert done.returncode == 1
    assert "not found" in done.stderr


def test_the_library_downloads_a_snapshot_by_pattern(mirror: Mirror, tmp_path: Path) -> None:
    run_library(
        mirror,
        tmp_path,
        "from modelscope import snapshot_download\n"
        f"snapshot_download({MODELS!r}, revision='master', allow_patterns=['sub/*'], local_dir='D')",
    )
    assert (tmp_path / "D/sub/dir/small.gguf").read_bytes() == GGUF[:9_000]
    assert not (tmp_path / "D" / WEIGHTS).exists()


def test_the_library_checks_a_snapshot_against_the_listing(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.CORRUPT, times=1))
    run_library(
        mirror,
        tmp_path,
        "from modelscope import snapshot_download\n"
        f"snapshot_download({SERVER!r}, revision='v0.14.1', local_dir='D')",
    )
    assert (tmp_path / "D/ollama-linux-amd64.tgz").read_bytes() == ARCHIVE
    assert len(file_requests(mirror)) == 2


def test_the_library_picks_the_newest_tag_where_no_revision_is_given(mirror: Mirror, tmp_path: Path) -> None:
    run_library(
        mirror,
        tmp_path,
        "from modelscope.hub.file_download import model_file_download\n"
        f"model_file_download({SERVER!r}, 'ollama-linux-amd64.tgz', local_dir='D')",
    )
    asked = [request.query["Revision"] for request in mirror.requests if request.path.endswith("/repo")]
    assert asked == ["v0.17.5"]


def test_the_library_lists_branches_tags_and_files(mirror: Mirror, tmp_path: Path) -> None:
    done = run_library(
        mirror,
        tmp_path,
        "from modelscope.hub.api import HubApi\n"
        "from modelscope_hub import HubApi as Hub\n"
        f"print(HubApi().get_model_branches_and_tags({SERVER!r}))\n"
        f"files = Hub().list_repo_files({SERVER!r}, 'model', revision='v0.17.5')\n"
        "print(sorted(file.path for file in files))",
    )
    assert done.stdout.splitlines()[-2:] == [
        "(['master'], ['v0.14.1', 'v0.17.5'])",
        "['broken.tgz', 'ollama-linux-amd64.tgz']",
    ]


def test_the_library_reports_a_login_page_instead_of_a_listing(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults.append(Fault(kind=FaultKind.LOGIN_PAGE, route=Route.LISTING))
    done = run(
        mirror,
        tmp_path,
        sys.executable,
        "-c",
        "from modelscope import snapshot_download\n"
        f"snapshot_download({SERVER!r}, revision='v0.14.1', local_dir='D')",
    )
    assert done.returncode == 1
    assert "JSONDecodeError" in done.stderr
