"""The forward of models that attend by themselves: token by token, with their own attention over our KV blocks.

Some models do not use the attention interface of `transformers` (GPT-J, Falcon, Bloom, MPT and their like), and some
take no positions. Those that use its cache have one here that stands between them and the blocks: what a layer stores
goes into its text's slots, and what it is given back are the keys and values of all of the text. The others, which
have no layers here (GPT, DeepSeek V3.2), compute a text from its beginning for every row that is wanted. How a model's
own attention rounds depends on how many rows it is given: so it is given one at a time, or all up to the one wanted,
whatever else is in the step. That is slow, and the same bits with speculation and without.
"""

import inspect
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from services.engine.attention_layers import use_own_attention
from services.engine.forward import Batch, identify
from services.engine.kv_cache import KVCache
from services.engine.lora import Lora
from services.engine.model import LoadedModel
from services.engine.outbox import ring
from services.engine.scheduler import Work


class AloneForward:
    """See Forward. `adapters` are those that the model's layers were wrapped with."""

    def __init__(self, loaded: LoadedModel, kv_cache: KVCache, adapters: Lora | None = None) -> None:
        use_own_attention(loaded.model)
        self.identity = identify("own attention's", loaded)
        self.adapters = adapters
        self._model = loaded.model
        self._device = loaded.device
        self._kv_cache = kv_cache
        self._num_layers = len(loaded.layers)
        self._first_position = loaded.first_position
        taken = inspect.signature(loaded.model.forward).parameters
        self._takes_positions = "position_ids" in taken
        self._picks_rows = "logits_to_keep" in taken

    def run(self, batch: Batch) -> torch.Tensor:
        """See Forward."""
        ring(batch.bell)
        wanted = frozenset(batch.wanted)
        found: list[torch.Tensor] = []
        row = 0
        for work in batch.works:
            end = work.start + work.num_tokens
            slots = torch.tensor([self._kv_cache.slot(work.sequence.block_table, at) for at in range(end)])
            slots = slots.to(self._device)
            for position in range(work.start, end):
                if row in wanted or self._num_layers:
                    logits = self._logits_behind(work, position, slots[: position + 1])
                    found.extend([logits] if row in wanted else ())
                row += 1
        return torch.cat(found)

    def hurry(self, wanted: bool) -> None:
        """A step that has begun is not given up here."""

    def _logits_behind(self, work: Work, position: int, slots: torch.Tensor) -> torch.Tensor:
        """Logits [1, vocab] behind a token of a text, whose tokens up to it lie in these slots."""
        first, count = (position, 1) if self._num_layers else (0, position + 1)
        if self.adapters is not None:
            self.adapters.select([Work(work.sequence, first, count)], count)
        more: dict[str, Any] = {"use_cache": False}
        if self._num_layers:
            more = {"use_cache": True, "past_key_values": BlockCache(self._kv_cache, slots, self._num_layers)}
        if self._takes_positions:
            more["position_ids"] = torch.arange(first, first + count, device=self._device)[None] + self._first_position
        if self._picks_rows:
            more["logits_to_keep"] = 1
        ids = torch.tensor([work.sequence.token_ids[first : first + count]], device=self._device)
        logits: torch.Tensor = self._model(input_ids=ids, **more).logits[0, -1:]
        return logits


class BlockCache(DynamicCache):
    """The blocks of one text up to a token, as `transformers` knows a cache: that token is the only one that is new."""

    def __init__(self, kv_cache: KVCache, slots: torch.Tensor, num_layers: int) -> None:
        super().__init__()
        self.layers = [_BlockLayer(kv_cache, index, slots) for index in range(num_layers)]


class _BlockLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer of it."""

    def __init__(self, kv_cache: KVCache, index: int, slots: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kv_cache = kv_cache
        self._index = index
        self._slots = slots
        self._start = len(slots) - 1
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores keys and values [1, heads, rows, dim], and gives those of all tokens so far."""
        new = self._slots[self._start :]
        self._kv_cache.write(self._index, new, key_states[0].transpose(0, 1), value_states[0].transpose(0, 1))
        keys, values = self._kv_cache.keys[self._index], self._kv_cache.values[self._index]
        return keys[self._slots].transpose(0, 1)[None], values[self._slots].transpose(0, 1)[None]

    def get_seq_length(self) -> int:
        """Tokens that were stored before this step."""
        return self._start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens that the rows may see, and the first of them."""
        return self._start + query_length, 0
