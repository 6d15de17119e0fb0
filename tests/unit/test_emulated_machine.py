"""What an emulated machine needs, how it is named and how it is emulated."""

from __future__ import annotations

import os
import platform
import stat
from pathlib import Path

import pytest

from testbed import machine, machine_image
from testbed.machine import choose_accelerator
from testbed.machine_image import image_path, missing_machine_parts

QEMU = """#!/bin/sh
read -r word
[ "$word" = quit ] || exit 3
echo 'an MSR is refused' >&2
exit {code}
"""


def test_what_is_missing_is_told_with_the_packages_that_bring_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_image, "missing_parts", lambda: ("the rights of root",))
    monkeypatch.setattr(machine_image, "find_tool", lambda tool: None)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert missing_machine_parts() == (
        "the rights of root",
        "an amd64 processor, whose kernel it runs (this is aarch64)",
        "Debian packages (e2fsprogs qemu-system-x86 qemu-utils)",
    )


def test_a_machine_with_everything_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_image, "missing_parts", tuple)
    monkeypatch.setattr(machine_image, "find_tool", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert missing_machine_parts() == ()


def test_another_recipe_is_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image_path()
    assert before == image_path()
    monkeypatch.setattr(machine_image, "_INSTALL", "apt-get install something-else")
    assert image_path() != before


@pytest.mark.parametrize(("code", "chosen"), [(0, "kvm"), (134, "tcg,thread=multi")])
def test_kvm_is_used_where_a_guest_of_it_lives_until_it_is_told_to_quit(
    code: int, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "qemu-system-x86_64").write_text(QEMU.format(code=code))
    (tmp_path / "qemu-system-x86_64").chmod(stat.S_IRWXU)
    path = f"{tmp_path}:{os.environ['PATH']}"
    monkeypatch.setattr(machine, "tools_environment", lambda: {"PATH": path})
    monkeypatch.setenv("PATH", path)
    told: list[str] = []
    assert choose_accelerator(told.append, device=tmp_path)[1] == chosen
    assert ["an MSR is refused" in line for line in told] == ([] if code == 0 else [True])


def test_without_the_device_nothing_is_tried(tmp_path: Path) -> None:
    told: list[str] = []
    assert choose_accelerator(told.append, device=tmp_path / "none")[1] == "tcg,thread=multi"
    assert told == []
