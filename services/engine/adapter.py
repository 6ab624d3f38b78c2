"""A LoRA adapter as an engine takes it: pairs of small matrices by the name of the layer that they change.

A layer's output becomes `W x + scaling * B (A x)` (Hu et al. 2021, arXiv 2106.09685).
"""

from collections import abc
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from services.common.lora.config import WEIGHTS_NAME, parse_lora_config, tensor_names


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


@dataclass(frozen=True, slots=True)
class AdapterReader:
    """Reads adapters for one engine. It is immutable, so that any thread may use it."""

    targets: abc.Mapping[str, Target]
    """Targets are the layers that adapters may change, by name."""
    max_rank: int
    packer: Packer

    def read(self, config: bytes, weights: bytes) -> Any:
        """An adapter as the engine installs it, of a pair of files that PEFT wrote.

        Raises AdapterError, or InvalidArgumentError for the config. The store has looked at the files already; what is
        checked again is that they fit this model.
        """
        parsed = parse_lora_config(config, self.max_rank)
        try:
            tensors = load(weights)
        except SafetensorError as error:
            raise AdapterError(f"{WEIGHTS_NAME}: {error}") from error
        pairs = {
            name: pair
            for name, target in self.targets.items()
            if (pair := _take_pair(tensors, target, parsed.rank)) is not None
        }
        if tensors or not pairs:
            unknown = next(iter(tensors), "nothing")
            raise AdapterError(f"{WEIGHTS_NAME}: the model that runs here has no layer for {unknown}")
        return self.packer.pack(Adapter(parsed.rank, parsed.scaling, pairs))


def _take_pair(tensors: dict[str, torch.Tensor], target: Target, rank: int) -> Pair | None:
    """What the tensors have for a layer, which is taken out of them; None for nothing. Raises AdapterError."""
    down, up = (tensors.pop(name, None) for name in tensor_names(target.name))
    if down is None and up is None:
        return None
    shapes = [None if part is None else tuple(part.shape) for part in (down, up)]
    wanted = [(rank, target.in_features), (target.out_features, rank)]
    if down is None or up is None or shapes != wanted:
        raise AdapterError(
            f"{WEIGHTS_NAME}: {target.name} needs A {wanted[0]} and B {wanted[1]}, got {shapes[0]} and {shapes[1]}"
        )
    return Pair(down, up)
