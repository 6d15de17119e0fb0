"""Who is told: which lines are addresses, who may read them, and that nobody sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from healthchecks.addresses import MOST_TARGETS, SCHEMES, Addresses, parse_addresses, read_addresses

TOKEN = "TIiajkdnlazkcOXrIdevi7"


@pytest.fixture(autouse=True)
def _without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def test_addresses_pings_and_comments_are_told_apart() -> None:
    found = parse_addresses(
        "# people\n\n slack://T1/A1/x \nping https://hc-ping.com/u\njson://10.0.0.1:8000/in\n"
    )
    assert [(one.name, one.url) for one in found.targets] == [
        ("slack (line 3)", "slack://T1/A1/x"),
        ("json (line 5)", "json://10.0.0.1:8000/in"),
    ]
    assert [(one.name, one.url) for one in found.pings] == [("ping (line 4)", "https://hc-ping.com/u")]
    assert found.problems == ()


@pytest.mark.parametrize(
    ("webhook", "address"),
    [
        ("https://open.feishu.cn/open-apis/bot/v2/hook/ab-12", "feishu://ab-12"),
        ("https://oapi.dingtalk.com/robot/send?access_token=ab12", "dingtalk://ab12"),
        ("https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=ab-12", "wecombot://ab-12"),
        ("https://hooks.slack.com/services/T1/B1/ab12", "slack://T1/B1/ab12"),
    ],
)
def test_a_webhook_is_taken_as_its_service_shows_it(webhook: str, address: str) -> None:
    (target,) = parse_addresses(webhook).targets
    assert (target.url, target.scheme) == (address, address.partition(":")[0])


@pytest.mark.parametrize(
    "line",
    [
        *(
            "file:///etc/passwd",
            "mailto://u:p@h",
            "https://example.com/hook",
            "ping ftp://h/u",
            "ping",
            "slack://",
        ),
        *("slack://a b", "syslog://", "http://open.feishu.cn/open-apis/bot/v2/hook/ab", TOKEN),
    ],
)
def test_what_is_no_address_is_told_by_its_line_and_not_by_its_text(line: str) -> None:
    found = parse_addresses(f"\n{line}\njson://h/\n")
    assert found.problems == (f"line 2 is no address of {', '.join(SCHEMES)}, and no `ping URL`",)
    assert [target.line for target in found.targets] == [3], "the others are told all the same"


def test_one_address_twice_is_one_and_more_than_twenty_are_too_many() -> None:
    assert len(parse_addresses("json://h/\njson://h/\n").targets) == 1
    found = parse_addresses("".join(f"json://h{number}/\n" for number in range(MOST_TARGETS + 1)))
    assert (len(found.targets), found.problems) == (20, ("line 21 is one too many: 20 are told",))


def test_no_text_of_an_address_shows_it() -> None:
    found = parse_addresses(f"slack://T1/A1/{TOKEN}\nping https://hc-ping.com/{TOKEN}\n")
    assert TOKEN not in repr(found)
    assert found.targets[0].identity == parse_addresses(f"\nslack://T1/A1/{TOKEN}").targets[0].identity
    assert found.targets[0].identity not in (TOKEN, "")


def test_the_file_is_read_only_where_nobody_else_can_read_it(tmp_path: Path) -> None:
    assert read_addresses(tmp_path) is None
    path = tmp_path / "notify.urls"
    path.write_text("json://h/\n")
    for mode in (0o644, 0o640, 0o602):
        path.chmod(mode)
        with pytest.raises(ValueError, match="chmod 600"):
            read_addresses(tmp_path)
    path.chmod(0o600)
    assert read_addresses(tmp_path) == parse_addresses("json://h/")


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("json://h/\n")
    (tmp_path / "notify.urls").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        read_addresses(tmp_path)


def test_a_credential_of_systemd_goes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    assert read_addresses(tmp_path) is None
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/ollama-fleet-notify").write_bytes(b"json://h/\n\xff\n")
    found = read_addresses(tmp_path)
    assert found is not None
    assert [target.url for target in found.targets] == ["json://h/"]
    assert len(found.problems) == 1
    assert Addresses() == parse_addresses("")
