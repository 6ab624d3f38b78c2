"""Products of every kind that this processor has: right, and the same bits for a row in any number of rows."""

import numpy as np
import pytest
import torch
from numba import njit
from numpy.typing import NDArray

from services.engine.config import Instructions
from services.engine.cpu.instructions import load_tiles, release_tiles
from services.engine.cpu.kinds import Kind, kinds, tile_configuration
from services.engine.cpu.packed import OUTPUTS_AT_ONCE, Packed, aligned, kind_for, pack, row_bytes
from services.engine.cpu.product import ROOM_BYTES, multiply, to_units

SHAPES = ((1000, 384), (384, 1056), (64, 64), (50, 40))
COUNTS = (*range(1, 36), 64, 70)
_tiles = tile_configuration()


@njit
def _run(kind, in_tiles, rows, weights, out, x, stride, scales, weight_scales, offsets, bias, room, y, tiles):  # type: ignore[no-untyped-def]
    units = weights.shape[1]
    for row in range(rows.shape[0]):
        scales[row] = to_units(kind, rows[row], units, x + row * stride)
    if in_tiles:
        load_tiles(tiles)
    groups = (out + OUTPUTS_AT_ONCE - 1) // OUTPUTS_AT_ONCE
    multiply(
        kind, weights.ctypes.data, units, out, 0, groups, x, stride, scales, weight_scales, offsets, bias, room, y
    )  # fmt: skip
    if in_tiles:
        release_tiles()


def product(kind: Kind, packed: Packed, rows: torch.Tensor) -> NDArray[np.float32]:
    """rows @ weight.T + bias. Rows behind the last hold NaN, as memory may."""
    stride = row_bytes(kind, packed.in_features)
    x = aligned((len(rows) + 32, stride), np.uint8)
    x[:] = 255
    scales, room = np.zeros(len(rows), np.float32), aligned((ROOM_BYTES,), np.uint8)
    y = np.zeros((len(rows), packed.out_features), np.float32)
    _run(
        int(kind), kind.in_tiles, rows.numpy(), packed.blocks, packed.out_features, x.ctypes.data, stride, scales,
        packed.scales, packed.sums, packed.bias, room.ctypes.data, y, _tiles.ctypes.data,
    )  # fmt: skip
    return y


@pytest.mark.parametrize("kind", sorted(kinds()), ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_same_bits_in_any_number_of_rows(kind: Kind, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(shape, generator=generator), torch.randn(shape[0], generator=generator)
    rows = torch.randn(max(COUNTS), shape[1], generator=generator)
    packed = pack(kind, weight, bias)
    everything = product(kind, packed, rows)
    narrow = torch.bfloat16 if packed_bytes(kind) == 2 else torch.float32
    expected = rows @ weight.to(narrow).float().T + bias
    error = (torch.from_numpy(everything) - expected).square().mean().sqrt() / expected.std()
    assert error < (0.02 if packed_bytes(kind) == 1 else 0.004)
    for count in COUNTS:
        assert np.array_equal(product(kind, packed, rows[:count]), everything[:count]), count


def packed_bytes(kind: Kind) -> int:
    """Bytes of one weight."""
    return 4 // kind.unit_inputs


def test_eight_bits_are_the_same_on_every_processor() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, rows = torch.randn(200, 300, generator=generator), torch.randn(20, 300, generator=generator)
    results = [product(kind, pack(kind, weight, None), rows) for kind in sorted(kinds()) if packed_bytes(kind) == 1]
    assert all(np.array_equal(result, results[0]) for result in results)


def test_a_row_of_zeros_and_one_of_huge_numbers_stay_finite_in_eight_bits() -> None:
    kind = kind_for(torch.bfloat16, Instructions.AMX, round_to_int8=True)
    rows = torch.stack([torch.zeros(40), torch.full((40,), 1e30)])
    result = product(kind, pack(kind, torch.ones(50, 40), torch.full((50,), 2.0)), rows)
    assert np.array_equal(result[0], np.full(50, 2.0, np.float32))
    assert np.allclose(result[1], 4e31)


NOT_FINITE = [*(np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)), np.inf, -np.inf]


@pytest.mark.parametrize("kind", sorted(kinds()), ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("place", [0, 17, 39])
def test_what_is_not_finite_is_never_a_number_behind_a_product(kind: Kind, place: int) -> None:
    generator = torch.Generator().manual_seed(2)
    packed = pack(kind, torch.randn(50, 40, generator=generator), torch.randn(50, generator=generator))
    rows = torch.randn(10, 40, generator=generator)
    expected = product(kind, packed, rows)
    broken = range(0, 10, 2)
    for row, value in zip(broken, NOT_FINITE, strict=True):
        rows.numpy()[row, place] = value
    got = product(kind, packed, rows)
    assert not np.isfinite(got[broken]).any()
    assert np.array_equal(np.delete(got, broken, 0), np.delete(expected, broken, 0))


def test_newer_instructions_than_allowed_are_not_used() -> None:
    assert kind_for(torch.bfloat16, Instructions.PORTABLE, round_to_int8=False) is Kind.BFLOAT16
    assert kind_for(torch.float16, Instructions.PORTABLE, round_to_int8=True) is Kind.INT8
    assert kind_for(torch.float32, Instructions.AMX, round_to_int8=False) is Kind.FLOAT32
