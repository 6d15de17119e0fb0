"""Does the model answer, how soon, and how fast: a short generation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from healthchecks.api import ask
from healthchecks.api_answers import does_answer
from healthchecks.health_config import HealthConfig, ModelConfig
from healthchecks.health_report import State, worst_of
from healthchecks.judgement import Judgement, Look

PROMPT = "Count from one to twenty, in words."
TOKENS = 32
# These are no options of the load: a runner is not restarted for them.
OPTIONS = {"num_predict": TOKENS, "temperature": 0, "seed": 1}

LEAST_TOKENS = 4
"""The speed of fewer says nothing."""

RELOAD_SECONDS = 1.0
"""A runner that is there is found in much less (some 50 ms on a real server with the CPU)."""


@dataclass(frozen=True)
class Generation:
    """What a model's answer took; `tokens_per_second` None where there were too few tokens."""

    tokens: int
    load_seconds: float
    first_token_seconds: float
    tokens_per_second: float | None


@dataclass(frozen=True)
class _Told:
    state: State
    reason: str
    hint: str | None = None


def check_generate(look: Look) -> Judgement:
    """Each model in turn, within one deadline for all of them."""
    if look.config.models and not does_answer(look):
        return Judgement(State.FAIL, "the server does not answer", f"./fleet logs --limit {look.config.host}")
    told: list[_Told] = []
    silent = look.known.setdefault("silent", set())
    evidence: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    ends = time.monotonic() + look.config.thresholds.generate_deadline_seconds
    for model in look.config.models:
        try:
            # Half a second less than the check has: the model that hangs is named.
            found = generate(look.config.url, model.name, max(ends - time.monotonic() - 0.5, 0.5))
        except ValueError as problem:
            hint = f"./fleet logs --limit {look.config.host}"
            told.append(_Told(State.FAIL, f"`{model.name}` does not answer: {problem}", hint))
            evidence[model.name] = {"error": str(problem)}
            silent.add(model.name)
            continue
        evidence[model.name] = {
            "tokens": found.tokens,
            "load_seconds": found.load_seconds,
            "first_token_seconds": found.first_token_seconds,
            "tokens_per_second": found.tokens_per_second,
            "baseline_tokens_per_second": model.baseline_tokens_per_second,
        }
        facts[model.name] = {
            "load_seconds": found.load_seconds,
            "first_token_seconds": found.first_token_seconds,
            "tokens_per_second": found.tokens_per_second,
        }
        told.append(_judge(look, model, found))
    if not told:
        return Judgement(State.UNKNOWN, "no model was deployed")
    state = worst_of(one.state for one in told)
    counted = [one for one in told if one.state is state]
    reason = "; ".join(one.reason for one in counted)
    return Judgement(state, reason, counted[0].hint, {"models": evidence}, {"models": facts})


def generate_deadline(config: HealthConfig) -> float:
    """With a load of the model, which takes minutes from a slow disk."""
    return config.thresholds.generate_deadline_seconds


def generate(url: str, model: str, deadline_seconds: float) -> Generation:
    """A few tokens as a stream, so that the first one's time is known.

    Raises:
        ValueError: no whole answer, or one without a word.
    """
    asked = {"model": model, "prompt": PROMPT, "stream": True, "options": OPTIONS}
    answer = ask(url, "POST", "/api/generate", asked, deadline_seconds=deadline_seconds)
    if answer.status != 200 or answer.error is not None:
        answer.json()
    pieces = _parse_lines(answer.body)
    last = pieces[-1] if pieces else {}
    if "error" in last:
        raise ValueError(str(last["error"])[:300])
    if last.get("done") is not True:
        raise ValueError("the answer ends without its final message")
    if not any(piece.get("response") or piece.get("thinking") for piece in pieces):
        raise ValueError("the answer has no text")
    tokens, nanoseconds = _count(last, "eval_count"), _count(last, "eval_duration")
    speed = round(tokens * 1e9 / nanoseconds, 2) if nanoseconds and tokens >= LEAST_TOKENS else None
    return Generation(
        tokens=tokens,
        load_seconds=round(_count(last, "load_duration") / 1e9, 3),
        first_token_seconds=round(answer.first_byte_seconds or 0.0, 3),
        tokens_per_second=speed,
    )


def _judge(look: Look, model: ModelConfig, found: Generation) -> _Told:
    limits = look.config.thresholds
    name, speed = f"`{model.name}`", found.tokens_per_second
    base = model.baseline_tokens_per_second
    share = None if not base or speed is None else speed / base
    if share is not None and share < limits.tokens_per_second_fail_share:
        reason = f"{name} makes {speed:g} tokens/s, {share:.0%} of the {base:g} after its deploy: as on a CPU"
        return _Told(State.FAIL, reason, "read what the checks of the GPU say; restart the service")
    if share is not None and share < limits.tokens_per_second_warn_share:
        reason = f"{name} makes {speed:g} tokens/s, {share:.0%} of the {base:g} after its deploy"
        return _Told(State.WARN, reason, "look for other load on the GPU, heat and throttling")
    if found.load_seconds > RELOAD_SECONDS and model.name in look.known.get("loaded", ()):
        reason = f"{name} was loaded, and this request loaded it anew in {found.load_seconds:g} s"
        hint = "requests with another num_ctx, or more models than fit, make the server load again and again"
        return _Told(State.WARN, reason, hint)
    if found.load_seconds > limits.load_warn_seconds:
        reason = (
            f"{name} was loaded in {found.load_seconds:g} s, and {limits.load_warn_seconds:g} s is the limit"
        )
        return _Told(State.WARN, reason, "look at the disk of the models, and at persistence mode")
    if found.first_token_seconds - found.load_seconds > limits.first_token_warn_seconds:
        reason = f"{name} said nothing for {found.first_token_seconds:g} s"
        return _Told(State.WARN, reason, "too many requests at once wait: look at the load of the host")
    told = "" if speed is None else f", {speed:g} tokens/s"
    return _Told(State.PASS, f"{name} answers after {found.first_token_seconds:g} s{told}")


def _parse_lines(body: bytes) -> list[Mapping[str, Any]]:
    pieces: list[Mapping[str, Any]] = []
    for line in body.splitlines():
        try:
            piece = json.loads(line)
        except ValueError:
            raise ValueError(f"not JSON: {line[:80]!r}") from None
        if isinstance(piece, dict):
            pieces.append(piece)
    return pieces


def _count(piece: Mapping[str, Any], key: str) -> int:
    value = piece.get(key, 0)
    return value if isinstance(value, int) else 0
