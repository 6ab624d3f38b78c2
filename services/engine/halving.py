"""A step that fails is repeated by halves, so that only the sequences end that fail alone.

Repeating is safe: a forward writes the same KV to the same slots, and nothing else is changed by it. What cannot be
repeated ends the engine: an error of the device, after which nothing that it computes or holds is known to be right,
and a step that ran out of memory and does so again by halves.
"""

from collections import abc
from typing import NamedTuple

import torch

from services.engine.errors import BrokenEngineError, Failure, InterruptedStepError
from services.engine.model_runner import Result
from services.engine.scheduler import Work

_OF_THE_DEVICE = ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "NCCL error", "HIP error")
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_DEVICE_ERRORS: tuple[type[Exception], ...] = (getattr(torch, "AcceleratorError", BrokenEngineError),)


class Halved(NamedTuple):
    """What a step found out, and what could not be computed."""

    results: list[Result]
    failures: list[Failure]


def run_by_halves(run: abc.Callable[[abc.Sequence[Work]], list[Result]], works: abc.Sequence[Work]) -> Halved:
    """Runs a step. Raises BrokenEngineError when it fails in a way that says something of the engine,
    InterruptedStepError.
    """
    return _run(run, works, ran_out=False)


def raise_if_broken(error: Exception) -> None:
    """Raises BrokenEngineError for an error after which the device is not to be trusted."""
    if isinstance(error, BrokenEngineError):
        raise error
    said = str(error)
    if not is_out_of_memory(error) and (isinstance(error, _DEVICE_ERRORS) or any(w in said for w in _OF_THE_DEVICE)):
        raise BrokenEngineError(f"the device failed: {said}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, that of the device or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def _run(run: abc.Callable[[abc.Sequence[Work]], list[Result]], works: abc.Sequence[Work], *, ran_out: bool) -> Halved:
    try:
        return Halved(run(works), [])
    except InterruptedStepError:
        raise
    except Exception as error:
        raise_if_broken(error)
        if is_out_of_memory(error):
            if ran_out:
                raise BrokenEngineError("memory ran out, and again for half of the step") from error
            ran_out = True
        if len(works) == 1:
            return Halved([], [Failure(works[0].sequence, error)])
    half = len(works) // 2
    first, second = (_run(run, part, ran_out=ran_out) for part in (works[:half], works[half:]))
    return Halved(first.results + second.results, first.failures + second.failures)
