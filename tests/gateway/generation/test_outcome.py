"""How a request ended, from what ended it."""

import asyncio

import grpc
import pytest

from gateway.generation.outcome import Outcome, Record
from gateway.tenants.identity import Caller
from paceline.errors import (
    AbortedError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)


def answered(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Outcome.CANCELLED),
        (asyncio.CancelledError(), Outcome.CANCELLED),
        (GeneratorExit(), Outcome.CANCELLED),
        (DeadlineExceededError("late"), Outcome.DEADLINE),
        (answered(grpc.StatusCode.DEADLINE_EXCEEDED), Outcome.DEADLINE),
        (InvalidArgumentError("n", "wrong"), Outcome.REFUSED),
        (ResourceExhaustedError("full", 1.0), Outcome.REFUSED),
        (FailedPreconditionError("rolled"), Outcome.REFUSED),
        (answered(grpc.StatusCode.NOT_FOUND), Outcome.REFUSED),
        (UnavailableError("away"), Outcome.FAILED),
        (InternalError("broken"), Outcome.FAILED),
        (AbortedError("half way", "POISON"), Outcome.FAILED),
        (answered(grpc.StatusCode.INTERNAL), Outcome.FAILED),
        (KeyError("a mistake of ours"), Outcome.FAILED),
    ],
    ids=lambda value: value.value if isinstance(value, Outcome) else type(value).__name__,
)
def test_what_ended_it_says_how(error: BaseException | None, outcome: Outcome) -> None:
    record = Record("id", Caller("a"), None)
    record.ended(error)
    assert record.outcome is outcome
    complete = Record("id", Caller("a"), None)
    complete.is_complete = True
    complete.ended(error)
    assert complete.outcome is Outcome.FINISHED


def test_a_request_that_is_cancelled_when_its_time_is_over_ran_into_its_deadline() -> None:
    record = Record("id", Caller("a"), 0.0)
    record.ended(asyncio.CancelledError())
    assert record.outcome is Outcome.DEADLINE
    early = Record("id", Caller("a"), 60.0)
    early.ended(asyncio.CancelledError())
    assert early.outcome is Outcome.CANCELLED
