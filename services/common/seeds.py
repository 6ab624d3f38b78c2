"""Mixing of 64-bit numbers: SplitMix64's finalizer (Steele, Lea, Flood 2014) and seeds derived with it."""

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
MASK = (1 << 64) - 1


def mix(z: int) -> int:
    """A bijection of 64-bit numbers in which every bit depends on every other."""
    z = ((z ^ (z >> 30)) * MIX_1) & MASK
    z = ((z ^ (z >> 27)) * MIX_2) & MASK
    return z ^ (z >> 31)


def derive_seed(seed: int, index: int) -> int:
    """Seed of the index-th choice of a request; that of choice 0 is the request's own."""
    return seed if index == 0 else mix((seed + index * GOLDEN) & MASK)
