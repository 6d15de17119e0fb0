"""What every health check returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """One check's result: `reason` is one sentence for a person, `data` the observed values for a machine."""

    name: str
    ok: bool
    reason: str
    data: Mapping[str, Any] = field(default_factory=dict)
