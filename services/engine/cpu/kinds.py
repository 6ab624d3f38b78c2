"""Kinds of products, and which of them this processor has."""

import ctypes
import platform
import sys
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding

HAS_32_REGISTERS = bool(binding.get_host_cpu_features().get("avx512f", platform.machine() not in ("x86_64", "AMD64")))
"""Whether the sums of eight rows and 16 outputs fit into registers beside what is added to them."""
TILE_ROWS = 16
"""Rows of a tile register, of 64 bytes each."""
_ARCH_REQ_XCOMP_PERM, _XTILEDATA, _SYS_ARCH_PRCTL = 0x1023, 18, 158


class Kind(IntEnum):
    """A type of weights and the instructions that multiply by it."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2
    BFLOAT16_AVX512 = 3
    INT8_AVX512 = 4
    BFLOAT16_AMX = 5
    INT8_AMX = 6
    FLOAT16 = 7

    @property
    def unit_inputs(self) -> int:
        """How many inputs make a unit: 64 bytes of a block of weights."""
        return 1 if self is Kind.FLOAT32 else 4 if self in (Kind.INT8, Kind.INT8_AVX512, Kind.INT8_AMX) else 2

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit of a row, which some kinds multiply in a wider type than that of the weights."""
        return 8 if self in (Kind.BFLOAT16, Kind.FLOAT16, Kind.INT8) else 4

    @property
    def in_tiles(self) -> bool:
        """Whether threads have to load the tile registers before they multiply."""
        return self in (Kind.BFLOAT16_AMX, Kind.INT8_AMX)


@cache
def kinds() -> frozenset[Kind]:
    """The kinds that this processor and its operating system have."""
    features = binding.get_host_cpu_features()
    found = {Kind.FLOAT32, Kind.FLOAT16, Kind.BFLOAT16, Kind.INT8}
    if features.get("avx512bf16"):
        found.add(Kind.BFLOAT16_AVX512)
    if features.get("avx512vnni") and features.get("avx512bw"):
        found.add(Kind.INT8_AVX512)
    if features.get("amx-tile") and _may_use_tiles():
        if features.get("amx-bf16"):
            found.add(Kind.BFLOAT16_AMX)
        if features.get("amx-int8") and Kind.INT8_AVX512 in found:
            found.add(Kind.INT8_AMX)
    return frozenset(found)


def _may_use_tiles() -> bool:
    """Asks Linux for the tile registers, which a process has to do once (Documentation/arch/x86/xstate.rst)."""
    if not sys.platform.startswith("linux"):
        return False
    return ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0  # type: ignore[no-any-return]


def tile_configuration() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What `load_tiles` takes: eight tiles of 16 rows of 64 bytes."""
    configuration = np.zeros(64, np.uint8)
    configuration[0] = 1
    configuration[16:32].view(np.uint16)[:] = 64
    configuration[48:56] = TILE_ROWS
    return configuration
