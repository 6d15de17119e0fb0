"""The arithmetic of GPU memory, against the numbers that `docs/gpu.md` shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import DoesNotFit, ExitCode, NotAnArtefact
from deploy.fit import (
    OVERHEAD_BYTES,
    CacheSettings,
    CacheType,
    MemoryNeed,
    ModelShape,
    Room,
    Verdict,
    cache_settings,
    check_fit,
    fit,
    memory_need,
    rooms,
)
from deploy.gguf_header import GgufHeader, read_header, read_header_of_beginning
from deploy.gpu import Gpu, GpuProcess, Mig

PROJECT = Path(__file__).resolve().parents[2]
CANARY = PROJECT / "modelfiles/canary/canary.gguf"
MIB, GIB = 1024**2, 1024**3


def table(heading: str) -> list[list[str]]:
    """The rows of the table below a heading of the page, without its two head lines."""
    _, _, after = (PROJECT / "docs/gpu.md").read_text().partition(f"### {heading}\n")
    lines = [line for line in after.partition("\n#")[0].splitlines() if line.startswith("|")]
    assert len(lines) > 2, heading
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def shape_of(blocks: str, heads: str, length: str) -> ModelShape:
    header = GgufHeader(
        architecture="qwen2",
        head_counts_kv=(int(heads),) * int(blocks),
        key_length=int(length),
        value_length=int(length),
        context_length=131072,
        file_type=None,
    )
    return header.shape


SEVEN = shape_of("28", "4", "128")


def need(
    model: str = "candidate", *, weights_gib: float = 5, num_ctx: int = 8192, shape: ModelShape = SEVEN
) -> MemoryNeed:
    settings = CacheSettings(num_ctx=num_ctx, parallel=1, cache_type=CacheType.F16)
    return memory_need(model, int(weights_gib * GIB), shape, settings)


@pytest.mark.parametrize("row", table("The cache"), ids=lambda row: " ".join(row[:6]))
def test_the_cache_has_the_size_that_the_page_says(row: list[str]) -> None:
    blocks, heads, length, num_ctx, parallel, cache_type, size = row
    settings = CacheSettings(num_ctx=int(num_ctx), parallel=int(parallel), cache_type=CacheType(cache_type))
    found = memory_need("m", 0, shape_of(blocks, heads, length), settings).cache_bytes
    assert found == float(size.removesuffix(" MiB")) * MIB


@pytest.mark.parametrize("row", table("The verdict"), ids=lambda row: " ".join(row[:4]))
def test_the_verdict_is_the_one_that_the_page_says(row: list[str]) -> None:
    weights, num_ctx, gpus, loaded, verdict, missing = row
    given = []
    for index, gpu in enumerate(gpus.split(";")):
        free, _, held = gpu.partition("+")
        given.append(
            Room(index=index, free_bytes=int(float(free) * GIB), held_bytes=int(float(held or 0) * GIB))
        )
    candidate = need(weights_gib=float(weights.removesuffix(" GiB")), num_ctx=int(num_ctx))
    served = [] if loaded == "nothing" else [need("served")]
    found = fit(candidate, served, given, SEVEN)
    assert found.verdict is Verdict[verdict]
    assert found.missing_bytes == (float(missing.removesuffix(" GiB")) * GIB if missing != "-" else 0)


def test_the_numbers_are_told() -> None:
    found = fit(need(), [need("served")], [Room(index=0, free_bytes=2 * GIB, held_bytes=6 * GIB)], SEVEN)
    assert str(found) == (
        "candidate needs 6.44 GiB: 5.00 GiB weights + 448 MiB KV cache (8192 tokens x 1, f16)"
        " + 1.00 GiB overhead; GPU 0 has 2.00 GiB free and 6.00 GiB held by what is served:"
        " the served one is unloaded during verify"
    )


def test_a_byte_more_or_less_decides() -> None:
    exact = need().bytes_on(1)
    assert fit(need(), [], [Room(index=0, free_bytes=exact)], SEVEN).verdict is Verdict.BESIDE
    short = fit(need(), [], [Room(index=0, free_bytes=exact - 1)], SEVEN)
    assert (short.verdict, short.missing_bytes) == (Verdict.TOO_LARGE, 1)


def test_too_large_is_refused_with_the_context_that_would_fit() -> None:
    found = fit(need(num_ctx=32768), [], [Room(index=0, free_bytes=7 * GIB)], SEVEN)
    # 5 GiB + 1792 MiB + 1 GiB = 7.75 GiB; 1024 MiB are left for the cache: 18724 tokens of 56 KiB.
    assert found.largest_num_ctx == 18432
    with pytest.raises(DoesNotFit) as caught:
        check_fit("gpu01", found)
    error = caught.value
    assert error.exit_code is ExitCode.FAILED
    assert (error.expected, error.actual) == ("7.75 GiB free", "7.00 GiB")
    assert error.unchanged == "everything; nothing was copied"
    assert "`PARAMETER num_ctx` to at most 18432" in str(error)
    fitting = fit(need(num_ctx=18432), [], [Room(index=0, free_bytes=7 * GIB)], SEVEN)
    assert fitting.verdict is Verdict.BESIDE


def test_where_the_weights_alone_are_too_large_no_context_is_offered() -> None:
    found = fit(need(), [], [Room(index=0, free_bytes=4 * GIB)], SEVEN)
    assert found.largest_num_ctx is None
    with pytest.raises(DoesNotFit, match="smaller model"):
        check_fit("gpu01", found)


def test_what_fits_alone_is_not_refused() -> None:
    check_fit("gpu01", fit(need(), [], [Room(index=0, free_bytes=0, held_bytes=7 * GIB)], SEVEN))


def test_no_room_at_all_is_too_large() -> None:
    assert fit(need(), [], [], SEVEN).missing_bytes == need().bytes_on(1)


GPU = Gpu(
    index=0,
    name="NVIDIA A10",
    uuid="GPU-a",
    memory_total_bytes=24 * GIB,
    memory_used_bytes=7 * GIB,
    memory_free_bytes=16 * GIB,
    driver="550.54.15",
    processes=(
        GpuProcess(pid=1, name="/opt/ollama/releases/0.17.5/bin/ollama", memory_used_bytes=6 * GIB),
        GpuProcess(pid=2, name="/opt/ollama/releases/0.17.5/bin/ollama", memory_used_bytes=None),
        GpuProcess(pid=3, name="/opt/ollama/releases-of-others/x", memory_used_bytes=GIB),
    ),
)


def test_only_processes_of_our_releases_hold_memory_that_comes_back() -> None:
    assert rooms([GPU], {}, "/opt/ollama/releases") == (
        Room(index=0, free_bytes=16 * GIB, held_bytes=6 * GIB),
    )


def test_the_reserve_of_the_server_is_left_free() -> None:
    assert rooms([GPU], {"OLLAMA_GPU_OVERHEAD": str(GIB)}, "/x")[0] == Room(index=0, free_bytes=15 * GIB)


def test_a_split_gpu_has_no_room_and_its_instances_have() -> None:
    gpus = [
        replace(GPU, mig=Mig.SPLIT),
        replace(GPU, mig=Mig.INSTANCE, memory_free_bytes=5 * GIB, processes=()),
    ]
    assert rooms(gpus, {}, "/x") == (Room(index=0, free_bytes=5 * GIB),)


def test_a_gpu_that_does_not_tell_its_memory_has_no_room() -> None:
    assert rooms([replace(GPU, memory_free_bytes=None)], {}, "/x") == ()


@pytest.mark.parametrize(
    ("parameters", "environment", "total_gib", "num_ctx"),
    [
        ({"num_ctx": 8192}, {"OLLAMA_CONTEXT_LENGTH": "2048"}, 80, 8192),
        ({}, {"OLLAMA_CONTEXT_LENGTH": "2048"}, 80, 2048),
        ({}, {"OLLAMA_CONTEXT_LENGTH": "0"}, 22.9, 4096),
        ({}, {"OLLAMA_CONTEXT_LENGTH": "many"}, 23, 32768),
        ({}, {}, 46.9, 32768),
        ({}, {}, 47, 131072),
        ({"num_ctx": 200_000}, {}, 8, 131072),
    ],
)
def test_the_context_is_chosen_as_the_server_chooses_it(
    parameters: dict[str, int], environment: dict[str, str], total_gib: float, num_ctx: int
) -> None:
    found = cache_settings(SEVEN, parameters, environment, "0.17.5", int(total_gib * GIB))
    assert (found.num_ctx, found.parallel, found.cache_type) == (num_ctx, 1, CacheType.F16)


@pytest.mark.parametrize(
    ("version", "environment", "cache_type"),
    [
        ("0.17.5", {"OLLAMA_KV_CACHE_TYPE": "q8_0"}, CacheType.F16),
        ("0.17.5", {"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": "0"}, CacheType.F16),
        ("0.17.5", {"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": "1"}, CacheType.Q8_0),
        ("0.30.0-rc1", {"OLLAMA_KV_CACHE_TYPE": "q4_0"}, CacheType.Q4_0),
        ("0.32.15", {"OLLAMA_KV_CACHE_TYPE": "q3"}, CacheType.F16),
    ],
)
def test_a_quantised_cache_counts_only_where_the_server_honours_it(
    version: str, environment: dict[str, str], cache_type: CacheType
) -> None:
    assert cache_settings(SEVEN, {}, environment, version, GIB).cache_type is cache_type


def test_parallel_requests_multiply_the_cache() -> None:
    settings = cache_settings(SEVEN, {"num_ctx": 8192}, {"OLLAMA_NUM_PARALLEL": "4"}, "0.17.5", GIB)
    assert memory_need("m", 0, SEVEN, settings).cache_bytes == 4 * 448 * MIB


def test_blocks_with_different_heads_are_added_up() -> None:
    header = replace(read_header(CANARY), head_counts_kv=(4, 0, 2), key_length=192, value_length=64)
    assert header.shape.cache_bytes(1, CacheType.F16) == 6 * 256 * 2


def test_the_overhead_counts_on_every_gpu_that_is_used() -> None:
    assert need().bytes_on(2) - need().bytes_on(1) == OVERHEAD_BYTES


def test_the_header_of_the_canary_is_read() -> None:
    header = read_header(CANARY)
    assert header == GgufHeader(
        architecture="qwen2",
        head_counts_kv=(4, 4, 4, 4),
        key_length=32,
        value_length=32,
        context_length=4096,
        file_type=1,
    )
    assert header.block_count == 4
    assert header.shape == ModelShape(cache_values_per_token=4 * 4 * 64, context_length=4096)


def write_gguf(path: Path, *, words: int = 3, heads_kv: int | list[int] = 4, **keys: int) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "qwen2")
    writer.add_block_count(3)
    writer.add_head_count(8)
    writer.add_head_count_kv(heads_kv)
    writer.add_embedding_length(512)
    writer.add_token_list([f"word {number}" for number in range(words)])
    writer.add_token_types([1] * words)
    for key, value in keys.items():
        writer.add_uint32(f"qwen2.{key}", value)
    writer.add_tensor("one", np.zeros(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("words", [3, 20_000])
def test_what_stands_behind_the_words_of_a_tokenizer_is_read(tmp_path: Path, words: int) -> None:
    path = write_gguf(tmp_path / "w.gguf", words=words, heads_kv=[8, 0, 2], context_length=32768)
    header = read_header(path)
    assert (header.head_counts_kv, header.key_length, header.value_length) == ((8, 0, 2), 64, 64)
    assert header.context_length == 32768


def test_lengths_of_keys_and_values_may_be_given(tmp_path: Path) -> None:
    keys = {"attention.key_length": 192, "attention.value_length": 128, "context_length": 4096}
    header = read_header(write_gguf(tmp_path / "w.gguf", **keys))
    assert (header.head_counts_kv, header.key_length, header.value_length) == ((4, 4, 4), 192, 128)


def test_a_header_without_a_needed_key_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(NotAnArtefact, match=r"qwen2\.context_length"):
        read_header(write_gguf(tmp_path / "w.gguf"))


def test_the_beginning_of_a_file_is_enough() -> None:
    data = CANARY.read_bytes()
    assert read_header_of_beginning("canary.gguf", data[:60_000], len(data)) == read_header(CANARY)


@pytest.mark.parametrize(
    "beginning", [b"", b"<html>", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 200, CANARY.read_bytes()[:20_000]]
)
def test_what_is_no_gguf_or_too_short_is_refused(beginning: bytes) -> None:
    with pytest.raises(NotAnArtefact, match=r"header of `weights\.gguf`"):
        read_header_of_beginning("weights.gguf", beginning, len(beginning))
