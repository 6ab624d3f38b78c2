"""The forward of any model on any device: the modules of `transformers`, with paged attention and adapters in them."""

import inspect
from collections import abc

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from services.engine.forward import Batch, identify
from services.engine.kv_cache import KVCache
from services.engine.lora import Lora
from services.engine.model import LoadedModel
from services.engine.outbox import ring
from services.engine.scheduler import Work
from services.engine.torch_forward.attention import AttentionPlan
from services.engine.torch_forward.paging import Paging, paged_attention

_IMPLEMENTATION = "paceline_paged"
_GPU_ROWS = 128
"""Rows of every pass on a GPU. Its libraries choose how a row's sums are made by the number of rows, so that never
changes; up to some hundred rows a pass takes as long as it takes to read the weights."""

ALL_ATTENTION_FUNCTIONS.register(_IMPLEMENTATION, paged_attention)


class TorchForward:
    """See Forward. `adapters` are those that the model's layers were wrapped with."""

    def __init__(self, loaded: LoadedModel, kv_cache: KVCache, adapters: Lora | None = None) -> None:
        loaded.model.set_attn_implementation(_IMPLEMENTATION)
        self._is_fixed = loaded.device.type != "cpu"
        self.identity = identify(f"own, {_GPU_ROWS} rows a pass," if self._is_fixed else "own", loaded)
        self.adapters = adapters
        self._model = loaded.model
        self._device = loaded.device
        self._kv_cache = kv_cache
        self._paging = Paging(loaded.layers, loaded.attention)
        self._first_position = loaded.first_position
        self._picks_rows = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters
        # On a CPU rows are padded so that every thread's share of an element-wise operation starts at a whole row.
        self._row_multiple = _GPU_ROWS if self._is_fixed else max(2, torch.get_num_threads())
        if self._is_fixed:  # cuDNN's attention chooses its kernel by how many blocks there are; the others do not.
            torch.backends.cuda.enable_cudnn_sdp(False)

    def hurry(self, wanted: bool) -> None:
        """A step that has begun is not given up here."""

    def run(self, batch: Batch) -> torch.Tensor:
        """See Forward."""
        ring(batch.bell)
        passes = in_passes(batch, _GPU_ROWS) if self._is_fixed else [batch]
        found: list[torch.Tensor] = []
        before: Work | None = None
        is_broken: torch.Tensor | None = None
        for each in passes:
            goes_on = before is not None and each.works[0].sequence is before.sequence
            logits, is_broken = self._run(each, is_broken if goes_on else None)
            before = each.works[-1]
            found.extend([logits] if len(logits) else ())
        return found[0] if len(found) == 1 else torch.cat(found)

    def _run(self, batch: Batch, was_broken: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [wanted, vocab] of a pass, of which nothing may be wanted, and whether its last text is broken.

        `was_broken` says so of the first text, where the pass before ended in it.
        """
        num_rows = -(-len(batch.token_ids) // self._row_multiple) * self._row_multiple
        padding = [0] * (num_rows - len(batch.token_ids))
        has_adapters = self.adapters is not None and self.adapters.select(batch.works, num_rows)
        wanted = torch.tensor(batch.wanted, dtype=torch.long, device=self._device)
        plan = AttentionPlan(batch.works, num_rows, self._kv_cache, self._device, keep_finite=has_adapters)
        self._paging.begin(plan)
        picks_rows = self._picks_rows and not self._is_fixed
        out = self._model(
            input_ids=torch.tensor([batch.token_ids + padding], device=self._device),
            position_ids=torch.tensor([batch.positions + padding], device=self._device) + self._first_position,
            use_cache=False,
            **({"logits_to_keep": wanted} if picks_rows else {}),
        )
        logits: torch.Tensor = out.logits[0] if picks_rows else out.logits[0, wanted]
        num_present = len(batch.token_ids)
        asked = torch.cat([wanted, wanted.new_tensor([num_present - 1])])
        broken = plan.broken(asked)
        if was_broken is not None:
            broken |= was_broken & (asked < batch.works[0].num_tokens)
        logits[broken[:-1]] = torch.nan
        return logits, broken[-1]


def in_passes(batch: Batch, num_rows: int) -> abc.Iterator[Batch]:
    """A batch in passes of so many rows at most, in order, so that a row's keys are there before it is computed."""
    ends = [0]
    for work in batch.works:
        ends.append(ends[-1] + work.num_tokens)
    for first in range(0, ends[-1], num_rows):
        last = min(first + num_rows, ends[-1])
        works = [
            Work(work.sequence, work.start + max(first - end, 0), min(last, end + work.num_tokens) - max(first, end))
            for work, end in zip(batch.works, ends, strict=False)
            if end < last and end + work.num_tokens > first
        ]
        wanted = [row - first for row in batch.wanted if first <= row < last]
        yield Batch(works, batch.token_ids[first:last], batch.positions[first:last], wanted)
