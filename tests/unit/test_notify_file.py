"""The file of those who are notified, on this machine: its owner alone may read it, no error shows a line."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from deploy.errors import InventoryError, render_error
from deploy.notify_file import LARGEST_BYTES, read_notify_file, unknown_lines
from deploy.settings import HostSettings, load_settings
from healthchecks.addresses import parse_addresses

SECRET = "TIiajkdnlazkcOXrIdevi7"


def settings(directory: Path, notify_file: str | None) -> HostSettings:
    inventory = directory / "fleet.ini"
    value = "" if notify_file is None else f" ollama_notify_file={notify_file}"
    inventory.write_text(f"[gpu]\ngpu01 ollama_gpu=none{value}\n")
    return load_settings(inventory, data_home=PurePosixPath("/data"))[1]["gpu01"]


def write(directory: Path, text: str | bytes, mode: int = 0o600) -> None:
    path = directory / "notify.urls"
    path.touch(mode=0o600)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)


def test_the_file_is_seen_from_the_inventory_and_comes_as_it_is(tmp_path: Path) -> None:
    text = f"# people\nslack://T1/A1/{SECRET}\n  ping https://hc-ping.com/u\n"
    write(tmp_path, text)
    assert read_notify_file(settings(tmp_path, "notify.urls")) == text
    assert read_notify_file(settings(tmp_path, str(tmp_path / "notify.urls"))) == text
    assert read_notify_file(settings(tmp_path, "off")) == ""
    assert read_notify_file(settings(tmp_path, None)) is None


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        (f"json://h/{SECRET}\n", 0o644, "others may read it too"),
        (f"json://h/\nmailto://{SECRET}@h\n", 0o600, "line 2 is no address"),
        (f"{SECRET}\n{SECRET}\n", 0o600, "line 1, 2 is no address"),
        (f"json://h/{SECRET}\n".encode() + b"\xff", 0o600, "is no text"),
        (f"json://h/{SECRET}\n" * (LARGEST_BYTES // 20), 0o600, "is too large"),
    ],
)
def test_what_cannot_be_used_is_told_by_inventory_and_line_and_never_shown(
    tmp_path: Path, text: str | bytes, mode: int, told: str
) -> None:
    write(tmp_path, text, mode)
    with pytest.raises(InventoryError) as caught:
        read_notify_file(settings(tmp_path, "notify.urls"))
    shown = render_error(caught.value)
    assert told in shown
    assert "fleet.ini:2" in shown
    assert SECRET not in shown


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="cannot be read"):
        read_notify_file(settings(tmp_path, "notify.urls"))


@pytest.mark.parametrize(
    "line",
    [
        *(
            "json://h/",
            "JSONS://u:p@h:8443/in?x=y",
            "feishu://t",
            "dingtalk://s@t/",
            "wecombot://k/",
            "slack://a/b/c",
        ),
        *("https://open.feishu.cn/open-apis/bot/v2/hook/ab-1", "https://hooks.slack.com/services/T/B/x"),
        *(
            "https://oapi.dingtalk.com/robot/send?access_token=ab",
            "ping https://hc-ping.com/u",
            "ping http://h/u",
        ),
        *("https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=ab-1", "", "# json", "   "),
        *(
            "mailto://h",
            "https://example.com/",
            "ping",
            "pingjson://h",
            "json://",
            "slack://a b",
            "file:///x",
        ),
        *("http://hooks.slack.com/services/T/B/x", "ping ftp://h", "syslog://", "https://hooks.slack.com/x"),
    ],
)
def test_here_and_on_the_host_the_same_lines_are_addresses(line: str) -> None:
    assert bool(unknown_lines(line)) == bool(parse_addresses(line).problems)
