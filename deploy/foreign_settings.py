"""What files of another hand give the server: its unit, drop-ins and environment files, read with ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deploy.desired import Desired, GpuKind
from deploy.errors import ServiceError
from deploy.facts import ServerProcess, SystemdFacts
from deploy.server_plan import HIDES_GPUS, hides_all_gpus
from deploy.unit_text import assignments, environment_lines, unit_lines, words

_MODELS = "OLLAMA_MODELS"
# What a drop-in that is read after ours undoes of it, whatever it says.
_OURS_ALONE = ("ExecStart", "User")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """A variable that a file gives the server, or takes from it: then `value` is None.

    `is_last`: it counts more than ours of the same name.
    """

    name: str
    value: str | None
    line: str
    is_last: bool = False

    @property
    def is_ollamas(self) -> bool:
        return self.name.startswith("OLLAMA_")


def check_drop_ins(desired: Desired, found: SystemdFacts) -> None:
    """Drop-ins are read in the order of their names: systemd.unit(5). One after ours could undo it.

    Another variable, such as a proxy, is added to ours and may stand in any. Raises ServiceError.
    """
    ours = desired.paths.drop_in
    for path in found.unit.drop_ins:
        fact = found.files.get(path)
        if fact is None or path.rpartition("/")[2] <= ours.name:
            continue
        lines = [line for name, value, line in unit_lines(fact.text) if _undoes(name, value)]
        if lines:
            given = [item for item in _given(fact.text) if item.is_ollamas]
            raise ServiceError(
                sentence=f"`{path}` is read after our drop-in and would undo it",
                host=desired.host,
                cause="\n".join(lines),
                unchanged="everything",
                hint=f"{_keys(given, desired.host, 'and')}remove these lines",
            )


def check_settings(desired: Desired, found: SystemdFacts, environment: Mapping[str, str]) -> None:
    """A setting that only another file names would stay, whatever the inventory says; so would a hidden GPU.

    A variable of an environment file counts more than ours of the same name, and one that is unset is
    gone: systemd.exec(5). Raises ServiceError with the lines.
    """
    for path, given in _other_files(desired, found):
        wrong = [item for item in given if _stays(item, environment)]
        if wrong:
            is_named = any(item.name in environment for item in wrong)
            raise ServiceError(
                sentence=f"`{path}` would undo settings of the inventory"
                if is_named
                else f"`{path}` gives the server settings that the inventory does not name",
                host=desired.host,
                cause="\n".join(dict.fromkeys(item.line for item in wrong)),
                unchanged="everything",
                hint=f"{_keys(wrong, desired.host, 'and' if is_named else 'or')}remove the lines",
            )
    _check_gpus(desired, found, environment)


def _check_gpus(desired: Desired, found: SystemdFacts, environment: Mapping[str, str]) -> None:
    """A restart would bring nothing. An operator's choice of some GPUs stands."""
    is_hidden = hides_all_gpus(given_environment(found).get(HIDES_GPUS))
    if desired.gpu is not GpuKind.NVIDIA or HIDES_GPUS in environment or not is_hidden:
        return
    for path, given in _other_files(desired, found):
        lines = [item.line for item in given if item.name == HIDES_GPUS and hides_all_gpus(item.value)]
        if lines:
            raise ServiceError(
                sentence=f"`{path}` hides the GPUs from the server",
                host=desired.host,
                cause="\n".join(lines),
                unchanged="everything",
                hint=f"remove these lines, then systemctl daemon-reload; or set `ollama_gpu=none` for "
                f"`{desired.host}` in the inventory",
            )


def given_environment(found: SystemdFacts) -> dict[str, str]:
    """The environment of the unit as systemd would give it, its environment files last."""
    given = dict(found.environment)
    for path in found.environment_files:
        fact = found.files.get(path)
        given |= {name: value for name, value, _ in environment_lines(fact.text)} if fact is not None else {}
    return given


def adopted_store(found: SystemdFacts, server: ServerProcess | None) -> str:
    """Where the server of another hand keeps its models: Ollama's `envconfig/config.go`."""
    environment = server.environment if server is not None else given_environment(found)
    home = found.account.home if found.account is not None else "/root"
    return environment.get(_MODELS) or f"{home}/.ollama/models"


def _other_files(desired: Desired, found: SystemdFacts) -> Iterator[tuple[str, list[_Given]]]:
    """In the order in which systemd reads them. An edited file of ours is drift, and told as such."""
    ours = {str(desired.paths.drop_in)}
    if found.adopted_program is None:
        ours.add(str(desired.paths.unit))
    for path in (found.unit.fragment or "", *found.unit.drop_ins):
        if path in found.files and path not in ours:
            yield path, list(_given(found.files[path].text))
    for path in found.environment_files:
        if path in found.files:
            lines = environment_lines(found.files[path].text)
            yield (
                path,
                [_Given(name=name, value=value, line=line, is_last=True) for name, value, line in lines],
            )


def _given(text: str) -> Iterator[_Given]:
    for name, value, line in unit_lines(text):
        if name == "Environment":
            for variable, content in assignments(value).items():
                yield _Given(name=variable, value=content, line=line)
        elif name == "UnsetEnvironment":
            for word in words(value):
                yield _Given(name=word.partition("=")[0], value=None, line=line)


def _stays(item: _Given, environment: Mapping[str, str]) -> bool:
    if item.name in environment:
        return item.value is None or (item.is_last and item.value != environment[item.name])
    return item.is_ollamas and item.value is not None


def _undoes(name: str, value: str) -> bool:
    if name in _OURS_ALONE or (name in ("Environment", "EnvironmentFile") and not value):
        return True
    return name == "Environment" and any(
        variable.startswith("OLLAMA_") or variable in ("HOME", "PATH") for variable in assignments(value)
    )


def _keys(given: list[_Given], host: str, link: str) -> str:
    """What to set in the inventory instead, as the beginning of a hint."""
    values = {item.name: item.value for item in given if item.is_ollamas and item.value is not None}
    if not values:
        return ""
    names = {name: "ollama_models_dir" if name == _MODELS else name.lower() for name in values}
    keys = ", ".join(f"`{names[name]}={value}`" for name, value in values.items())
    return f"set {keys} for `{host}` in the inventory, {link} "
