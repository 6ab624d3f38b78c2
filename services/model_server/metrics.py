"""What every process with an engine measures of itself; read from copies when metrics are collected."""

from collections import abc
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.engine.engine_loop import EngineLoop
from services.engine.readings import Attribute
from services.model_server.streams import OpenStreams

_GAUGES = (
    ("kv_blocks", "{block}", "KV blocks by state."),
    ("sequences", "{sequence}", "Sequences of the engine: those that hold KV blocks, and those that wait for some."),
    ("step_seconds", "s", "Expected time of a step by its number of rows."),
)
_COUNTERS = (
    ("steps", "{step}", "Forwards."),
    ("preemptions", "{preemption}", "Sequences that lost their blocks and were computed anew."),
)
_MAX_SERIES = 1000
_OTHER = "other"
"""What is counted of those beyond so many, of which adapters there may be any number."""


class Counts:
    """A counter for what happens in every round: plain numbers that are shown when they are asked for.

    One of OpenTelemetry's own takes some 15 us a call, which a round of a small model would feel.
    """

    def __init__(self, instruments: Meter, name: str, unit: str, description: str, *labels: str) -> None:
        """`labels` are the names of what its numbers are told apart by."""
        self._labels = labels
        self._values: dict[tuple[Attribute, ...], float] = {} if labels else {(): 0}
        instruments.create_observable_counter(name, [self._observe], unit, description)

    def add(self, amount: float, *values: Attribute) -> None:
        """Counts; `values` are those of the labels."""
        if values not in self._values and len(self._values) >= _MAX_SERIES:
            values = (_OTHER,) * len(values)
        self._values[values] = self._values.get(values, 0) + amount

    def _observe(self, _: CallbackOptions) -> list[Observation]:
        counted = list(self._values.items())
        return [Observation(number, dict(zip(self._labels, values, strict=True))) for values, number in counted]


def observe_engine(instruments: Meter, engine_loop: EngineLoop[Any], open_streams: OpenStreams) -> None:
    """Registers gauges of KV blocks, sequences and step times, and counters of steps and preemptions."""
    for name, unit, description in _GAUGES:
        instruments.create_observable_gauge(f"paceline.{name}", [readings(engine_loop, name)], unit, description)
    for name, unit, description in _COUNTERS:
        instruments.create_observable_counter(f"paceline.{name}", [readings(engine_loop, name)], unit, description)
    instruments.create_observable_gauge(
        "paceline.open_sequences", [lambda _: [Observation(open_streams.count)]], "{sequence}", "Open streams."
    )


def readings(engine_loop: EngineLoop[Any], name: str) -> abc.Callable[[CallbackOptions], abc.Iterable[Observation]]:
    """What an observable instrument calls to have the latest readings of this name."""
    # OTLP refuses all metrics of a process when one of them is a bool.
    return lambda _: [Observation(float(one.value), one.attributes) for one in engine_loop.readings.get(name, ())]
