"""The plan of a host that systemd runs: files, account, lease, adoption, drift."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest

from deploy.apply import in_rounds
from deploy.desired import Desired, GpuKind, HostPaths, ServiceBackend
from deploy.errors import ServiceError, UsageError
from deploy.facts import (
    Account,
    FileFact,
    HostFacts,
    Listener,
    ProcessId,
    ServerProcess,
    SystemdFacts,
    UnitState,
)
from deploy.plan import only_create, only_service, plan
from deploy.server_plan import choose_release, server_environment
from deploy.soak import confirmed_at
from deploy.steps import OverwriteFile, StartServer, SwitchRelease, TakeLease, WriteFile
from deploy.units import (
    ENABLED_UNITS,
    Hand,
    host_files,
    load_unit,
    quoted,
    render_signed,
    server_files,
    written_by,
)
from tests.unit.test_plan import CONVERGED as PROCESS_CONVERGED
from tests.unit.test_plan import DESIRED as PROCESS_DESIRED
from tests.unit.test_plan import EMPTY as PROCESS_EMPTY
from tests.unit.test_plan import PLENTY, kinds

STORE = PurePosixPath("/usr/share/ollama/.ollama/models")
DESIRED = replace(
    PROCESS_DESIRED,
    connection="ssh",
    paths=HostPaths(root=PurePosixPath("/"), models_dir=STORE),
    server=replace(
        PROCESS_DESIRED.server,
        backend=ServiceBackend.SYSTEMD,
        environment={"OLLAMA_HOST": "127.0.0.1:11434", "OLLAMA_MODELS": str(STORE)},
    ),
)
ABSENT = UnitState(load_state="not-found", active_state="inactive", enabled="")
EMPTY = replace(
    PROCESS_EMPTY,
    user_id=0,
    systemd=SystemdFacts(units=dict.fromkeys(ENABLED_UNITS, ABSENT)),
    disks={str(path): PLENTY for path in (DESIRED.paths.state, DESIRED.paths.releases, STORE)},
)
RUNNING = UnitState(
    load_state="loaded",
    active_state="active",
    enabled="enabled",
    main_pid=42,
    fragment=str(DESIRED.paths.unit),
    drop_ins=(str(DESIRED.paths.drop_in),),
)
ENABLED = UnitState(load_state="loaded", active_state="inactive", enabled="enabled")
INSTALL_UNIT = """[Unit]
Description=Ollama Service

