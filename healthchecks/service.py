"""Does the server's process run, and does it stay."""

from __future__ import annotations

from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look
from healthchecks.server_process import Service, find_service

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def check_service(look: Look) -> Judgement:
    """Systemd's word for the unit, or a living process with our mark."""
    boot_id = (look.host.read_text(BOOT_ID) or "").strip() or None
    service = find_service(look)
    if look.config.backend == "process":
        return _judge_process(look, service, boot_id)
    told = service.told
    state, result = told.get("ActiveState", ""), told.get("Result", "")
    since = _restarts_since(look, service.restarts, boot_id)
    evidence = {
        "unit": look.config.unit,
        "load_state": told.get("LoadState", ""),
        "active_state": state,
        "sub_state": told.get("SubState", ""),
        "result": result,
        "restarts": service.restarts,
        "restarts_since_last_run": since,
        "pid": service.pid,
    }
    facts = {"boot_id": boot_id, "unit": {"active": state == "active", "restarts": service.restarts}}

    def judge(found: State, reason: str, hint: str | None = None) -> Judgement:
        return Judgement(found, reason, hint, evidence, facts)

    unit = look.config.unit
    logs = f"./fleet logs --limit {look.config.host}"
    if told.get("LoadState") == "not-found":
        return judge(State.FAIL, f"there is no unit `{unit}`", f"./fleet deploy --limit {look.config.host}")
    if state == "failed":
        return judge(State.FAIL, f"`{unit}` has failed ({result})", f"{logs}; then systemctl start {unit}")
    if told.get("SubState") == "auto-restart":
        return judge(State.FAIL, f"`{unit}` ended ({result}) and waits to be started again", logs)
    if state != "active":
        return judge(State.FAIL, f"`{unit}` is {state or 'in no state'}", f"systemctl start {unit}; {logs}")
    if since:
        times = "once" if since == 1 else f"{since} times"
        return judge(State.WARN, f"`{unit}` was restarted {times} since the last run", logs)
    return judge(State.PASS, f"`{unit}` is active")


def _restarts_since(look: Look, restarts: int | None, boot_id: str | None) -> int:
    """Systemd counts anew after a boot, and after somebody started the unit."""
    before = (look.previous_fact("unit") or {}).get("restarts")
    if restarts is None or before is None:
        return 0
    is_counted_anew = look.previous_fact("boot_id") != boot_id or restarts < before
    return restarts if is_counted_anew else restarts - before


def _judge_process(look: Look, service: Service, boot_id: str | None) -> Judgement:
    facts = {"boot_id": boot_id, "unit": {"active": service.pid is not None, "restarts": None}}
    evidence = {"root": look.config.root, "pid": service.pid}
    if service.pid is None:
        reason = f"no server of `{look.config.root}` runs"
        return Judgement(State.FAIL, reason, f"./fleet service --limit {look.config.host}", evidence, facts)
    return Judgement(State.PASS, f"the server runs as process {service.pid}", None, evidence, facts)
