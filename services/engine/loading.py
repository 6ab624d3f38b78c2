"""How far an engine is on its way to its first step, as it reports it."""

from collections import abc
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any, NamedTuple

from transformers.utils import logging as transformers_logging

_MARKS = 20


class Phase(Enum):
    """What an engine does before it can be used, in this order."""

    WEIGHTS = auto()
    """Weights are read."""
    FORWARD = auto()
    """A forward is chosen, compiled where it has to be, and compared with the model's own."""
    MEASURING = auto()
    """Steps are measured."""
    READY = auto()
    """The engine can be used."""


class Progress(NamedTuple):
    """What is being done, and how much of it is done, 0 to 1."""

    phase: Phase
    fraction: float


Report = abc.Callable[[Progress], None]


def unreported(_: Progress) -> None:
    """Takes the reports of an engine that nobody waits for."""


@contextmanager
def reporting_weights(report: Report) -> abc.Iterator[None]:
    """Has what `transformers` would show as a bar over tensors reported, every twentieth of them."""

    def hook(make_bar: abc.Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options.get("desc") != "Loading weights" or not args:
            return make_bar(*args, **options)
        items = list(args[0])
        marks = {len(items) * part // _MARKS: part / _MARKS for part in range(1, _MARKS + 1)}

        def passing() -> abc.Iterator[Any]:
            for count, item in enumerate(items, 1):
                yield item
                if count in marks:
                    report(Progress(Phase.WEIGHTS, marks[count]))

        return passing()

    report(Progress(Phase.WEIGHTS, 0.0))
    previous = transformers_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)
