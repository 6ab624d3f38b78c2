"""What can go wrong, in domain terms. One interceptor turns these into gRPC statuses with google.rpc details."""

from typing import NamedTuple


class FieldViolation(NamedTuple):
    """A request field that cannot be accepted, and why."""

    field: str
    description: str


_MOST_IN_MESSAGE = 3
"""Violations that the message tells; the details have all, and both travel in one header of a few kilobytes."""


class PacelineError(Exception):
    """Root of the tree. The message is shown to the caller."""


class InvalidArgumentError(PacelineError):
    """The request itself is wrong, whatever the state of the system. INVALID_ARGUMENT with BadRequest."""

    def __init__(self, field: str, description: str, *more: FieldViolation) -> None:
        self.violations = (FieldViolation(field, description), *more)
        first = "; ".join(f"{v.field}: {v.description}" for v in self.violations[:_MOST_IN_MESSAGE])
        rest = len(self.violations) - _MOST_IN_MESSAGE
        super().__init__(first + (f"; and {rest} more" if rest > 0 else ""))


class NotFoundError(PacelineError):
    """A named thing does not exist, or not for this caller. NOT_FOUND with ResourceInfo."""

    def __init__(self, resource_type: str, resource_name: str, description: str = "") -> None:
        self.resource_type = resource_type
        self.resource_name = resource_name
        self.description = description
        super().__init__(f"{resource_type} {resource_name!r} not found" + (f": {description}" if description else ""))


class AlreadyExistsError(PacelineError):
    """A name is taken. ALREADY_EXISTS with ResourceInfo."""

    def __init__(self, resource_type: str, resource_name: str, description: str = "") -> None:
        self.resource_type = resource_type
        self.resource_name = resource_name
        self.description = description
        super().__init__(
            f"{resource_type} {resource_name!r} exists already" + (f": {description}" if description else "")
        )


class UnauthenticatedError(PacelineError):
    """The caller did not say who it is, or not in a way that holds. UNAUTHENTICATED."""


class PermissionDeniedError(PacelineError):
    """The caller may not do this. PERMISSION_DENIED."""


class ResourceExhaustedError(PacelineError):
    """A bound is reached; later it may work. RESOURCE_EXHAUSTED with RetryInfo."""

    def __init__(self, description: str, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(description)


class QuotaExceededError(PacelineError):
    """A caller has as much as it may; waiting does not help. RESOURCE_EXHAUSTED with QuotaFailure."""

    def __init__(self, subject: str, description: str) -> None:
        self.subject = subject
        super().__init__(description)


class DeadlineExceededError(PacelineError):
    """Something took longer than it may. DEADLINE_EXCEEDED."""


class UnavailableError(PacelineError):
    """A part that is needed is away. UNAVAILABLE, with RetryInfo when it is known when to try again."""

    def __init__(self, description: str, retry_after_seconds: float | None = None) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(description)


class FailedPreconditionError(PacelineError):
    """The system is not in a state for this request. FAILED_PRECONDITION, with ErrorInfo where a reason is named."""

    def __init__(self, description: str, reason: str = "") -> None:
        self.reason = reason
        super().__init__(description)


class InternalError(PacelineError):
    """Something that should not happen did. INTERNAL."""
