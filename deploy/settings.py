"""What an inventory says about a host, typed: how to reach it, what to run there, the server's environment.

Imports pydantic: import it where it is used, not at the top of a module that must load quickly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from deploy.desired import GpuKind, ServiceBackend
from deploy.errors import InputErrors, InventoryError
from deploy.inventory import Inventory, InventoryHost, read_inventory
from deploy.inventory_keys import ENVIRONMENT_KINDS, OUR_KEYS
from deploy.server_values import plain_text, server_value, whole_number


class Connection(StrEnum):
    """How commands get to a host."""

    LOCAL = "local"
    SSH = "ssh"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """The settings of one host, every default filled in.

    `port` and `user` are None where the inventory leaves them to SSH's own configuration, `version` where it
    names none. `inventory` is the file that says all this; `key_file` is a private key's path as it is
    written there, in the line `key_file_line`. `models` are names from `models.toml`. `batch` are counts or
    percentages of hosts ("1", "25%"), one batch after the other, the last repeated. `health_every_minutes` is
    None where the host is not to check itself, `textfile_dir` None where node_exporter looks in the usual
    place. `notify_file` is a path on this machine as it is written in the line `notify_file_line`, `""` where
    nobody is to be notified, None where the host decides. `environment` is that of the server process,
    OLLAMA_HOST always as `host:port`.
    """

    connection: Connection
    address: str
    port: int | None
    user: str | None
    inventory: str
    key_file: str | None = None
    key_file_line: int | None = None
    version: str | None
    models: tuple[str, ...]
    models_dir: PurePosixPath
    gpu: GpuKind
    service: ServiceBackend
    root: PurePosixPath
    batch: tuple[str, ...]
    max_failures: int
    health_every_minutes: int | None
    textfile_dir: PurePosixPath | None
    notify_file: str | None = None
    notify_file_line: int | None = None
    environment: dict[str, str]


DEFAULT_ENVIRONMENT = {
    "OLLAMA_HOST": "127.0.0.1:11434",
    "OLLAMA_GO_TEMPLATE": "1",
    "OLLAMA_NO_CLOUD": "1",
    "OLLAMA_KEEP_ALIVE": "-1",
}
"""Stated always, since Ollama's own defaults differ between its versions."""

_SYSTEMD_MODELS_DIR = PurePosixPath("/usr/share/ollama/.ollama/models")  # of Ollama's own install.sh
_SYSTEM_DIRECTORIES = frozenset(
    "/ /bin /boot /dev /etc /home /lib /lib64 /media /mnt /opt /proc /root /run /sbin /srv /sys /tmp /usr "
    "/var".split()
)
"""hier(7): what lies there is not only Ollama's."""
_CONNECTIONS = {
    "local": Connection.LOCAL,
    **dict.fromkeys(("ssh", "smart", "paramiko", "paramiko_ssh"), Connection.SSH),
}
_KEY_FILE = ("ansible_ssh_private_key_file", "ansible_private_key_file")
_VERSION = re.compile(r"v?([0-9]+\.[0-9]+\.[0-9]+(?:-rc[0-9]+)?)")
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_PERIODS = {
    **{f"{minutes}m": minutes for minutes in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30)},
    **{f"{hours}h": hours * 60 for hours in (1, 2, 3, 4, 6, 8, 12)},
    "1d": 1440,
}
"""In minutes: what divides an hour or a day, as a calendar needs it."""
_DEFAULT_PERIOD_MINUTES = 5
_BATCH = re.compile(r"[1-9][0-9]{0,5}|(?:[1-9][0-9]?|100)%")


def parse_data_home(environment: Mapping[str, str], home: PurePosixPath) -> PurePosixPath:
    """Where a user's data lies: `$XDG_DATA_HOME` if absolute (XDG Base Directory), else below `home`."""
    given = PurePosixPath(environment.get("XDG_DATA_HOME", ""))
    return given if given.is_absolute() else home / ".local/share"


def parse_settings(inventory: Inventory, host: InventoryHost, *, data_home: PurePosixPath) -> HostSettings:
    """The settings of one host. Raises InputErrors with all its problems.

    `data_home` is the controller's, see `parse_data_home`: what the `process` backend of a local host keeps
    lies in `ollama-fleet` below it.
    """
    problems, settings = _parse(inventory, host, data_home)
    if settings is None:
        raise InputErrors(sentence=f"`{host.name}` has {len(problems)} problem(s)", problems=tuple(problems))
    return settings


def check_settings(inventory: Inventory, *, data_home: PurePosixPath) -> dict[str, HostSettings]:
    """The settings of every host, by name. Raises InputErrors with the problems of all, each shown once."""
    problems, result = _parse_all(inventory, data_home)
    if problems:
        raise _input_errors(inventory.path, problems)
    return result


def load_settings(path: Path, *, data_home: PurePosixPath) -> tuple[Inventory, dict[str, HostSettings]]:
    """Reads the inventory and the settings of every host, by name.

    Raises InputErrors with all problems of both at once.
    """
    inventory, problems = read_inventory(path)
    bad_values, result = _parse_all(inventory, data_home) if inventory else ([], {})
    if inventory is None or problems or bad_values:
        raise _input_errors(str(path), problems + bad_values)
    return inventory, result