[Service]
ExecStart=/usr/local/bin/ollama serve
User=ollama
"""


def converged(desired: Desired = DESIRED, facts: HostFacts = EMPTY, **changes: Any) -> HostFacts:
    """What a host looks like once every step of its plan has been made."""
    assert facts.systemd is not None
    account = facts.systemd.account or Account(name="ollama", home="/usr/share/ollama", groups=("ollama",))
    known = replace(facts, systemd=replace(facts.systemd, account=account, user="ollama"))
    assert known.systemd is not None
    release = choose_release(desired, known)
    files = (
        *host_files(desired),
        *server_files(desired, known, release),
        load_unit(desired, known, release),
    )
    server = ServerProcess(
        process=ProcessId(pid=42, create_time=1000.0),
        command=("/opt/ollama/current/bin/ollama", "serve"),
        environment=server_environment(desired, known, release),
    )
    units = {**dict.fromkeys(ENABLED_UNITS, ENABLED), "ollama.service": RUNNING}
    written = {str(file.path): FileFact(text=file.text, mode=file.mode) for file in files}
    return replace(
        PROCESS_CONVERGED,
        user_id=0,
        store_owner="ollama",
        servers=(server,),
        listener=Listener(pid=42, command="ollama serve"),
        current=None if release.is_adopted else release.name,
        disks=EMPTY.disks,
        systemd=replace(known.systemd, units=units, files={**known.systemd.files, **written}),
        **changes,
    )


def with_systemd(facts: HostFacts, **changes: Any) -> HostFacts:
    assert facts.systemd is not None
    return replace(facts, systemd=replace(facts.systemd, **changes))


def stopped(facts: HostFacts) -> HostFacts:
    assert facts.systemd is not None
    unit = replace(facts.systemd.unit, active_state="inactive", main_pid=None)
    units = {**facts.systemd.units, "ollama.service": unit}
    return replace(with_systemd(facts, units=units), servers=(), listener=None)


def test_an_empty_host_gets_account_files_and_a_started_unit_and_no_lease() -> None:
    planned = plan(DESIRED, EMPTY)
    assert kinds(planned) == [
        "FetchArchive",
        "FetchWeights",
        "UnpackRelease",
        "MakeAccount",
        *["WriteFile"] * 8,
        "SwitchRelease",
        "StartServer",
        "CreateModel",
        "VerifyModel",
        "EnableUnits",
        "PromoteModel",
        "LoadModel",
    ]


def test_a_server_that_nothing_would_take_back_is_proven_and_watched_before_a_boot_starts_it() -> None:
    facts = converged()
    assert facts.systemd is not None
    units = {**facts.systemd.units, "ollama.service": replace(RUNNING, enabled="disabled")}
    found = stopped(with_systemd(facts, units=units))
    proven = plan(DESIRED, found)
    assert kinds(proven) == ["StartServer", "LoadModel", "VerifyModel", "EnableUnits"]
    assert confirmed_at(proven.steps) == 3
    # Without a suite in the plan it is the window that it has to live through.
    alone = plan(DESIRED, found, only_service)
    assert kinds(alone) == ["StartServer", "LoadModel", "EnableUnits"]
    assert confirmed_at(alone.steps) == 2


def test_a_converged_host_gets_nothing() -> None:
    assert plan(DESIRED, converged()).steps == ()


def test_a_changed_setting_rewrites_the_drop_in_under_a_lease_and_restarts() -> None:
    facts = converged()
    server = replace(DESIRED.server, environment={**DESIRED.server.environment, "OLLAMA_DEBUG": "1"})
    planned = plan(replace(DESIRED, server=server), facts)
    assert kinds(planned) == [
        "TakeLease",
        "WriteFile",
        "StartServer",
        "LoadModel",
        "VerifyModel",
        "EndLease",
    ]
    lease, written, start = planned.steps[:3]
    assert isinstance(lease, TakeLease)
    assert lease.files == tuple(
        str(path)
        for path in (
            DESIRED.paths.unit,
            DESIRED.paths.drop_in,
            DESIRED.paths.units / "ollama-fleet-load.service",
        )
    )
    assert isinstance(written, WriteFile)
    assert 'Environment="OLLAMA_DEBUG=1"' in written.file.text
    assert isinstance(start, StartServer)
    assert "OLLAMA_DEBUG is absent, desired `1`" in start.reason


def test_whatever_starts_the_server_has_its_models_loaded() -> None:
    steps = plan(DESIRED, EMPTY).steps
    texts = {step.file.path.name: step.file.text for step in steps if isinstance(step, WriteFile)}
    assert "\nWants=ollama-fleet-load.service\n" in texts["50-fleet.conf"]
    # There is nothing that could be disabled.
    assert "[Install]" not in texts["ollama-fleet-load.service"]


def test_a_process_that_is_to_be_another_one_is_restarted_under_a_lease() -> None:
    """The new process is as desired: a restart asks for another one, not for one more."""
    facts = converged()
    found = facts.servers[0].process
    wish = replace(DESIRED, server=replace(DESIRED.server, retired=(found,)))
    planned = plan(wish, facts, only_service)
    assert kinds(planned) == ["TakeLease", "StartServer", "LoadModel", "EndLease"]
    assert planned.steps[1].reason == f"server process is `pid {found.pid}`, desired `another one`"
    later = replace(found, create_time=found.create_time + 60)
    restarted = replace(facts, servers=(replace(facts.servers[0], process=later),))
    assert plan(wish, restarted, only_service).is_empty


def test_a_store_behind_a_link_may_be_written_to_where_it_lies() -> None:
    store = str(DESIRED.paths.models_dir)
    assert plan(DESIRED, with_systemd(converged(), store=store)).is_empty
    linked = with_systemd(converged(), store="/srv/models")
    (written,) = [step for step in plan(DESIRED, linked).steps if isinstance(step, WriteFile)]
    assert 'ReadWritePaths="/srv/models"' in written.file.text
    assert f'ReadWritePaths="{store}"' in written.file.text
    assert "StartServer" in kinds(plan(DESIRED, linked))


def test_an_upgrade_is_a_switch_under_a_lease() -> None:
    facts = replace(converged(), current="0.17.4", releases={"0.17.4": "c" * 64})
    server = replace(
        facts.servers[0], environment={**facts.servers[0].environment, "OLLAMA_FLEET_RELEASE": "c" * 64}
    )
    planned = plan(DESIRED, replace(facts, servers=(server,)))
    assert kinds(planned) == [
        "FetchArchive",
        "UnpackRelease",
        "TakeLease",
        "SwitchRelease",
        "StartServer",
        "LoadModel",
        "VerifyModel",
        "EndLease",
    ]


def test_an_upgrade_of_a_stopped_server_is_a_switch_under_a_lease_too() -> None:
    facts = replace(converged(), current="0.17.4", releases={"0.17.4": "c" * 64})
    planned = kinds(plan(DESIRED, stopped(facts)))
    assert planned[2:5] == ["TakeLease", "SwitchRelease", "StartServer"]
    assert planned[-2:] == ["VerifyModel", "EndLease"]
    # There must be something to go back to, and something that is replaced.
    assert "TakeLease" not in kinds(plan(DESIRED, stopped(replace(facts, current="nope"))))
    assert "TakeLease" not in kinds(plan(DESIRED, stopped(converged())))


def test_the_first_upgrade_of_an_official_installation_that_is_stopped_takes_a_lease() -> None:
    assert "TakeLease" in kinds(plan(DESIRED, stopped(official("0.17.4"))))


def test_a_model_that_is_promoted_in_an_upgrade_goes_back_with_the_release() -> None:
    facts = replace(converged(), current="0.17.4", releases={"0.17.4": "c" * 64}, models={})
    lease = next(step for step in plan(DESIRED, facts).steps if isinstance(step, TakeLease))
    library = STORE / "manifests/registry.ollama.ai/library"
    tags = ("latest", "previous", "candidate")
    assert lease.files[-3:] == tuple(str(library / "MyQwen2" / tag) for tag in tags)


def test_a_server_whose_program_was_changed_in_place_is_restarted_from_what_was_unpacked() -> None:
    done = converged()
    found = plan(DESIRED, replace(done, releases=dict.fromkeys(done.releases, "")))
    (started,) = [step for step in found.steps if isinstance(step, StartServer)]
    assert started.reason == "release directory is `damaged`, desired `as it was unpacked`"
    assert kinds(found)[:3] == ["FetchArchive", "UnpackRelease", "TakeLease"]
    assert kinds(found)[-2:] == ["VerifyModel", "EndLease"]


def test_models_that_are_promoted_under_the_lease_of_a_cut_run_are_saved_in_it() -> None:
    facts = with_systemd(replace(converged(), models={}), is_leased=True)
    (lease,) = [step for step in plan(DESIRED, facts).steps if isinstance(step, TakeLease)]
    assert [path.rpartition("/")[2] for path in lease.files] == ["latest", "previous", "candidate"]
    assert kinds(plan(DESIRED, facts))[:2] == ["TakeLease", "CreateModel"]


def test_a_current_that_leads_nowhere_is_no_way_back() -> None:
    facts = replace(converged(), current="nope", previous="0.17.4")
    (switch,) = [step for step in plan(DESIRED, facts).steps if isinstance(step, SwitchRelease)]
    assert switch.previous == "0.17.4"


def with_setting(facts: HostFacts, path: str, line: str) -> HostFacts:
    """`path` is read too, as a unit or as a drop-in of another hand's."""
    assert facts.systemd is not None
    unit = facts.systemd.unit
    if path != unit.fragment:
        unit = replace(unit, drop_ins=(path, *unit.drop_ins))
    files = {**facts.systemd.files, path: FileFact(text=f"{INSTALL_UNIT}{line}\n", mode="644")}
    return with_systemd(facts, files=files, units={**facts.systemd.units, "ollama.service": unit})


