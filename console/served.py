"""The cheap checks of a host that needs no change; the suite and what it loads are not needed for them."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.outcomes import ModelVerdict, VerifyRequest
from healthchecks.api import load_model, server_version
from healthchecks.check import Check
from healthchecks.gpu import check_residency

LOAD_SECONDS = 600.0


def check_served(request: VerifyRequest) -> ModelVerdict:
    """Server, load, and where the model sits."""
    version, checks = check_basics(request)
    reasons = tuple(check.reason for check in checks if not check.ok)
    kind = ("simulated" if version.data.get("simulated") else "real") if version.ok else None
    return ModelVerdict(passed=not reasons, reasons=reasons, ollama=kind)


def check_basics(request: VerifyRequest) -> tuple[Check, Sequence[Check]]:
    """The version check, and all checks up to the first that makes the next ones meaningless."""
    version = server_version(request.url)
    checks = [version]
    if version.ok:
        checks.append(load_model(request.url, request.model, LOAD_SECONDS))
    if checks[-1].ok:
        checks.append(check_residency(request.url, request.model, request.gpu))
    return version, checks