def _parse_all(
    inventory: Inventory, data_home: PurePosixPath
) -> tuple[list[InventoryError], dict[str, HostSettings]]:
    found: dict[
        tuple[int | None, str], InventoryError
    ] = {}  # a value of a group is wrong once, not for every host
    result = {}
    for host in inventory.hosts.values():
        problems, settings = _parse(inventory, host, data_home)
        for problem in problems:
            found.setdefault((problem.line, problem.sentence), problem)
        if settings is not None:
            result[host.name] = settings
    return list(found.values()), result


def _input_errors(path: str, problems: list[InventoryError]) -> InputErrors:
    ordered = sorted(problems, key=lambda problem: problem.line or 0)
    return InputErrors(sentence=f"`{path}` has {len(ordered)} problem(s)", path=path, problems=tuple(ordered))


def _read_connection(value: Any) -> Connection:
    name = plain_text(value).removeprefix("ansible.builtin.")
    if name not in _CONNECTIONS:
        raise ValueError("ssh or local")
    return _CONNECTIONS[name]


def _read_version(value: Any) -> str:
    match = _VERSION.fullmatch(plain_text(value))
    if not match:
        raise ValueError("a version such as 0.17.5 or 0.33.0-rc2")
    return match[1]


def _items(value: Any) -> list[str]:
    """Items of a list, or of text with commas; `[a, b]` too, which is what a shell leaves of `['a', 'b']`."""
    if not isinstance(value, list):
        text = plain_text(value)
        bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        value = [item.strip().strip("'\"") for item in bare.split(",")] if bare.strip() else []
    return [plain_text(item) for item in value]


def _read_models(value: Any) -> tuple[str, ...]:
    names = _items(value)
    if not all(_MODEL_NAME.fullmatch(name) for name in names):
        raise ValueError("names from models.toml, separated by commas")
    if len({name.lower() for name in names}) < len(names):
        raise ValueError("every model once: Ollama does not tell upper from lower case")
    return tuple(names)


def parse_batch(value: Any) -> tuple[str, ...]:
    """The sizes of batches. Raises ValueError with what was expected."""
    items = _items(value)
    if not items or not all(_BATCH.fullmatch(item) for item in items):
        raise ValueError("counts or percentages of hosts, such as 1,5,25%")
    return tuple(items)


def parse_max_failures(value: Any) -> int:
    """How many hosts may fail. Raises ValueError with what was expected."""
    return whole_number(value, lowest=0, highest=1_000_000)


def read_period(value: Any) -> int | None:
    """In minutes, None for `off`. Raises ValueError."""
    text = "off" if value is False else plain_text(value).lower()
    if text in ("off", "none"):
        return None
    if text not in _PERIODS:
        raise ValueError("off, or a period that divides an hour or a day, such as 5m, 30m, 6h or 1d")
    return _PERIODS[text]


def _read_directory(value: Any) -> PurePosixPath:
    path = PurePosixPath(plain_text(value))
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError("an absolute path without `..`")
    return path


def _read_store(value: Any) -> PurePosixPath:
    path = _read_directory(value)
    if str(path) in _SYSTEM_DIRECTORIES:
        raise ValueError("a directory of its own, not one of the system's")
    return path


def _read_word(value: Any) -> str:
    text = plain_text(value)
    if not text or re.search(r"\s", text) or text.startswith("-"):
        raise ValueError("one word that does not begin with `-`")
    return text


def _read_path(value: Any) -> str:
    text = plain_text(value)
    if not text:
        raise ValueError("the path of a file")
    return text


def _read_notify_file(value: Any) -> str:
    text = "off" if value is False or value is None else _read_path(value)
    return "" if text.lower() in ("off", "none") else text


def _read_choice(value: Any) -> str:
    return "none" if value is None else plain_text(value).lower()


