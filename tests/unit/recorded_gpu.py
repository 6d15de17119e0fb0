"""What a real card answered, `nvidia-smi` and NVML at one moment: tests/data/gpu."""

from __future__ import annotations

import json
from pathlib import Path

RECORDED = json.loads(
    (Path(__file__).parents[1] / "data/gpu/h200-580.159.04.json").read_text(encoding="utf-8")
)
