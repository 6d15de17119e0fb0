"""Which hosts a limit means."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.errors import InventoryError
from deploy.inventory import Inventory, parse_inventory

TEXT = """\
bastion
[web]
web1
web2
[gpu]
gpu01
gpu02
gpu03
web2
[spare]
[site:children]
web
gpu
"""


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    path = tmp_path_factory.mktemp("limit") / "inventory.ini"
    path.write_text(TEXT)
    return parse_inventory(path)


def select(inventory: Inventory, pattern: str | None) -> str:
    return " ".join(host.name for host in inventory.select(pattern))


ALL = "bastion web1 web2 gpu01 gpu02 gpu03"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (None, ALL),
        ("", ALL),
        ("all", ALL),
        ("*", ALL),
        ("gpu01", "gpu01"),
        ("gpu", "web2 gpu01 gpu02 gpu03"),
        ("site", "web1 web2 gpu01 gpu02 gpu03"),
        ("ungrouped", "bastion"),
        ("spare", ""),
        ("gpu01:web1", "web1 gpu01"),
        ("gpu01, web1", "web1 gpu01"),
        ("gpu01 web1", "web1 gpu01"),
        ("web:gpu", "web1 web2 gpu01 gpu02 gpu03"),
        ("!gpu", "bastion web1"),
        ("!gpu:web", "web1"),
        ("web:&gpu", "web2"),
        ("&gpu:web:!web2", ""),
        ("all:!gpu*", "bastion web1"),
        ("gpu0?", "gpu01 gpu02 gpu03"),
        ("gpu0[!3]", "gpu01 gpu02"),
        ("~gpu0[13]", "gpu01 gpu03"),
        ("~(web|bast).*", "bastion web1 web2"),
        ("gpu[0]", "gpu01"),
        ("gpu[-1]", "web2"),
        ("gpu[0:1]", "gpu01 gpu02"),
        ("gpu[1:]", "web2 gpu02 gpu03"),
        ("gpu[1-2]", "gpu02 gpu03"),
        ("gpu[1:0]", "gpu02"),
        ("gpu[2:1]", ""),
        ("all:!localhost", ALL),
    ],
)
def test_a_pattern_selects_as_in_ansible(inventory: Inventory, pattern: str | None, expected: str) -> None:
    assert select(inventory, pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "sentence", "hint"),
    [
        ("gpu09", "no host or group matches `gpu09`", "did you mean `gpu03`?"),
        ("all:!wbe", "no host or group matches `wbe`", "did you mean `web`?"),
        ("zzz*", "no host or group matches `zzz*`", "`./fleet inventory --list` shows hosts and groups"),
        ("localhost", "no host or group matches `localhost`", None),
        ("gpu[9]", "`gpu[9]` is past the last of 4 hosts", "the first host has the number 0"),
        ("~(", "`~(` is no regular expression", "after `~` the limit is a Python regex"),
        ("all:!", "a `!` or `&` of the limit is followed by nothing", "name a host or a group after it"),
    ],
)
def test_a_pattern_that_means_nothing_is_refused(
    inventory: Inventory, pattern: str, sentence: str, hint: str | None
) -> None:
    with pytest.raises(InventoryError) as caught:
        inventory.select(pattern)
    assert caught.value.sentence == sentence
    assert hint is None or caught.value.hint == hint


def test_addresses_are_not_split_at_their_colons(tmp_path: Path) -> None:
    path = tmp_path / "inventory.ini"
    path.write_text("2001:db8::1\n::1\n")
    inventory = parse_inventory(path)
    assert select(inventory, "2001:db8::1") == "2001:db8::1"
    assert select(inventory, "localhost") == "::1"  # Ansible's localhost is the one the file has
