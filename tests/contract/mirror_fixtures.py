"""What the tests of the mirror share: some artefacts, a running mirror, a quick and lonely client."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import mirror as client
from deploy.desired import Artefact
from testbed.mirror import Mirror, MirrorRepo, start_mirror

ROOT = Path(__file__).resolve().parents[2]
MODELS = "qwen/Qwen2-7B-Instruct-GGUF"
SERVER = "modelscope/ollama-linux"
WEIGHTS = "qwen2-7b-instruct-q5_k_m.gguf"
GGUF = b"GGUF" + random.Random(1).randbytes(1_500_000)
NO_GGUF = b"just text, no weights\n" * 40
ARCHIVE = gzip.compress(random.Random(2).randbytes(5_000), mtime=0)
TOKEN = "ms-a-secret-of-the-tests"

REPOS = (
    MirrorRepo(
        repo=MODELS,
        revisions={
            "master": {"README.md": b"# weights\n", WEIGHTS: GGUF, "sub/dir/small.gguf": GGUF[:9_000]},
            "v1.0.0": {WEIGHTS: GGUF[:70_000], "text.gguf": NO_GGUF},
        },
    ),
    MirrorRepo(
        repo=SERVER,
        revisions={
            "master": {"README.md": b"# ollama\n"},
            "v0.14.1": {"ollama-linux-amd64.tgz": ARCHIVE},
            "v0.17.5": {"ollama-linux-amd64.tgz": ARCHIVE, "broken.tgz": NO_GGUF},
        },
    ),
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pin(file: str = WEIGHTS, data: bytes = GGUF, *, repo: str = MODELS, revision: str = "master") -> Artefact:
    return Artefact(repo=repo, revision=revision, file=file, size_bytes=len(data), sha256=sha256(data))


def listing(directory: Path) -> list[str]:
    """Every file below, for comparing what a run left."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def file_requests(mirror: Mirror) -> list[tuple[int, str | None]]:
    """Status and range of each request for a file's bytes."""
    return [(request.status, request.range) for request in mirror.requests if request.path.endswith("/repo")]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    pause = 0.005
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(pause)


def lonely_environment(home: Path, url: str) -> dict[str, str]:
    """A process that shares nothing with this one but the interpreter; the client's back-offs are short."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    return {
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_PROXY": "127.0.0.1",
        "MODELSCOPE_ENDPOINT": url,
        "MODELSCOPE_DOWNLOAD_RETRY_MAX_DELAY_SECONDS": "1",
        "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "1",
    }


FETCH_PROGRAM = """
import sys
from pathlib import Path
from deploy.desired import Artefact
from deploy.mirror import fetch
repo, revision, file, size, sha256, cache = sys.argv[1:]
artefact = Artefact(repo=repo, revision=revision, file=file, size_bytes=int(size), sha256=sha256)
print(fetch(artefact, Path(cache), on_progress=lambda progress: print(progress.phase, flush=True)))
"""


def fetch_command(artefact: Artefact, cache: Path) -> list[str]:
    """A process that fetches and prints each phase, then the path."""
    given = (artefact.repo, artefact.revision, artefact.file, str(artefact.size_bytes), artefact.sha256)
    return [sys.executable, "-W", "error", "-c", FETCH_PROGRAM, *given, str(cache)]


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with start_mirror(REPOS) as running:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield running


@pytest.fixture
def quick_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between the attempts of the client in this process, whoever imported it first."""
    client._import_client()
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    for name, value in {
        "_download.DOWNLOAD_RETRY_MAX_DELAY_SECONDS": 0,
        "_download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF": 0,
        "_download.DOWNLOAD_RETRY_TIMES": 3,
        "_legacy_api.REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS": 0,
        "_legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS": 2,
    }.items():
        monkeypatch.setattr(f"modelscope_hub.{name}", value)
