"""What goes wrong in an engine: for one sequence, or for all of them."""

from typing import NamedTuple

from services.engine.sequence import Sequence


class BrokenEngineError(RuntimeError):
    """What an engine holds cannot be trusted any more: its process has to end."""


class InterruptedStepError(Exception):
    """A step was given up because something came that cannot wait. Nothing was computed."""


class Failure(NamedTuple):
    """A sequence that cannot be computed, and why. It has to be removed."""

    sequence: Sequence
    error: Exception


def unavailable(description: str, retry_after_seconds: float | None = None) -> Exception:
    """UnavailableError: an engine can be used without the transport that it belongs to."""
    from paceline.errors import UnavailableError

    return UnavailableError(description, retry_after_seconds)
