"""The fleet's figures over all its hosts: how fast a model is where, and which versions serve."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from healthchecks.facts_reader import number_of, objects_of, text_of
from healthchecks.figure_texts import rate_text, seconds_text
from healthchecks.vulnerable import read_vulnerabilities, version_key

Facts = Mapping[str, Mapping[str, Any]]
"""By host."""


def model_rows(facts: Facts) -> Sequence[Mapping[str, Any]]:
    """A row for each model: on how many hosts, its median rate, and the host on which it is slowest."""
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for host, said in facts.items():
        for model in objects_of(said, "models"):
            found.setdefault(text_of(model, "name") or "?", []).append((host, model))
    rows = []
    for name, served in sorted(found.items()):
        rates = [(rate, host) for host, model in served if (rate := number_of(model, "tokens_per_second"))]
        slowest = min(rates, default=None)
        waits = [wait for _, model in served if (wait := number_of(model, "first_token_seconds")) is not None]
        rows.append(
            {
                "name": name,
                "hosts": len(served),
                "median_rate": rate_text(statistics.median(rate for rate, _ in rates) if rates else None),
                "slowest": f"{rate_text(slowest[0])} on {slowest[1]}" if slowest and len(rates) > 1 else "",
                "median_wait": seconds_text(statistics.median(waits) if waits else None),
                "longest_wait": seconds_text(max(waits)) if len(waits) > 1 else "",
            }
        )
    return rows


def version_rows(facts: Facts) -> Sequence[Mapping[str, Any]]:
    """A row for each version of Ollama, the newest last, with what is known against it."""
    found: dict[str, list[str]] = {}
    for host, said in facts.items():
        if version := text_of(said, "ollama_version"):
            found.setdefault(version, []).append(host)
    ordered = sorted(found, key=_order)
    return [{**judged_version(version), "hosts": len(found[version])} for version in ordered]


def judged_version(version: str) -> Mapping[str, Any]:
    """A version against the dated list; `state` is None for what is no version of a release."""
    known = read_vulnerabilities()
    judged: dict[str, Any] = {"version": version, "state": None, "holes": (), "why": "", "dated": known.dated}
    try:
        floor, judged["holes"] = known.floor_above(version), known.open_in(version)
    except ValueError:
        return {**judged, "why": "no release: not judged"}
    if floor is None:
        return {**judged, "state": "pass"}
    return {**judged, "state": floor.state, "why": f"below {floor.version}: {floor.why}"}


def _order(version: str) -> tuple[int, int, int, bool, str]:
    try:
        return (*version_key(version), version)
    except ValueError:
        return (-1, 0, 0, False, version)
