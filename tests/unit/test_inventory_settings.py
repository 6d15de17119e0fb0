"""What an inventory says about a host, and values that cannot be meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from deploy.desired import GpuKind, ServiceBackend
from deploy.errors import InputErrors
from deploy.inventory import parse_inventory
from deploy.settings import (
    Connection,
    HostSettings,
    check_settings,
    load_settings,
    parse_data_home,
    parse_settings,
)

DATA_HOME = PurePosixPath("/home/me/.local/share")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "inventory.ini"


def settings_of(file: Path, variables: str) -> HostSettings:
    file.write_text(f"gpu01 {variables}\n")
    inventory = parse_inventory(file)
    return parse_settings(inventory, inventory.hosts["gpu01"], data_home=DATA_HOME)


def problem_of(file: Path, variables: str) -> tuple[str, str | None]:
    with pytest.raises(InputErrors) as caught:
        settings_of(file, variables)
    (problem,) = caught.value.problems
    assert (problem.path, problem.line) == (str(file), 1)
    return problem.sentence, problem.expected


def test_a_host_without_variables_gets_every_default(file: Path) -> None:
    assert settings_of(file, "") == HostSettings(
        connection=Connection.SSH,
        address="gpu01",
        port=None,
        user=None,
        inventory=str(file),
        version=None,
        models=(),
        models_dir=PurePosixPath("/usr/share/ollama/.ollama/models"),
        gpu=GpuKind.NVIDIA,
        service=ServiceBackend.SYSTEMD,
        root=PurePosixPath("/"),
        batch=("100%",),
        max_failures=0,
        health_every_minutes=5,
        textfile_dir=None,
        environment={
            "OLLAMA_HOST": "127.0.0.1:11434",
            "OLLAMA_GO_TEMPLATE": "1",
            "OLLAMA_NO_CLOUD": "1",
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_MODELS": "/usr/share/ollama/.ollama/models",
        },
    )


def test_a_local_process_keeps_everything_in_the_data_directory_of_the_user(file: Path) -> None:
    settings = settings_of(file, "ansible_connection=local ollama_service=process ollama_gpu=none")
    assert settings.connection is Connection.LOCAL
    assert settings.service is ServiceBackend.PROCESS
    assert settings.gpu is GpuKind.NONE
    assert settings.root == DATA_HOME / "ollama-fleet"
    assert settings.models_dir == DATA_HOME / "ollama-fleet/var/lib/ollama/models"
    assert settings.environment["OLLAMA_MODELS"] == str(settings.models_dir)


def test_the_data_directory_follows_the_environment_where_that_is_absolute() -> None:
    home = PurePosixPath("/home/me")
    assert parse_data_home({}, home) == DATA_HOME
    assert parse_data_home({"XDG_DATA_HOME": "/data"}, home) == PurePosixPath("/data")
    assert parse_data_home({"XDG_DATA_HOME": "data"}, home) == DATA_HOME


def test_localhost_is_reached_by_ssh_unless_it_says_local(file: Path) -> None:
    file.write_text("localhost\n")
    inventory = parse_inventory(file)
    assert check_settings(inventory, data_home=DATA_HOME)["localhost"].connection is Connection.SSH


def test_a_process_over_ssh_needs_a_root(file: Path) -> None:
    sentence, _ = problem_of(file, "ollama_service=process")
    assert sentence == "`ollama_service=process` over SSH needs `ollama_root`"
    settings = settings_of(file, "ollama_service=process ollama_root=/srv/fleet")
    assert settings.models_dir == PurePosixPath("/srv/fleet/var/lib/ollama/models")


def test_the_models_directory_can_be_chosen(file: Path) -> None:
    settings = settings_of(file, "ollama_models_dir=/data/models")
    assert settings.models_dir == PurePosixPath("/data/models")
    assert settings.environment["OLLAMA_MODELS"] == "/data/models"


@pytest.mark.parametrize(
    ("variables", "field", "expected"),
    [
        ("ansible_host=10.0.0.5", "address", "10.0.0.5"),
        ("ansible_ssh_host=b ansible_host=a", "address", "b"),
        ("ansible_host=None", "address", "gpu01"),
        ("ansible_port=2222", "port", 2222),
        ("ansible_port=\"'22'\"", "port", 22),
        ("ansible_user=ops", "user", "ops"),
        ("ansible_user=1000", "user", "1000"),
        ("ansible_connection=ansible.builtin.ssh", "connection", Connection.SSH),
        ("ansible_connection=smart", "connection", Connection.SSH),
        ("ollama_version=0.17.5", "version", "0.17.5"),
        ("ollama_version=v0.33.0-rc2", "version", "0.33.0-rc2"),
        ("ollama_models=myqwen2", "models", ("myqwen2",)),
        ("ollama_models=myqwen2,canary", "models", ("myqwen2", "canary")),
        ("ollama_models='myqwen2, canary'", "models", ("myqwen2", "canary")),
        ("ollama_models=\"['myqwen2', 'canary']\"", "models", ("myqwen2", "canary")),
        ("ollama_models=['myqwen2','canary']", "models", ("myqwen2", "canary")),
        ("ollama_models=[]", "models", ()),
        ("ollama_batch=1", "batch", ("1",)),
        ("ollama_batch=1,5,25%", "batch", ("1", "5", "25%")),
        ("ollama_batch=1,5", "batch", ("1", "5")),
        ("ollama_max_failures=3", "max_failures", 3),
        ("ollama_textfile_dir=/srv/prom/", "textfile_dir", PurePosixPath("/srv/prom")),
        ("ollama_notify_file=~/notify.urls", "notify_file", "~/notify.urls"),
        ("ollama_notify_file=off", "notify_file", ""),
        ("ollama_gpu=None", "gpu", GpuKind.NONE),
        ("ollama_service=process ollama_root=/srv/x/", "root", PurePosixPath("/srv/x")),
    ],
)
def test_a_variable_is_read(file: Path, variables: str, field: str, expected: Any) -> None:
    assert getattr(settings_of(file, variables), field) == expected


@pytest.mark.parametrize(
    ("variables", "name", "expected"),
    [
        ("ollama_host=0.0.0.0", "OLLAMA_HOST", "0.0.0.0:11434"),
        ("ollama_host=0.0.0.0:8080", "OLLAMA_HOST", "0.0.0.0:8080"),
        ("ollama_host=http://gpu01.local", "OLLAMA_HOST", "gpu01.local:80"),
        ("ollama_host=http://gpu01.local:11500/", "OLLAMA_HOST", "gpu01.local:11500"),
        ("ollama_host=::1", "OLLAMA_HOST", "[::1]:11434"),
        ("ollama_host=[::1]:9000", "OLLAMA_HOST", "[::1]:9000"),
        ("ollama_keep_alive=300", "OLLAMA_KEEP_ALIVE", "300"),
        ("ollama_keep_alive=-1", "OLLAMA_KEEP_ALIVE", "-1"),
        ("ollama_keep_alive=1h30m", "OLLAMA_KEEP_ALIVE", "1h30m"),
        ("ollama_keep_alive=1.5h", "OLLAMA_KEEP_ALIVE", "1.5h"),
        ("ollama_load_timeout=10m", "OLLAMA_LOAD_TIMEOUT", "10m"),
        ("ollama_go_template=False", "OLLAMA_GO_TEMPLATE", "0"),
        ("ollama_no_cloud=false", "OLLAMA_NO_CLOUD", "0"),
        ("ollama_flash_attention=1", "OLLAMA_FLASH_ATTENTION", "1"),
        ("ollama_debug=2", "OLLAMA_DEBUG", "2"),
        ("ollama_debug=true", "OLLAMA_DEBUG", "1"),
        ("ollama_num_parallel=4", "OLLAMA_NUM_PARALLEL", "4"),
        ("ollama_context_length=8192", "OLLAMA_CONTEXT_LENGTH", "8192"),
        ("ollama_kv_cache_type=q8_0", "OLLAMA_KV_CACHE_TYPE", "q8_0"),
        ("ollama_origins=\"['http://a', 'http://b']\"", "OLLAMA_ORIGINS", "http://a,http://b"),
    ],
)
def test_a_server_setting_goes_to_the_environment(
    file: Path, variables: str, name: str, expected: str
) -> None:
    assert settings_of(file, variables).environment[name] == expected


@pytest.mark.parametrize(
    "variables",
    """ollama_host=127.0.0.1:99999 ollama_host=127.0.0.1:0 ollama_host=127.0.0.1:ssh ollama_host=11434
    ollama_host=:11434 ollama_host=https://h ollama_host=h/path ollama_host='' ollama_host=a_b:1
    ollama_keep_alive=5min ollama_keep_alive=forever ollama_keep_alive=1.5 ollama_keep_alive=True
    ollama_load_timeout=1d ollama_flash_attention=no ollama_flash_attention=on ollama_go_template=2
    ollama_debug=verbose ollama_num_parallel=-1 ollama_num_parallel=four ollama_num_parallel=1.5
    ollama_num_parallel=True ollama_max_queue='' ollama_gpu_overhead=1G ollama_kv_cache_type=q5
    ollama_llm_library=None ollama_origins={{origins}} ollama_version=0.17 ollama_version=latest
    ollama_version={{v}} ollama_models=a/b ollama_models=a:latest ollama_models=a,A ollama_models=a,,b
    ollama_models=[{'a':1}] ollama_models=None ollama_models_dir=models ollama_models_dir=/a/../b
    ollama_gpu=amd ollama_service=docker ollama_root=~/x ollama_batch=0 ollama_batch=101% ollama_batch=1.5
    ollama_batch=a ollama_batch='' ollama_max_failures=-1 ollama_max_failures=10% ansible_connection=winrm
    ollama_textfile_dir=prom ollama_textfile_dir=/a/../b
    ansible_port=0 ansible_port=65536 ansible_port=ssh ansible_port=True ansible_host={{h}} ansible_host=-oX
    ansible_host='' ansible_user=[1,2] ansible_user=-lroot""".split(),
)
def test_a_value_that_cannot_be_meant_is_refused_where_it_stands(file: Path, variables: str) -> None:
    sentence, expected = problem_of(file, variables)
    assert sentence == f"`{variables.partition('=')[0]}` cannot be used"
    assert expected


def test_a_line_break_cannot_reach_the_environment(file: Path) -> None:
    file.write_text('[a:vars]\nollama_origins = "x\\nEVIL=1"\n[a]\nh\n')
    with pytest.raises(InputErrors) as caught:
        check_settings(parse_inventory(file), data_home=DATA_HOME)
    assert caught.value.problems[0].expected == "text without control characters"


def test_a_wrong_value_of_a_group_is_shown_once_with_its_line(file: Path) -> None:
    file.write_text("[gpu]\ngpu[01:20]\n[gpu:vars]\nollama_gpu=amd\nollama_batch=x\n")
    with pytest.raises(InputErrors) as caught:
        check_settings(parse_inventory(file), data_home=DATA_HOME)
    assert [(problem.line, problem.sentence) for problem in caught.value.problems] == [
        (4, "`ollama_gpu` cannot be used"),
        (5, "`ollama_batch` cannot be used"),
    ]
    assert caught.value.problems[0].expected == "'nvidia' or 'none'"
    assert caught.value.problems[0].actual == "`amd`"


def test_a_value_that_the_host_overrides_is_nobodys_problem(file: Path) -> None:
    file.write_text("[gpu]\nh ollama_gpu=none\n[gpu:vars]\nollama_gpu=amd\n")
    assert check_settings(parse_inventory(file), data_home=DATA_HOME)["h"].gpu is GpuKind.NONE


def test_mistyped_keys_and_wrong_values_are_shown_together(file: Path) -> None:
    file.write_text("h ollama_gpu=amd\ni ollama_hots=x\nj ansible_port=x\n")
    with pytest.raises(InputErrors) as caught:
        load_settings(file, data_home=DATA_HOME)
    assert [problem.line for problem in caught.value.problems] == [1, 2, 3]


def test_a_good_file_gives_its_inventory_and_the_settings_of_all_hosts(file: Path) -> None:
    file.write_text("h[1:2] ollama_gpu=none\n")
    inventory, settings = load_settings(file, data_home=DATA_HOME)
    assert list(inventory.hosts) == list(settings) == ["h1", "h2"]


def test_reading_an_inventory_does_not_wait_for_pydantic() -> None:
    code = "import sys, deploy.inventory; sys.exit('pydantic' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
