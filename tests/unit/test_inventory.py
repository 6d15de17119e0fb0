"""What an inventory means, and how a wrong one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.errors import InputErrors, InventoryError, render_error
from deploy.inventory import Inventory, parse_inventory, render_list
from tests.inventory_examples import EXAMPLES, Example


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "inventory.ini"


def parse(file: Path, text: str) -> Inventory:
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    return parse_inventory(file)


def problems_of(file: Path, text: str) -> list[tuple[int | None, str, str | None]]:
    with pytest.raises(InputErrors) as caught:
        parse(file, text)
    assert all(isinstance(problem, InventoryError) for problem in caught.value.problems)
    return [(problem.line, problem.sentence, problem.hint) for problem in caught.value.problems]


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=list(EXAMPLES))
def test_a_file_means_what_it_means_to_ansible(file: Path, example: Example) -> None:
    if example.hosts is None:
        assert problems_of(file, example.text)
        return
    inventory = parse(file, example.text)
    listing = render_list(inventory)
    assert {host.name for host in inventory.select(None)} == set(example.hosts)
    shown = {name: variables for name, variables in example.hosts.items() if variables}
    assert repr(listing["_meta"]["hostvars"]) == repr(shown)  # 1 is not True and not 1.0
    groups = {name: entry["hosts"] for name, entry in listing.items() if "hosts" in entry}
    assert groups == example.groups


def test_a_host_knows_its_groups_at_any_distance_and_where_it_was_written(file: Path) -> None:
    inventory = parse(file, "[p:children]\nc\n[c]\nh k=1\n[p:vars]\nl=2\n")
    host = inventory.hosts["h"]
    assert host.groups == ("c", "p")
    assert host.line == 4
    assert host.lines == {"k": 4, "l": 6}
    assert inventory.groups["p"].members == ("h",)
    assert inventory.groups["p"].hosts == ()
    assert inventory.groups["all"].children == ("ungrouped", "p")


def test_a_listing_is_limited_like_ansibles(file: Path) -> None:
    inventory = parse(file, "[a]\nh1 k=1\nh2 k=2\n[b]\nh3 k=3\n")
    listing = render_list(inventory, limit="a:!h1")
    assert listing == {
        "_meta": {"hostvars": {"h2": {"k": 2}}},
        "all": {"children": ["ungrouped", "a", "b"]},
        "a": {"hosts": ["h2"]},
    }


def test_all_problems_are_shown_at_once_in_the_order_of_the_lines(file: Path) -> None:
    text = "gpu[1:\n[web:childen]\nx\n[fleet:children]\nwbe\n[gpus:vars]\nk\n[web]\nh ollama_modles=a\n"
    assert problems_of(file, text) == [
        (1, "`gpu[1:` has an unbalanced bracket", "a range is [first:last] or [first:last:step]"),
        (2, "section `[web:childen]` has an unknown type", "did you mean `[web:children]`?"),
        (5, "`[fleet:children]` includes undefined group `wbe`", "did you mean `web`?"),
        (6, "section `[gpus:vars]` is for an undefined group", "define it with a section [gpus]"),
        (7, "`k` is not key=value", "a line below [group:vars] must be `key=value`"),
        (9, "unknown key `ollama_modles`", "did you mean `ollama_models`?"),
    ]


def test_a_problem_is_printed_with_file_and_line(file: Path) -> None:
    with pytest.raises(InputErrors) as caught:
        parse(file, "\nh ansible_hots=10.0.0.1\n")
    assert render_error(caught.value) == (
        f"error: {file}:2: unknown key `ansible_hots`\n\nhint: did you mean `ansible_host`?"
    )


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("ollama_modles", "ollama_models"),
        ("ollama_num_paralell", "ollama_num_parallel"),
        ("OLLAMA_HOST", "ollama_host"),
        ("ansible_hots", "ansible_host"),
        ("ansible_prot", "ansible_port"),
        ("ansible_usr", "ansible_user"),
        ("ansbile_host", "ansible_host"),
        ("ansible-host", "ansible_host"),
        ("ansible_conection", "ansible_connection"),
    ],
)
@pytest.mark.parametrize("text", ["h {}=1", "[a:vars]\n{}=1\n[a]\nh"])
def test_a_mistyped_key_is_refused_with_the_key_that_was_meant(
    file: Path, text: str, key: str, meant: str
) -> None:
    line = 2 if "vars" in text else 1
    assert problems_of(file, text.format(key)) == [(line, f"unknown key `{key}`", f"did you mean `{meant}`?")]


def test_an_ollama_key_unlike_any_other_is_refused_too(file: Path) -> None:
    assert problems_of(file, "h ollama_zzz=1") == [(1, "unknown key `ollama_zzz`", "remove it")]


@pytest.mark.parametrize(
    "key",
    ["ansible_hostname", "ansible_become_user", "ansible_winrm_port", "ansible_distribution", "olama", "k"],
)
def test_a_variable_of_somebody_else_is_kept(file: Path, key: str) -> None:
    assert parse(file, f"h {key}=1").hosts["h"].variables == {key: 1}


def test_a_mistyped_key_is_refused_even_where_no_host_sees_it(file: Path) -> None:
    assert problems_of(file, "[empty:vars]\nollama_hots=x\n[empty]\n")


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"h\xff", [1]),
        (b"ok\nh k=\xe9\n", [2]),
        (b"[a]\n[a:vars]\nk=\xe9 # x\n", [3]),
        (b"[\xe9]\n# \xe9\n", [1]),
    ],
)
def test_a_line_that_is_not_utf8_is_refused(file: Path, content: bytes, lines: list[int]) -> None:
    file.write_bytes(content)
    with pytest.raises(InputErrors) as caught:
        parse_inventory(file)
    assert [problem.line for problem in caught.value.problems] == lines
    assert "not UTF-8" in caught.value.problems[0].sentence
    str(caught.value).encode()  # can be printed


def sentence_about(path: Path) -> str:
    with pytest.raises(InputErrors) as caught:
        parse_inventory(path)
    (problem,) = caught.value.problems
    assert problem.hint
    return problem.sentence


def test_a_missing_inventory_is_refused(file: Path) -> None:
    assert sentence_about(file) == f"the inventory `{file}` does not exist"


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert sentence_about(tmp_path) == f"the inventory `{tmp_path}` is a directory"


def test_an_unreadable_inventory_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    assert sentence_about(file) == f"the inventory `{file}` cannot be read"


def test_a_script_is_refused_and_not_run(file: Path) -> None:
    file.write_text(f"#!/bin/sh\ntouch {file.parent}/was-run\n")
    file.chmod(0o755)
    assert sentence_about(file) == f"the inventory `{file}` is a script, and scripts are not run"
    assert not (file.parent / "was-run").exists()


def test_an_inventory_that_is_executable_by_accident_is_read(file: Path) -> None:
    file.write_text("h\n")
    file.chmod(0o755)
    assert list(parse_inventory(file).hosts) == ["h"]


def test_an_encrypted_inventory_is_refused(file: Path) -> None:
    file.write_text("$ANSIBLE_VAULT;1.1;AES256\n6162\n")
    assert sentence_about(file) == f"the inventory `{file}` is encrypted"


def test_a_toml_inventory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "inventory.toml"
    path.write_text("h\n")
    assert sentence_about(path) == "a `.toml` inventory is not read"


@pytest.mark.parametrize("name", ["group_vars", "host_vars"])
def test_variables_beside_the_inventory_are_not_silently_skipped(file: Path, name: str) -> None:
    (file.parent / name).mkdir()
    file.write_text("h\n")
    assert sentence_about(file) == f"the directory `{name}/` beside the inventory is not read yet"


def test_a_file_called_group_vars_is_nothing(file: Path) -> None:
    (file.parent / "group_vars").touch()
    assert list(parse(file, "h\n").hosts) == ["h"]


@pytest.mark.parametrize(
    "line", ["h[1:1000000000]", "h[1:99999999999999999999999]", "h[1:999][1:999][1:999]"]
)
def test_a_line_that_names_far_too_many_hosts_is_refused(file: Path, line: str) -> None:
    ((_, sentence, _),) = problems_of(file, line)
    assert sentence == f"`{line}` names more than 100000 hosts"


def test_nested_groups_are_read_at_any_depth(file: Path) -> None:
    sections = [f"[g{n}:children]\ng{n + 1}\n" for n in range(300)]
    for chain in (sections, sections[::-1]):
        inventory = parse(file, "".join(chain) + "[g300]\nh\n")
        assert len(inventory.hosts["h"].groups) == 301
