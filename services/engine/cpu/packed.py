"""Weights as the products read them, packed once at start, and which kind of product is for which weights.

Weights [out, in] are packed in blocks of 16 outputs, see `instructions`. 8 bits: weights are integers -127..127 times a
scale of each output, rows integers -127..127 times a scale of each row.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from services.engine.config import Instructions
from services.engine.cpu.kernels import Floats
from services.engine.cpu.kinds import Kind, kinds
from services.engine.cpu.llvm import LANES

BLOCKS_AT_ONCE = 4
"""The outputs of a weight are filled up to a multiple of so many blocks, which one thread computes together."""
OUTPUTS_AT_ONCE = LANES * BLOCKS_AT_ONCE
_BFLOAT16 = Kind.BFLOAT16, Kind.BFLOAT16_AVX512, Kind.BFLOAT16_AMX
_INT8 = Kind.INT8, Kind.INT8_AVX512, Kind.INT8_AMX
"""Kinds stand in the order of the Instructions that they need."""


class Packed(NamedTuple):
    """A weight [out, in] as the products read it."""

    blocks: NDArray[np.int32]
    """[outputs / 16, units, 16], filled up with zeros."""
    scales: Floats
    """What the integers of each output are to be multiplied by; empty for other kinds."""
    sums: NDArray[np.int32]
    """128 times the sum of each output's integers, where rows are stored plus 128."""
    bias: Floats
    """[out], or empty."""
    out_features: int
    in_features: int


def kind_for(weights: torch.dtype, newest: Instructions, *, round_to_int8: bool) -> Kind:
    """The fastest kind here for weights of a data type, or for weights that are rounded to 8 bits."""
    if not round_to_int8 and weights != torch.bfloat16:
        return Kind.FLOAT16 if weights == torch.float16 else Kind.FLOAT32
    by_age = _INT8 if round_to_int8 else _BFLOAT16
    allowed = by_age[: list(Instructions).index(newest) + 1]
    return [kind for kind in allowed if kind in kinds()][-1]


def row_bytes(kind: Kind, in_features: int) -> int:
    """Bytes of a row of so many inputs as `to_units` writes it."""
    return num_units(kind, in_features) * kind.unit_bytes


def num_units(kind: Kind, in_features: int) -> int:
    """Units of a row, filled up to a multiple of what a tile takes."""
    return -(-in_features // (LANES * kind.unit_inputs)) * LANES


def pack(kind: Kind, weight: torch.Tensor, bias: torch.Tensor | None) -> Packed:
    """Lays out a weight [out, in]."""
    out_features, in_features = weight.shape
    per_unit, units = kind.unit_inputs, num_units(kind, in_features)
    outputs = -(-out_features // OUTPUTS_AT_ONCE) * OUTPUTS_AT_ONCE
    scales, sums = np.zeros(0, np.float32), np.zeros(0, np.int32)
    weight = weight.float()
    if per_unit == 4:
        scale = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
        weight = (weight / scale.unsqueeze(1)).round()
        scales, sums = np.zeros(outputs, np.float32), np.zeros(outputs, np.int32)
        scales[:out_features] = scale.numpy()
        if kind is not Kind.INT8:
            sums[:out_features] = 128 * weight.sum(dim=1).to(torch.int32).numpy()
    narrow = torch.float16 if kind is Kind.FLOAT16 else {1: torch.float32, 2: torch.bfloat16, 4: torch.int8}[per_unit]
    blocks = aligned((outputs // LANES, units, LANES), np.int32)
    view = torch.from_numpy(blocks).view(narrow)
    if kind is Kind.FLOAT16:
        view = view.view(outputs // LANES, units, per_unit, LANES).transpose(2, 3)
    else:
        view = view.view(outputs // LANES, units, LANES, per_unit)
    filled = torch.zeros(outputs, units * per_unit, dtype=narrow)
    filled[:out_features, :in_features] = weight.to(narrow)
    view.copy_(filled.view(outputs // LANES, LANES, units, per_unit).transpose(1, 2))
    offset = np.zeros(0, np.float32) if bias is None else bias.float().numpy()
    return Packed(blocks, scales, sums, offset, out_features, in_features)


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that begin where a line of the cache does. numpy asks the system for large pages, as torch does not."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    array: NDArray[Any] = room[start : start + size].view(dtype).reshape(shape)
    return array
