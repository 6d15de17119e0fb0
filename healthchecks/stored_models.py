"""Are the served models there, and are they the ones that were deployed.

No server ever verifies a blob, and the digest that /api/tags tells depends on the store's path (measured on
0.17.5 and 0.24.0): the layers of the manifest are compared, and the sizes of their files.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from healthchecks.api import is_same_model, listed_models
from healthchecks.health_config import ModelConfig
from healthchecks.health_report import State
from healthchecks.host_view import HostView
from healthchecks.judgement import Judgement, Look

_LAYER = "application/vnd.ollama.image."


@dataclass(frozen=True)
class _Layer:
    kind: str
    sha256: str
    size_bytes: int


def check_models(look: Look) -> Judgement:
    """Manifest, weights, template and parameters of each model, and whether the server lists it."""
    config = look.config
    listed = _listed_names(look)
    faults: list[str] = []
    evidence: dict[str, Any] = {"models_dir": config.models_dir, "listed": listed, "models": {}}
    facts: dict[str, Any] = {}
    for model in config.models:
        layers = _read_manifest(look.host, config.models_dir, model.name)
        is_listed = listed is None or any(is_same_model(name, model.name) for name in listed)
        found = list(_compare(look.host, config.models_dir, model, layers))
        if layers is not None and not is_listed:
            found.append("is in the store, and the server does not list it")
        weights = [layer.sha256 for layer in layers or () if layer.kind == "model"]
        evidence["models"][model.name] = {"weights": weights[0] if weights else None, "faults": found}
        facts[model.name] = {
            "present": layers is not None and is_listed,
            "digest_match": weights == [model.weights_sha256],
        }
        faults += [f"`{model.name}` {fault}" for fault in found]
    told = {"models": facts}
    if faults:
        hint = f"./fleet plan --limit {config.host} shows what ./fleet deploy would set right"
        return Judgement(State.FAIL, "; ".join(faults), hint, evidence, told)
    if not config.models:
        return Judgement(State.UNKNOWN, "no model was deployed", None, evidence, told)
    names = ", ".join(f"`{model.name}`" for model in config.models)
    if listed is None:
        reason = f"{names}: stored as deployed; the server does not say what it lists"
        return Judgement(State.UNKNOWN, reason, None, evidence, told)
    return Judgement(
        State.PASS, f"{names}: weights, template and parameters as deployed", None, evidence, told
    )


def _listed_names(look: Look) -> list[str] | None:
    try:
        return [str(entry.get("model", "")) for entry in listed_models(look.config.url)]
    except ValueError:
        return None


def _compare(
    host: HostView, models_dir: str, model: ModelConfig, layers: Sequence[_Layer] | None
) -> Iterator[str]:
    if layers is None:
        yield "is gone from the store"
        return
    kinds = {layer.kind: layer for layer in layers}
    weights, template = kinds.get("model"), kinds.get("template")
    if weights is None or weights.sha256 != model.weights_sha256:
        found = "none" if weights is None else weights.sha256[:12]
        yield f"has other weights than were deployed ({found}, not {model.weights_sha256[:12]})"
    if model.template_sha256 is not None and (template is None or template.sha256 != model.template_sha256):
        yield "has another template than was deployed"
    if _comparable(_read_parameters(host, models_dir, kinds.get("params"))) != _comparable(model.parameters):
        yield "has other parameters than were deployed"
    for layer in layers:
        size_bytes = host.size(_blob(models_dir, layer.sha256))
        if size_bytes is None:
            yield f"misses its blob sha256-{layer.sha256[:12]} ({layer.kind})"
        elif size_bytes != layer.size_bytes:
            yield f"has a blob of {size_bytes} bytes instead of {layer.size_bytes} ({layer.kind})"


def _read_manifest(host: HostView, models_dir: str, name: str) -> tuple[_Layer, ...] | None:
    """None where there is none. Raises ValueError for one that is damaged."""
    model, _, tag = name.partition(":")
    path = posixpath.join(models_dir, "manifests/registry.ollama.ai")
    path = posixpath.join(path, model if "/" in model else f"library/{model}", tag or "latest")
    text = host.read_text(path)
    if text is None:
        return None
    try:
        return tuple(
            _Layer(layer["mediaType"][len(_LAYER) :], layer["digest"].rpartition(":")[2], int(layer["size"]))
            for layer in json.loads(text)["layers"]
            if layer["mediaType"].startswith(_LAYER)
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"`{path}` is no manifest") from None


def _read_parameters(host: HostView, models_dir: str, layer: _Layer | None) -> Mapping[str, Any]:
    text = None if layer is None else host.read_text(_blob(models_dir, layer.sha256))
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _blob(models_dir: str, sha256: str) -> str:
    return posixpath.join(models_dir, "blobs", f"sha256-{sha256}")


def _comparable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as floats: what is sent as 1.0 may be stored as 1, and means the same."""
    return {
        name: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in parameters.items()
    }
