"""What a service makes of an engine: the seam between the engine's loop and verifier or draft."""

from typing import Protocol

from services.engine.engine import Engine
from services.engine.model_runner import Result
from services.engine.readings import Readings
from services.engine.sequence import Sequence


class Role(Protocol):
    """What a service does with the picks of its sequences. Runs on the engine's thread."""

    engine: Engine

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for what the role emits; else it is delivered once the next step has begun."""

    def prepare(self, now: float) -> None:
        """Decides, before every step, what is to be in it. `now` is the time of the monotonic clock, in seconds."""

    def advance(self, results: list[Result]) -> None:
        """Takes the results of a step and prepares the sequences for the next."""

    def end(self, sequence: Sequence, error: Exception) -> None:
        """Removes a sequence that cannot be computed, and tells its stream."""

    def fail(self, error: BaseException) -> None:
        """Tells every open stream that the engine is gone."""

    def readings(self) -> Readings:
        """What the role counts and measures, as it stands now."""
