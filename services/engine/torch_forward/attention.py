"""Paged attention whose bits for a row depend on that row's sequence alone.

A query row at position p always takes part in a product of the same shape: query blocks are cut at fixed positions
(multiples of QUERY_BLOCK), and the keys of a query block are padded to a multiple of KEY_BLOCK past its last row. Which
other rows of the block are present, and what else is in the step, changes neither shapes nor the order of additions.
The plan of a step (indices and masks) is made once and serves every layer.
"""

from collections import abc
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from services.engine.attention_layers import AttentionLayer
from services.engine.block_pool import NULL_BLOCK
from services.engine.kv_cache import NULL_SLOT, KVCache
from services.engine.reach import Reach
from services.engine.scheduler import Work

QUERY_BLOCK = 8
KEY_BLOCK = 128
_MOST = 1e15
"""Large beyond any model's keys and values, small enough for products with them to be finite."""


class _Block(NamedTuple):
    """Rows [first, first + num_rows) of a step, from line `line` of the number-th query block of a table on."""

    table: list[int]
    number: int
    line: int
    first: int
    num_rows: int

    @property
    def num_keys(self) -> int:
        """Keys that the block's rows are given, most of the last ones masked."""
        return -(-(self.number + 1) * QUERY_BLOCK // KEY_BLOCK) * KEY_BLOCK


@dataclass(frozen=True, slots=True)
class _Group:
    """Query blocks with equal numbers of keys, attended to in one call."""

    kv_blocks: torch.Tensor | None  # [lists * keys / block_size], or None when the keys lie in a row
    first_slot: int  # from here on
    num_lists: int  # 1 when all blocks belong to one sequence, else one a query block
    positions: torch.Tensor  # [blocks, QUERY_BLOCK] absolute positions
    num_keys: int
    masks: dict[tuple[Reach, int], torch.Tensor] = field(default_factory=dict)

    def mask(self, reach: Reach, group_size: int, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask [blocks, 1, QUERY_BLOCK * group_size, keys]: 0 where a row sees a key, else -inf."""
        key = (reach, group_size)
        if key not in self.masks:
            keys = torch.arange(self.num_keys, device=self.positions.device)
            rows = self.positions.repeat_interleave(group_size, dim=1).unsqueeze(-1)
            hidden = keys > rows
            if reach.window is not None:
                hidden |= keys <= rows - reach.window
            if reach.chunk is not None:
                hidden |= keys < rows // reach.chunk * reach.chunk
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            self.masks[key] = mask.unsqueeze(1)
        return self.masks[key]


class AttentionPlan:
    """Where the rows of one step write their KV and which keys they see."""

    def __init__(
        self,
        works: abc.Sequence[Work],
        num_rows: int,
        kv_cache: KVCache,
        device: torch.device,
        *,
        keep_finite: bool = False,
    ) -> None:
        """`keep_finite`: an adapter may make a row huge, whose products with what masks hide are not finite."""
        self._kv_cache = kv_cache
        self._device = device
        self._num_rows = num_rows
        largest = torch.finfo(kv_cache.keys[0].dtype).max
        self._most = min(_MOST, largest) if keep_finite else largest
        self._broken: torch.Tensor | None = None
        slots: list[int] = []
        self._starts: list[int] = []
        """The first row of the same sequence, [present rows]."""
        blocks: list[_Block] = []
        for sequence, start, count in works:
            table = sequence.block_table
            offset = len(slots) - start
            self._starts.extend([len(slots)] * count)
            slots.extend([kv_cache.slot(table, position) for position in range(start, start + count)])
            end = start + count
            for number in range(start // QUERY_BLOCK, (end - 1) // QUERY_BLOCK + 1):
                first, last = max(start, number * QUERY_BLOCK), min(end, (number + 1) * QUERY_BLOCK)
                blocks.append(_Block(table, number, first % QUERY_BLOCK, offset + first, last - first))
        self.num_present = len(slots)
        slots.extend([NULL_SLOT] * (num_rows - len(slots)))
        self.slots = np.array(slots)
        """Where each row writes its KV, [rows]; padding writes to the null block."""
        self.places = np.empty(self.num_present, np.int64)
        """Where each present row lies among the lines of all query blocks, [present rows]."""
        self._indices: tuple[torch.Tensor, torch.Tensor] | None = None
        self._groups: list[_Group] = []
        self.num_blocks = 0
        for group in _grouped(blocks, kv_cache.block_size):
            self._groups.append(self._make_group(group))
            for block in group:
                place = self.num_blocks * QUERY_BLOCK + block.line
                self.places[block.first : block.first + block.num_rows] = range(place, place + block.num_rows)
                self.num_blocks += 1

    def kv(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, [slots, kv_heads, dim]."""
        return self._kv_cache.keys[layer], self._kv_cache.values[layer]

    def empty_queries(self, num_kv_heads: int, group_size: int, dim: int) -> torch.Tensor:
        """Room for all query blocks: [blocks, kv_heads, QUERY_BLOCK * group_size, dim]; absent rows are 0."""
        return torch.zeros(self.num_blocks, num_kv_heads, QUERY_BLOCK * group_size, dim)

    def attend_blocks(
        self, index: int, queries: torch.Tensor, group_size: int, layer: AttentionLayer, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        """Attends once the step's keys and values are stored. queries and result: as `empty_queries`; sinks [heads]."""
        outputs = []
        first = 0
        for group in self._groups:
            if group.kv_blocks is None:
                keys, values = self._kv_cache.run(index, group.first_slot, group.num_keys)
            else:
                keys, values = self._kv_cache.gather(index, group.kv_blocks, group.num_lists)
            num_blocks = group.positions.shape[0]
            asked = (
                queries[first : first + num_blocks],
                keys.transpose(1, 2).expand(num_blocks, -1, -1, -1),
                values.transpose(1, 2).expand(num_blocks, -1, -1, -1),
                group.mask(layer.reach, group_size, queries.dtype),
            )
            if layer.softcap is None and sinks is None:
                query, key, value, mask = asked
                out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=layer.scaling)
            else:
                out = _bent_attention(*asked, layer, sinks)
            outputs.append(out)
            first += num_blocks
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def attend(
        self,
        index: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: AttentionLayer,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Stores keys and values of the step's rows and attends.

        query [1, heads, rows, dim], key and value [1, kv_heads, rows, dim]; returns [1, rows, heads, value_dim].
        """
        slots, places = self._on_device
        stored = [part[0].transpose(0, 1) for part in (key, value)]
        # What is not finite would reach the next sequence that is given its block, through keys that are masked.
        broken = torch.stack([(part.abs() <= self._most).all(-1).all(-1) for part in stored]).all(0).logical_not()
        self._broken = broken if self._broken is None else self._broken | broken
        self._kv_cache.write(index, slots, *(part.masked_fill(broken.view(-1, 1, 1), 0.0) for part in stored))
        num_heads, num_kv_heads = query.shape[1], key.shape[1]
        group_size = num_heads // num_kv_heads
        rows = query[0].transpose(0, 1)[: self.num_present]
        lines = rows.new_zeros(self.num_blocks * QUERY_BLOCK, num_heads, rows.shape[-1]).index_copy_(0, places, rows)
        queries = lines.view(-1, QUERY_BLOCK, num_kv_heads, group_size, rows.shape[-1]).transpose(1, 2).flatten(2, 3)
        attended = self.attend_blocks(index, queries, group_size, layer, sinks)
        attended = attended.view(-1, num_kv_heads, QUERY_BLOCK, group_size, value.shape[-1]).transpose(1, 2)
        out = attended.new_zeros(self._num_rows, num_heads, value.shape[-1])
        out[: self.num_present] = attended.reshape(-1, num_heads, value.shape[-1]).index_select(0, places)
        return out.unsqueeze(0)

    def broken(self, rows: torch.Tensor) -> torch.Tensor:
        """Which of some rows of the step see a key or value, in any layer, that is not finite and was not stored."""
        if self._broken is None:
            return torch.zeros_like(rows, dtype=torch.bool)
        before = torch.nn.functional.pad(self._broken.cumsum(0), (1, 0))
        return before[rows + 1] > before[torch.tensor(self._starts, device=self._device)[rows]]

    @property
    def _on_device(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._indices is None:
            slots, places = torch.from_numpy(self.slots), torch.from_numpy(self.places)
            self._indices = slots.to(self._device), places.to(self._device)
        return self._indices

    def _make_group(self, blocks: list[_Block]) -> _Group:
        block_size, num_keys = self._kv_cache.block_size, blocks[0].num_keys
        tables = [blocks[0].table] if _share_keys(blocks) else [block.table for block in blocks]
        length = num_keys // block_size
        kv_blocks = None
        if len(tables) > 1 or not _in_a_row(tables[0][:length]):
            numbers: list[int] = []
            for table in tables:
                numbers.extend(table[:length])
                numbers.extend([NULL_BLOCK] * (length - len(table)))
            kv_blocks = torch.tensor(numbers, device=self._device)
        first = torch.tensor([[block.number * QUERY_BLOCK] for block in blocks], device=self._device)
        positions = first + torch.arange(QUERY_BLOCK, device=self._device)
        return _Group(kv_blocks, tables[0][0] * block_size, len(tables), positions, num_keys)


def _in_a_row(table: list[int]) -> bool:
    return table == list(range(table[0], table[0] + len(table)))


def _share_keys(blocks: list[_Block]) -> bool:
    return all(block.table is blocks[0].table for block in blocks)


def _grouped(blocks: list[_Block], block_size: int) -> list[list[_Block]]:
    """Blocks of one sequence with equal numbers of keys share a group; so do single blocks that must be gathered."""
    by_table: dict[tuple[int, int], list[_Block]] = {}
    for block in blocks:
        by_table.setdefault((id(block.table), block.num_keys), []).append(block)
    groups: list[list[_Block]] = []
    scattered: dict[int, list[_Block]] = {}
    for group in by_table.values():
        if len(group) > 1 or _in_a_row(group[0].table[: group[0].num_keys // block_size]):
            groups.append(group)
        else:
            scattered.setdefault(group[0].num_keys, []).extend(group)
    return [*groups, *scattered.values()]


def _bent_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    layer: AttentionLayer,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention with a soft cap on its scores (Gemma 2), or with sinks [heads] (gpt-oss), in this order.

    query [blocks, kv_heads, lines, dim], key and value [blocks, kv_heads, keys, dim].
    """
    scores = query @ key.transpose(2, 3) * layer.scaling
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    scores = scores.float() + mask.float()
    if sinks is None:
        return scores.softmax(dim=-1).to(value.dtype) @ value
    num_kv_heads, num_lines = query.shape[1:3]
    # Lines are rows of a query block, and in each the heads of a group.
    column = sinks.float().view(num_kv_heads, 1, -1).expand(-1, QUERY_BLOCK, -1).reshape(1, num_kv_heads, num_lines, 1)
    scores = torch.cat([scores, column.expand(len(query), -1, -1, -1)], dim=-1)
    return scores.softmax(dim=-1)[..., :-1].to(value.dtype) @ value
