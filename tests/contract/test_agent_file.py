"""The agent as one file: what is locked for it, for every Python that a host may have."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from console import agent
from console.agent import PYTHONS, cached_agents, given_agent, packed_files, recipe
from console.paths import PROJECT
from deploy.errors import AgentNotBuilt, UsageError

COMPILED = ("charset_normalizer", "psutil", "pyyaml", "rpds_py")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe.cache_clear()
    yield tmp_path / "ollama-fleet/agents"
    recipe.cache_clear()


def locked() -> dict[str, str]:
    text = (PROJECT / "requirements/agent.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def test_what_the_agent_imports_is_locked_and_nothing_is_built_from_source() -> None:
    wanted = re.findall(r"^([\w-]+)$", (PROJECT / "requirements/agent.in").read_text(), re.MULTILINE)
    names = {name.replace("_", "-") for name in locked()}
    assert {name.replace("_", "-") for name in wanted} <= names
    assert "--no-build" in agent._options()


def test_the_checks_go_along_with_their_data_and_nothing_of_the_controller() -> None:
    packed = {str(path.relative_to(PROJECT)) for path in packed_files()}
    assert {
        "healthchecks/agent.py",
        "healthchecks/vulnerable.json",
        "healthchecks/cases/weather_one_call.json",
    } <= packed
    assert all(path.startswith("healthchecks/") for path in packed)


def test_another_check_or_package_is_another_recipe(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipe()
    monkeypatch.setattr(agent, "packed_files", lambda: packed_files()[1:])
    recipe.cache_clear()
    assert recipe() != before
    assert re.fullmatch("[0-9a-f]{16}", before)


def test_an_agent_that_was_built_elsewhere_is_found_from_then_on(cache: Path, tmp_path: Path) -> None:
    assert cached_agents() == {}
    given = tmp_path / "from-elsewhere-amd64.pex"
    given.write_bytes(b"agent")
    given_agent(given, ["amd64"])
    found = cached_agents()["amd64"]
    assert (found.size_bytes, found.name) == (5, f"{found.sha256[:16]}.pex")
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize("name", ["agent.pex", "agent-arm64.pex", "absent-amd64.pex"])
def test_a_file_that_is_no_agent_for_these_hosts_is_refused(cache: Path, tmp_path: Path, name: str) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_bytes(b"agent")
    with pytest.raises(UsageError, match="is no agent for these hosts"):
        given_agent(tmp_path / name, ["amd64"])


def test_an_index_that_does_not_answer_is_told_with_what_goes_on(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_INDEX_URL", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    told: list[str] = []
    with pytest.raises(AgentNotBuilt) as caught:
        agent.make_agents(["amd64"], told.append)
    assert "--agent FILE" in str(caught.value.hint)
    assert told == ["building the health agent for amd64 (a minute or two, once)"]
    assert [path.name for path in cache.iterdir()] == ["lock"], "nothing half is left"


def test_a_built_agent_has_a_wheel_of_each_compiled_package_for_every_python() -> None:
    """Where one lies in the cache of the practice hosts: it was built there by the tests of the hosts."""
    # Not one of other packages, which an earlier state of the project has left.
    name = agent.packages_name("amd64")
    built = Path("/var/cache/ollama-fleet/agents/ollama-fleet/agents", name)
    if not built.exists():
        pytest.skip("no agent was built on this machine: tests/hosts/test_health.py builds one")
    with zipfile.ZipFile(built) as archive:
        wheels = json.loads(archive.read("PEX-INFO"))["distributions"].keys()
    assert {wheel.partition("-")[0].lower() for wheel in wheels} == {
        name.replace("-", "_").lower() for name in locked()
    }
    for package in COMPILED:
        tags = {
            tag for wheel in wheels if wheel.startswith(package) for tag in re.findall(r"cp(\d+)-", wheel)
        }
        assert tags == set(PYTHONS) or any("abi3" in wheel for wheel in wheels if wheel.startswith(package))
