"""What a stream is told whose sequence cannot be computed."""

from paceline.errors import AbortedError, FailedPreconditionError, PacelineError
from services.engine.adapter import BROKEN_MESSAGE
from services.engine.sampler import NonFiniteLogitsError
from services.engine.sequence import NO_SLOT, Sequence

NOT_FINITE = "NOT_FINITE"
STEP_FAILED = "STEP_FAILED"


def to_error(sequence: Sequence, error: Exception) -> PacelineError:
    """The error of a sequence that fails alone: the same text would fail again, wherever it is computed."""
    if isinstance(error, PacelineError):
        return error
    if not isinstance(error, NonFiniteLogitsError):
        return AbortedError("this text cannot be computed; the server's log says more", STEP_FAILED)
    if sequence.adapter_slot != NO_SLOT:
        return FailedPreconditionError(BROKEN_MESSAGE)
    return AbortedError(str(error), NOT_FINITE)
