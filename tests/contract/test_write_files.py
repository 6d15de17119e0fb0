"""Small files of a host, written in one round trip: the script itself, under dash, bash and busybox."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

from deploy import commands
from deploy.desired import HostFile
from tests.contract.shells import shell

__all__ = ["shell"]

TEXTS = {
    "a name with spaces": 'first line\n\\ backslash $HOME `word` "quoted"\n',
    "nested/below/without a line end": "é: two bytes",
    "empty": "",
    "large": "0123456789abcde\n" * 2000,
}
TOOLS = "basename cat chmod cp dd dirname mkdir mv rm wc".split()
SYSTEMCTL = '#!/bin/sh\necho "$@" >>"$CALLS"\nexit "${SYSTEMCTL_ENDS:-0}"\n'


@pytest.fixture
def environment(shell: list[str], tmp_path: Path) -> dict[str, str]:
    """With a systemctl(1) that tells how it was called, and busybox's own tools for its own shell."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "systemctl").write_text(SYSTEMCTL)
    (tools / "systemctl").chmod(0o755)
    busybox = shutil.which("busybox") if shell[0] == "busybox" else None
    for name in TOOLS if busybox is not None else ():
        (tools / name).symlink_to(str(busybox))
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}


def file_at(path: Path, text: str, mode: str = "644") -> HostFile:
    return HostFile(path=PurePosixPath(path), text=text, mode=mode)


def write(
    shell: Sequence[str],
    environment: dict[str, str],
    files: Sequence[HostFile],
    *,
    backups: Sequence[PurePosixPath | None] | None = None,
    sent: bytes | None = None,
) -> subprocess.CompletedProcess[bytes]:
    argv = commands.write_files(files, backups or [None] * len(files))
    stdin = b"".join(file.text.encode() for file in files) if sent is None else sent
    return subprocess.run([*shell, *argv[1:]], input=stdin, capture_output=True, env=environment, check=False)


def calls(environment: dict[str, str]) -> list[str]:
    path = Path(environment["CALLS"])
    return path.read_text().splitlines() if path.exists() else []


def test_every_file_gets_its_own_bytes_and_mode(
    shell: Sequence[str], environment: dict[str, str], tmp_path: Path
) -> None:
    files = [file_at(tmp_path / name, text, "755") for name, text in TEXTS.items()]
    done = write(shell, environment, files)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().splitlines() == 2 * [str(file.path) for file in files]
    for file in files:
        assert Path(file.path).read_bytes() == file.text.encode()
        assert Path(file.path).stat().st_mode & 0o777 == 0o755
        assert [path.name for path in Path(file.path).parent.glob(".*")] == []
    assert calls(environment) == []


def test_systemd_reads_its_units_once(
    shell: Sequence[str], environment: dict[str, str], tmp_path: Path
) -> None:
    units = tmp_path / "etc/systemd/system"
    files = [file_at(units / "one.service", "[Unit]\n"), file_at(units / "two.service", "[Service]\n")]
    assert write(shell, environment, files).returncode == 0
    assert calls(environment) == ["daemon-reload"]


def test_units_that_systemd_does_not_read_are_a_failure(
    shell: Sequence[str], environment: dict[str, str], tmp_path: Path
) -> None:
    unit = file_at(tmp_path / "etc/systemd/system/one.service", "[Unit]\n")
    assert write(shell, {**environment, "SYSTEMCTL_ENDS": "1"}, [unit]).returncode != 0


def test_one_file_that_cannot_be_received_leaves_all_as_they_were(
    shell: Sequence[str], environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "tools/file").write_text("a file")
    unit = file_at(tmp_path / "etc/systemd/system/one.service", "[Unit]\n")
    others = [file_at(tmp_path / "tools/file/below", "x\n"), file_at(tmp_path / "third", "y\n")]
    done = write(shell, environment, [unit, *others])
    assert done.returncode != 0
    assert done.stdout.decode().splitlines() == [str(unit.path)]
    left = {path for path in tmp_path.rglob("*") if path.is_file() and "tools" not in path.parts}
    assert left <= {Path(environment["CALLS"])}


def test_after_a_file_that_could_not_be_written_systemd_still_reads_those_before_it(
    shell: Sequence[str], environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "a directory").mkdir()
    unit = file_at(tmp_path / "etc/systemd/system/one.service", "[Unit]\n")
    others = [file_at(tmp_path / "a directory", "x\n"), file_at(tmp_path / "third", "y\n")]
    done = write(shell, environment, [unit, *others])
    assert done.returncode != 0
    arrived = [str(file.path) for file in (unit, *others)]
    assert done.stdout.decode().splitlines() == [*arrived, str(unit.path)]
    assert calls(environment) == ["daemon-reload"]
    assert Path(unit.path).read_text() == "[Unit]\n"
    assert not (tmp_path / "third").exists()
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("left", [3, 9, 14])
def test_a_stream_that_is_cut_gives_no_file_its_name_that_is_not_whole(
    shell: Sequence[str], environment: dict[str, str], tmp_path: Path, left: int
) -> None:
    files = [file_at(tmp_path / "one", "12345678\n"), file_at(tmp_path / "two", "abcdef\n")]
    done = write(shell, environment, files, sent=b"12345678\nabcdef\n"[:left])
    assert done.returncode == 65
    assert b"bytes arrived" in done.stderr
    assert list(tmp_path.glob("[!tc]*")) == list(tmp_path.glob(".*")) == []


def test_a_copy_of_what_was_there_is_kept(
    shell: Sequence[str], environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "edited").write_text("by hand\n")
    backup = PurePosixPath(tmp_path / "backups/edited.1")
    files = [file_at(tmp_path / "edited", "ours\n"), file_at(tmp_path / "new", "new\n")]
    assert write(shell, environment, files, backups=[backup, None]).returncode == 0
    assert Path(backup).read_text() == "by hand\n"
    assert (tmp_path / "edited").read_text() == "ours\n"


def test_a_secret_is_nobody_elses_to_read_while_it_comes(
    shell: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    file = file_at(tmp_path / "notify.urls", "kept secret\n", "600")
    argv = commands.write_files([file], [None])
    with subprocess.Popen([*shell, *argv[1:]], env=environment, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.write(b"kept ")
        child.stdin.flush()
        deadline = time.monotonic() + 20
        while not (found := [path for path in tmp_path.glob(".notify.urls.fleet-*") if path.stat().st_size]):
            assert time.monotonic() < deadline, "it does not come"
        assert [path.stat().st_mode & 0o777 for path in found] == [0o600]
        child.stdin.write(b"secret\n")
        child.stdin.close()
        assert child.wait(20) == 0
    assert (tmp_path / "notify.urls").read_text() == "kept secret\n"