@pytest.mark.parametrize("where", ["unit", "drop-in"])
def test_a_setting_that_only_another_file_names_is_refused_with_its_lines(where: str) -> None:
    line = 'Environment="OLLAMA_FLASH_ATTENTION=1"'
    unit, drop_in = str(DESIRED.paths.unit), f"{DESIRED.paths.drop_in.parent}/10-x.conf"
    facts = official("0.17.5") if where == "unit" else converged()
    facts = with_setting(facts, unit if where == "unit" else drop_in, line)
    with pytest.raises(ServiceError, match="settings that the inventory does not name") as refused:
        plan(DESIRED, facts)
    assert refused.value.cause == line
    assert str(refused.value.hint).startswith("set `ollama_flash_attention=1` for `h1` in the inventory, or")
    environment = {**DESIRED.server.environment, "OLLAMA_FLASH_ATTENTION": "1"}
    assert plan(replace(DESIRED, server=replace(DESIRED.server, environment=environment)), facts).steps


def test_a_file_of_ours_that_belongs_to_another_account_is_written_again() -> None:
    done = converged()
    assert done.systemd is not None
    path = str(DESIRED.paths.lease_program)
    files = {**done.systemd.files, path: replace(done.systemd.files[path], owner="admin")}
    (step,) = plan(DESIRED, with_systemd(done, files=files)).steps
    assert isinstance(step, WriteFile)
    assert step.reason == "owner is `admin`, desired `root`"


