"""The officially installed host of the testbed, held to what scripts/install.sh of v0.17.5 says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from testbed.official import ROOTS_PATH, UNIT_FILE, OfficialInstall, official_install

BINARY = b"#!/bin/sh\n"
NO_LOCAL = "/usr/sbin:/usr/bin:/sbin:/bin"


def run(install: OfficialInstall, tmp_path: Path, **tools: str) -> list[str]:
    """Run it with scripted users and services; the calls it made of them."""
    scripts = {"id": "exit 1", "getent": "exit 0", "useradd": "", "usermod": "", "systemctl": "", **tools}
    (tmp_path / "bin").mkdir()
    for name, text in scripts.items():
        tool = tmp_path / "bin" / name
        tool.write_text(f'#!/bin/sh\n[ {name} = id ] || echo "{name} $*" >>"{tmp_path}/calls"\n{text}\n')
        tool.chmod(0o755)
    for name in ("sh", "tar", "rm", "whoami"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    (tmp_path / "root").mkdir(exist_ok=True)
    subprocess.run(
        install.argv, input=install.archive, env={"PATH": str(tmp_path / "bin")}, check=True, umask=0o077
    )
    return (tmp_path / "calls").read_text().splitlines()


def test_the_unit_is_the_installers_word_for_word() -> None:
    assert official_install(BINARY).files[UNIT_FILE][0].decode() == (
        "[Unit]\n"
        "Description=Ollama Service\n"
        "After=network-online.target\n"
        "\n"
        "[Service]\n"
        "ExecStart=/usr/local/bin/ollama serve\n"
        "User=ollama\n"
        "Group=ollama\n"
        "Restart=always\n"
        "RestartSec=3\n"
        f'Environment="PATH={ROOTS_PATH}"\n'
        "\n"
        "[Install]\n"
        "WantedBy=default.target\n"
    )


@pytest.mark.parametrize(
    ("path", "prefix"), [(ROOTS_PATH, "usr/local/"), (NO_LOCAL, "usr/"), ("/sbin:/bin", "")]
)
def test_the_path_decides_where_the_binary_and_its_libraries_lie(path: str, prefix: str) -> None:
    files = official_install(BINARY, libraries={"libggml.so": b"x"}, path=path).files
    assert files.keys() == {f"{prefix}bin/ollama", f"{prefix}lib/ollama/libggml.so", UNIT_FILE}
    assert files[f"{prefix}bin/ollama"] == (BINARY, 0o755)
    assert f"ExecStart=/{prefix}bin/ollama serve\n".encode() in files[UNIT_FILE][0]


def test_a_path_that_the_installer_finds_nothing_in_is_refused() -> None:
    with pytest.raises(ValueError, match="/opt/tools"):
        official_install(BINARY, path="/opt/tools")


def test_files_users_and_service_are_made_in_the_installers_order(tmp_path: Path) -> None:
    old = tmp_path / "root/usr/local/lib/ollama/old.so"
    old.parent.mkdir(parents=True)
    old.touch()
    install = official_install(BINARY, root=str(tmp_path / "root"))
    calls = run(install, tmp_path, systemctl="[ $1 != is-system-running ] || { echo degraded; exit 1; }")
    me = subprocess.run(["whoami"], capture_output=True, text=True, check=True).stdout.strip()
    assert [call for call in calls if not call.startswith("getent")] == [
        "useradd -r -s /bin/false -U -m -d /usr/share/ollama ollama",
        "usermod -a -G render ollama",
        "usermod -a -G video ollama",
        f"usermod -a -G ollama {me}",
        "systemctl is-system-running",
        "systemctl daemon-reload",
        "systemctl enable ollama",
        "systemctl restart ollama",
    ]
    found = {
        path.relative_to(tmp_path / "root").as_posix(): (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in (tmp_path / "root").rglob("*")
        if path.is_file()
    }
    assert found == dict(install.files)
    assert (tmp_path / "root/usr/local/bin").stat().st_mode & 0o777 == 0o755


def test_without_a_running_systemd_and_with_the_user_there_is_less_to_do(tmp_path: Path) -> None:
    install = official_install(BINARY, root=str(tmp_path / "root"))
    calls = run(install, tmp_path, id="exit 0", getent="exit 2", systemctl="echo offline; exit 1")
    assert [call.split()[0] for call in calls] == ["getent", "getent", "usermod", "systemctl"]
