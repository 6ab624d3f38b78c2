"""Paceline for Python programs: `Client` for those with an event loop, `SyncClient` for those without."""

import paceline.quiet  # noqa: F401  # Before gRPC.
from paceline.client import Client
from paceline.errors import (
    AbortedError,
    AlreadyExistsError,
    ClosedError,
    DeadlineExceededError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PacelineError,
    PermissionDeniedError,
    QuotaExceededError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from paceline.requests import ChatOptions, Message, Options
from paceline.sync_client import SyncClient
from paceline.tls import Tls, TlsError

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "ChatOptions",
    "Client",
    "ClosedError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "FieldViolation",
    "InternalError",
    "InvalidArgumentError",
    "Message",
    "NotFoundError",
    "Options",
    "PacelineError",
    "PermissionDeniedError",
    "QuotaExceededError",
    "ResourceExhaustedError",
    "SyncClient",
    "Tls",
    "TlsError",
    "UnauthenticatedError",
    "UnavailableError",
]