def test_a_single_service_phase_ends_the_lease_that_it_takes() -> None:
    facts = converged()
    server = replace(DESIRED.server, environment={**DESIRED.server.environment, "OLLAMA_DEBUG": "1"})
    planned = kinds(plan(replace(DESIRED, server=server), facts, only_service))
    assert planned == ["TakeLease", "WriteFile", "StartServer", "LoadModel", "EndLease"]


def test_a_single_service_phase_does_not_confirm_what_a_cut_run_has_switched_to() -> None:
    """Neither as it is nor by a restart: the host goes back, or `deploy` verifies it."""
    leased = with_systemd(converged(), is_leased=True)
    restarted = replace(DESIRED, server=replace(DESIRED.server, retired=(leased.servers[0].process,)))
    for wanted in (DESIRED, restarted):
        with pytest.raises(ServiceError, match="is not confirmed yet") as refused:
            plan(wanted, leased, only_service)
        assert refused.value.unchanged == "everything"
    assert kinds(plan(DESIRED, leased, only_create)) == ["VerifyModel", "EndLease"]


def test_a_switch_that_was_not_confirmed_is_verified_before_its_lease_is_ended() -> None:
    assert kinds(plan(DESIRED, with_systemd(converged(), is_leased=True))) == ["VerifyModel", "EndLease"]


def test_a_unit_that_failed_is_started_and_the_cause_named() -> None:
    unit = replace(RUNNING, active_state="failed", main_pid=None, result="exit-code")
    facts = converged()
    assert facts.systemd is not None
    units = {**facts.systemd.units, "ollama.service": unit}
    planned = plan(DESIRED, replace(with_systemd(facts, units=units), servers=(), listener=None))
    assert kinds(planned) == ["StartServer", "LoadModel", "VerifyModel"]
    assert planned.steps[0].reason == "the unit is failed (exit-code)"


def test_a_unit_that_is_not_started_at_boot_is_enabled_without_a_restart() -> None:
    facts = converged()
    assert facts.systemd is not None
    units = {**facts.systemd.units, "ollama.service": replace(RUNNING, enabled="disabled")}
    assert kinds(plan(DESIRED, with_systemd(facts, units=units))) == ["EnableUnits"]


def edited(facts: HostFacts, path: PurePosixPath, old: str, new: str) -> HostFacts:
    assert facts.systemd is not None
    fact = facts.systemd.files[str(path)]
    assert old in fact.text
    files = {**facts.systemd.files, str(path): replace(fact, text=fact.text.replace(old, new))}
    return with_systemd(facts, files=files)


def test_a_unit_of_another_hand_in_the_place_of_ours_is_an_overwrite() -> None:
    """Ollama's install.sh was run over it: the program of its unit is not adopted, nor is its account."""
    done = converged()
    assert done.systemd is not None
    files = {**done.systemd.files, str(DESIRED.paths.unit): FileFact(text=INSTALL_UNIT, mode="644")}
    facts = with_systemd(
        done,
        files=files,
        user="",
        foreign_program="/usr/local/bin/ollama",
        foreign_version="0.17.5",
        is_replaced=True,
    )
    (step,) = [step for step in plan(DESIRED, facts).steps if isinstance(step, OverwriteFile)]
    assert step.file.path == DESIRED.paths.unit
    assert "line is `ExecStart=/usr/local/bin/ollama serve`, desired absent" in step.reason
    lost = replace(facts, current=None)
    assert not choose_release(DESIRED, lost).is_adopted
    (switch,) = [step for step in plan(DESIRED, lost).steps if isinstance(step, SwitchRelease)]
    assert switch.previous != "adopted"


def test_only_a_drop_in_beside_our_own_unit_says_so() -> None:
    mark = "# Beside a unit of our own:"
    assert mark in server_files(DESIRED, EMPTY, choose_release(DESIRED, EMPTY))[1].text
    for version in ("0.17.4", "0.17.5"):
        facts = official(version)
        (drop_in,) = server_files(DESIRED, facts, choose_release(DESIRED, facts))
        assert mark not in drop_in.text


def test_a_hand_edited_file_is_an_overwrite_and_its_lines_are_named() -> None:
    facts = edited(converged(), DESIRED.paths.drop_in, "RestartSec=3", "RestartSec=30")
    planned = plan(DESIRED, facts)
    step = next(step for step in planned.steps if isinstance(step, OverwriteFile))
    assert step.file.path == DESIRED.paths.drop_in
    said = "edited by hand: line is `RestartSec=30`, desired absent; line is absent, desired `RestartSec=3`"
    assert step.reason == said
    assert step.backup.parent == DESIRED.paths.backups


