"""Paged attention whose bits for a row depend on that row's sequence alone.

A query row at position p always takes part in a product of the same shape: query blocks are cut at fixed positions
(multiples of QUERY_BLOCK), and the keys of a query block are padded to a multiple of KEY_BLOCK past its last row. Which
other rows of the block are present, and what else is in the step, changes neither shapes nor the order of additions.
The plan of a step (indices and masks) is made once and serves every layer.
"""

from collections.abc import Sequence as Ints
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from services.engine.block_pool import NULL_BLOCK
from services.engine.kv_cache import NULL_SLOT, KVCache
from services.engine.scheduler import Work

QUERY_BLOCK = 8
KEY_BLOCK = 128
IMPLEMENTATION = "paceline_paged"


class _Block(NamedTuple):
    """Rows of one query block: the flat index of each row present, by its place in the block."""

    table: list[int]
    number: int
    rows: list[int]  # flat index, or -1 where the row is not in this step


@dataclass(frozen=True, slots=True)
class _Group:
    """Query blocks with equal numbers of keys, attended to in one call."""

    kv_blocks: torch.Tensor  # [lists * keys / block_size]
    num_lists: int  # 1 when all blocks belong to one sequence, else one a query block
    positions: torch.Tensor  # [blocks, QUERY_BLOCK] absolute positions
    num_keys: int
    masks: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, group_size: int, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask [blocks, 1, QUERY_BLOCK * group_size, keys]: 0 where a row sees a key, else -inf."""
        key = (window, group_size)
        if key not in self.masks:
            keys = torch.arange(self.num_keys, device=self.positions.device)
            rows = self.positions.unsqueeze(-1)
            hidden = keys > rows
            if window is not None:
                hidden |= keys <= rows - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            self.masks[key] = mask.repeat_interleave(group_size, dim=1).unsqueeze(1)
        return self.masks[key]


class AttentionPlan:
    """Where the rows of one step write their KV and which keys they see."""

    def __init__(self, works: Ints[Work], num_rows: int, kv_cache: KVCache, device: torch.device) -> None:
        self._kv_cache = kv_cache
        self._device = device
        slots: list[int] = []
        by_keys: dict[int, list[_Block]] = {}
        for sequence, start, count in works:
            table = sequence.block_table
            offset = len(slots) - start
            slots.extend(kv_cache.slot(table, position) for position in range(start, start + count))
            for number in range(start // QUERY_BLOCK, (start + count - 1) // QUERY_BLOCK + 1):
                first = number * QUERY_BLOCK
                rows = [
                    offset + position if start <= position < start + count else -1
                    for position in range(first, first + QUERY_BLOCK)
                ]
                num_keys = -(-(first + QUERY_BLOCK) // KEY_BLOCK) * KEY_BLOCK
                by_keys.setdefault(num_keys, []).append(_Block(table, number, rows))
        slots.extend([NULL_SLOT] * (num_rows - len(slots)))
        self._slots = torch.tensor(slots, device=device)
        groups = [(n, group) for n, blocks in by_keys.items() for group in _by_sequence(blocks)]
        self._groups = [self._make_group(num_keys, group) for num_keys, group in groups]
        # Query blocks of all groups one after another; rows that are not in this step stand in as row 0.
        query_rows = [row for _, group in groups for block in group for row in block.rows]
        self._query_rows = torch.tensor([max(row, 0) for row in query_rows], device=device)
        places = [0] * num_rows
        for place, row in enumerate(query_rows):
            if row >= 0:
                places[row] = place
        self._places = torch.tensor(places, device=device)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Stores keys and values of the step's rows and attends.

        query [1, heads, rows, dim], key and value [1, kv_heads, rows, dim]; returns [1, rows, heads, value_dim].
        """
        cache = self._kv_cache
        cache.write(layer, self._slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
        num_heads, num_kv_heads = query.shape[1], key.shape[1]
        group_size = num_heads // num_kv_heads
        queries = query[0].transpose(0, 1).index_select(0, self._query_rows)
        # [blocks, kv_heads, QUERY_BLOCK * group_size, dim]
        queries = queries.view(-1, QUERY_BLOCK, num_kv_heads, group_size, query.shape[-1]).transpose(1, 2).flatten(2, 3)
        outputs = []
        first = 0
        for group in self._groups:
            keys, values = cache.gather(layer, group.kv_blocks, group.num_lists)
            num_blocks = group.positions.shape[0]
            attended = scaled_dot_product_attention(
                queries[first : first + num_blocks],
                keys.transpose(1, 2).expand(num_blocks, -1, -1, -1),
                values.transpose(1, 2).expand(num_blocks, -1, -1, -1),
                attn_mask=group.mask(window, group_size, query.dtype),
                scale=scaling,
            )
            attended = attended.view(num_blocks, num_kv_heads, QUERY_BLOCK, group_size, -1).transpose(1, 2)
            outputs.append(attended.reshape(num_blocks * QUERY_BLOCK, num_heads, -1))
            first += num_blocks
        flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return flat.index_select(0, self._places).unsqueeze(0)

    def _make_group(self, num_keys: int, blocks: list[_Block]) -> _Group:
        tables = [blocks[0].table] if _share_keys(blocks) else [block.table for block in blocks]
        length = num_keys // self._kv_cache.block_size
        kv_blocks: list[int] = []
        for table in tables:
            kv_blocks.extend(table[:length])
            kv_blocks.extend([NULL_BLOCK] * (length - len(table)))
        first = torch.tensor([block.number * QUERY_BLOCK for block in blocks], device=self._device)
        return _Group(
            kv_blocks=torch.tensor(kv_blocks, device=self._device),
            num_lists=len(tables),
            positions=first.unsqueeze(1) + torch.arange(QUERY_BLOCK, device=self._device),
            num_keys=num_keys,
        )


def _share_keys(blocks: list[_Block]) -> bool:
    return all(block.table is blocks[0].table for block in blocks)


def _by_sequence(blocks: list[_Block]) -> list[list[_Block]]:
    """One list a sequence that has several blocks here (they share its keys), one for all the rest."""
    by_table: dict[int, list[_Block]] = {}
    for block in blocks:
        by_table.setdefault(id(block.table), []).append(block)
    groups = [group for group in by_table.values() if len(group) > 1]
    single = [group[0] for group in by_table.values() if len(group) == 1]
    return [*groups, single] if single else groups


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    plan: AttentionPlan | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """What `transformers` calls in every attention layer; the plan comes as a keyword argument of the model's forward.

    Raises NotImplementedError for what this attention does not compute (logit soft caps, attention sinks).
    """
    if plan is None:
        raise RuntimeError("the model's forward does not hand keyword arguments to its attention layers")
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("attention with logit soft caps or sinks is not supported")
    return plan.attend(module.layer_idx, query, key, value, scaling, sliding_window), None  # type: ignore[arg-type]
