"""The health checks, in the order in which they run."""

from __future__ import annotations

from healthchecks.drift import check_drift
from healthchecks.judgement import HealthCheck
from healthchecks.rollback import check_rollback

CHECKS: tuple[HealthCheck, ...] = (
    HealthCheck("drift", "sha256 of units, drop-in, programs and the binary", check_drift),
    HealthCheck("rollback", "the links `current` and `previous`", check_rollback),
)
