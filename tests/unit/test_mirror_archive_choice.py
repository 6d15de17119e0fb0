"""Which of the mirror's files is the server for a machine."""

from __future__ import annotations

import pytest

from deploy.errors import MirrorError
from deploy.mirror import MirrorFile, choose_archive

OTHERS = (
    "README.md",
    "ollama-linux-amd64-rocm.tgz",
    "ollama-linux-amd64-rocm.tar.zst",
    "ollama-linux-amd64-mlx.tar.zst",
    "ollama-linux-arm64-jetpack6.tar.zst",
    "ollama-linux-amd64",
    "old/ollama-linux-amd64.tgz",
    "ollama-modelscope-install.sh",
)


def listed(*names: str) -> list[MirrorFile]:
    return [MirrorFile(path=name, size_bytes=1, sha256=None) for name in (*OTHERS, *names)]


@pytest.mark.parametrize("suffix", ["tgz", "tar.zst"])
@pytest.mark.parametrize(
    ("architecture", "name"),
    [("x86_64", "amd64"), ("amd64", "amd64"), ("aarch64", "arm64"), ("arm64", "arm64")],
)
def test_the_archive_of_the_architecture_is_chosen(architecture: str, name: str, suffix: str) -> None:
    files = listed("ollama-linux-amd64.tgz", "ollama-linux-arm64.tgz")
    if suffix == "tar.zst":
        files = listed("ollama-linux-amd64.tar.zst", "ollama-linux-arm64.tar.zst")
    assert choose_archive(files, architecture).path == f"ollama-linux-{name}.{suffix}"


def test_zst_comes_before_tgz() -> None:
    files = listed("ollama-linux-amd64.tgz", "ollama-linux-amd64.tar.zst")
    assert choose_archive(files, "x86_64").path == "ollama-linux-amd64.tar.zst"


@pytest.mark.parametrize("architecture", ["aarch64", "riscv64", ""])
def test_none_for_the_architecture_says_what_is_there(architecture: str) -> None:
    with pytest.raises(MirrorError) as caught:
        choose_archive(listed("ollama-linux-amd64.tar.zst"), architecture)
    assert f"`{architecture}`" in caught.value.sentence
    assert "amd64 alone is usual" in str(caught.value.cause)
    assert "ollama-linux-amd64.tar.zst" in str(caught.value.cause)
    assert "--limit" in str(caught.value.hint)


def test_an_empty_repository_says_so() -> None:
    with pytest.raises(MirrorError, match="no file at all"):
        choose_archive([], "x86_64")
