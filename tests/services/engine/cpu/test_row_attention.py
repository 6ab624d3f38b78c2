"""The compiled attention over blocks against the textbook's, and on one thread against several."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from services.common.sampling_params import SamplingParams
from services.engine.cpu.plan import RowPlan
from services.engine.cpu.row_attention import RowAttention
from services.engine.kv_cache import KVCache, KVShape
from services.engine.scheduler import Work
from services.engine.sequence import Sequence

BLOCK = 16
DIM = 24
KV_HEADS = 3
CONTEXTS = (1, 200, 37, 16, 65)


@pytest.fixture
def kv_cache() -> KVCache:
    torch.manual_seed(0)
    cache = KVCache([KVShape(KV_HEADS, DIM, DIM)], 64, BLOCK, torch.float32, torch.device("cpu"))
    cache.keys[0].normal_()
    cache.values[0].normal_()
    return cache


@pytest.fixture
def num_threads() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def _works(counts: tuple[int, ...]) -> list[Work]:
    """Sequences whose blocks lie anywhere, the last rows of each in the step."""
    blocks = iter(np.random.default_rng(1).permutation(np.arange(1, 64)).tolist())
    works = []
    for length, count in zip(CONTEXTS, counts, strict=True):
        sequence = Sequence([5] * length, length, SamplingParams())
        sequence.block_table = [next(blocks) for _ in range(-(-length // BLOCK))]
        works.append(Work(sequence, length - count, count))
    return works


def _attend(works: list[Work], kv_cache: KVCache, group: int, window: int | None, padding: int = 2) -> torch.Tensor:
    rows = sum(work.num_tokens for work in works)
    attention = RowAttention(RowPlan(works, rows + padding, kv_cache), kv_cache, KV_HEADS * group)
    attention.queries[:] = np.random.default_rng(2).standard_normal(attention.queries.shape, np.float32)[:]
    return attention.run(0, 0.3, window).clone()


@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1), (1, 200, 5, 16, 9)])
@pytest.mark.parametrize("group", [1, 2, 5])
@pytest.mark.parametrize("window", [None, 1, 20])
def test_it_is_attention(kv_cache: KVCache, counts: tuple[int, ...], group: int, window: int | None) -> None:
    works = _works(counts)
    got = _attend(works, kv_cache, group, window)
    rows = sum(counts)
    assert torch.equal(got[rows:], torch.zeros_like(got[rows:]))
    shape = (rows + 2, KV_HEADS * group, DIM)
    queries = torch.from_numpy(np.random.default_rng(2).standard_normal(shape, np.float32))
    row = 0
    for work in works:
        length = len(work.sequence)
        slots = torch.tensor([kv_cache.slot(work.sequence.block_table, i) for i in range(length)])
        keys, values = (x[0][slots].double().transpose(0, 1) for x in (kv_cache.keys, kv_cache.values))
        position = torch.arange(work.start, length)[:, None]
        seen = torch.arange(length) <= position
        if window:
            seen &= torch.arange(length) > position - window
        expected = scaled_dot_product_attention(
            queries[row : row + work.num_tokens].double().transpose(0, 1)[None],
            keys.repeat_interleave(group, 0)[None],
            values.repeat_interleave(group, 0)[None],
            attn_mask=seen,
            scale=0.3,
        )
        expected = expected[0].transpose(0, 1).flatten(1).float()
        torch.testing.assert_close(got[row : row + work.num_tokens], expected, rtol=1e-5, atol=1e-5)
        row += work.num_tokens


@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1), (1, 200, 5, 16, 9)])
@pytest.mark.usefixtures("num_threads")
def test_the_number_of_threads_changes_no_bit(kv_cache: KVCache, counts: tuple[int, ...]) -> None:
    results = []
    for threads in (1, 2, 3, 2, 5):
        torch.set_num_threads(threads)
        results.append(_attend(_works(counts), kv_cache, group=2, window=None))
    assert all(torch.equal(result, results[0]) for result in results)


def test_one_row_has_the_bits_that_it_has_among_others(kv_cache: KVCache) -> None:
    alone = _attend(_works((1, 1, 1, 1, 1)), kv_cache, group=2, window=None)
    queries = np.random.default_rng(2).standard_normal((7, KV_HEADS * 2, DIM), np.float32)
    for index, work in enumerate(_works((1, 1, 1, 1, 1))):
        # The same row as the last of a chunk of the same sequence.
        chunk = Work(work.sequence, max(0, len(work.sequence) - 11), min(11, len(work.sequence)))
        attention = RowAttention(RowPlan([chunk], chunk.num_tokens, kv_cache), kv_cache, KV_HEADS * 2)
        attention.queries[:] = 1.0
        attention.queries[-1] = queries[index]
        assert torch.equal(attention.run(0, 0.3, None)[-1], alone[index])
