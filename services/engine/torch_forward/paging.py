"""How the attention of a model's own modules comes to be paged: what `transformers` calls, and what it finds there."""

from collections import abc
from typing import Any

import torch

from services.engine.attention_layers import AttentionLayer
from services.engine.torch_forward.attention import AttentionPlan


class Paging:
    """What the attention of one forward's layers is told: the plan of the step that is being computed."""

    def __init__(self, layers: abc.Sequence[AttentionLayer], modules: abc.Sequence[torch.nn.Module]) -> None:
        """Has the modules, which call attention in this order, find it."""
        self._layers = layers
        self._modules = modules
        self._plan: AttentionPlan | None = None
        self._num_calls = 0
        for module in modules:
            module.paging = self  # type: ignore[assignment]

    def begin(self, plan: AttentionPlan) -> None:
        """A step begins."""
        self._plan = plan
        self._num_calls = 0

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """See AttentionPlan. Raises RuntimeError when the calls are not those that were noted."""
        index = self._num_calls
        self._num_calls += 1
        if self._plan is None or index >= len(self._modules) or self._modules[index] is not module:
            raise RuntimeError("attention was called in another order than when the model was loaded")
        return self._plan.attend(index, query, key, value, self._layers[index], sinks)


def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What `transformers` calls in every attention layer. What else it gives was noted when the model was loaded."""
    paging: Paging = module.paging
    return paging.attend(module, query, key, value, s_aux), None
