"""Reads a model's shape from the header of its GGUF file; the only importer of `gguf`, which needs numpy."""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import NotAnArtefact
from deploy.fit import ModelShape

if TYPE_CHECKING:
    from gguf import GGUFReader

_MANY = 4096  # no model has so many blocks
_HINT = "compare the file's size and sha256 with its pin: ./fleet download fetches what does not agree"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a header says of the model's size. `head_counts_kv` has one number for each block.

    `file_type` is llama.cpp's number of the quantisation (17 is Q5_K_M), None where it is not told.
    """

    architecture: str
    head_counts_kv: tuple[int, ...]
    key_length: int
    value_length: int
    context_length: int
    file_type: int | None

    @property
    def block_count(self) -> int:
        return len(self.head_counts_kv)

    @property
    def shape(self) -> ModelShape:
        values = sum(self.head_counts_kv) * (self.key_length + self.value_length)
        return ModelShape(cache_values_per_token=values, context_length=self.context_length)


def read_header(path: Path) -> GgufHeader:
    """The header of a whole GGUF file.

    Keys: github.com/ggml-org/ggml, docs/gguf.md. Raises NotAnArtefact where the file is no GGUF, was cut
    short in its header, or lacks a key that the cache's size depends on.
    """
    try:
        return _header(_reader_class()(path))
    except (OSError, ValueError, LookupError, OverflowError, ZeroDivisionError, struct.error) as error:
        raise NotAnArtefact(
            sentence=f"the header of `{path.name}` could not be read as GGUF",
            path=str(path),
            cause=f"{type(error).__name__}: {error}",
            unchanged="the file",
            hint=_HINT,
        ) from error


def read_header_of_beginning(name: str, beginning: bytes, size_bytes: int) -> GgufHeader:
    """The same from the first bytes of a file of `size_bytes`: the header is a few MB, the weights are GB.

    The reader wants a whole file, so it gets a sparse one that ends in a hole. Raises NotAnArtefact, also
    where the header is longer than `beginning`.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / Path(name).name
        with path.open("wb") as file:
            file.write(beginning)
            file.truncate(max(size_bytes, len(beginning)))
        return read_header(path)


@cache
def _reader_class() -> type[GGUFReader]:
    """The library's reader, without the tokenizer's words.

    It makes several objects of each: measured with gguf 0.19.0, 10 s and 500 MB for 152,000 words and as many
    merges, about what Qwen2 has. So it is 0.4 s and 46 MB.
    """
    from gguf import GGUFReader, GGUFValueType

    class Reader(GGUFReader):
        def _get_field_parts(
            self, orig_offs: int, raw_type: int
        ) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
            if raw_type == GGUFValueType.ARRAY and self.byte_order == "I":
                data = self.data.data
                kind, count = struct.unpack_from("<IQ", data, orig_offs)
                length = _length_of_words(data, orig_offs + 12, kind, count)
                if length is not None:
                    return 12 + length, [], [], [GGUFValueType(raw_type), GGUFValueType(kind)]
            return super()._get_field_parts(orig_offs, raw_type)

    return Reader


def _length_of_words(data: memoryview, start: int, kind: int, count: int) -> int | None:
    """The bytes of an array of strings, or of as many numbers; None for a short array of numbers."""
    from gguf import GGUFReader, GGUFValueType

    if kind == GGUFValueType.STRING:
        read_length = struct.Struct("<Q").unpack_from
        end = start
        for _ in range(count):
            end += 8 + read_length(data, end)[0]
        return end - start
    item = GGUFReader.gguf_scalar_to_np.get(GGUFValueType(kind))
    return None if item is None or count < _MANY else count * item().itemsize


def _header(reader: GGUFReader) -> GgufHeader:
    def value(key: str) -> Any:
        field = reader.get_field(key)
        return None if field is None else field.contents()

    def number(key: str) -> int:
        found = value(key)
        if not isinstance(found, int):
            raise KeyError(key)
        return found

    architecture = str(value("general.architecture"))
    blocks = number(f"{architecture}.block_count")
    heads = value(f"{architecture}.attention.head_count")
    heads_kv = value(f"{architecture}.attention.head_count_kv")
    per_block = _per_block(heads if heads_kv is None else heads_kv, blocks)
    key_length = value(f"{architecture}.attention.key_length")
    value_length = value(f"{architecture}.attention.value_length")
    if key_length is None or value_length is None:
        shared = number(f"{architecture}.embedding_length") // max(_per_block(heads, blocks))
        key_length, value_length = key_length or shared, value_length or shared
    return GgufHeader(
        architecture=architecture,
        head_counts_kv=per_block,
        key_length=key_length,
        value_length=value_length,
        context_length=number(f"{architecture}.context_length"),
        file_type=value("general.file_type"),
    )


def _per_block(heads: Any, blocks: int) -> tuple[int, ...]:
    """One number for all blocks, or a list with one for each."""
    if isinstance(heads, int):
        return (heads,) * blocks
    if isinstance(heads, list) and len(heads) == blocks:
        return tuple(heads)
    raise KeyError("attention.head_count")
