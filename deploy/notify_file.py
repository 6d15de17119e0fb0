"""Who is notified, read from a file of this machine: secrets, so nothing here says more than a line's number.

`healthchecks/addresses.py` reads the same lines on the host.
"""

from __future__ import annotations

import re
import shlex
import stat
from pathlib import Path

from deploy.errors import InventoryError
from deploy.settings import HostSettings

LARGEST_BYTES = 64 * 1024
_LINE = re.compile(
    r"(?i:jsons?|feishu|dingtalk|wecombot|slack)://\S+"
    r"|https://open\.feishu\.cn/open-apis/bot/v2/hook/[\w-]+/?"
    r"|https://oapi\.dingtalk\.com/robot/send\?access_token=\w+"
    r"|https://qyapi\.weixin\.qq\.com/cgi-bin/webhook/send\?key=[\w-]+"
    r"|https://hooks\.slack\.com/services/\w+/\w+/\w+/?"
    r"|ping\s+https?://\S+"
)


def read_notify_file(settings: HostSettings) -> str | None:
    """The text for the host; None where its own file stays. A path is seen from the inventory's directory.

    Raises InventoryError: it cannot be read, others may read it too, or a line is no address.
    """
    if not settings.notify_file:
        return settings.notify_file
    path = Path(settings.inventory).absolute().parent / Path(settings.notify_file).expanduser()
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            content = file.read(LARGEST_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise _refused(settings, "cannot be read", error.strerror, f"ls -l {_quoted(path)}") from error
    except UnicodeDecodeError:
        raise _refused(settings, "is no text", None, f"file {_quoted(path)}") from None
    if mode & 0o077:
        cause = f"its mode is {mode:o}: others may read it too"
        raise _refused(settings, "is a secret", cause, f"chmod 600 {_quoted(path)}")
    if len(content) > LARGEST_BYTES:
        raise _refused(settings, "is too large", f"more than {LARGEST_BYTES} bytes", "an address a line")
    wrong = unknown_lines(text)
    if wrong:
        lines = ", ".join(map(str, wrong))
        cause = f"line {lines} is no address of JSON, Feishu, DingTalk, WeCom or Slack, and no `ping URL`"
        raise _refused(settings, "cannot be used", cause, "docs/notify.md says how each looks")
    return text


def unknown_lines(text: str) -> list[int]:
    """The numbers of the lines that say nothing to the host."""
    lines = enumerate((line.strip() for line in text.splitlines()), start=1)
    return [
        number for number, line in lines if line and not line.startswith("#") and not _LINE.fullmatch(line)
    ]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _refused(settings: HostSettings, what: str, cause: str | None, hint: str) -> InventoryError:
    return InventoryError(
        sentence=f"the `ollama_notify_file` `{settings.notify_file}` {what}",
        path=settings.inventory,
        line=settings.notify_file_line,
        cause=cause,
        unchanged="everything",
        hint=hint,
    )
