"""KV of all sequences: one pair of tensors a layer, cut into blocks of `block_size` token slots."""

from collections import abc
from dataclasses import dataclass

import numpy as np
import torch

from services.engine.block_pool import NULL_BLOCK

NULL_SLOT = NULL_BLOCK
_ROOM = 128
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one layer stores of one token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int


class KVCache:
    """Keys [slots, kv_heads, key_dim] and values [slots, kv_heads, value_dim] of every layer.

    Token j of a sequence lies in slot `block_table[j // block_size] * block_size + j % block_size`.
    """

    def __init__(
        self, shapes: list[KVShape], num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        slots = num_blocks * block_size
        room = slots + _ROOM  # So that a run of padded keys may reach past the last block.
        # One tensor for all layers wherever they are alike, so that compiled code can take all of them.
        like = (dtype, device)
        self.all_keys = _zeros([(room, s.num_kv_heads, s.key_dim) for s in shapes], *like)
        self.all_values = _zeros([(room, s.num_kv_heads, s.value_dim) for s in shapes], *like)
        self.keys, self.values = list(self.all_keys), list(self.all_values)
        self._key_blocks = [k[:slots].view(num_blocks, -1) for k in self.keys]
        self._value_blocks = [v[:slots].view(num_blocks, -1) for v in self.values]

    @staticmethod
    def bytes_per_block(shapes: list[KVShape], block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block takes over all layers."""
        per_token = sum(s.num_kv_heads * (s.key_dim + s.value_dim) for s in shapes)
        return per_token * block_size * dtype.itemsize

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Stores keys and values [tokens, kv_heads, dim] in their slots [tokens]."""
        self.keys[layer].index_copy_(0, slots, keys)
        self.values[layer].index_copy_(0, slots, values)

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copies whole blocks, (from, to) each, in every layer."""
        sources, destinations = torch.tensor(copies, device=self.keys[0].device).unbind(dim=1)
        for blocks in (*self._key_blocks, *self._value_blocks):
            blocks.index_copy_(0, destinations, blocks.index_select(0, sources))

    def read_blocks(self, blocks: list[int]) -> list[memoryview]:
        """The content of blocks as bytes, keys of every layer before its values: one gather, one transfer."""
        index = torch.tensor(blocks, device=self.keys[0].device)
        parts = [part.index_select(0, index) for part in self._parts()]
        rows = torch.cat([part.view(torch.uint8) for part in parts], dim=1).cpu().numpy()
        return [memoryview(row) for row in rows]

    def write_blocks(self, blocks: list[int], contents: abc.Sequence[Buffer]) -> None:
        """Puts contents that `read_blocks` gave into blocks: one transfer, one scatter."""
        rows = np.stack([np.frombuffer(content, np.uint8) for content in contents])
        device = self.keys[0].device
        index, data = torch.tensor(blocks, device=device), torch.from_numpy(rows).to(device)
        start = 0
        for part in self._parts():
            size = part.shape[1] * part.itemsize
            part.index_copy_(0, index, data[:, start : start + size].contiguous().view(part.dtype))
            start += size

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        return sum(part.shape[1] * part.itemsize for part in self._parts())

    @property
    def layout(self) -> str:
        """What has to be the same for blocks to be exchanged: shapes and data type of every layer."""
        shapes = [tuple(part.shape[1:]) for part in (*self.keys, *self.values)]
        return f"{self.keys[0].dtype} {shapes}"

    def _parts(self) -> abc.Iterator[torch.Tensor]:
        """Keys, then values, of each layer as [blocks, elements]."""
        for keys, values in zip(self._key_blocks, self._value_blocks, strict=True):
            yield keys
            yield values

    def run(self, layer: int, first_slot: int, num_keys: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values that lie in a row, not copied, as [1, tokens, kv_heads, dim]."""
        end = first_slot + num_keys
        return self.keys[layer][first_slot:end].unsqueeze(0), self.values[layer][first_slot:end].unsqueeze(0)

    def gather(self, layer: int, blocks: torch.Tensor, num_lists: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of block lists [num_lists * blocks_per_list] as [num_lists, tokens, kv_heads, dim]."""
        keys = self._key_blocks[layer].index_select(0, blocks)
        values = self._value_blocks[layer].index_select(0, blocks)
        key_shape, value_shape = self.keys[layer].shape[1:], self.values[layer].shape[1:]
        return keys.view(num_lists, -1, *key_shape), values.view(num_lists, -1, *value_shape)

    def slot(self, block_table: list[int], index: int) -> int:
        """Slot of the index-th token of a sequence."""
        return block_table[index // self.block_size] * self.block_size + index % self.block_size


def _zeros(
    shapes: list[tuple[int, int, int]], dtype: torch.dtype, device: torch.device
) -> torch.Tensor | list[torch.Tensor]:
    """One tensor for all shapes where they are alike. It is written to, so that its memory is taken now: `torch.zeros`
    would take it page by page as blocks are used, for hours, and a machine that has too little would say so then.
    """
    if len(set(shapes)) == 1:
        return torch.empty(len(shapes), *shapes[0], dtype=dtype, device=device).zero_()
    return [torch.empty(shape, dtype=dtype, device=device).zero_() for shape in shapes]
