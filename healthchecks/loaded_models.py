"""Are the served models in memory, and do they stay there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from healthchecks.api import loaded_runner, running_models
from healthchecks.health_report import State
from healthchecks.judgement import Judgement, Look


def check_loaded(look: Look) -> Judgement:
    """Whether a runner holds each model's weights, and nothing else pushes them out.

    Several names of one GGUF have one runner, listed under the first of them.
    """
    url = look.config.url
    runners = {model.name: loaded_runner(url, model.name) for model in look.config.models}
    ours = [str(runner.get("model")) for runner in runners.values() if runner is not None]
    listed = [str(entry.get("model")) for entry in running_models(url)]
    missing = [name for name, runner in runners.items() if runner is None]
    others = [name for name in listed if name not in ours]
    gone = [name for name in missing if _was_loaded(look, name)]
    look.known["loaded"] = frozenset(runners).difference(missing)
    evidence = {"loaded": listed, "missing": missing, "others": others, "gone_since_last_run": gone}
    facts = {"models": {name: _sizes(runner) for name, runner in runners.items()}}
    if others and missing:
        reason = f"{_names(missing)} made room for {_names(others)}"
        hint = "whoever asks for other models loads them: raise OLLAMA_MAX_LOADED_MODELS, or serve fewer"
        return Judgement(State.WARN, reason, hint, evidence, facts)
    if missing:
        since = " any more" if gone == missing else ""
        reason = f"{_names(missing)} is not loaded{since}: the next user waits"
        hint = "systemctl start ollama-fleet-load; ./fleet logs may say why it was unloaded"
        return Judgement(State.WARN, reason, hint, evidence, facts)
    if others:
        reason = f"{_names(others)} is loaded beside what is served"
        hint = "it takes memory from the served models; `ollama stop` ends it"
        return Judgement(State.WARN, reason, hint, evidence, facts)
    return Judgement(State.PASS, f"{_names(list(runners))} loaded", None, evidence, facts)


def _was_loaded(look: Look, name: str) -> bool:
    before = look.previous_fact("models") or ()
    return any(model.get("name") == name and model.get("size_bytes") for model in before)


def _sizes(runner: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if runner is None:
        return {}
    # Go leaves a zero out where the field says omitempty.
    sizes = {"size_bytes": runner.get("size", 0), "vram_bytes": runner.get("size_vram", 0)}
    return {key: value for key, value in sizes.items() if isinstance(value, int)}


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "no model is"
