"""The checks of the GPUs: the driver's word against the server's claim and the log of the kernel."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from healthchecks import api
from healthchecks.child import Ran
from healthchecks.gpu_driver import check_gpu_driver
from healthchecks.gpu_errors import check_gpu_errors
from healthchecks.gpu_slowed import check_gpu_heat, check_gpu_persistence, throttle_words
from healthchecks.gpu_truth import check_gpu_truth
from healthchecks.health_report import State
from healthchecks.judgement import Judgement
from healthchecks.memory_owners import check_owners
from healthchecks.nvml import BROKEN, HANGS, GpuProcess, GpuReading, parse_reading
from healthchecks.xid import check_xid, parse_dmesg, parse_journal
from tests.unit.health_host import (
    CONFIG,
    GIB,
    GPU,
    NOW,
    OLLAMA,
    RUNNER,
    FakeHost,
    FakeServer,
    facts_of,
    loaded,
    look,
    ok,
    process,
    with_gpu,
)
from tests.unit.recorded_gpu import RECORDED

SECOND = replace(GPU, index=1, uuid="GPU-1", pci="00000000:65:00.0", processes=())


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake = FakeServer()
    monkeypatch.setattr(api, "send", fake.send)
    return fake


def judged(judgement: Judgement) -> tuple[State, str]:
    return judgement.state, judgement.reason


# ---- gpu
def test_all_gpus_pass_with_their_facts(host: FakeHost) -> None:
    found = check_gpu_driver(look(host))
    assert judged(found) == (State.PASS, "1 GPU, driver 550.54.15")
    facts = facts_of(found)
    assert facts["driver"] == {"driver_version": "550.54.15", "cuda_version": "12.4"}
    [gpu] = facts["gpus"]
    assert (gpu["uuid"], gpu["memory_used_bytes"], gpu["temperature_celsius"]) == ("GPU-0", 6 * GIB, 41)
    assert facts["gpu_expected_count"] == 1


@pytest.mark.parametrize(
    ("code", "says", "hint"),
    [
        (9, "the driver is not loaded", "modprobe nvidia"),
        (9, "the driver is not loaded", "/dev/nvidia* is missing"),
        (12, "no driver is installed", "install"),
        (18, "of different versions", "reboot"),
        (4, "refuses this user", "/dev/nvidia"),
        (999, "reports an error", "nvidia-smi"),
        (HANGS, "the driver does not answer", "reboot"),
        (BROKEN, "crashes whoever asks it", "NVRM"),
    ],
)
def test_a_driver_that_gives_no_answer_fails_with_the_next_step(
    host: FakeHost, code: int, says: str, hint: str
) -> None:
    host.reading = GpuReading(code=code, said="its words")
    found = check_gpu_driver(look(host))
    assert found.state is State.FAIL
    assert says in found.reason
    assert "its words" in found.reason
    assert found.hint is not None
    assert hint in found.hint


def test_a_lost_gpu_fails_though_the_others_answer(host: FakeHost) -> None:
    host.reading = GpuReading((SECOND,), 15, "GPU 0: GPU is lost", "550.54.15")
    found = check_gpu_driver(look(host, replace(CONFIG, gpu_expected_count=2)))
    assert judged(found) == (State.FAIL, "a GPU is lost; 1 GPU of 2 answer: GPU 0: GPU is lost")


@pytest.mark.parametrize(
    ("count", "expected", "state", "says"),
    [
        (1, 2, State.FAIL, "1 GPU of 2 are there"),
        (7, 8, State.FAIL, "7 GPUs of 8 are there"),
        (8, 8, State.PASS, "8 GPUs"),
        (2, 1, State.WARN, "2 GPUs are there, and 1 were"),
        (1, None, State.PASS, "1 GPU"),
        (0, None, State.FAIL, "the driver has no GPU"),
    ],
)
def test_gpus_are_counted(host: FakeHost, count: int, expected: int | None, state: State, says: str) -> None:
    gpus = tuple(replace(GPU, index=number, uuid=f"GPU-{number}") for number in range(count))
    host.reading = GpuReading(gpus, driver="550.54.15")
    found = check_gpu_driver(look(host, replace(CONFIG, gpu_expected_count=expected)))
    assert found.state is state
    assert says in found.reason


def test_a_split_gpu_needs_an_instance(host: FakeHost) -> None:
    split = replace(GPU, mig="split")
    host.reading = GpuReading((split,), driver="550.54.15")
    found = check_gpu_driver(look(host))
    assert found.state is State.FAIL
    assert "it has no instance" in found.reason
    host.reading = GpuReading((split, replace(GPU, uuid="MIG-0-0", mig="instance")), driver="550.54.15")
    found = check_gpu_driver(look(host))
    assert judged(found) == (State.PASS, "1 GPU, driver 550.54.15; MIG is on: Ollama uses one instance")
    assert [gpu["uuid"] for gpu in facts_of(found)["gpus"]] == ["GPU-0"]


# ---- gpu_truth
def test_the_runner_that_holds_what_the_server_claims_is_the_truth(
    host: FakeHost, server: FakeServer
) -> None:
    found = check_gpu_truth(look(host))
    assert judged(found) == (State.PASS, "the runner holds 6.00 GiB of GPU memory for 5.00 GiB of models")
    assert found.evidence["pids"] == [RUNNER]
    [model] = facts_of(found)["models"]
    assert (model["size_bytes"], model["vram_bytes"]) == (5 * GIB, 5 * GIB)


@pytest.mark.parametrize(
    ("vram", "says", "hint"),
    [
        (0, "`canary:latest` runs on the CPU; usual causes: no driver", "./fleet logs --limit gpu01"),
        (2 * GIB, "only 40 % of `canary:latest` is in GPU memory", "a smaller num_ctx"),
    ],
)
def test_what_the_server_itself_says_is_not_in_gpu_memory_fails(
    host: FakeHost, server: FakeServer, vram: int, says: str, hint: str
) -> None:
    server.answers["/api/ps"] = loaded("canary:latest", vram=vram)
    found = check_gpu_truth(look(host))
    assert found.state is State.FAIL
    assert says in found.reason
    assert hint in (found.hint or "")


def test_a_false_100_percent_is_a_silent_cpu_fallback(host: FakeHost, server: FakeServer) -> None:
    host.reading = with_gpu(memory_used_bytes=3 * 1024**2, processes=())
    found = check_gpu_truth(look(host))
    assert found.state is State.FAIL
    assert "only 3.0 MiB are in use at all: a silent CPU fallback" in found.reason


def test_memory_that_another_process_holds_is_not_the_models(host: FakeHost, server: FakeServer) -> None:
    host.table.append(process(55, 1, "python3", "train.py"))
    host.reading = with_gpu(processes=(GpuProcess(55, "python3", 6 * GIB),))
    found = check_gpu_truth(look(host))
    assert found.state is State.FAIL
    assert "the driver knows no process of it there" in found.reason


def test_a_runner_that_holds_too_little_is_not_the_truth(host: FakeHost, server: FakeServer) -> None:
    host.table.append(process(55, 1, "python3", "train.py"))
    held = (GpuProcess(55, "python3", 5 * GIB), GpuProcess(RUNNER, OLLAMA, GIB // 2))
    host.reading = with_gpu(processes=held)
    found = check_gpu_truth(look(host))
    assert judged(found) == (
        State.FAIL,
        "the server claims 5.00 GiB in GPU memory, and its runner holds 512.0 MiB",
    )


def test_processes_of_several_gpus_are_summed(host: FakeHost, server: FakeServer) -> None:
    halves = [
        replace(gpu, memory_used_bytes=3 * GIB, processes=(GpuProcess(RUNNER, OLLAMA, 3 * GIB),))
        for gpu in (GPU, SECOND)
    ]
    host.reading = GpuReading(tuple(halves))
    assert check_gpu_truth(look(host)).reason == (
        "the runner holds 6.00 GiB of GPU memory for 5.00 GiB of models"
    )


def test_in_a_container_the_owners_of_gpu_memory_are_unknown(host: FakeHost, server: FakeServer) -> None:
    host.files["/.dockerenv"] = ""
    host.reading = with_gpu(processes=())
    found = check_gpu_truth(look(host))
    assert judged(found) == (
        State.UNKNOWN,
        "the driver does not show who holds the GPU memory in a container",
    )


def test_process_ids_of_another_namespace_are_unknown(host: FakeHost, server: FakeServer) -> None:
    host.reading = with_gpu(processes=(GpuProcess(123456, "", 6 * GIB),))
    assert check_gpu_truth(look(host)).state is State.UNKNOWN


def test_a_driver_that_counts_no_bytes_by_process_still_shows_the_runner(
    host: FakeHost, server: FakeServer
) -> None:
    host.reading = with_gpu(processes=(GpuProcess(RUNNER, OLLAMA, None),))
    found = check_gpu_truth(look(host))
    assert found.state is State.PASS
    assert "counts no bytes by process" in found.reason


def test_a_split_gpu_counts_the_memory_of_its_instances(host: FakeHost, server: FakeServer) -> None:
    split = replace(GPU, mig="split", memory_used_bytes=None)
    instance = replace(GPU, uuid="MIG-0-0", mig="instance", processes=())
    host.reading = GpuReading((split, instance))
    assert check_gpu_truth(look(host)).state is State.PASS
    host.reading = GpuReading((split, replace(instance, memory_used_bytes=0)))
    assert check_gpu_truth(look(host)).state is State.FAIL


def test_without_an_answer_of_the_driver_the_claim_is_unproven(host: FakeHost, server: FakeServer) -> None:
    host.reading = GpuReading(code=HANGS, said="no answer within 20 s")
    found = check_gpu_truth(look(host))
    assert found.state is State.UNKNOWN
    assert "no answer within 20 s" in found.reason


def test_without_a_loaded_model_there_is_no_claim(host: FakeHost, server: FakeServer) -> None:
    server.answers["/api/ps"] = loaded()
    assert check_gpu_truth(look(host)).state is State.UNKNOWN


def test_sizes_that_are_none_are_refused(host: FakeHost, server: FakeServer) -> None:
    server.answers["/api/ps"] = ok({"models": [{"model": "canary:latest", "size": "big"}]})
    with pytest.raises(ValueError, match="'big'"):
        check_gpu_truth(look(host))


# ---- owners
def test_memory_of_no_process_is_a_warning(host: FakeHost) -> None:
    host.reading = with_gpu(memory_used_bytes=9 * GIB, memory_free_bytes=14 * GIB)
    found = check_owners(look(host))
    assert judged(found) == (State.WARN, "3.00 GiB of GPU 0 belong to no process")


def test_a_desktop_owns_its_memory_too(host: FakeHost) -> None:
    host.reading = with_gpu(memory_used_bytes=9 * GIB, memory_free_bytes=14 * GIB, graphics_bytes=3 * GIB)
    assert check_owners(look(host)).state is State.PASS


def test_memory_that_every_process_owns_passes(host: FakeHost) -> None:
    found = check_owners(look(host))
    assert judged(found) == (State.PASS, "every runner has its server, all GPU memory its process")
    assert found.evidence["unowned_gpu_bytes"] == {"GPU-0": 0}


@pytest.mark.parametrize(
    "fields",
    [
        {"processes": (GpuProcess(RUNNER, OLLAMA, None),)},
        {"memory_used_bytes": None},
        # A driver before 510 counts what it reserves as used: then used and free are all there is.
        {"memory_used_bytes": 8 * GIB, "memory_free_bytes": 16 * GIB},
    ],
)
def test_where_a_figure_is_missing_owners_are_unknown(host: FakeHost, fields: dict[str, Any]) -> None:
    host.reading = with_gpu(**fields)
    assert check_owners(look(host)).state is State.UNKNOWN


def test_in_a_container_memory_that_the_listed_processes_explain_has_its_owners(host: FakeHost) -> None:
    host.files["/.dockerenv"] = ""
    host.reading = parse_reading(RECORDED["nvml"])
    found = check_owners(look(host))
    assert judged(found) == (State.PASS, "every runner has its server, all GPU memory its process")
    # Of that which is used, 8.8 MiB are the driver's own.
    [unowned] = found.evidence["unowned_gpu_bytes"].values()
    assert unowned == 9240576


def test_a_holder_in_another_container_is_not_shown_and_nobody_is_accused(host: FakeHost) -> None:
    host.files["/.dockerenv"] = ""
    host.reading = parse_reading(RECORDED["nvml_in_another_pid_namespace"])
    found = check_owners(look(host))
    assert judged(found) == (
        State.UNKNOWN,
        "8.60 GiB of GPU 0 belong to no process of this container",
    )


def test_in_a_container_nobody_is_accused(host: FakeHost) -> None:
    host.files["/run/systemd/container"] = "docker"
    host.reading = with_gpu(memory_used_bytes=9 * GIB, memory_free_bytes=14 * GIB, processes=())
    assert check_owners(look(host)).state is State.UNKNOWN


# ---- gpu_errors
@pytest.mark.parametrize(
    ("fields", "state", "says"),
    [
        ({}, State.PASS, "no uncorrected error"),
        ({"remapped_failed": True, "ecc_volatile": 1}, State.FAIL, "could not replace a broken row"),
        ({"ecc_volatile": 3, "ecc_aggregate": 3}, State.FAIL, "had 3 uncorrected memory errors since"),
        ({"ecc_aggregate": 5}, State.WARN, "had 5 uncorrected memory errors in its life"),
        ({"remapped_pending": True}, State.WARN, "to replace at its next reset"),
        ({"retired_pending": True}, State.WARN, "to replace at its next reset"),
    ],
)
def test_broken_memory_is_told(host: FakeHost, fields: dict[str, Any], state: State, says: str) -> None:
    host.reading = with_gpu(**fields)
    found = check_gpu_errors(look(host))
    assert found.state is state
    assert says in found.reason
    assert (found.hint is None) == (state is State.PASS)


def test_the_worst_card_speaks_first(host: FakeHost) -> None:
    host.reading = GpuReading((replace(GPU, remapped_pending=True), replace(SECOND, ecc_volatile=1)))
    assert check_gpu_errors(look(host)).state is State.FAIL


def test_a_card_without_ecc_has_nothing_to_count(host: FakeHost) -> None:
    none = dict.fromkeys(("ecc_volatile", "ecc_aggregate", "remapped_pending", "remapped_failed"))
    host.reading = with_gpu(**none)
    found = check_gpu_errors(look(host))
    assert judged(found) == (State.PASS, "the cards have no ECC memory, so they count no errors")


@pytest.mark.parametrize("check", [check_gpu_errors, check_gpu_heat, check_gpu_persistence])
def test_without_a_gpu_its_health_is_unknown(host: FakeHost, check: Any) -> None:
    host.reading = GpuReading(code=HANGS)
    assert check(look(host)).state is State.UNKNOWN


# ---- gpu_heat, gpu_persistence
@pytest.mark.parametrize(
    ("fields", "state", "says"),
    [
        ({}, State.PASS, "at most 41 °C"),
        ({"throttle": 1 | 4}, State.PASS, "no GPU is slowed"),
        ({"temperature_celsius": 86}, State.WARN, "has 86 °C, and slows itself from 90 °C on"),
        ({"temperature_celsius": 91, "throttle": 64}, State.FAIL, "has 91 °C"),
        ({"throttle": 64}, State.WARN, "is slowed by its hardware, for heat"),
        ({"throttle": 128}, State.WARN, "for its power supply"),
        ({"temperature_celsius": 86, "slowdown_celsius": None}, State.PASS, "at most 86 °C"),
        ({"temperature_celsius": None}, State.UNKNOWN, "no GPU tells its temperature"),
    ],
)
def test_heat_and_throttling_are_told(
    host: FakeHost, fields: dict[str, Any], state: State, says: str
) -> None:
    host.reading = with_gpu(**fields)
    found = check_gpu_heat(look(host))
    assert found.state is state
    assert says in found.reason


def test_idleness_and_a_power_cap_are_no_faults() -> None:
    assert throttle_words(1 | 2 | 4 | 16 | 256) == []
    assert throttle_words(None) == []
    assert len(throttle_words(8 | 32 | 64 | 128)) == 4


@pytest.mark.parametrize(
    ("persistence", "state"), [(True, State.PASS), (False, State.WARN), (None, State.UNKNOWN)]
)
def test_persistence_mode_off_is_a_warning(host: FakeHost, persistence: bool | None, state: State) -> None:
    host.reading = with_gpu(persistence=persistence)
    assert check_gpu_persistence(look(host)).state is state


# ---- gpu_xid
def entry(text: str, seconds_ago: float = 60.0) -> str:
    at = int((NOW.timestamp() - seconds_ago) * 1e6)
    return json.dumps({"MESSAGE": text, "__REALTIME_TIMESTAMP": str(at), "PRIORITY": "4"})


def xid_line(code: int, pci: str = "0000:17:00", rest: str = "pid=742, name=ollama, Ch 00000010") -> str:
    return f"NVRM: Xid (PCI:{pci}): {code}, {rest}"


@pytest.mark.parametrize(
    ("code", "seconds_ago", "state", "says"),
    [
        (79, 60, State.FAIL, "Xid 79 on 0000:17:00: the GPU has fallen off the bus"),
        (48, 60, State.FAIL, "double-bit"),
        (64, 60, State.FAIL, "could not be replaced"),
        (74, 60, State.FAIL, "NVLink"),
        (95, 60, State.FAIL, "not contained"),
        (119, 60, State.FAIL, "system processor"),
        (120, 60, State.FAIL, "system processor"),
        (154, 60, State.FAIL, "recovery"),
        (79, 200_000, State.WARN, "fallen off the bus"),
        (63, 60, State.WARN, "marked for replacement"),
        (94, 200_000, State.WARN, "contained to one program"),
        (31, 60, State.WARN, "a memory fault of a program"),
        (13, 60, State.WARN, "an exception of a program"),
        (43, 60, State.WARN, "was stopped"),
        (31, 200_000, State.PASS, "has no error"),
        (777, 60, State.WARN, "NVIDIA's list"),
    ],
)
def test_an_xid_is_as_bad_as_its_number_and_its_age(
    host: FakeHost, code: int, seconds_ago: float, state: State, says: str
) -> None:
    host.runs["journalctl"] = Ran(0, entry("usb 1-1: new device") + "\n" + entry(xid_line(code), seconds_ago))
    found = check_xid(look(host))
    assert found.state is state
    assert says in found.reason
    [gpu] = facts_of(found)["gpus"]
    assert gpu["xid_last_code"] == code


def test_the_last_code_belongs_to_the_gpu_that_it_names(host: FakeHost) -> None:
    host.reading = GpuReading((GPU, SECOND))
    lines = [xid_line(31), xid_line(13, "0000:65:00"), xid_line(43, "00000000:65:00.0")]
    host.runs["journalctl"] = Ran(0, "\n".join(map(entry, lines)))
    codes = {gpu["uuid"]: gpu["xid_last_code"] for gpu in facts_of(check_xid(look(host)))["gpus"]}
    assert codes == {"GPU-0": 31, "GPU-1": 43}


def test_a_gpu_falls_off_the_bus_without_an_xid() -> None:
    [found] = parse_journal([entry("NVRM: GPU 0000:17:00.0: GPU has fallen off the bus.")], NOW.timestamp())
    assert (found.code, found.pci) == (79, "0000:17:00.0")
    [at] = parse_journal([entry("NVRM: GPU at PCI:0000:17:00 has fallen off the bus")], NOW.timestamp())
    assert at.code == 79


def test_without_a_journal_dmesg_is_read(host: FakeHost) -> None:
    host.runs = {"dmesg": Ran(0, f"[ 89940.5] {xid_line(79)}\n[    1.0] Linux version 6.1\n")}
    found = check_xid(look(host))
    assert found.state is State.FAIL
    assert found.evidence["xids"] == [{"code": 79, "pci": "0000:17:00", "seconds_ago": 59.5}]


def test_a_journal_without_the_kernel_is_no_answer(host: FakeHost) -> None:
    host.runs = {"journalctl": Ran(0, ""), "dmesg": Ran(0, f"[ 89940.5] {xid_line(79)}\n")}
    assert check_xid(look(host)).state is State.FAIL


def test_a_log_that_nobody_may_read_is_unknown(host: FakeHost) -> None:
    host.runs = {"journalctl": Ran(1, "", "no"), "dmesg": Ran(1, "", "dmesg: Operation not permitted")}
    with pytest.raises(PermissionError, match="Operation not permitted"):
        check_xid(look(host))


def test_lines_without_a_time_count_as_new() -> None:
    [found] = parse_dmesg([xid_line(31)], None)
    assert (found.code, found.seconds_ago) == (31, None)


def test_a_process_list_that_the_driver_does_not_give_accuses_nobody(
    host: FakeHost, server: FakeServer
) -> None:
    host.reading = GpuReading((replace(GPU, processes=(), lists_processes=False),), driver="470.1")
    truth, owners = check_gpu_truth(look(host)), check_owners(look(host))
    assert (truth.state, owners.state) == (State.UNKNOWN, State.UNKNOWN)
    assert "does not show who holds" in truth.reason
    assert owners.evidence["unowned_gpu_bytes"] == {"GPU-0": None}


def test_a_split_card_without_an_instance_fails_only_where_instances_are_told(host: FakeHost) -> None:
    split = GpuReading((replace(GPU, mig="split"),), driver="550.1")
    host.reading = split
    assert check_gpu_driver(look(host)).state is State.FAIL
    host.reading = replace(split, lists_instances=False)
    assert check_gpu_driver(look(host)).state is State.PASS


@pytest.mark.parametrize(
    ("place", "code"),
    [("PCI:0000:17:00 GPU-I:05 GPU-CI:00", 48), ("PCI:0000:17:00 GPU-I:05", 79), ("0000:17:00", 79)],
)
def test_an_xid_of_an_instance_and_of_an_old_driver_is_read(place: str, code: int) -> None:
    (found,) = parse_dmesg([f"[ 12.5] NVRM: Xid ({place}): {code}, pid=1"], 100.0)
    assert (found.code, found.pci) == (code, "0000:17:00")


def test_a_line_of_the_journal_that_cannot_be_read_hides_no_other() -> None:
    good = json.dumps({"MESSAGE": "NVRM: Xid (PCI:0000:17:00): 79, lost", "__REALTIME_TIMESTAMP": "1"})
    assert [one.code for one in parse_journal(['{"MESSAGE": "NVRM: X', '["NVRM"]', good], 10.0)] == [79]
