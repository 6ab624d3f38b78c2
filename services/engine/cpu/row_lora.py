"""Adapters on the CPU: weights of each at its own rank, added row by row in compiled code."""

from collections import abc
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from services.engine.adapter import Adapter
from services.engine.cpu import parallel
from services.engine.cpu.kernels import Ints
from services.engine.cpu.lora_kernel import ARGUMENTS, MAX_PARTS, PART_FIELDS, add_shares
from services.engine.lora import Product, check_finite, rows_with_adapters
from services.engine.scheduler import Work

_EXPONENT = 0x7F80
"""These bits of a bfloat16 are its exponent: all ones in infinity and NaN."""
_Weights = NDArray[np.float32] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter as the kernel reads it."""

    segments: Ints
    """[products, MAX_PARTS, PART_FIELDS]: see `lora_kernel`."""
    scaling: float
    weights: list[_Weights]
    """What the addresses point to."""


@dataclass(frozen=True, slots=True)
class RowPacker:
    """Half-precision models keep adapters in bfloat16, others in float32."""

    products: abc.Sequence[Product]
    half: bool

    def pack(self, adapter: Adapter) -> PackedAdapter:
        """See Packer."""
        segments = np.zeros((len(self.products), MAX_PARTS, PART_FIELDS), np.int64)
        weights: list[_Weights] = []
        for index, product in enumerate(self.products):
            for place, (target, first) in enumerate(product.parts):
                pair = adapter.pairs.get(target.name)
                if pair is None:
                    continue
                down, up = self._array(pair.down), self._array(pair.up.t())
                weights += [down, up]
                fields = (adapter.rank, down.ctypes.data, up.ctypes.data, first, target.out_features)
                segments[index, place] = fields
        return PackedAdapter(segments, adapter.scaling, weights)

    def _array(self, weight: torch.Tensor) -> _Weights:
        """A matrix in the type that the kernel reads. Without torch's threads, which belong to the engine."""
        if not self.half:
            array = np.ascontiguousarray(_float32(weight))
            check_finite(all_finite=bool(np.isfinite(array).all()))
            return array
        if weight.dtype == torch.bfloat16:
            rounded = np.ascontiguousarray(weight.view(torch.uint16).numpy())
        else:
            bits = np.ascontiguousarray(_float32(weight)).view(np.uint32)
            rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # To nearest, ties to even.
        check_finite(all_finite=bool((rounded & _EXPONENT != _EXPONENT).all()))
        return rounded


class RowLora:
    """See Lora."""

    def __init__(self, products: abc.Sequence[Product], num_slots: int, max_rank: int, *, half: bool) -> None:
        self.packer = RowPacker(products, half)
        self._products = products
        self._threads = torch.get_num_threads()
        self._installed: dict[int, PackedAdapter] = {}
        self._segments: Ints = np.zeros((num_slots, len(products), MAX_PARTS, PART_FIELDS), np.int64)
        self._scalings = np.zeros(num_slots, np.float32)
        self._arguments = np.zeros((), ARGUMENTS)
        self._rows: Ints = np.empty(0, np.int64)
        self._slots: Ints = np.empty(0, np.int64)
        fixed = {
            "slots": num_slots, "products": len(products), "max_rank": max_rank, "half": half,
            "segments": self._segments.ctypes.data, "scalings": self._scalings.ctypes.data,
        }  # fmt: skip
        for name, value in fixed.items():
            self._arguments[name] = value

    def install(self, slot: int, packed: PackedAdapter) -> None:
        """See Lora."""
        self._installed[slot] = packed
        self._segments[slot] = packed.segments
        self._scalings[slot] = packed.scaling

    def select(self, works: abc.Sequence[Work], _num_rows: int) -> bool:
        """See Lora."""
        rows, slots = rows_with_adapters(works)
        self._rows, self._slots = np.array(rows, np.int64), np.array(slots, np.int64)
        self._arguments["selected"] = len(rows)
        self._arguments["shares"] = min(self._threads, len(rows))
        self._arguments["row_numbers"] = self._rows.ctypes.data
        self._arguments["row_slots"] = self._slots.ctypes.data
        return bool(rows)

    def add(self, product: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """See Lora. Both float32, y contiguous."""
        if not len(self._rows):
            return
        x = x.contiguous()
        arguments, (width, outputs, _) = self._arguments, self._products[product]
        arguments["product"], arguments["rows"] = product, x.numel() // width
        arguments["in_features"], arguments["out_features"] = width, outputs
        arguments["x"], arguments["y"] = x.data_ptr(), y.data_ptr()
        parallel.run(add_shares, arguments.ctypes.data, int(arguments["shares"]))


def _float32(weight: torch.Tensor) -> NDArray[np.float32]:
    if weight.dtype == torch.bfloat16:
        return (weight.view(torch.uint16).numpy().astype(np.uint32) << 16).view(np.float32)
    return weight.numpy().astype(np.float32, copy=False)
