"""A load of all kinds that goes on and on: memory is flat, and nothing is left behind.

Real processes of the pair that ships, with clients that leave, ask for what is refused, and want much at once.
PACELINE_MINUTES makes it longer.
"""

import os

import pytest

from benchmarks.steady import memory_under_load
from services.local.pair import shipped_model

MINUTES = float(os.environ.get("PACELINE_MINUTES", "1.5"))
MOST_GROWTH = 1.1
pytestmark = pytest.mark.timeout(120 + 90 * MINUTES)


async def test_memory_is_flat_and_nothing_is_left_behind() -> None:
    grown = await memory_under_load(shipped_model("target"), shipped_model("draft"), MINUTES)
    assert {one.process for one in grown} == {"prefix-cache", "adapter-store", "draft", "verifier", "gateway"}
    assert all(one.ratio <= MOST_GROWTH for one in grown), grown
