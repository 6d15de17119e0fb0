"""Holds so many MiB of the first GPU until standard input ends: `python hold_memory.py MIB`.

By the driver's own library, so nothing but the driver is needed; plain memory of the card, never managed
memory, which can move to the host's.
"""

from __future__ import annotations

import ctypes
import sys

MIB = 1024 * 1024


def hold_memory(size_bytes: int) -> None:
    """Take it from the first GPU for the life of this process."""
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    for call, *arguments in (
        ("cuInit", ctypes.c_uint(0)),
        ("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0)),
        ("cuDevicePrimaryCtxRetain", ctypes.byref(context), device),
        ("cuCtxSetCurrent", context),
        ("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes)),
    ):
        code = getattr(cuda, call)(*arguments)
        if code:
            sys.exit(f"{call} answered {code}")


if __name__ == "__main__":
    hold_memory(int(sys.argv[1]) * MIB)
    print("held", flush=True)
    sys.stdin.read()