def test_a_file_of_another_mode_is_written_again() -> None:
    facts = converged()
    assert facts.systemd is not None
    path = str(DESIRED.paths.lease_program)
    files = {**facts.systemd.files, path: replace(facts.systemd.files[path], mode="644")}
    planned = plan(DESIRED, with_systemd(facts, files=files))
    assert kinds(planned) == ["WriteFile"]
    assert planned.steps[0].reason == "mode is `644`, desired `755`"


def official(version: str) -> HostFacts:
    """A host that Ollama's own install.sh set up: scripts/install.sh of Ollama."""
    environment = {"HOME": "/usr/share/ollama", "PATH": "/usr/bin"}
    server = ServerProcess(
        process=ProcessId(pid=42, create_time=1000.0),
        command=("/usr/local/bin/ollama", "serve"),
        environment=environment,
    )
    return replace(
        PROCESS_CONVERGED,
        user_id=0,
        store_owner="ollama",
        servers=(server,),
        listener=Listener(pid=42, command="ollama serve"),
        current=None,
        releases={},
        disks=EMPTY.disks,
        systemd=SystemdFacts(
            units={
                **dict.fromkeys(ENABLED_UNITS, ABSENT),
                "ollama.service": replace(RUNNING, drop_ins=()),
            },
            files={str(DESIRED.paths.unit): FileFact(text=INSTALL_UNIT, mode="644")},
            user="ollama",
            account=Account(name="ollama", home="/usr/share/ollama", groups=("ollama", "video")),
            foreign_program="/usr/local/bin/ollama",
            foreign_version=version,
        ),
    )


def test_an_official_installation_of_the_wanted_version_is_adopted_without_a_download() -> None:
    planned = plan(DESIRED, official("0.17.5"))
    assert kinds(planned) == [
        *["WriteFile"] * 5,
        # A lease without it would be ended by no start of the host.
        "EnableUnits",
        "TakeLease",
        "WriteFile",
        "WriteFile",
        "StartServer",
        "LoadModel",
        "VerifyModel",
        "EndLease",
    ]
    texts = {str(step.file.path): step.file.text for step in planned.steps if isinstance(step, WriteFile)}
    assert str(DESIRED.paths.unit) not in texts
    drop_in = texts[str(DESIRED.paths.drop_in)]
    assert "ExecStart" not in drop_in
    assert "EnvironmentFile" not in drop_in
    assert 'Environment="OLLAMA_FLEET_RELEASE=adopted"' in drop_in
    load = texts[str(DESIRED.paths.units / "ollama-fleet-load.service")]
    assert "/load /usr/local/bin/ollama MyQwen2:latest" in load


@pytest.mark.parametrize(
    ("active", "enabled", "kept"),
    [
        ("active", "enabled", None),
        ("active", "disabled", "active disabled\n"),
        ("inactive", "enabled", "inactive enabled\n"),
        ("failed", "disabled", "inactive disabled\n"),
    ],
)
def test_what_an_adopted_server_did_before_us_is_kept_once(
    active: str, enabled: str, kept: str | None
) -> None:
    facts = official("0.17.5")
    assert facts.systemd is not None
    unit = replace(facts.systemd.unit, active_state=active, enabled=enabled)
    found = with_systemd(facts, units={**facts.systemd.units, "ollama.service": unit})
    steps = plan(DESIRED, found).steps
    texts = {step.file.path: step.file.text for step in steps if isinstance(step, WriteFile)}
    record = DESIRED.paths.adopted_record
    assert texts.get(record) == kept
    paths = list(texts)
    if kept is not None:
        assert paths.index(record) < paths.index(DESIRED.paths.drop_in)
    # Later it is us who stop and disable it.
    drop_in = {str(DESIRED.paths.drop_in): FileFact(text=texts[DESIRED.paths.drop_in], mode="644")}
    again = with_systemd(found, files={**facts.systemd.files, **drop_in})
    assert record not in {
        step.file.path for step in plan(DESIRED, again).steps if isinstance(step, WriteFile)
    }


def test_an_adopted_host_is_as_desired_afterwards() -> None:
    assert plan(DESIRED, converged(facts=official("0.17.5"))).steps == ()


