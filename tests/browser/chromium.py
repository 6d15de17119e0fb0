"""Where the system's Chromium is."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

# Google's packages hold the same browser; Ubuntu's apt has none but by them.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The first program that is a browser: Ubuntu's package `chromium-browser` only asks for a snap."""
    for name in NAMES:
        found = shutil.which(name)
        if found is not None and not _is_snap(Path(found)):
            return found
    return None


def missing_browser_parts() -> tuple[str, ...]:
    """What this machine lacks for the tests in a browser, each told as a phrase."""
    missing = []
    if importlib.util.find_spec("playwright") is None:
        missing.append("playwright: ./fleet test installs it")
    if find_chromium() is None:
        missing.append("Chromium: apt install chromium (Debian), or Google's google-chrome-stable")
    return tuple(missing)


def _is_snap(path: Path) -> bool:
    """A snap is confined to its own view of files, in which temporary directories are not ours."""
    if path.is_relative_to("/snap") or "/snap/" in str(path.resolve()):
        return True
    with path.open("rb") as file:
        begin = file.read(4096)
    return begin.startswith(b"#!") and b"/snap/" in begin
