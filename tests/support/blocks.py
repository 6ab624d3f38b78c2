"""Blocks to keep, and bounds that ten of them fill."""

import random

from services.prefix_cache.block import Block, sealed

SIZE = 50_000
QUOTA = 10 * SIZE
CAPACITY = 25 * SIZE


def block(number: int, size: int = SIZE) -> Block:
    """The same for the same number and size."""
    rng = random.Random(number)
    return sealed(rng.randbytes(32), rng.randbytes(size))
