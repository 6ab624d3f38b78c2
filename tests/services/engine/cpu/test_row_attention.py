"""The compiled attention over blocks against the textbook's, shared among threads in several ways."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from services.common.sampling_params import SamplingParams
from services.engine.cpu.plan import RowPlan
from services.engine.cpu.row_attention import attend
from services.engine.kv_cache import KVCache, KVShape
from services.engine.scheduler import Work
from services.engine.sequence import Sequence

BLOCK = 16
DIM = 32
KV_HEADS = 3
CONTEXTS = (1, 200, 37, 16, 65)


@pytest.fixture
def kv_cache() -> KVCache:
    torch.manual_seed(0)
    cache = KVCache([KVShape(KV_HEADS, DIM, DIM)], 64, BLOCK, torch.float32, torch.device("cpu"))
    cache.keys[0].normal_()
    cache.values[0].normal_()
    return cache


def _works(counts: tuple[int, ...]) -> list[Work]:
    """Sequences whose blocks lie anywhere, the last rows of each in the step."""
    blocks = iter(np.random.default_rng(1).permutation(np.arange(1, 64)).tolist())
    works = []
    for length, count in zip(CONTEXTS, counts, strict=True):
        sequence = Sequence([5] * length, length, SamplingParams())
        sequence.block_table = [next(blocks) for _ in range(-(-length // BLOCK))]
        works.append(Work(sequence, length - count, count))
    return works


def _queries(rows: int, heads: int) -> NDArray[np.float32]:
    return np.random.default_rng(2).standard_normal((rows, heads, DIM), np.float32)


def _attend(
    works: list[Work],
    kv_cache: KVCache,
    queries: NDArray[np.float32],
    window: int | None,
    shares: int = 1,
    only: int | None = None,
) -> torch.Tensor:
    plan = RowPlan(works, len(queries), kv_cache)
    out = np.full_like(queries, np.nan)
    for share in range(shares) if only is None else [only]:
        attend(
            queries, share, shares, plan.tables, plan.owners,
            plan.positions, np.zeros(len(queries), np.bool_), BLOCK, KV_HEADS,
            kv_cache.keys[0].data_ptr(), kv_cache.values[0].data_ptr(),
            np.float32(0.3), window or 1 << 40, out,
        )  # fmt: skip
    return torch.from_numpy(out).flatten(1)


def _stored(kv_cache: KVCache, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [kv_heads, tokens, dim] from where the kernel reads them."""
    groups = kv_cache.keys[0].shape[0] // 16
    keys = kv_cache.keys[0][: groups * 16].view(groups, KV_HEADS, DIM, 16)
    values = kv_cache.values[0][: groups * 16].view(groups, KV_HEADS, DIM // 16, 16, 16)
    own_keys = torch.stack([keys[slot // 16, :, :, slot % 16] for slot in slots.tolist()], 1)
    own_values = torch.stack([values[slot // 16, :, :, slot % 16].flatten(1) for slot in slots.tolist()], 1)
    return own_keys.double(), own_values.double()


@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1), (1, 200, 5, 16, 9)])
@pytest.mark.parametrize("group", [1, 2, 5])
@pytest.mark.parametrize("window", [None, 1, 20])
def test_it_is_attention(kv_cache: KVCache, counts: tuple[int, ...], group: int, window: int | None) -> None:
    works = _works(counts)
    drawn = _queries(sum(counts), KV_HEADS * group)
    got = _attend(works, kv_cache, drawn, window)
    queries = torch.from_numpy(drawn)
    row = 0
    for work in works:
        length = len(work.sequence)
        slots = torch.tensor([kv_cache.slot(work.sequence.block_table, i) for i in range(length)])
        keys, values = _stored(kv_cache, slots)
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
def test_the_number_of_threads_changes_no_bit(kv_cache: KVCache, counts: tuple[int, ...]) -> None:
    queries = _queries(sum(counts), KV_HEADS * 2)
    results = [_attend(_works(counts), kv_cache, queries, None, shares) for shares in (1, 2, 3)]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1), (1, 200, 5, 16, 9)])
def test_threads_have_about_as_much_to_do_whatever_the_number_of_heads(
    kv_cache: KVCache, counts: tuple[int, ...]
) -> None:
    queries = _queries(sum(counts), KV_HEADS)
    for shares in (2, 4):
        parts = [_attend(_works(counts), kv_cache, queries, None, shares, only) for only in range(shares)]
        done = [int(part.isfinite().sum()) / part.numel() for part in parts]
        assert sum(done) == pytest.approx(1)
        assert max(done) <= 1 / shares + 0.05


@pytest.mark.parametrize("group", [1, 3])
def test_one_row_has_the_bits_that_it_has_among_others(kv_cache: KVCache, group: int) -> None:
    queries = _queries(5, KV_HEADS * group)
    alone = _attend(_works((1, 1, 1, 1, 1)), kv_cache, queries, None)
    for index, work in enumerate(_works((1, 1, 1, 1, 1))):
        # The same row as the last of a chunk of the same sequence.
        chunk = Work(work.sequence, max(0, len(work.sequence) - 11), min(11, len(work.sequence)))
        among = np.ones((chunk.num_tokens, KV_HEADS * group, DIM), np.float32)
        among[-1] = queries[index]
        assert torch.equal(_attend([chunk], kv_cache, among, None)[-1], alone[index])


def test_what_lies_behind_a_text_in_its_last_block_is_not_seen(kv_cache: KVCache) -> None:
    queries = _queries(5, KV_HEADS)
    works = _works((1, 1, 1, 1, 1))
    expected = _attend(works, kv_cache, queries, None)
    for work in works:
        block = work.sequence.block_table[-1]
        for lane in range(len(work.sequence) % BLOCK or BLOCK, BLOCK):
            kv_cache.keys[0][block * 16 : (block + 1) * 16].view(KV_HEADS, DIM, 16)[:, :, lane] = torch.nan
            kv_cache.values[0][block * 16 : (block + 1) * 16].view(KV_HEADS, DIM // 16, 16, 16)[:, :, lane] = torch.inf
    assert torch.equal(_attend(works, kv_cache, queries, None), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("token", [0, 9, 199])
def test_a_key_or_value_that_is_not_finite_is_no_absent_token(kv_cache: KVCache, value: float, token: int) -> None:
    queries = _queries(5, KV_HEADS)
    works = _works((1, 1, 1, 1, 1))
    expected = _attend(works, kv_cache, queries, None)
    slot = kv_cache.slot(works[1].sequence.block_table, token)
    for stored in (kv_cache.keys[0], kv_cache.values[0]):
        block = stored[slot // 16 * 16 : slot // 16 * 16 + 16].view(KV_HEADS, DIM // 16, 16, 16)
        lanes = block.view(KV_HEADS, DIM, 16)[:, :, slot % 16] if stored is kv_cache.keys[0] else block[:, :, slot % 16]
        before = lanes.clone()
        lanes.fill_(value)
        got = _attend(works, kv_cache, queries, None)
        lanes.copy_(before)
        assert not got[1].isfinite().any()
        assert torch.equal(got[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])
