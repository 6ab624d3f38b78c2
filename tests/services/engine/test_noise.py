"""The shared noise: the same bits as its definition, independent, and Gumbel."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from services.common.seeds import derive_seed
from services.engine.noise import gumbel, hash_token, row_state, signed

U64 = st.integers(0, 2**64 - 1)


def noise(seeds: list[int], positions: list[int], vocab_size: int) -> torch.Tensor:
    states = [signed(row_state(seed, position)) for seed, position in zip(seeds, positions, strict=True)]
    return gumbel(torch.tensor(states), vocab_size)


@given(U64, st.integers(0, 2**31), st.integers(0, 300))
def test_equals_its_definition(seed: int, position: int, token_id: int) -> None:
    u = ((hash_token(seed, position, token_id) >> 12) + 0.5) * 2.0**-52
    got = noise([seed], [position], 301)[0, token_id].item()
    assert math.isclose(got, -math.log(-math.log(u)), rel_tol=1e-12, abs_tol=1e-12)


def test_a_row_has_the_same_bits_in_any_batch() -> None:
    together = noise([1, 2, 3], [4, 5, 6], 1000)
    for index in range(3):
        assert torch.equal(together[index], noise([index + 1], [index + 4], 1000)[0])
    assert torch.equal(together[:, :77], noise([1, 2, 3], [4, 5, 6], 77))


def test_is_standard_gumbel_distributed() -> None:
    values = noise(list(range(200)), [7] * 200, 1000).flatten()
    assert abs(values.mean().item() - 0.5772) < 0.01
    assert abs(values.var().item() - math.pi**2 / 6) < 0.02
    uniforms = torch.exp(-torch.exp(-values))
    counts = torch.histc(uniforms, bins=50, min=0.0, max=1.0)
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum().item()
    assert chi_square < 95  # 49 degrees of freedom: one run in 10,000 is above


def test_neighbours_are_uncorrelated() -> None:
    base = noise(list(range(100)), [50] * 100, 1000)
    for other in (
        noise(list(range(1, 101)), [50] * 100, 1000),
        noise(list(range(100)), [51] * 100, 1000),
        base.roll(1, dims=1),
    ):
        correlation = torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1].item()
        assert abs(correlation) < 0.015


def test_no_tail_is_cut_off() -> None:
    largest, smallest = -math.log(-math.log1p(-0.5 * 2.0**-52)), -math.log(-math.log(0.5 * 2.0**-52))
    assert math.isfinite(largest)
    assert math.isfinite(smallest)
    assert largest > 36


def test_derived_seeds_differ_and_that_of_choice_0_is_the_seed() -> None:
    assert derive_seed(5, 0) == 5
    assert len({derive_seed(seed, index) for seed in range(50) for index in range(16)}) == 800
