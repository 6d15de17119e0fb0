"""Who is told: addresses of apprise and dead-man pings, a line each, in a file that only root may read.

Whoever has one of these lines may write into somebody's channel. So a line is known by its number and its
service wherever it is spoken of, and its text leaves this process towards its service alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

CREDENTIAL = "ollama-fleet-notify"
"""Its name with systemd: systemd.exec(5), `LoadCredential=`."""

FILE = "notify.urls"
SCHEMES = ("json", "jsons", "feishu", "dingtalk", "wecombot", "slack")
MOST_TARGETS = 20
_ADDRESS = re.compile(rf"(?P<scheme>{'|'.join(SCHEMES)})://\S+", re.IGNORECASE)
_PING = re.compile(r"ping\s+(?P<url>https?://\S+)")
# As the services show them to whoever sets up a bot; apprise reads two of the four itself.
_WEBHOOKS = (
    (re.compile(r"https://open\.feishu\.cn/open-apis/bot/v2/hook/([\w-]+)/?"), "feishu"),
    (re.compile(r"https://oapi\.dingtalk\.com/robot/send\?access_token=(\w+)"), "dingtalk"),
    (re.compile(r"https://qyapi\.weixin\.qq\.com/cgi-bin/webhook/send\?key=([\w-]+)"), "wecombot"),
    (re.compile(r"https://hooks\.slack\.com/services/(\w+/\w+/\w+)/?"), "slack"),
)


@dataclass(frozen=True)
class Target:
    """One that gets the messages; `identity` tells it from the others and does not give it away."""

    line: int
    scheme: str
    url: str = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.scheme} (line {self.line})"

    @property
    def identity(self) -> str:
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Ping:
    """A dead man's switch: https://healthchecks.io/docs/http_api/."""

    line: int
    url: str = field(repr=False)

    @property
    def name(self) -> str:
        return f"ping (line {self.line})"


@dataclass(frozen=True)
class Addresses:
    """What the file says; `problems` are the lines that say nothing, as sentences without their text."""

    targets: tuple[Target, ...] = ()
    pings: tuple[Ping, ...] = ()
    problems: tuple[str, ...] = ()


def read_addresses(directory: Path) -> Addresses | None:
    """Systemd's credential, else `notify.urls` in the directory of the health checks; None without both.

    Raises:
        ValueError: others than the owner may read the file.
        OSError: it cannot be read.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials and (Path(credentials) / CREDENTIAL).is_file():
        return parse_addresses((Path(credentials) / CREDENTIAL).read_text(errors="replace"))
    path = directory / FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - what was looked at is read
        found = os.fstat(descriptor)
        if found.st_uid not in (0, os.geteuid()) or stat.S_IMODE(found.st_mode) & 0o077:
            hint = f"chown root: {path}; chmod 600 {path}"
            raise ValueError(f"`{path}` is not read, since others than root can read it; {hint}")
        return parse_addresses(file.read())


def parse_addresses(text: str) -> Addresses:
    """A line each; empty ones and those that begin with `#` say nothing."""
    targets: dict[str, Target] = {}
    pings, problems = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        ping, target = _PING.fullmatch(words), _parse_target(number, words)
        if ping is not None:
            pings.append(Ping(number, ping["url"]))
        elif target is None:
            problems.append(f"line {number} is no address of {', '.join(SCHEMES)}, and no `ping URL`")
        elif len(targets) == MOST_TARGETS:
            problems.append(f"line {number} is one too many: {MOST_TARGETS} are told")
        else:
            targets.setdefault(target.identity, target)
    return Addresses(tuple(targets.values()), tuple(pings), tuple(problems))


def _parse_target(number: int, words: str) -> Target | None:
    found = _ADDRESS.fullmatch(words)
    if found is not None:
        return Target(number, found["scheme"].lower(), words)
    for pattern, scheme in _WEBHOOKS:
        webhook = pattern.fullmatch(words)
        if webhook is not None:
            return Target(number, scheme, f"{scheme}://{webhook[1]}")
    return None
