"""A LoRA adapter as an engine takes it: pairs of small matrices by the name of the layer that they change.

A layer's output becomes `W x + scaling * B (A x)` (Hu et al. 2021, arXiv 2106.09685).
"""

from collections import abc
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn


class AdapterError(ValueError):
    """An adapter does not fit the model that runs here."""


BROKEN_MESSAGE = "with this adapter the model produces numbers that are not finite"


class Target(NamedTuple):
    """A linear layer of the model that adapters may change."""

    name: str
    """As the model's own code has it."""
    in_features: int
    out_features: int


class Pair(NamedTuple):
    """What an adapter adds to one layer."""

    down: torch.Tensor
    """A [rank, in_features]."""
    up: torch.Tensor
    """B [out_features, rank]."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """Weights as they were saved. The layers that it does not name stay as they are."""

    rank: int
    scaling: float
    pairs: abc.Mapping[str, Pair]
    """Pairs are found by the name of the layer."""


def find_targets(model: Any) -> dict[str, Target]:
    """The layers of a model, before any is replaced, that adapters may change: all linear ones but the output's."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    targets: dict[str, Target] = {}
    for name, module in model.named_modules():
        if module is head:
            continue
        if type(module) is nn.Linear:
            targets[name] = Target(name, module.in_features, module.out_features)
        elif type(module) is Conv1D:
            targets[name] = Target(name, *module.weight.shape)
    return targets


class Packer(Protocol):
    """Lays adapters out as one forward takes them. It is immutable, so that any thread may use it."""

    def pack(self, adapter: Adapter) -> Any:
        """An adapter as the forward takes it. Raises AdapterError when it cannot be computed with."""
