"""The forward of any model on any device: the modules of `transformers`, with paged attention and adapters in them."""

import inspect

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from services.engine.forward import Batch, identify
from services.engine.kv_cache import KVCache
from services.engine.lora import Lora
from services.engine.model import LoadedModel
from services.engine.torch_forward.attention import AttentionPlan
from services.engine.torch_forward.paging import Paging, paged_attention

_IMPLEMENTATION = "paceline_paged"

ALL_ATTENTION_FUNCTIONS.register(_IMPLEMENTATION, paged_attention)


class TorchForward:
    """See Forward. `adapters` are those that the model's layers were wrapped with."""

    def __init__(self, loaded: LoadedModel, kv_cache: KVCache, adapters: Lora | None = None) -> None:
        loaded.model.set_attn_implementation(_IMPLEMENTATION)
        self.identity = identify("own", loaded)
        self.adapters = adapters
        self._model = loaded.model
        self._device = loaded.device
        self._kv_cache = kv_cache
        self._paging = Paging(loaded.layers, loaded.attention)
        self._first_position = loaded.first_position
        self._picks_rows = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters
        # Rows are padded so that every thread's share of an element-wise operation starts at a whole row.
        self._row_multiple = max(2, torch.get_num_threads()) if loaded.device.type == "cpu" else 1

    def hurry(self, wanted: bool) -> None:
        """A step that has begun is not given up here."""

    def run(self, batch: Batch) -> torch.Tensor:
        """See Forward."""
        num_rows = -(-len(batch.token_ids) // self._row_multiple) * self._row_multiple
        padding = [0] * (num_rows - len(batch.token_ids))
        has_adapters = self.adapters is not None and self.adapters.select(batch.works, num_rows)
        wanted = torch.tensor(batch.wanted, device=self._device)
        plan = AttentionPlan(batch.works, num_rows, self._kv_cache, self._device, keep_finite=has_adapters)
        self._paging.begin(plan)
        out = self._model(
            input_ids=torch.tensor([batch.token_ids + padding], device=self._device),
            position_ids=torch.tensor([batch.positions + padding], device=self._device) + self._first_position,
            use_cache=False,
            **({"logits_to_keep": wanted} if self._picks_rows else {}),
        )
        logits: torch.Tensor = out.logits[0] if self._picks_rows else out.logits[0, wanted]
        logits[plan.broken(wanted)] = torch.nan
        return logits
