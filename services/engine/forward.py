"""The seam between an engine and what computes its model: a flat batch of tokens in, logits out.

The engine, the runner, the model and the KV cache know of no particular forward; `forwards` chooses one. Each lies in a
folder of its own, with the adapters that it can add.
"""

from collections import abc
from typing import NamedTuple, Protocol

import torch

from services.engine.lora import Lora
from services.engine.model import LoadedModel
from services.engine.outbox import NO_BELL
from services.engine.scheduler import Work


class Batch(NamedTuple):
    """The tokens of one step, those of one sequence behind those of another."""

    works: abc.Sequence[Work]
    token_ids: list[int]
    """Token ids have one entry a row."""
    positions: list[int]
    """Positions are those of the rows in their own sequences."""
    wanted: list[int]
    """Wanted are the numbers of the rows whose logits are asked for: one at least."""
    can_wait: bool = False
    """Whether the step may be given up for what cannot wait."""
    bell: int = NO_BELL
    """A bell to ring when the step has begun to compute: see Outbox."""


class Forward(Protocol):
    """What computes a model. It belongs to the engine's thread."""

    @property
    def identity(self) -> str:
        """What has to be equal for another forward of the same model to compute the same bits; part of the KV key."""

    @property
    def adapters(self) -> Lora | None:
        """What adds adapters; None where there are none to add."""

    def run(self, batch: Batch) -> torch.Tensor:
        """Computes logits [wanted, vocab] and stores the KV of all rows.

        The bits of a row depend on its own sequence and never on the other rows of the batch. Raises
        InterruptedStepError.
        """

    def hurry(self, wanted: bool) -> None:
        """Says whether something has come that cannot wait: a step that can is given up. Any thread may say so."""


def identify(kind: str, loaded: LoadedModel) -> str:
    """The identity of a forward of this kind on the device where the model is."""
    device = loaded.device
    place = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else torch.cuda.get_device_name(device)
    return f"{loaded.description.dtype} weights; {kind} forward; {place}; torch {torch.__version__}"
