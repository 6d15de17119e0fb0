"""A copy of `modelfiles/` that belongs to one test: to edit, and to prove by as many cases as it needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from console.paths import MODELFILES

_TABLE = "[myqwen2]\n"


def core_cases(directory: Path) -> Path:
    """`directory/modelfiles`, whose `myqwen2` is proven by five conversations instead of forty.

    Most deploys of the tests are about hosts, releases and faults, and all cases take half of their time.
    """
    modelfiles = all_cases(directory)
    models = modelfiles / "models.toml"
    text = models.read_text()
    assert text.count(_TABLE) == 1, f"{models} has no table {_TABLE.strip()}"
    models.write_text(text.replace(_TABLE, f'{_TABLE}cases = "core"\n'))
    return modelfiles


def all_cases(directory: Path) -> Path:
    """`directory/modelfiles` as the project ships them."""
    return shutil.copytree(MODELFILES, directory / "modelfiles")
