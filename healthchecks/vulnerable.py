"""Which versions of Ollama have known vulnerabilities: `vulnerable.json`, a list with a date."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from dataclasses import dataclass

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


@dataclass(frozen=True)
class Floor:
    """Whoever is below `version` gets `state`, "warn" or "fail"."""

    version: str
    state: str
    why: str


@dataclass(frozen=True)
class Vulnerability:
    """`fixed_in` is the first version without it, `since` the first with it where not all before have it."""

    id: str
    what: str
    fixed_in: str
    since: str | None = None

    def is_open_in(self, version: str) -> bool:
        """Raises ValueError as `version_key` does."""
        has_begun = self.since is None or not is_below(version, self.since)
        return has_begun and is_below(version, self.fixed_in)


@dataclass(frozen=True)
class Vulnerabilities:
    """The list as of `dated`; the lowest floor stands first."""

    dated: str
    floors: tuple[Floor, ...]
    closed: tuple[Vulnerability, ...]

    @property
    def newest_floor(self) -> str:
        return self.floors[-1].version

    def floor_above(self, version: str) -> Floor | None:
        """The lowest floor that `version` does not reach. Raises ValueError as `version_key` does."""
        return next((floor for floor in self.floors if is_below(version, floor.version)), None)

    def open_in(self, version: str) -> tuple[Vulnerability, ...]:
        """Those that a newer version would close."""
        return tuple(one for one in self.closed if one.is_open_in(version))


def is_below(version: str, other: str) -> bool:
    """Whether it is an earlier one. Raises ValueError as `version_key` does."""
    return version_key(version) < version_key(other)


def version_key(version: str) -> tuple[int, int, int, bool]:
    """To compare with: a release candidate is earlier than its release, `+local` is the same version.

    Raises:
        ValueError: it is no version of a release; a build of one's own calls itself 0.0.0.
    """
    found = _VERSION.fullmatch(version)
    if found is None or version.startswith("0.0.0"):
        raise ValueError(f"`{version}` is no version of a release")
    major, minor, patch, candidate, _ = found.groups()
    return int(major), int(minor), int(patch), candidate is None


@functools.lru_cache(maxsize=1)
def read_vulnerabilities() -> Vulnerabilities:
    """The list that is shipped."""
    text = importlib.resources.files("healthchecks").joinpath("vulnerable.json").read_text(encoding="utf-8")
    document = json.loads(text)
    return Vulnerabilities(
        dated=document["dated"],
        floors=tuple(Floor(**one) for one in document["floors"]),
        closed=tuple(Vulnerability(**one) for one in document["vulnerabilities"]),
    )
