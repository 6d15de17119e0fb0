"""Does the server answer, how quickly, and is it a version with known vulnerabilities."""

from __future__ import annotations

import time
from typing import Any

from healthchecks.api import server_version
from healthchecks.check import Check
from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look
from healthchecks.vulnerable import read_vulnerabilities


def check_api(look: Look) -> Judgement:
    """GET /api/version, and the time it took."""
    started = time.monotonic()
    answer = _ask(look)
    seconds = round(time.monotonic() - started, 3)
    evidence = {"url": look.config.url, "seconds": seconds}
    if not answer.ok:
        hint = (
            f"./fleet logs --limit {look.config.host}; a server that starts answers after its GPUs were found"
        )
        return Judgement(State.FAIL, answer.reason, hint, evidence)
    facts = {"api_seconds": seconds, "ollama_version": answer.data["version"]}
    evidence.update(answer.data)
    limit = look.config.thresholds.api_warn_seconds
    if seconds > limit:
        reason = f"{answer.reason} answers after {seconds:g} s, and {limit:g} s is the limit"
        return Judgement(State.WARN, reason, "look at the load of the host", evidence, facts)
    return Judgement(State.PASS, f"{answer.reason} answers", None, evidence, facts)


def check_version(look: Look) -> Judgement:
    """The server's version against the floors of `vulnerable.json`."""
    answer = _ask(look)
    if not answer.ok:
        return Judgement(State.UNKNOWN, "the server does not say which version it is")
    known = read_vulnerabilities()
    version = str(answer.data["version"])
    floor = known.floor_above(version)
    evidence: dict[str, Any] = {"version": version, "list_of": known.dated}
    if floor is None:
        reason = (
            f"{version} has no known vulnerability that a newer version would close (list of {known.dated})"
        )
        return Judgement(State.PASS, reason, None, evidence)
    open_here = known.open_in(version)
    evidence["vulnerabilities"] = [one.id for one in open_here]
    reason = f"{version} is below {floor.version}: {floor.why}"
    hint = (
        f"./fleet pin --version X, best {known.newest_floor} or newer; until then load no GGUF of strangers"
    )
    return Judgement(State(floor.state), reason, hint, evidence)


def does_answer(look: Look) -> bool:
    """Whether the server has not been found silent: one that is need not be waited for again."""
    answer = look.known.get("version")
    return answer is None or bool(answer.ok)


def _ask(look: Look) -> Check:
    # A second less than the check has: a server that hangs is a failure, not unknown.
    deadline_seconds = max(look.deadline_seconds - 1, 0.5)
    return look.once("version", lambda: server_version(look.config.url, deadline_seconds))
