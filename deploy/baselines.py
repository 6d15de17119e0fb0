"""What the models of a host did when they were promoted: `baselines.json`, read when a model is proven."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from deploy import commands
from deploy.desired import DesiredModel, HostFile
from deploy.errors import CommandFailed, command_failed
from deploy.facts import StoredModel
from deploy.outcomes import Baseline, ModelVerdict
from deploy.transport import Transport

KEPT_PER_MODEL = 5
"""The newest; whoever goes back further is judged as a first model is."""

Baselines = Mapping[str, tuple[Baseline, ...]]
"""By the model's name in lower case, the newest first."""


def fingerprint_of(model: StoredModel | DesiredModel) -> str:
    """16 hex digits of what decides how a model answers: weights, template, parameters, system.

    A model that is brought back has the fingerprint that it had before. The digest of its manifest would not
    do: it depends on the store's path (measured on 0.17.5 and 0.24.0).
    """
    if isinstance(model, DesiredModel) and model.stored is not None:
        # It is brought back as it is stored, whatever its Modelfile says by now.
        return fingerprint_of(model.stored)
    if isinstance(model, DesiredModel):
        made = model.modelfile
        told = [model.weights.sha256, made.template, _comparable(made.parameters), made.system or None]
    else:
        told = [model.model_sha256, model.template, _comparable(model.parameters), model.system or None]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def make_baseline(model: DesiredModel, release: str, verdict: ModelVerdict, now: datetime) -> Baseline:
    """What was measured of a model that is about to be promoted."""
    return Baseline(
        fingerprint=fingerprint_of(model),
        weights=f"sha256:{model.stored.model_sha256}" if model.stored is not None else model.weights.digest,
        release=release,
        date=now.astimezone(UTC).isoformat(timespec="seconds"),
        suite=verdict.suite or "",
        rates=verdict.rates,
    )


def parse_baselines(text: str) -> Baselines:
    """Raises ValueError for what is not as `render_baselines` writes it."""
    try:
        document = json.loads(text) if text.strip() else {}
        return {name: tuple(map(_baseline, entries)) for name, entries in document.items()}
    except (AttributeError, KeyError, TypeError) as problem:
        raise ValueError(f"{type(problem).__name__}: {problem}") from None


def render_baselines(baselines: Baselines) -> str:
    """JSON for people too, ending in a line break."""
    document = {
        name: [
            {
                "fingerprint": entry.fingerprint,
                "weights": entry.weights,
                "release": entry.release,
                "date": entry.date,
                "suite": entry.suite,
                "rates": {
                    str(rule): {"successes": successes, "trials": trials}
                    for rule, (successes, trials) in sorted(entry.rates.items())
                },
            }
            for entry in entries
        ]
        for name, entries in sorted(baselines.items())
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def with_baseline(baselines: Baselines, name: str, new: Baseline) -> Baselines:
    """It comes first, in place of an older one of the same fingerprint."""
    others = [old for old in baselines.get(name.lower(), ()) if old.fingerprint != new.fingerprint]
    return {**baselines, name.lower(): (new, *others)[:KEPT_PER_MODEL]}


def find_baseline(
    transport: Transport, path: PurePosixPath, name: str, stored: Callable[[], StoredModel | None]
) -> Baseline | None:
    """That of the model which is stored, if it is known. `stored` is asked only where there is any."""
    known = read_baselines(transport, path).get(name.lower(), ())
    model = stored() if known else None
    if model is None:
        return None
    return next((one for one in known if one.fingerprint == fingerprint_of(model)), None)


def read_baselines(transport: Transport, path: PurePosixPath) -> Baselines:
    """In one round trip; none where there is no file. Raises CommandFailed for one that cannot be read."""
    done = transport.run(commands.read_if_there(path))
    try:
        if done.exit_code != 0:
            raise ValueError(done.last_words)
        return parse_baselines(done.stdout.decode())
    except ValueError as problem:
        raise CommandFailed(
            sentence=f"`{path}` cannot be read",
            host=transport.host,
            cause=str(problem),
            hint=f"./fleet run 'mv {path} {path}.broken' --limit {transport.host}; the next model that is "
            "promoted begins it anew",
        ) from None


def write_baselines(transport: Transport, path: PurePosixPath, baselines: Baselines) -> None:
    """By rename. Raises CommandFailed."""
    file = HostFile(path=path, text=render_baselines(baselines))
    done = transport.run(commands.write_files([file], [None]), stdin=file.text.encode())
    if done.exit_code != 0:
        raise command_failed(
            sentence=f"`{path}` could not be written", host=transport.host, cause=done.last_words
        )


def _baseline(entry: Mapping[str, Any]) -> Baseline:
    rates = {int(rule): (int(one["successes"]), int(one["trials"])) for rule, one in entry["rates"].items()}
    texts = {key: str(entry[key]) for key in ("fingerprint", "weights", "release", "date", "suite")}
    return Baseline(rates=rates, **texts)


def _comparable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as floats: what is sent as 1.0 may be stored as 1, and means the same."""
    return {
        name: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in parameters.items()
    }
