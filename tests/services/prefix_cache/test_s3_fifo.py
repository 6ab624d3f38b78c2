"""A scan leaves what is in use alone; the accounts always agree."""

import random

from hypothesis import given
from hypothesis import strategies as st

from services.prefix_cache.s3_fifo import S3Fifo


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_a_scan_passes_through() -> None:
    order = S3Fifo()
    for number in range(100):
        order.add(key(number), 1)
        order.touch(key(number))
    for number in range(1000, 3000):
        while order.num_bytes >= 110:
            order.evict()
        order.add(key(number), 1)
    assert sum(key(number) in order for number in range(100)) >= 90


def test_what_comes_back_soon_stays() -> None:
    order = S3Fifo()
    for number in range(20):
        order.add(key(number), 1)
    evicted = order.evict()
    order.add(evicted, 1)
    for number in range(100, 110):
        order.evict()
        order.add(key(number), 1)
    assert evicted in order


@given(st.lists(st.tuples(st.sampled_from(["add", "touch", "remove", "evict"]), st.integers(0, 30)), max_size=200))
def test_bytes_are_those_of_the_keys_held(steps: list[tuple[str, int]]) -> None:
    order, held = S3Fifo(), {}
    rng = random.Random(3)
    for what, number in steps:
        name = key(number)
        if what == "add" and name not in held:
            held[name] = rng.randrange(1, 100)
            order.add(name, held[name])
        elif what == "touch" and name in held:
            order.touch(name)
        elif what == "remove" and name in held:
            order.remove(name)
            del held[name]
        elif what == "evict" and held:
            del held[order.evict()]
        assert order.num_bytes == sum(held.values())
        assert len(order) == len(held)
        assert all(name in order for name in held)
