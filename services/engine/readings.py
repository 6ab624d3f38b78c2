"""Numbers that an engine and its role show of themselves: copies, which any thread may read."""

from collections import abc
from dataclasses import dataclass, field
from types import MappingProxyType

Attribute = str | int | bool


@dataclass(frozen=True, slots=True)
class Reading:
    """A number, with what tells it from others of its name."""

    value: float
    attributes: abc.Mapping[str, Attribute] = field(default_factory=lambda: MappingProxyType({}))


def by_state(num_running: int, num_waiting: int) -> tuple[Reading, ...]:
    """Sequences that hold blocks, and those that wait for some."""
    return Reading(num_running, {"state": "running"}), Reading(num_waiting, {"state": "waiting"})


Readings = abc.Mapping[str, tuple[Reading, ...]]
"""Readings are found by their name, and are never changed: newer ones take their place."""