def test_the_first_upgrade_of_an_official_installation_takes_over_its_binary_and_remembers_it() -> None:
    planned = plan(DESIRED, official("0.17.4"))
    assert kinds(planned)[:2] == ["FetchArchive", "UnpackRelease"]
    switch = next(step for step in planned.steps if isinstance(step, SwitchRelease))
    assert (switch.previous, switch.version) == ("adopted", "0.17.5")
    drop_in = next(
        step.file.text
        for step in planned.steps
        if isinstance(step, WriteFile) and step.file.path == DESIRED.paths.drop_in
    )
    assert "ExecStart=\nExecStart=/opt/ollama/current/bin/ollama serve\n" in drop_in


def test_going_back_to_the_adopted_binary_removes_our_command() -> None:
    desired = replace(DESIRED, server=replace(DESIRED.server, release="adopted", archives={}))
    upgraded = converged(facts=official("0.17.4"))
    assert upgraded.current == "0.17.5"
    planned = plan(desired, upgraded)
    switch = next(step for step in planned.steps if isinstance(step, SwitchRelease))
    assert (switch.previous, switch.version) == ("0.17.5", "adopted")
    written = [step.file for step in planned.steps if isinstance(step, WriteFile)]
    assert [file.path for file in written if "ExecStart=/opt" in file.text] == []


def test_a_store_that_would_disappear_by_adoption_is_refused_with_the_setting_that_keeps_it() -> None:
    facts = official("0.17.5")
    server = replace(facts.servers[0], environment={"OLLAMA_MODELS": "/data/models"})
    with pytest.raises(ServiceError, match="`/data/models`") as refused:
        plan(DESIRED, replace(facts, servers=(server,)))
    assert "ollama_models_dir=/data/models" in str(refused.value.hint)


ENVIRONMENT_FILE = "/etc/default/ollama"


def with_environment_file(facts: HostFacts, text: str, **environment: str) -> HostFacts:
    """The unit reads a file of another hand too."""
    assert facts.systemd is not None
    files = {**facts.systemd.files, ENVIRONMENT_FILE: FileFact(text=text, mode="644")}
    return with_systemd(facts, files=files, environment=environment, environment_files=(ENVIRONMENT_FILE,))


@pytest.mark.parametrize("text", ["", "OLLAMA_MODELS='/data/my models'\n", "# none\nOLLAMA_MODELS=/data/x\n"])
def test_the_store_of_a_stopped_server_is_what_systemd_would_give_it(text: str) -> None:
    """An environment file counts more than `Environment=`."""
    facts = with_environment_file(stopped(official("0.17.5")), text, OLLAMA_MODELS="/data/my models")
    with pytest.raises(ServiceError, match="keeps its models in") as refused:
        plan(DESIRED, facts)
    assert refused.value.actual == ("/data/x" if "x" in text else "/data/my models")


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("A=1\nOLLAMA_HOST=0.0.0.0\n", "OLLAMA_HOST=0.0.0.0", "set `ollama_host=0.0.0.0`"),
        ('OLLAMA_DEBUG="1"\n', 'OLLAMA_DEBUG="1"', "set `ollama_debug=1`"),
        ("HOME=/srv\n", "HOME=/srv", "remove the lines"),
    ],
)
@pytest.mark.parametrize("is_adopted", [True, False])
def test_an_environment_file_that_counts_more_than_ours_is_refused_before_anything_is_changed(
    text: str, line: str, hint: str, is_adopted: bool
) -> None:
    facts = official("0.17.5") if is_adopted else converged()
    with pytest.raises(ServiceError, match=f"`{ENVIRONMENT_FILE}`") as refused:
        plan(DESIRED, with_environment_file(facts, text))
    assert refused.value.cause == line
    assert hint in str(refused.value.hint)


def test_an_environment_file_that_says_what_we_say_or_another_thing_is_kept() -> None:
    text = f"OLLAMA_HOST=127.0.0.1:11434\nHTTPS_PROXY=http://proxy\nOLLAMA_MODELS={STORE}\n"
    assert plan(DESIRED, with_environment_file(converged(), text)).is_empty


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ('Environment="A=1" \\\n  "OLLAMA_DEBUG=1"', 'Environment="A=1"    "OLLAMA_DEBUG=1"'),
        ("UnsetEnvironment=OLLAMA_HOST", "UnsetEnvironment=OLLAMA_HOST"),
    ],
)
@pytest.mark.parametrize("where", ["unit", "drop-in"])
def test_a_continued_line_and_an_unset_variable_are_seen(lines: str, cause: str, where: str) -> None:
    facts = official("0.17.5") if where == "unit" else converged()
    path = DESIRED.paths.unit if where == "unit" else DESIRED.paths.drop_in.with_name("10-x.conf")
    with pytest.raises(ServiceError, match=str(path)) as refused:
        plan(DESIRED, with_setting(facts, str(path), lines))
    assert refused.value.cause == cause


