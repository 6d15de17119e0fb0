"""`testbed mirror`: a directory or the given set, served until Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.contract.mirror_fixtures import ROOT

PROGRAM = """
import sys
from pathlib import Path
from testbed.mirror import MirrorRepo, serve_mirror
serve_mirror(
    port=0,
    directory=Path(sys.argv[1]) if sys.argv[1:] else None,
    default_repos=lambda: [MirrorRepo(repo="a/default", revisions={"master": {"x": b"x"}})],
    log=lambda text: print(text, flush=True),
)
"""


@pytest.mark.parametrize("given", ["a directory", "nothing"])
def test_it_serves_until_ctrl_c_and_says_what(tmp_path: Path, given: str) -> None:
    folder = tmp_path / "a/repo/v1"
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(b"x")
    arguments = [str(tmp_path)] if given == "a directory" else []
    repo, revision = ("a/repo", "v1") if arguments else ("a/default", "master")
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert "simulated" in lines[0]
    assert lines[1].strip() == f"{repo}: {revision}"
    found = re.search(r"MODELSCOPE_ENDPOINT=(\S+)", lines[2])
    assert found is not None
    query = {"Revision": revision, "FilePath": "x"}
    session = requests.Session()
    session.trust_env = False
    with session:
        assert session.get(f"{found[1]}/api/v1/models/{repo}/repo", params=query, timeout=10).content == b"x"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert "-> 200" in out
    assert out.endswith("stopped\n")
