"""Whether a model fits into the memory of a host's GPUs: arithmetic on plain values, told in numbers.

An estimate, on the safe side: the weights' whole file, a cache for the whole context, and a flat overhead.
What a server really loaded is proved after its start, by comparing `size_vram` with `size`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from deploy.errors import DoesNotFit
from deploy.gpu import Gpu, Mig, size_text

_GIB = 1024**3
OVERHEAD_BYTES = _GIB
"""CUDA context and compute buffers on each GPU a model uses: the end of a rule of thumb, 0.5 to 1 GiB."""

_BLOCK = 32
_HONOURS_CACHE_TYPE_SINCE = (0, 30, 0)


class CacheType(StrEnum):
    """How the KV cache is stored (OLLAMA_KV_CACHE_TYPE)."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


# ggml's block formats: q8_0 and q4_0 add one f16 scale to every 32 values.
_BLOCK_BYTES: Mapping[CacheType, int] = {CacheType.F16: 64, CacheType.Q8_0: 34, CacheType.Q4_0: 18}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What of a model the cache's size depends on.

    `cache_values_per_token` is, over all blocks, KV heads x (key length + value length). `context_length` is
    what the model was trained for, in tokens.
    """

    cache_values_per_token: int
    context_length: int

    def cache_bytes(self, tokens: int, cache_type: CacheType) -> int:
        """The KV cache of `tokens`, rounded up to whole bytes."""
        return -(-tokens * self.cache_values_per_token * _BLOCK_BYTES[cache_type] // _BLOCK)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """What the server makes of the Modelfile's parameters and its environment."""

    num_ctx: int
    parallel: int
    cache_type: CacheType


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What one loaded model takes, overhead left out: that depends on how many GPUs it is spread over."""

    model: str
    weights_bytes: int
    cache_bytes: int
    settings: CacheSettings

    def bytes_on(self, gpus: int) -> int:
        return self.weights_bytes + self.cache_bytes + gpus * OVERHEAD_BYTES

    def __str__(self) -> str:
        settings = self.settings
        return (
            f"{self.model} needs {size_text(self.bytes_on(1))}: {size_text(self.weights_bytes)} weights"
            f" + {size_text(self.cache_bytes)} KV cache ({settings.num_ctx} tokens x {settings.parallel},"
            f" {settings.cache_type}) + {size_text(OVERHEAD_BYTES)} overhead"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The memory of one GPU: free now, and what the served models hold and give back when unloaded."""

    index: int
    free_bytes: int
    held_bytes: int = 0


class Verdict(StrEnum):
    """What happens to the served models while the candidate is loaded and verified."""

    BESIDE = "fits beside what is served"
    ALONE = "the served one is unloaded during verify"
    TOO_LARGE = "does not fit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A candidate against a host's GPUs; the last two fields are set where it is too large."""

    verdict: Verdict
    candidate: MemoryNeed
    rooms: tuple[Room, ...]
    missing_bytes: int = 0
    largest_num_ctx: int | None = None

    def __str__(self) -> str:
        free = "; ".join(
            f"GPU {room.index} has {size_text(room.free_bytes)} free"
            + (f" and {size_text(room.held_bytes)} held by what is served" if room.held_bytes else "")
            for room in self.rooms
        )
        end = f", {size_text(self.missing_bytes)} are missing" if self.missing_bytes else ""
        return f"{self.candidate}; {free or 'no GPU'}: {self.verdict}{end}"


def cache_settings(
    shape: ModelShape,
    parameters: Mapping[str, Any],
    environment: Mapping[str, str],
    version: str,
    memory_total_bytes: int,
) -> CacheSettings:
    """Context, parallel requests and cache type as the server will choose them.

    num_ctx: the Modelfile's, else OLLAMA_CONTEXT_LENGTH, else by the memory of all GPUs (server/routes.go of
    0.17.5); never more than the model was trained for. A quantised cache type counts from 0.30.0 on, and
    before only with OLLAMA_FLASH_ATTENTION=1 (llm/server.go of 0.17.5 ignores it otherwise, with a warning).
    """
    asked = int(parameters.get("num_ctx") or 0) or _count(environment, "OLLAMA_CONTEXT_LENGTH", 0)
    cache_type = CacheType.F16
    flash = environment.get("OLLAMA_FLASH_ATTENTION", "").lower() in ("1", "t", "true")
    if flash or _version(version) >= _HONOURS_CACHE_TYPE_SINCE:
        wanted = environment.get("OLLAMA_KV_CACHE_TYPE", "")
        cache_type = CacheType(wanted) if wanted in set(CacheType) else CacheType.F16
    return CacheSettings(
        num_ctx=min(asked or _automatic_num_ctx(memory_total_bytes), shape.context_length),
        parallel=_count(environment, "OLLAMA_NUM_PARALLEL", 1) or 1,
        cache_type=cache_type,
    )


