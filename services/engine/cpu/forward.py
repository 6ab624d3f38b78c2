"""The CPU's own forward: the fused decoder, and for a few rows of a small draft one compiled loop."""

import torch

from services.engine.cpu.decoder import FusedDecoder
from services.engine.cpu.plan import RowPlan
from services.engine.cpu.small_decoder import MAX_ROWS, SmallDecoder
from services.engine.forward import Batch, identify
from services.engine.kv_cache import KVCache
from services.engine.lora import Lora
from services.engine.model import LoadedModel

_PARALLEL_ELEMENTS = 32_768
"""Element-wise operations on fewer elements run on one thread (at::internal::GRAIN_SIZE)."""


class CpuForward:
    """See Forward. `small` takes a few rows without adapters, `decoder` all others."""

    def __init__(
        self,
        loaded: LoadedModel,
        kv_cache: KVCache,
        decoder: FusedDecoder,
        small: SmallDecoder | None = None,
        adapters: Lora | None = None,
    ) -> None:
        self.identity = identify("fused" if small is None else "fused and small", loaded)
        self.adapters = adapters
        self._kv_cache = kv_cache
        self._decoder = decoder
        self._small = small
        self._row_multiple = max(2, torch.get_num_threads())

    def run(self, batch: Batch) -> torch.Tensor:
        """See Forward."""
        count = len(batch.token_ids)
        # Rows are padded so that every thread's share of an element-wise operation starts at a whole row.
        multiple = 1 if count * self._decoder.width < _PARALLEL_ELEMENTS else self._row_multiple
        num_rows = -(-count // multiple) * multiple
        adapters = self.adapters
        if adapters is not None and not adapters.select(batch.works, num_rows):
            adapters = None
        if self._small is not None and adapters is None and count <= MAX_ROWS:
            return self._small.forward(RowPlan(batch.works, count, self._kv_cache), batch.token_ids, batch.wanted)
        plan = RowPlan(batch.works, num_rows, self._kv_cache)
        token_ids = batch.token_ids + [0] * (num_rows - count)
        return self._decoder.forward(plan, self._kv_cache, token_ids, batch.wanted, adapters)
