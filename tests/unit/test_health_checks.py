"""Each check of service, server, models and host: when it passes, warns, fails, knows nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from healthchecks import api
from healthchecks.api_answers import check_api, check_version
from healthchecks.child import Ran
from healthchecks.clock import check_clock
from healthchecks.disk import check_disk
from healthchecks.drift import check_drift
from healthchecks.exposure import check_exposure
from healthchecks.generate import check_generate
from healthchecks.health_config import FileConfig, HealthConfig, ModelConfig, Thresholds
from healthchecks.health_report import CheckResult, HealthReport, State
from healthchecks.host_view import Memory, Process, Space
from healthchecks.judgement import Judgement, Look
from healthchecks.loaded_models import check_loaded
from healthchecks.main_memory import check_memory
from healthchecks.memory_owners import check_owners
from healthchecks.rollback import check_rollback
from healthchecks.service import check_service
from healthchecks.stored_models import check_models
from healthchecks.tool_call import check_tool_call
from healthchecks.vulnerable import is_below, read_vulnerabilities
from healthchecks.wire import Answer
from tests.unit.health_host import (
    CANARY,
    CONFIG,
    GIB,
    MODELS,
    NOBODY,
    NOW,
    OLLAMA,
    OTHER_WEIGHTS,
    PARAMETERS,
    TEMPLATE,
    UNIT,
    WEIGHTS,
    FakeHost,
    FakeServer,
    facts_of,
    generation,
    loaded,
    look,
    manifest,
    ok,
    process,
    report,
    sha256,
)

MANIFEST = f"{MODELS}/manifests/registry.ollama.ai/library/canary/latest"


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


# ---- service
@pytest.mark.parametrize(
    ("unit", "state", "says"),
    [
        ({}, State.PASS, "`ollama.service` is active"),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, State.FAIL, "there is no unit"),
        ({"ActiveState": "failed", "Result": "exit-code"}, State.FAIL, "has failed (exit-code)"),
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "Result": "signal"},
            State.FAIL,
            "ended (signal) and waits to be started again",
        ),
        ({"ActiveState": "inactive", "SubState": "dead"}, State.FAIL, "is inactive"),
    ],
)
def test_the_service_is_what_systemd_says(
    host: FakeHost, unit: dict[str, str], state: State, says: str
) -> None:
    host.unit.update(unit)
    found = check_service(look(host))
    assert found.state is state
    assert says in found.reason
    assert (found.hint is None) == (state is State.PASS)
    assert facts_of(found)["unit"] == {"active": state is State.PASS, "restarts": 2}


@pytest.mark.parametrize(
    ("before", "boot_id", "state", "says"),
    [
        (2, "boot-1", State.PASS, "is active"),
        (1, "boot-1", State.WARN, "was restarted once since the last run"),
        (0, "boot-1", State.WARN, "was restarted 2 times"),
        # Counted anew: somebody started it since, or the host did.
        (5, "boot-1", State.WARN, "was restarted 2 times"),
        (2, "boot-0", State.WARN, "was restarted 2 times"),
    ],
)
def test_restarts_since_the_last_run_are_a_warning(
    host: FakeHost, before: int, boot_id: str, state: State, says: str
) -> None:
    previous = report(unit={"active": True, "restarts": before}, boot_id=boot_id)
    found = check_service(look(host, previous=previous))
    assert found.state is state
    assert says in found.reason


def test_a_systemd_that_does_not_answer_makes_the_service_unknown(host: FakeHost) -> None:
    host.runs["systemctl"] = Ran(1, "", "Failed to connect to bus")
    with pytest.raises(ValueError, match="Failed to connect to bus"):
        check_service(look(host))


def test_without_systemd_the_process_with_our_mark_is_the_service(host: FakeHost) -> None:
    config = replace(CONFIG, backend="process", root="/home/me/fleet")
    strangers = [process(90, 1, OLLAMA, "serve"), process(91, 1, OLLAMA, "serve", root="/home/you/fleet")]
    host.table = [*strangers, process(92, 1, "python3", "-I", OLLAMA, "serve", root="/home/me/fleet")]
    found = check_service(look(host, config))
    assert judged(found) == (State.PASS, "the server runs as process 92")
    host.table = strangers
    gone = check_service(look(host, config))
    assert judged(gone) == (State.FAIL, "no server of `/home/me/fleet` runs")
    assert facts_of(gone)["unit"] == {"active": False, "restarts": None}


# ---- api, version
def test_the_api_passes_with_its_latency(host: FakeHost, server: FakeServer) -> None:
    found = check_api(look(host))
    assert judged(found) == (State.PASS, "Ollama 0.32.15 answers")
    facts = facts_of(found)
    assert facts["ollama_version"] == "0.32.15"
    assert 0 <= facts["api_seconds"] < 5


def test_a_slow_api_is_a_warning(host: FakeHost, server: FakeServer) -> None:
    config = replace(CONFIG, thresholds=Thresholds(api_warn_seconds=-1.0))
    found = check_api(look(host, config))
    assert found.state is State.WARN
    assert "is the limit" in found.reason


def test_an_api_that_does_not_answer_fails_and_its_version_is_unknown(
    host: FakeHost, server: FakeServer
) -> None:
    server.answers["/api/version"] = NOBODY
    seen = look(host)
    found = check_api(seen)
    assert found.state is State.FAIL
    assert "connection refused" in found.reason
    assert check_version(seen).state is State.UNKNOWN


@pytest.mark.parametrize(
    ("version", "state", "says"),
    [
        ("0.17.0", State.FAIL, "CVE-2026-7482"),
        ("0.17.1-rc1", State.FAIL, "below 0.17.1"),
        ("0.17.1", State.WARN, "below 0.32.15"),
        ("0.32.14", State.WARN, "below 0.32.15"),
        ("0.32.15", State.PASS, "no known vulnerability"),
        ("0.32.15+local", State.PASS, "no known vulnerability"),
        ("0.33.0-rc2", State.PASS, "list of 2026-11-22"),
    ],
)
def test_a_version_is_held_to_the_floors(
    host: FakeHost, server: FakeServer, version: str, state: State, says: str
) -> None:
    server.answers["/api/version"] = ok({"version": version})
    found = check_version(look(host))
    assert found.state is state
    assert says in found.reason


@pytest.mark.parametrize("version", ["0.0.0", "main", "1.2"])
def test_a_build_of_ones_own_has_no_known_version(host: FakeHost, server: FakeServer, version: str) -> None:
    server.answers["/api/version"] = ok({"version": version})
    with pytest.raises(ValueError, match="no version of a release"):
        check_version(look(host))


def test_the_evidence_names_what_a_newer_version_would_close(host: FakeHost, server: FakeServer) -> None:
    server.answers["/api/version"] = ok({"version": "0.17.5"})
    open_here = check_version(look(host)).evidence["vulnerabilities"]
    assert open_here == ["ollama#17042", "ollama#15504"]


def test_the_list_of_vulnerabilities_is_in_order_and_reaches_its_newest_floor() -> None:
    known = read_vulnerabilities()
    floors = [floor.version for floor in known.floors]
    assert floors == ["0.17.1", "0.32.15"]
    assert is_below(*floors)
    assert known.newest_floor == "0.32.15"
    assert all(floor.state in ("warn", "fail") for floor in known.floors)
    assert not [one for one in known.closed if is_below(known.newest_floor, one.fixed_in)]
    assert "llama.cpp#27226" in [one.id for one in known.open_in("0.30.0")]


# ---- models
def test_models_as_deployed_pass(host: FakeHost, server: FakeServer) -> None:
    found = check_models(look(host))
    assert judged(found) == (State.PASS, "`canary`: weights, template and parameters as deployed")
    [model] = facts_of(found)["models"]
    assert (model["present"], model["digest_match"]) == (True, True)


def remove_manifest(host: FakeHost) -> None:
    del host.files[MANIFEST]


def swap_weights(host: FakeHost) -> None:
    host.files[MANIFEST] = host.files[MANIFEST].replace(WEIGHTS, OTHER_WEIGHTS)
    host.sizes[f"{MODELS}/blobs/sha256-{OTHER_WEIGHTS}"] = 5 * GIB


def swap_template(host: FakeHost) -> None:
    host.files[MANIFEST] = host.files[MANIFEST].replace(TEMPLATE, "e" * 64)
    host.sizes[f"{MODELS}/blobs/sha256-{'e' * 64}"] = 10


def drop_template(host: FakeHost) -> None:
    host.files[MANIFEST] = manifest(model=(WEIGHTS, 5 * GIB), params=(PARAMETERS, 20))


def change_parameters(host: FakeHost) -> None:
    host.files[f"{MODELS}/blobs/sha256-{PARAMETERS}"] = '{"num_ctx": 2048, "stop": ["<end>"]}'


def truncate_weights(host: FakeHost) -> None:
    host.sizes[f"{MODELS}/blobs/sha256-{WEIGHTS}"] = 17


def remove_weights(host: FakeHost) -> None:
    del host.sizes[f"{MODELS}/blobs/sha256-{WEIGHTS}"]


@pytest.mark.parametrize(
    ("change", "says", "is_present", "matches"),
    [
        (remove_manifest, "`canary` is gone from the store", False, False),
        (swap_weights, "has other weights than were deployed (bbbbbbbbbbbb, not aaaaaaaaaaaa)", True, False),
        (swap_template, "has another template", True, True),
        (drop_template, "has another template", True, True),
        (change_parameters, "has other parameters", True, True),
        (truncate_weights, f"has a blob of 17 bytes instead of {5 * GIB} (model)", True, True),
        (remove_weights, "misses its blob sha256-aaaaaaaaaaaa (model)", True, True),
    ],
)
def test_a_model_that_is_not_the_deployed_one_fails(
    host: FakeHost,
    server: FakeServer,
    change: Callable[[FakeHost], None],
    says: str,
    is_present: bool,
    matches: bool,
) -> None:
    change(host)
    found = check_models(look(host))
    assert found.state is State.FAIL
    assert says in found.reason
    [model] = facts_of(found)["models"]
    assert (model["present"], model["digest_match"]) == (is_present, matches)


def test_numbers_of_parameters_are_compared_by_value(host: FakeHost, server: FakeServer) -> None:
    host.files[f"{MODELS}/blobs/sha256-{PARAMETERS}"] = '{"num_ctx": 4096.0, "stop": ["<end>"]}'
    assert check_models(look(host)).state is State.PASS


def test_a_template_that_was_not_recorded_is_not_compared(host: FakeHost, server: FakeServer) -> None:
    swap_template(host)
    config = replace(CONFIG, models=(replace(CANARY, template_sha256=None),))
    assert check_models(look(host, config)).state is State.PASS


def test_a_model_that_the_server_does_not_list_fails(host: FakeHost, server: FakeServer) -> None:
    server.answers["/api/tags"] = ok({"models": [{"model": "other:latest"}]})
    found = check_models(look(host))
    assert judged(found) == (State.FAIL, "`canary` is in the store, and the server does not list it")


def test_a_server_that_is_down_leaves_a_good_store_unknown(host: FakeHost, server: FakeServer) -> None:
    server.answers["/api/tags"] = NOBODY
    found = check_models(look(host))
    assert found.state is State.UNKNOWN
    assert "stored as deployed" in found.reason


def test_a_damaged_manifest_is_named(host: FakeHost, server: FakeServer) -> None:
    host.files[MANIFEST] = '{"layers": 3}'
    with pytest.raises(ValueError, match="canary/latest` is no manifest"):
        check_models(look(host))


# ---- loaded
TWO = replace(CONFIG, models=(CANARY, replace(CANARY, name="second")))


def test_a_loaded_model_passes_with_its_sizes(host: FakeHost, server: FakeServer) -> None:
    found = check_loaded(look(host))
    assert judged(found) == (State.PASS, "`canary` loaded")
    [model] = facts_of(found)["models"]
    assert (model["size_bytes"], model["vram_bytes"]) == (5 * GIB, 5 * GIB)


def test_two_names_of_one_gguf_are_both_loaded_though_only_the_first_is_listed(
    host: FakeHost, server: FakeServer
) -> None:
    server.weights["second"] = WEIGHTS
    found = check_loaded(look(host, TWO))
    assert judged(found) == (State.PASS, "`canary`, `second` loaded")
    assert [model["size_bytes"] for model in facts_of(found, TWO)["models"]] == [5 * GIB, 5 * GIB]


def test_another_gguf_that_no_runner_holds_is_a_warning(host: FakeHost, server: FakeServer) -> None:
    server.weights["second"] = OTHER_WEIGHTS
    found = check_loaded(look(host, TWO))
    assert judged(found) == (State.WARN, "`second` is not loaded: the next user waits")


def test_a_model_that_was_loaded_at_the_last_run_is_not_any_more(host: FakeHost, server: FakeServer) -> None:
    server.answers["/api/ps"] = loaded()
    previous = report(models=[{"name": "canary", "size_bytes": 5 * GIB}])
    found = check_loaded(look(host, previous=previous))
    assert found.state is State.WARN
    assert "is not loaded any more" in found.reason
    assert found.evidence["gone_since_last_run"] == ["canary"]


def test_a_stranger_that_pushed_the_served_model_out_is_named(host: FakeHost, server: FakeServer) -> None:
    server.answers["/api/ps"] = loaded("leak_model:latest")
    found = check_loaded(look(host))
    assert judged(found) == (State.WARN, "`canary` made room for `leak_model:latest`")


def test_a_stranger_beside_the_served_model_is_a_warning(host: FakeHost, server: FakeServer) -> None:
    server.answers["/api/ps"] = loaded("canary:latest", "leak_model:latest")
    found = check_loaded(look(host))
    assert judged(found) == (State.WARN, "`leak_model:latest` is loaded beside what is served")


def test_a_server_that_is_down_makes_the_loaded_models_unknown(host: FakeHost, server: FakeServer) -> None:
    server.answers["/api/ps"] = NOBODY
    with pytest.raises(ValueError, match="connection refused"):
        check_loaded(look(host))


# ---- generate
@pytest.mark.parametrize(
    ("answer", "state", "says"),
    [
        (generation(), State.PASS, "`canary` answers after 0.1 s, 100 tokens/s"),
        (generation(seconds=0.8), State.WARN, "makes 40 tokens/s, 40% of the 100 after its deploy"),
        (
            generation(seconds=3.2),
            State.FAIL,
            "makes 10 tokens/s, 10% of the 100 after its deploy: as on a CPU",
        ),
        (generation(tokens=3), State.PASS, "`canary` answers after 0.1 s"),
        (generation(load=61, first=61.2), State.WARN, "was loaded in 61 s, and 60 s is the limit"),
        (generation(first=11), State.WARN, "said nothing for 11 s"),
        (generation(text=""), State.FAIL, "the answer has no text"),
        (NOBODY, State.FAIL, "connection refused"),
        (Answer(500, {}, b'{"error":"llama runner process no longer running: -1"}'), State.FAIL, "HTTP 500"),
        (Answer(200, {}, b'{"response":"a","done":false}\n'), State.FAIL, "without its final message"),
        (Answer(200, {}, b'{"response":"a"}\n{"error":"CUDA error"}\n'), State.FAIL, "CUDA error"),
        (Answer(200, {}, b"<html>"), State.FAIL, "not JSON"),
        (Answer(200, {}, b"", "the answer did not end within 180 s"), State.FAIL, "did not end"),
    ],
)
def test_a_short_generation_tells_speed_and_times(
    host: FakeHost, server: FakeServer, answer: Answer, state: State, says: str
) -> None:
    server.answers["/api/generate"] = answer
    found = check_generate(look(host))
    assert found.state is state
    assert says in found.reason
    assert (found.hint is None) == (state is State.PASS)


def test_a_generation_becomes_facts(host: FakeHost, server: FakeServer) -> None:
    [model] = facts_of(check_generate(look(host)))["models"]
    assert (model["load_seconds"], model["first_token_seconds"], model["tokens_per_second"]) == (
        0.05,
        0.1,
        100.0,
    )


def test_a_model_that_was_loaded_and_is_loaded_anew_is_thrashing(host: FakeHost, server: FakeServer) -> None:
    server.answers["/api/generate"] = generation(load=4.0, first=4.1)
    seen = look(host)
    assert check_generate(seen).state is State.PASS
    check_loaded(seen)
    found = check_generate(seen)
    assert judged(found) == (State.WARN, "`canary` was loaded, and this request loaded it anew in 4 s")


def test_without_a_baseline_no_speed_is_too_slow(host: FakeHost, server: FakeServer) -> None:
    server.answers["/api/generate"] = generation(seconds=30)
    config = replace(CONFIG, models=(replace(CANARY, baseline_tokens_per_second=None),))
    assert check_generate(look(host, config)).state is State.PASS


def test_one_model_of_two_that_fails_is_the_reason(host: FakeHost, server: FakeServer) -> None:
    fast = ModelConfig("second", WEIGHTS, 1, baseline_tokens_per_second=2000.0)
    found = check_generate(look(host, replace(CONFIG, models=(CANARY, fast))))
    assert found.state is State.FAIL
    assert found.reason.startswith("`second`")
    assert "`canary`" not in found.reason


def test_a_server_that_was_found_silent_is_not_waited_for_again(host: FakeHost, server: FakeServer) -> None:
    server.answers["/api/version"] = NOBODY
    seen = look(host)
    check_api(seen)
    silent = (State.FAIL, "the server does not answer")
    assert judged(check_generate(seen)) == silent
    found = check_tool_call(seen)
    assert judged(found) == silent
    assert facts_of(found)["models"][0]["toolcall_ok"] is False


def test_a_model_that_did_not_answer_is_asked_for_no_call(host: FakeHost, server: FakeServer) -> None:
    server.answers["/api/generate"] = NOBODY
    seen = look(host)
    check_generate(seen)
    assert judged(check_tool_call(seen)) == (State.FAIL, "no model answers")


def test_without_a_model_that_uses_tools_no_call_is_wanted(host: FakeHost) -> None:
    config = replace(CONFIG, models=(replace(CANARY, uses_tools=False),))
    assert judged(check_tool_call(look(host, config))) == (State.PASS, "no model is served that uses tools")


def test_without_a_model_nothing_is_known_of_models(host: FakeHost, server: FakeServer) -> None:
    config = replace(CONFIG, models=())
    assert check_generate(look(host, config)).state is State.UNKNOWN
    assert check_models(look(host, config)).state is State.UNKNOWN


# ---- orphans, on a host without a GPU
NO_GPU = replace(CONFIG, gpu="none")


@pytest.mark.parametrize(
    "table",
    [
        [process(900, 1, "/usr/local/bin/llama-server", "-m", "my.gguf")],
        [process(900, 1, OLLAMA, "start"), process(901, 900, OLLAMA, "runner", "--model", "x")],
    ],
    ids=["llama.cpp by itself", "the other name of serve"],
)
def test_nobody_is_told_to_kill_what_is_no_orphan(host: FakeHost, table: list[Process]) -> None:
    host.table += table
    assert check_owners(look(host, NO_GPU)).state is State.PASS


@pytest.mark.parametrize(
    "command",
    [(OLLAMA, "runner", "--model", "x"), ("/x/ollama_llama_server",), ("/x/lib/ollama/llama-server", "-m")],
)
def test_a_runner_whose_server_is_gone_is_named(host: FakeHost, command: tuple[str, ...]) -> None:
    host.table.append(process(900, 1, *command))
    found = check_owners(look(host, NO_GPU))
    assert (found.state, found.hint) == (State.WARN, "kill 900")
    assert found.evidence == {"orphans": [900]}


def test_a_runner_below_any_server_is_no_orphan(host: FakeHost) -> None:
    host.table += [process(800, 1, "python3", "-S", "/x/ollama", "serve"), process(801, 800, "sh", "-c", "x")]
    host.table.append(process(802, 801, OLLAMA, "runner"))
    assert judged(check_owners(look(host, NO_GPU))) == (State.PASS, "every runner has its server")


def test_an_ollama_command_of_a_person_is_no_runner(host: FakeHost) -> None:
    host.table.append(process(900, 1, OLLAMA, "run", "canary"))
    assert check_owners(look(host, NO_GPU)).state is State.PASS


# ---- disk, memory, clock
@pytest.mark.parametrize(
    ("space", "state", "says"),
    [
        (Space(100 * GIB, 200 * GIB, 10**6), State.PASS, "100.00 GiB are free"),
        (Space(100 * GIB, 200 * GIB, None), State.PASS, "100.00 GiB are free"),
        (Space(4 * GIB, 200 * GIB, 10**6), State.WARN, "the largest model would not fit once more"),
        (Space(100 * GIB, 200 * GIB, 9999), State.WARN, "only 9999 more files fit"),
        (Space(100 * GIB, 200 * GIB, 64), State.WARN, "only 64 more files fit"),
        (Space(100 * GIB, 200 * GIB, 63), State.FAIL, "only 63 more files fit"),
        (Space(4 * GIB, 200 * GIB, 0), State.FAIL, "only 0 more files fit"),
        (Space(GIB // 4, 200 * GIB, 10**6), State.FAIL, "only 0.25 GiB are free"),
    ],
)
def test_room_for_the_largest_model_is_wanted(host: FakeHost, space: Space, state: State, says: str) -> None:
    host.disk = space
    found = check_disk(look(host))
    assert found.state is state
    assert says in found.reason
    assert facts_of(found)["filesystem"] == {
        "path": MODELS,
        "avail_bytes": space.avail_bytes,
        "avail_inodes": space.avail_inodes,
    }


@pytest.mark.parametrize(
    ("memory", "state", "says"),
    [
        (Memory(64 * GIB, 32 * GIB, 8 * GIB, 0), State.PASS, "50% of the main memory is available"),
        (Memory(64 * GIB, 32 * GIB, 0, 0), State.PASS, "50%"),
        (Memory(64 * GIB, GIB, 8 * GIB, 0), State.WARN, "2% of the main memory"),
        (Memory(64 * GIB, 32 * GIB, 8 * GIB, 6 * GIB), State.WARN, "75% of the swap is used"),
    ],
)
def test_memory_and_swap_have_limits(host: FakeHost, memory: Memory, state: State, says: str) -> None:
    host.ram = memory
    found = check_memory(look(host))
    assert found.state is state
    assert says in found.reason


@pytest.mark.parametrize(
    ("error", "state", "says"),
    [
        (0.004, State.PASS, "right to 0.004 s"),
        (16.0, State.WARN, "nobody sets the clock"),
        (None, State.UNKNOWN, "does not say"),
    ],
)
def test_the_clock_is_what_the_kernel_holds_of_it(
    host: FakeHost, error: float | None, state: State, says: str
) -> None:
    host.clock_error = error
    found = check_clock(look(host))
    assert found.state is state
    assert says in found.reason


def test_a_clock_before_the_deploy_fails_and_one_that_went_back_is_a_warning(host: FakeHost) -> None:
    def at(**past: float) -> Look:
        return Look(CONFIG, host, NOW - timedelta(**past), 10.0, report())

    assert check_clock(at(seconds=0)).state is State.PASS
    assert judged(check_clock(at(minutes=6))) == (State.WARN, "the clock went back since the last run")
    assert check_clock(at(days=400)).state is State.FAIL


# ---- exposure
def listens(*addresses: str, state: str = "0A") -> str:
    rows = [f"   {n}: {address}:2CAA 00000000:0000 {state}\n" for n, address in enumerate(addresses)]
    return "  sl  local_address rem_address   st\n" + "".join(rows)


@pytest.mark.parametrize(
    ("four", "six", "state", "listeners"),
    [
        (["0100007F"], [], State.PASS, ["127.0.0.1:11434"]),
        (["0100007F"], ["00000000000000000000000001000000"], State.PASS, ["127.0.0.1:11434", "[::1]:11434"]),
        ([], ["0000000000000000FFFF00000100007F"], State.PASS, ["127.0.0.1:11434"]),
        (["00000000"], [], State.FAIL, ["0.0.0.0:11434"]),
        ([], ["00000000000000000000000000000000"], State.FAIL, ["[::]:11434"]),
        (["0100007F", "0A02A8C0"], [], State.FAIL, ["127.0.0.1:11434", "192.168.2.10:11434"]),
        ([], [], State.UNKNOWN, []),
    ],
)
def test_a_listener_beyond_loopback_is_exposed(
    host: FakeHost, four: list[str], six: list[str], state: State, listeners: list[str]
) -> None:
    host.files["/proc/net/tcp"], host.files["/proc/net/tcp6"] = listens(*four), listens(*six)
    found = check_exposure(look(host))
    assert found.state is state
    assert facts_of(found)["listeners"] == listeners


def test_an_exposure_that_the_inventory_wants_is_a_warning(host: FakeHost) -> None:
    host.files["/proc/net/tcp"] = listens("00000000")
    found = check_exposure(look(host, replace(CONFIG, url="http://0.0.0.0:11434")))
    assert found.state is State.WARN
    assert "the inventory says so" in found.reason


def test_connections_and_other_ports_are_no_listeners(host: FakeHost) -> None:
    host.files["/proc/net/tcp"] = listens("00000000", state="01") + "  9: 00000000:0016 00000000:0000 0A\n"
    assert check_exposure(look(host)).state is State.UNKNOWN


def test_without_a_list_of_listeners_nothing_is_known(host: FakeHost) -> None:
    del host.files["/proc/net/tcp"], host.files["/proc/net/tcp6"]
    assert check_exposure(look(host)).state is State.UNKNOWN


# ---- drift, rollback
def config_with_files(*paths: str) -> HealthConfig:
    return replace(CONFIG, files=tuple(FileConfig(path, CONFIG.files[0].sha256) for path in paths))


def test_files_as_written_pass(host: FakeHost) -> None:
    found = check_drift(look(host))
    assert judged(found) == (State.PASS, "1 file is as it was written")
    assert facts_of(found)["drifted_files"] == []


def test_changed_and_missing_files_are_drift(host: FakeHost) -> None:
    host.files[UNIT] = "[Unit]\nDescription=mine\n"
    found = check_drift(look(host, config_with_files(UNIT, "/etc/gone.conf")))
    assert judged(found) == (State.FAIL, f"`/etc/gone.conf` is gone; `{UNIT}` was changed")
    assert facts_of(found)["drifted_files"] == ["/etc/gone.conf", UNIT]


def test_a_file_that_may_not_be_read_is_unknown(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(host, "sha256", refuse)
    assert judged(check_drift(look(host))) == (State.UNKNOWN, f"`{UNIT}` may not be read")


RECORD, PROGRAM = (f"/opt/ollama/releases/0.32.15/{name}" for name in ("release.json", "bin/ollama"))


def with_program(host: FakeHost, text: str = "ELF") -> FakeHost:
    """As a deploy leaves it: the record of the release knows the sha256 of its program."""
    host.files[RECORD] = json.dumps({"version": "0.32.15", "program_sha256": sha256("ELF")})
    host.files[PROGRAM] = text
    return host


def drift_before(host: FakeHost, age: timedelta, previous: HealthReport | None = None) -> HealthReport:
    found = check_drift(replace(look(host, previous=previous), now=NOW - age))
    return replace(report(), checks=(CheckResult("drift", found.state, found.reason, None, found.evidence),))


def test_a_program_that_was_replaced_is_drift(host: FakeHost) -> None:
    assert judged(check_drift(look(with_program(host)))) == (State.PASS, "2 files are as they were written")
    found = check_drift(look(with_program(host, "OTHER")))
    assert judged(found) == (State.FAIL, f"`{PROGRAM}` was changed")
    assert facts_of(found)["drifted_files"] == [PROGRAM]
    del host.files[PROGRAM]
    assert check_drift(look(host)).reason == f"`{PROGRAM}` is gone"


@pytest.mark.parametrize(
    ("age", "touched", "is_read"),
    [
        (timedelta(minutes=5), False, False),
        (timedelta(minutes=5), True, True),
        (timedelta(days=1), False, True),
        (timedelta(hours=-1), False, True),
    ],
    ids=["just read", "touched since", "read yesterday", "the clock went back"],
)
def test_a_program_that_was_read_is_read_again_once_it_was_touched_and_once_a_day(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, age: timedelta, touched: bool, is_read: bool
) -> None:
    host = with_program(host)
    before = drift_before(host, age)
    if touched:
        host.stamps[PROGRAM] = "touched"
    read: list[str] = []
    hash_file = host.sha256

    def read_whole(path: str) -> str | None:
        read.append(path)
        return hash_file(path)

    monkeypatch.setattr(host, "sha256", read_whole)
    found = check_drift(look(host, previous=before))
    assert found.state is State.PASS
    assert (PROGRAM in read) is is_read


def test_a_replaced_program_stays_drift_in_the_runs_that_do_not_read_it(host: FakeHost) -> None:
    host = with_program(host, "OTHER")
    before = drift_before(host, timedelta(minutes=10))
    before = drift_before(host, timedelta(minutes=5), before)
    assert judged(check_drift(look(host, previous=before))) == (State.FAIL, f"`{PROGRAM}` was changed")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"program_sha256": null}'])
def test_a_release_whose_program_nobody_noted_is_no_drift(host: FakeHost, text: str) -> None:
    host.files[RECORD] = text
    assert judged(check_drift(look(host))) == (State.PASS, "1 file is as it was written")


def test_without_recorded_files_drift_is_unknown(host: FakeHost) -> None:
    assert check_drift(look(host, config_with_files())).state is State.UNKNOWN


def test_a_previous_release_can_be_gone_back_to(host: FakeHost) -> None:
    found = check_rollback(look(host))
    assert judged(found) == (State.PASS, "release 0.24.0 is there to go back to")
    assert (facts_of(found)["release"], facts_of(found)["rollback_available"]) == ("0.32.15", True)


def test_a_first_release_has_nothing_to_go_back_to_and_passes(host: FakeHost) -> None:
    del host.links["/opt/ollama/previous"]
    found = check_rollback(look(host))
    assert found.state is State.PASS
    assert facts_of(found)["rollback_available"] is False


def test_a_previous_release_that_is_gone_is_a_warning(host: FakeHost) -> None:
    del host.files["/opt/ollama/previous/bin/ollama"]
    assert check_rollback(look(host)).state is State.WARN


def test_another_release_than_the_deployed_one_fails(host: FakeHost) -> None:
    host.links["/opt/ollama/current"] = "releases/0.24.0"
    found = check_rollback(look(host))
    assert found.state is State.FAIL
    assert "0.32.15 was deployed" in found.reason