def test_a_proxy_of_a_later_drop_in_is_kept_and_what_undoes_ours_is_not() -> None:
    """`systemctl edit` writes override.conf, which is read after ours."""
    path = str(DESIRED.paths.drop_in.with_name("override.conf"))
    assert plan(
        DESIRED, with_setting_alone(converged(), path, "Environment=HTTPS_PROXY=http://proxy")
    ).is_empty
    for line in ("Environment=", "Environment=A=1 OLLAMA_DEBUG=1", "EnvironmentFile=", "User=root"):
        with pytest.raises(ServiceError, match="would undo it") as refused:
            plan(DESIRED, with_setting_alone(converged(), path, line))
        assert refused.value.cause == line
        assert ("`ollama_debug=1`" in str(refused.value.hint)) == ("DEBUG" in line)


def with_setting_alone(facts: HostFacts, path: str, line: str) -> HostFacts:
    there = with_setting(facts, path, "")
    assert there.systemd is not None
    files = {**there.systemd.files, path: FileFact(text=f"[Service]\n{line}\n", mode="644")}
    return with_systemd(there, files=files)


NVIDIA = replace(DESIRED, gpu=GpuKind.NVIDIA)


def hiding(facts: HostFacts, value: str) -> HostFacts:
    (server,) = facts.servers
    environment = {**server.environment, "CUDA_VISIBLE_DEVICES": value}
    return replace(facts, servers=(replace(server, environment=environment),))


@pytest.mark.parametrize(("value", "is_drift"), [("-1", True), ("", True), ("none", True), ("0,1", False)])
def test_a_server_that_was_told_to_see_no_gpu_is_drift(value: str, is_drift: bool) -> None:
    facts = hiding(converged(NVIDIA), value)
    starts = [step for step in plan(NVIDIA, facts).steps if isinstance(step, StartServer)]
    assert [step.reason for step in starts] == (
        [f"CUDA_VISIBLE_DEVICES is `{value}`, desired absent"] if is_drift else []
    )
    assert plan(DESIRED, hiding(converged(), value)).is_empty


def test_a_file_that_hides_the_gpus_is_named_since_a_restart_would_bring_nothing() -> None:
    path = str(DESIRED.paths.drop_in.with_name("60-x.conf"))
    line = "Environment=CUDA_VISIBLE_DEVICES=-1"
    there = with_setting_alone(hiding(converged(NVIDIA), "-1"), path, line)
    given = with_systemd(there, environment={"CUDA_VISIBLE_DEVICES": "-1"})
    with pytest.raises(ServiceError, match=f"`{path}` hides the GPUs") as refused:
        plan(NVIDIA, given)
    assert refused.value.cause == line
    # What comes after it counts, and so do some of the GPUs.
    assert plan(NVIDIA, with_systemd(there, environment={"CUDA_VISIBLE_DEVICES": "0,1"})).steps
    hidden = with_environment_file(converged(NVIDIA), "CUDA_VISIBLE_DEVICES=\n")
    with pytest.raises(ServiceError, match=f"`{ENVIRONMENT_FILE}` hides the GPUs"):
        plan(NVIDIA, hidden)


def test_an_adopted_server_whose_program_was_replaced_is_restarted() -> None:
    facts = with_systemd(official("0.17.5"), foreign_stamp="7 100 2026-11-27 09:00:00.1 +0000")
    done = converged(facts=facts)
    assert plan(DESIRED, done).is_empty
    found = plan(DESIRED, with_systemd(done, foreign_stamp="8 100 2026-11-27 09:00:00.1 +0000"))
    (start,) = [step for step in found.steps if isinstance(step, StartServer)]
    assert "running release is `adopted, from a program that was replaced since`" in start.reason
    assert kinds(found)[0] == "TakeLease"
    assert kinds(found)[-1] == "EndLease"


def test_weights_of_another_account_are_refused_where_the_server_needs_them() -> None:
    done = converged()
    ((sha256, blob),) = [(model.weights.sha256, done.blobs[model.weights.sha256]) for model in DESIRED.models]
    theirs = replace(done, blobs={sha256: replace(blob, owner="root"), "0" * 64: replace(blob, owner="root")})
    with pytest.raises(ServiceError, match=sha256) as refused:
        plan(DESIRED, theirs)
    assert str(refused.value.hint).startswith("chown ollama: ")
    ours = replace(done, blobs={**theirs.blobs, sha256: replace(blob, owner="ollama")})
    assert plan(DESIRED, ours).is_empty


