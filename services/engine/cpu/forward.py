"""The CPU's own forward: the fused decoder."""

import torch

from services.engine.cpu.decoder import FusedDecoder
from services.engine.cpu.kinds import Kind
from services.engine.cpu.plan import RowPlan
from services.engine.forward import Batch, identify
from services.engine.kv_cache import KVCache
from services.engine.lora import Lora
from services.engine.model import LoadedModel


class CpuForward:
    """See Forward."""

    def __init__(
        self, loaded: LoadedModel, kv_cache: KVCache, kind: Kind, decoder: FusedDecoder, adapters: Lora | None = None
    ) -> None:
        self.identity = identify(f"fused {kind.name.lower()}", loaded)
        self.adapters = adapters
        self._kv_cache = kv_cache
        self._decoder = decoder

    def hurry(self, wanted: bool) -> None:
        """See Forward."""
        self._decoder.hurry[0] = wanted

    def run(self, batch: Batch) -> torch.Tensor:
        """See Forward."""
        adapters, rows = self.adapters, len(batch.token_ids)
        if adapters is not None and not adapters.select(batch.works, rows):
            adapters = None
        plan = RowPlan(batch.works, rows, self._kv_cache)
        return self._decoder.forward(plan, batch.token_ids, batch.wanted, adapters, batch.bell, can_wait=batch.can_wait)
