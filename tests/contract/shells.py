"""The shells that a script of ours must work in, where this machine has them."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(params=["dash", "bash", "busybox"])
def shell(request: pytest.FixtureRequest) -> list[str]:
    """The words before a script's own arguments."""
    name = str(request.param)
    need(name)
    return [name, "sh"] if name == "busybox" else [name]


def need(shell: str) -> None:
    """Skip with a reason where a shell is absent. CI installs all of them: there it is a failure."""
    if shutil.which(shell) is not None:
        return
    told = f"this machine has no `{shell}`: apt install {shell}"
    if os.environ.get("CI"):
        pytest.fail(told)
    pytest.skip(told)