def test_a_store_of_another_account_is_refused_and_never_changed() -> None:
    with pytest.raises(ServiceError, match="belongs to another account"):
        plan(DESIRED, replace(converged(), store_owner="root"))


def test_a_drop_in_that_would_undo_ours_is_refused_with_its_lines() -> None:
    facts = official("0.17.5")
    assert facts.systemd is not None
    path = "/etc/systemd/system/ollama.service.d/override.conf"
    unit = replace(facts.systemd.unit, drop_ins=(path,))
    text = '[Service]\nEnvironment="OLLAMA_HOST=0.0.0.0"\nNice=5\n'
    there = with_systemd(
        facts,
        units={**facts.systemd.units, "ollama.service": unit},
        files={**facts.systemd.files, path: FileFact(text=text, mode="644")},
    )
    with pytest.raises(ServiceError, match=r"override\.conf") as refused:
        plan(DESIRED, there)
    assert refused.value.cause == 'Environment="OLLAMA_HOST=0.0.0.0"'
    harmless = FileFact(text="[Service]\nNice=5\n", mode="644")
    assert plan(DESIRED, with_systemd(there, files={**facts.systemd.files, path: harmless})).steps


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (replace(EMPTY, systemd=None), "systemd does not run"),
        (replace(EMPTY, user_id=1000), "needs root"),
    ],
)
def test_a_host_that_cannot_have_a_unit_is_told_what_to_set(facts: HostFacts, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        plan(DESIRED, facts)
    assert "ollama_service=process" in str(refused.value.hint)


def test_a_masked_unit_is_refused() -> None:
    masked = {"ollama.service": replace(ABSENT, load_state="masked")}
    with pytest.raises(ServiceError, match="masked"):
        plan(DESIRED, with_systemd(EMPTY, units=masked))


def test_a_gpu_host_gets_the_groups_that_exist_and_its_kernel_module() -> None:
    desired = replace(DESIRED, gpu=GpuKind.NVIDIA)
    planned = plan(desired, with_systemd(EMPTY, gpu_groups=("render", "video")))
    account = planned.steps[kinds(planned).index("MakeAccount")]
    assert "render, video" in account.reason
    written = {str(step.file.path): step.file.text for step in planned.steps if isinstance(step, WriteFile)}
    assert "nvidia-uvm\n" in written[str(DESIRED.paths.modules_load)]
    assert "DeviceAllow=char-nvidia* rw" in written[str(DESIRED.paths.drop_in)]


def test_a_server_for_the_whole_network_is_not_cut_off_from_it() -> None:
    environment = {**DESIRED.server.environment, "OLLAMA_HOST": "0.0.0.0:11434"}
    desired = replace(DESIRED, server=replace(DESIRED.server, environment=environment))
    files = {
        str(file.path): file.text for file in server_files(desired, EMPTY, choose_release(desired, EMPTY))
    }
    assert "IPAddressDeny" not in files[str(DESIRED.paths.drop_in)]
    own = server_files(DESIRED, EMPTY, choose_release(DESIRED, EMPTY))
    assert "IPAddressDeny=any" in own[1].text


def test_a_signature_tells_our_text_from_an_edited_one() -> None:
    for text in ("[Unit]\nA=1\n", "#!/bin/sh\nset -eu\n"):
        signed = render_signed(text)
        assert signed.splitlines()[0].startswith("#")
        assert written_by(signed) is Hand.OURS
        assert written_by(signed.replace("A=1", "A=2").replace("-eu", "-e")) is Hand.OTHER
        assert written_by(text) is Hand.OTHER


@pytest.mark.parametrize(
    ("value", "word"),
    [("A=b c", '"A=b c"'), ('A="%h"', '"A=\\"%%h\\""'), ("A=\\n$x", '"A=\\\\n$x"')],
)
def test_a_value_stays_literal_in_a_unit_file(value: str, word: str) -> None:
    assert quoted(value) == word


def test_files_that_follow_each_other_are_written_in_one_round() -> None:
    steps = plan(DESIRED, EMPTY).steps
    rounds = in_rounds(steps)
    assert [step for round_ in rounds for step in round_] == list(steps)
    assert [len(round_) for round_ in rounds if isinstance(round_[0], WriteFile)] == [8]
    assert all(len(round_) == 1 for round_ in rounds if not isinstance(round_[0], WriteFile))
