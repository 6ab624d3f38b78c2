"""The noise that draft and target share: gumbel(hash(seed, position, token)).

The hash is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): its state is mixed
from seed and position, and token t takes the t-th output. It is counter-based: the noise of a token at a position never
depends on what else is drawn, on which device, or in which batch. Uniforms have 52 bits and a half step, so that
neither 0 nor 1 occurs and no tail is cut off.
"""

import functools

import torch

from services.common.seeds import GOLDEN, MASK, MIX_1, MIX_2, mix

_POSITION = 0xD1342543DE82EF95


def row_state(seed: int, position: int) -> int:
    """State from which the noise of all tokens at a position is drawn."""
    return mix((mix((seed + GOLDEN) & MASK) + (position + 1) * _POSITION) & MASK)


def hash_token(seed: int, position: int, token_id: int) -> int:
    """The 64 bits of one token's noise; the reference for `gumbel`."""
    return mix((row_state(seed, position) + (token_id + 1) * GOLDEN) & MASK)


def gumbel(states: torch.Tensor, vocab_size: int, token_ids: torch.Tensor | None = None) -> torch.Tensor:
    """Standard Gumbel noise in float64 for row states [rows] in int64: of all tokens [rows, vocab_size], or of these
    [tokens] or [rows, tokens].
    """
    offsets = _token_offsets(vocab_size, states.device) if token_ids is None else (token_ids + 1) * signed(GOLDEN)
    z = states.unsqueeze(1) + offsets
    _xor_shift(z, 30).mul_(signed(MIX_1))
    _xor_shift(z, 27).mul_(signed(MIX_2))
    _xor_shift(z, 31)
    u = z.bitwise_right_shift_(12).bitwise_and_((1 << 52) - 1).double()
    return u.add_(0.5).mul_(2.0**-52).log_().neg_().log_().neg_()


def signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    return value - (1 << 64) if value >> 63 else value


def _xor_shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """z ^= z >> bits, the shift logical."""
    return z.bitwise_xor_((z >> bits).bitwise_and_((1 << (64 - bits)) - 1))


@functools.lru_cache(maxsize=8)
def _token_offsets(vocab_size: int, device: torch.device) -> torch.Tensor:
    return torch.arange(1, vocab_size + 1, device=device).mul_(signed(GOLDEN))
