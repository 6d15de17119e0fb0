"""The health checks, in the order in which they run.

The models answer before the driver is asked: one that was not loaded is in GPU memory then.
"""

from __future__ import annotations

from healthchecks.api_answers import check_api, check_version
from healthchecks.clock import check_clock
from healthchecks.disk import check_disk
from healthchecks.drift import check_drift
from healthchecks.exposure import check_exposure
from healthchecks.generate import check_generate, generate_deadline
from healthchecks.gpu_driver import check_gpu_driver, gpu_deadline
from healthchecks.gpu_errors import check_gpu_errors
from healthchecks.gpu_slowed import check_gpu_heat, check_gpu_persistence
from healthchecks.gpu_truth import check_gpu_truth
from healthchecks.judgement import Effort, HealthCheck, is_gpu_host
from healthchecks.loaded_models import check_loaded
from healthchecks.main_memory import check_memory
from healthchecks.memory_owners import check_owners
from healthchecks.rollback import check_rollback
from healthchecks.service import check_service
from healthchecks.stored_models import check_models
from healthchecks.tool_call import check_tool_call
from healthchecks.xid import check_xid

CHECKS: tuple[HealthCheck, ...] = (
    HealthCheck("service", "the unit's state and restarts, or the process", check_service),
    HealthCheck("api", "/api/version and its latency", check_api),
    HealthCheck("version", "the version against the floors of `vulnerable.json`", check_version),
    HealthCheck("models", "manifest, weights, template, parameters, sizes of blobs", check_models),
    HealthCheck("loaded", "/api/ps against the served models", check_loaded),
    HealthCheck(
        "generate",
        "32 tokens: load time, time to the first token, tokens per second",
        check_generate,
        Effort.GENERATE,
        deadline_seconds=generate_deadline,
    ),
    HealthCheck(
        "toolcall",
        "the case `weather_one_call`, judged",
        check_tool_call,
        Effort.GENERATE,
        deadline_seconds=generate_deadline,
    ),
    HealthCheck(
        "gpu",
        "NVML's answer and the number of GPUs",
        check_gpu_driver,
        concerns=is_gpu_host,
        deadline_seconds=gpu_deadline,
    ),
    HealthCheck(
        "gpu_truth",
        "`size_vram` against the memory that NVML counts to the server's processes",
        check_gpu_truth,
        concerns=is_gpu_host,
    ),
    HealthCheck(
        "gpu_errors", "ECC errors, remapped rows, retired pages", check_gpu_errors, concerns=is_gpu_host
    ),
    HealthCheck("gpu_heat", "temperature and throttling", check_gpu_heat, concerns=is_gpu_host),
    HealthCheck("gpu_persistence", "persistence mode", check_gpu_persistence, concerns=is_gpu_host),
    HealthCheck("gpu_xid", "Xids in the kernel's log", check_xid, concerns=is_gpu_host),
    HealthCheck("owners", "runners without a server, GPU memory without a process", check_owners),
    HealthCheck("disk", "bytes and inodes where the models lie", check_disk),
    HealthCheck("memory", "main memory and swap", check_memory),
    HealthCheck("clock", "whether somebody sets it, and whether it went back", check_clock),
    HealthCheck("exposure", "addresses on which the server's port is open", check_exposure),
    HealthCheck("drift", "sha256 of units, drop-in, programs and the binary", check_drift),
    HealthCheck("rollback", "the links `current` and `previous`", check_rollback),
)