class _Variables(BaseModel):
    """The variables that mean something to us; of two names for one thing, Ansible's winner first."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    ansible_connection: Annotated[Connection, BeforeValidator(_read_connection)] = Connection.SSH
    address: Annotated[str | None, BeforeValidator(_read_word)] = Field(
        None, validation_alias=AliasChoices("ansible_ssh_host", "ansible_host")
    )
    port: Annotated[
        int | None, BeforeValidator(lambda value: whole_number(value, lowest=1, highest=65535))
    ] = Field(None, validation_alias=AliasChoices("ansible_ssh_port", "ansible_port"))
    user: Annotated[str | None, BeforeValidator(_read_word)] = Field(
        None, validation_alias=AliasChoices("ansible_ssh_user", "ansible_user")
    )
    key_file: Annotated[str | None, BeforeValidator(_read_path)] = Field(
        None, validation_alias=AliasChoices(*_KEY_FILE)
    )
    ollama_version: Annotated[str | None, BeforeValidator(_read_version)] = None
    ollama_models: Annotated[tuple[str, ...], BeforeValidator(_read_models)] = ()
    ollama_models_dir: Annotated[PurePosixPath | None, BeforeValidator(_read_store)] = None
    ollama_gpu: Annotated[GpuKind, BeforeValidator(_read_choice)] = GpuKind.NVIDIA
    ollama_service: Annotated[ServiceBackend, BeforeValidator(_read_choice)] = ServiceBackend.SYSTEMD
    ollama_root: Annotated[PurePosixPath | None, BeforeValidator(_read_directory)] = None
    ollama_batch: Annotated[tuple[str, ...], BeforeValidator(parse_batch)] = ("100%",)
    ollama_max_failures: Annotated[int, BeforeValidator(parse_max_failures)] = 0
    ollama_health_every: Annotated[int | None, BeforeValidator(read_period)] = _DEFAULT_PERIOD_MINUTES
    ollama_textfile_dir: Annotated[PurePosixPath | None, BeforeValidator(_read_directory)] = None
    ollama_notify_file: Annotated[str | None, BeforeValidator(_read_notify_file)] = None


def _server_setting(key: str) -> TypeAdapter[str]:
    kind = ENVIRONMENT_KINDS[key]
    return TypeAdapter(Annotated[str, BeforeValidator(lambda value: server_value(kind, value))])


def _parse(
    inventory: Inventory, host: InventoryHost, data_home: PurePosixPath
) -> tuple[list[InventoryError], HostSettings | None]:
    # Ansible takes a connection variable that is None for unset.
    given = {key: value for key, value in host.variables.items() if value is not None or key in OUR_KEYS}
    problems: list[InventoryError] = []
    environment = dict(DEFAULT_ENVIRONMENT)
    for key in sorted(given.keys() & ENVIRONMENT_KINDS.keys()):
        try:
            environment[key.upper()] = _server_setting(key).validate_python(given[key])
        except ValidationError as error:
            problems += _explain(inventory, host, error, key)
    try:
        variables = _Variables.model_validate(given)
    except ValidationError as error:
        return problems + _explain(inventory, host, error), None
    root = variables.ollama_root or _default_root(variables, data_home)
    if root is None:
        problems.append(_no_root(inventory, host))
    elif variables.ollama_service is ServiceBackend.SYSTEMD and root != PurePosixPath("/"):
        problems.append(_root_with_systemd(inventory, host))
    if problems or root is None:
        return problems, None
    models_dir = variables.ollama_models_dir or _default_models_dir(variables.ollama_service, root)
    return [], HostSettings(
        connection=variables.ansible_connection,
        address=variables.address or host.name,
        port=variables.port,
        user=variables.user,
        inventory=inventory.path,
        key_file=variables.key_file,
        key_file_line=next((host.lines.get(name) for name in _KEY_FILE if name in given), None),
        version=variables.ollama_version,
        models=variables.ollama_models,
        models_dir=models_dir,
        gpu=variables.ollama_gpu,
        service=variables.ollama_service,
        root=root,
        batch=variables.ollama_batch,
        max_failures=variables.ollama_max_failures,
        health_every_minutes=variables.ollama_health_every,
        textfile_dir=variables.ollama_textfile_dir,
        notify_file=variables.ollama_notify_file,
        notify_file_line=host.lines.get("ollama_notify_file"),
        environment=environment | {"OLLAMA_MODELS": str(models_dir)},
    )


def _default_root(variables: _Variables, data_home: PurePosixPath) -> PurePosixPath | None:
    if variables.ollama_service is ServiceBackend.SYSTEMD:
        return PurePosixPath("/")
    return data_home / "ollama-fleet" if variables.ansible_connection is Connection.LOCAL else None


def _default_models_dir(service: ServiceBackend, root: PurePosixPath) -> PurePosixPath:
    return _SYSTEMD_MODELS_DIR if service is ServiceBackend.SYSTEMD else root / "var/lib/ollama/models"


def _no_root(inventory: Inventory, host: InventoryHost) -> InventoryError:
    return InventoryError(
        sentence="`ollama_service=process` over SSH needs `ollama_root`",
        path=inventory.path,
        line=host.lines.get("ollama_service", host.line),
        hint="name a directory that the SSH user may write, such as ollama_root=/home/USER/ollama-fleet",
    )


def _root_with_systemd(inventory: Inventory, host: InventoryHost) -> InventoryError:
    return InventoryError(
        sentence="`ollama_root` has no meaning with `ollama_service=systemd`",
        path=inventory.path,
        line=host.lines.get("ollama_root", host.line),
        cause="units, releases and state lie where systemd and the distribution expect them",
        hint="leave it out; `ollama_models_dir` names another disk for the models",
    )


def _explain(
    inventory: Inventory, host: InventoryHost, error: ValidationError, key: str | None = None
) -> list[InventoryError]:
    problems = []
    for detail in error.errors(include_url=False):
        name = key or str(detail["loc"][0])
        cause: Mapping[str, Any] = detail.get("ctx", {})
        expected = str(cause["error"]) if "error" in cause else detail["msg"].removeprefix("Input should be ")
        problems.append(
            InventoryError(
                sentence=f"`{name}` cannot be used",
                path=inventory.path,
                line=host.lines.get(name, host.line),
                expected=expected,
                actual=f"`{host.variables.get(name)}`",
            )
        )
    return problems
