"""Blocks are neither lost nor handed out twice, whatever is done with them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.engine.block_pool import NULL_BLOCK, BlockPool

NUM_BLOCKS = 7


class PoolMachine(RuleBasedStateMachine):
    """Allocates, shares, names and releases in any order, beside a plain model of what must be so."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.references: dict[int, int] = {}
        self.names: dict[bytes, int] = {}

    @rule()
    def allocate(self) -> None:
        block = self.pool.allocate()
        if block is None:
            assert len(self.references) == NUM_BLOCKS - 1
            return
        assert block != NULL_BLOCK
        assert block not in self.references
        self.references[block] = 1
        self.names = {name: known for name, known in self.names.items() if known != block}

    @precondition(lambda self: self.references)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.references)))
        self.pool.release(block)
        self.references[block] -= 1
        if not self.references[block]:
            del self.references[block]

    @precondition(lambda self: self.references)
    @rule(data=st.data(), name=st.sampled_from([b"a", b"b", b"c"]))
    def name(self, data: st.DataObject, name: bytes) -> None:
        block = data.draw(st.sampled_from(sorted(self.references)))
        self.pool.register(block, name)
        if name not in self.names and block not in self.names.values():
            self.names[name] = block

    @rule(name=st.sampled_from([b"a", b"b", b"c"]))
    def take(self, name: bytes) -> None:
        block = self.pool.take(name)
        assert block == self.names.get(name)
        if block is not None:
            self.references[block] = self.references.get(block, 0) + 1

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check_integrity()
        assert self.pool.num_used == len(self.references)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, deadline=None)


@given(order=st.permutations(range(4)))
@settings(max_examples=24, deadline=None)
def test_cached_blocks_are_reused_least_recently_released_first(order: list[int]) -> None:
    pool = BlockPool(5)
    blocks = [pool.allocate() for _ in range(4)]
    for index, block in enumerate(blocks):
        pool.register(block, bytes([index]))
    for index in order:
        pool.release(blocks[index])
    assert [pool.allocate() for _ in range(4)] == [blocks[index] for index in order]


def test_releasing_what_is_not_in_use_is_an_error() -> None:
    pool = BlockPool(3)
    block = pool.allocate()
    pool.release(block)
    for wrong in (block, NULL_BLOCK):
        with pytest.raises(ValueError, match="not in use"):
            pool.release(wrong)
