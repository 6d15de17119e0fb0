"""What a host should be, for its health checks: written by a deploy as JSON, read on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from healthchecks.json_fields import Fields, parse_fields

FORMAT = 1


@dataclass(frozen=True)
class ModelConfig:
    """A served model as it was deployed.

    `weights_sha256` is the layer that the store had after the deploy: releases from 0.30.0 on write the
    weights anew when a model is created, and the pinned file has another. `template_sha256` is of the
    template's UTF-8 bytes, None where it is not known. Both are 64 hex digits without a prefix. `parameters`
    are typed values; `stop` is a list. `baseline_tokens_per_second` is None where the deploy does not know
    it: then the host measures its own (`healthchecks.baseline_speed`).
    """

    name: str
    weights_sha256: str
    size_bytes: int
    template_sha256: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    uses_tools: bool = True
    baseline_tokens_per_second: float | None = None


@dataclass(frozen=True)
class FileConfig:
    """A file of ours: unit, drop-in, binary."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Thresholds:
    """Where a figure becomes a finding."""

    api_warn_seconds: float = 1.0
    generate_deadline_seconds: float = 180.0
    """With the model's load, which may take minutes from a slow disk."""

    load_warn_seconds: float = 60.0
    first_token_warn_seconds: float = 10.0
    tokens_per_second_warn_share: float = 0.5
    """Of the model's baseline."""

    tokens_per_second_fail_share: float = 0.2
    gpu_deadline_seconds: float = 20.0
    """Without persistence mode the first question initialises every GPU, which takes seconds each."""

    unowned_gpu_bytes: int = 512 * 1024 * 1024
    temperature_margin_celsius: float = 5.0
    """Below the temperature at which the GPU slows itself down."""

    disk_fail_bytes: int = 512 * 1024 * 1024
    inodes_warn: int = 10_000
    memory_available_warn_share: float = 0.05
    swap_used_warn_share: float = 0.5
    xid_age_seconds: float = 86_400.0
    """Older Xids of applications are history; those of the hardware count until the next boot."""


@dataclass(frozen=True)
class HealthConfig:
    """The host as its last deploy left it.

    `host` is the inventory's name, `url` the server's root. `root` is the value of the mark that our server
    carries in its environment (`OLLAMA_FLEET_ROOT`). `backend` is "systemd" or "process", `unit` systemd's
    name of the service. `gpu` is the inventory's `ollama_gpu`: "nvidia" or "none"; `gpu_expected_count` what
    the first deploy found, None where it found out nothing. `current` and `previous` are the links to
    releases. `every_seconds` is the timer's period; `textfile_dir` where the inventory has node_exporter look
    for metrics, None for the usual place.
    """

    host: str
    url: str
    root: str
    models_dir: str
    current: str
    previous: str
    release: str
    backend: str = "systemd"
    unit: str = "ollama.service"
    gpu: str = "none"
    gpu_expected_count: int | None = None
    models: tuple[ModelConfig, ...] = ()
    files: tuple[FileConfig, ...] = ()
    toolkit_version: str = ""
    deployed_at: str | None = None
    every_seconds: float | None = None
    textfile_dir: str | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    format: int = FORMAT


def render_config(config: HealthConfig) -> dict[str, Any]:
    """As JSON; `parse_config` reads it back."""
    document = dataclasses.asdict(config)
    return {**document, "models": list(document["models"]), "files": list(document["files"])}


def parse_config(document: Any) -> HealthConfig:
    """What `render_config` wrote; a threshold that is not there has its default.

    Raises:
        ValueError: a field is missing or of another type, or the format is another one; the text names it.
    """
    fields = parse_fields(document, "the configuration")
    found = fields.whole("format")
    if found != FORMAT:
        raise ValueError(f"`format` is {found}, and this version reads {FORMAT}")
    return HealthConfig(
        host=fields.text("host"),
        url=fields.text("url"),
        root=fields.text("root"),
        models_dir=fields.text("models_dir"),
        current=fields.text("current"),
        previous=fields.text("previous"),
        release=fields.text("release"),
        backend=fields.one_of("backend", ("systemd", "process")),
        unit=fields.text("unit"),
        gpu=fields.one_of("gpu", ("nvidia", "none")),
        gpu_expected_count=fields.whole_or_none("gpu_expected_count"),
        models=tuple(map(_parse_model, fields.objects("models"))),
        files=tuple(FileConfig(one.text("path"), one.text("sha256")) for one in fields.objects("files")),
        toolkit_version=fields.text("toolkit_version"),
        deployed_at=fields.text_or_none("deployed_at"),
        every_seconds=fields.number_or_none("every_seconds"),
        textfile_dir=fields.text_or_none("textfile_dir"),
        thresholds=_parse_thresholds(parse_fields(fields.mapping("thresholds"), "thresholds")),
    )


def _parse_model(fields: Fields) -> ModelConfig:
    return ModelConfig(
        name=fields.text("name"),
        weights_sha256=fields.text("weights_sha256"),
        size_bytes=fields.whole("size_bytes"),
        template_sha256=fields.text_or_none("template_sha256"),
        parameters=fields.mapping("parameters"),
        uses_tools=fields.truth("uses_tools"),
        baseline_tokens_per_second=fields.number_or_none("baseline_tokens_per_second"),
    )


def _parse_thresholds(fields: Fields) -> Thresholds:
    known = {one.name for one in dataclasses.fields(Thresholds)}
    unknown = sorted(set(fields.values) - known)
    if unknown:
        raise ValueError(f"`thresholds.{unknown[0]}` is no threshold; they are {', '.join(sorted(known))}")
    given = {name: fields.number(name) for name in fields.values}
    return Thresholds(**given)  # type: ignore[arg-type]