def memory_need(model: str, weights_bytes: int, shape: ModelShape, settings: CacheSettings) -> MemoryNeed:
    """Weights and cache of one model."""
    tokens = settings.num_ctx * settings.parallel
    cache_bytes = shape.cache_bytes(tokens, settings.cache_type)
    return MemoryNeed(model=model, weights_bytes=weights_bytes, cache_bytes=cache_bytes, settings=settings)


def rooms(gpus: Sequence[Gpu], environment: Mapping[str, str], releases: str) -> tuple[Room, ...]:
    """The memory that models may take, GPU by GPU.

    What processes from `releases` (the directory of our releases) use counts as held by what is served.
    A GPU that is split into MIG instances, or does not tell its memory, has no room. OLLAMA_GPU_OVERHEAD
    (bytes on each GPU) is left free.
    """
    reserved = _count(environment, "OLLAMA_GPU_OVERHEAD", 0)
    found = []
    for gpu in gpus:
        if gpu.mig is Mig.SPLIT or gpu.memory_free_bytes is None:
            continue
        held = sum(
            process.memory_used_bytes or 0
            for process in gpu.processes
            if process.name.startswith(f"{releases.rstrip('/')}/")
        )
        free = max(0, gpu.memory_free_bytes - reserved)
        found.append(Room(index=gpu.index, free_bytes=free, held_bytes=held))
    return tuple(found)


def fit(candidate: MemoryNeed, served: Sequence[MemoryNeed], rooms: Sequence[Room], shape: ModelShape) -> Fit:
    """Compare a candidate with the room that is left, beside what is served or in its place.

    A served model that is not loaded yet (it holds less than it needs) keeps its place free: it may be loaded
    at any moment. One that has the candidate's own weights is not to be given: one runner serves both.
    """
    held = sum(room.held_bytes for room in rooms)
    unloaded = max(0, sum(need.bytes_on(1) for need in served) - held)
    beside = _missing(candidate, [room.free_bytes for room in rooms], unloaded)
    missing = _missing(candidate, [room.free_bytes + room.held_bytes for room in rooms], 0)
    given = tuple(rooms)
    if beside <= 0:
        return Fit(verdict=Verdict.BESIDE, candidate=candidate, rooms=given)
    if missing <= 0:
        return Fit(verdict=Verdict.ALONE, candidate=candidate, rooms=given)
    return Fit(
        verdict=Verdict.TOO_LARGE,
        candidate=candidate,
        rooms=given,
        missing_bytes=missing,
        largest_num_ctx=_largest_num_ctx(candidate, missing, shape),
    )


def check_fit(host: str, found: Fit) -> None:
    """Raises DoesNotFit for a candidate that does not even fit alone."""
    if found.verdict is not Verdict.TOO_LARGE:
        return
    smaller = (
        f"set `PARAMETER num_ctx` to at most {found.largest_num_ctx} in its Modelfile"
        if found.largest_num_ctx
        else "choose a smaller model or a stronger quantisation"
    )
    raise DoesNotFit(
        sentence=f"`{found.candidate.model}` does not fit into the GPU memory",
        host=host,
        expected=f"{size_text(found.candidate.bytes_on(1))} free",
        actual=size_text(sum(room.free_bytes + room.held_bytes for room in found.rooms)),
        cause=str(found),
        unchanged="everything; nothing was copied",
        hint=f"{smaller}; or free memory: ./fleet gpu --limit {host}",
    )


def _missing(need: MemoryNeed, free: Sequence[int], kept_bytes: int) -> int:
    """How much is missing with the best number of GPUs; nothing is when this is zero or less.

    Ollama takes one GPU where that is enough, else it spreads the model over several.
    """
    largest = sorted(free, reverse=True)
    choices = [need.bytes_on(count) - sum(largest[:count]) for count in range(1, len(largest) + 1)]
    return kept_bytes + min(choices, default=need.bytes_on(1))


def _largest_num_ctx(need: MemoryNeed, missing_bytes: int, shape: ModelShape) -> int | None:
    """The longest context, in steps of 1024 tokens, that would fit; None where no cache is small enough."""
    settings = need.settings
    token_bytes = shape.cache_bytes(settings.parallel, settings.cache_type)
    left = (need.cache_bytes - missing_bytes) // token_bytes if token_bytes else 0
    return left // 1024 * 1024 or None if left > 0 else None


def _automatic_num_ctx(memory_total_bytes: int) -> int:
    if memory_total_bytes >= 47 * _GIB:
        return 262144
    return 32768 if memory_total_bytes >= 23 * _GIB else 4096


def _count(environment: Mapping[str, str], name: str, otherwise: int) -> int:
    """As the server reads it: what is no number falls back to the default (measured on 0.17.5)."""
    value = environment.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else otherwise


def _version(version: str) -> tuple[int, ...]:
    """`0.17.5-rc1` is read as 0.17.5."""
    numbers = version.partition("-")[0].split(".")
    return tuple(int(number) for number in numbers if number.isdigit())
