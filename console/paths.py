"""Where the project's own files lie."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
MODELFILES = PROJECT / "modelfiles"
CANARY = MODELFILES / "canary/canary.gguf"
