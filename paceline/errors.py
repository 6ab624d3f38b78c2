"""What can go wrong, as one tree: services raise these errors, gRPC carries them as statuses with google.rpc details
(https://google.aip.dev/193), and clients raise them again as they were.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from paceline.connecting import problem_of

DOMAIN = "paceline"
DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata with the details of a status (https://grpc.io/docs/guides/error/)."""
_MOST_IN_MESSAGE = 3
"""Violations that the message tells; the details have more."""
_MESSAGE_BYTES, _DETAIL_BYTES, _VIOLATIONS_BYTES = 1024, 512, 1536
"""Most bytes of a message, of a text in the details, and of all violations together: what a service says of an error
travels in headers, of which gRPC takes 8 kilobytes together, and callers name things of any length."""


class FieldViolation(NamedTuple):
    """A request field that cannot be accepted, and why."""

    field: str
    description: str


class PacelineError(Exception):
    """Root of the tree. The message is shown to the caller; `code` is the gRPC status."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    violations: tuple[FieldViolation, ...] = ()
    """Fields that cannot be accepted (BadRequest)."""
    resource_type: str = ""
    resource_name: str = ""
    """What does not exist, or exists already (ResourceInfo)."""
    subject: str = ""
    """Whose quota is used up (QuotaFailure)."""
    reason: str = ""
    """A word in capitals for programs (ErrorInfo)."""
    retry_after_seconds: float | None = None
    """When it is worth trying again (RetryInfo); None where nobody knows."""

    def details(self) -> list[Message]:
        """The google.rpc messages that say all this, as far as it fits."""
        found: list[Message] = []
        if self.violations:
            found.append(error_details_pb2.BadRequest(field_violations=_as_many_as_fit(self.violations)))
        said = _cut(str(self), _DETAIL_BYTES)
        if self.resource_type:
            resource = {"resource_type": self.resource_type, "resource_name": _cut(self.resource_name, _DETAIL_BYTES)}
            found.append(error_details_pb2.ResourceInfo(**resource, description=said))
        if self.subject:
            subject = _cut(self.subject, _DETAIL_BYTES)
            violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=said)
            found.append(error_details_pb2.QuotaFailure(violations=[violation]))
        if self.reason:
            found.append(error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN))
        if self.retry_after_seconds is not None:
            delay = Duration()
            delay.FromNanoseconds(int(self.retry_after_seconds * 1e9))
            found.append(error_details_pb2.RetryInfo(retry_delay=delay))
        return found

    def to_status(self) -> status_pb2.Status:
        """The status with its details, small enough for the headers that it travels in."""
        status = status_pb2.Status(code=self.code.value[0], message=_cut(str(self), _MESSAGE_BYTES))
        for detail in self.details():
            status.details.add().Pack(detail)
        return status

    @classmethod
    def _received(cls, code: grpc.StatusCode, message: str, found: dict[str, Any]) -> Self:
        """An error that came over the wire, with what its details say."""
        error = cls.__new__(cls)
        Exception.__init__(error, message)
        error.code = code
        for name, value in found.items():
            setattr(error, name, value)
        return error


class InvalidArgumentError(PacelineError):
    """The request itself is wrong, whatever the state of the system. `violations` says which fields, and why."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, field: str, description: str, *more: FieldViolation) -> None:
        self.violations = (FieldViolation(field, description), *more)
        first = "; ".join(f"{v.field}: {v.description}" for v in self.violations[:_MOST_IN_MESSAGE])
        rest = len(self.violations) - _MOST_IN_MESSAGE
        super().__init__(first + (f"; and {rest} more" if rest > 0 else ""))


class NotFoundError(PacelineError):
    """A named thing does not exist, or not for this caller."""

    code = grpc.StatusCode.NOT_FOUND

    def __init__(self, resource_type: str, resource_name: str, description: str = "") -> None:
        self.resource_type, self.resource_name = resource_type, resource_name
        super().__init__(f"{resource_type} {resource_name!r} not found" + (f": {description}" if description else ""))


class AlreadyExistsError(PacelineError):
    """A name is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS

    def __init__(self, resource_type: str, resource_name: str, description: str = "") -> None:
        self.resource_type, self.resource_name = resource_type, resource_name
        rest = f": {description}" if description else ""
        super().__init__(f"{resource_type} {resource_name!r} exists already{rest}")


class UnauthenticatedError(PacelineError):
    """The caller did not say who it is, or not in a way that holds."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(PacelineError):
    """The caller may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhaustedError(PacelineError):
    """A bound is reached; later it may work."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, description: str, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(description)


class QuotaExceededError(PacelineError):
    """A caller has as much as it may; `retry_after_seconds` is there when waiting helps."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, subject: str, description: str, retry_after_seconds: float | None = None) -> None:
        self.subject = subject
        self.retry_after_seconds = retry_after_seconds
        super().__init__(description)


class DeadlineExceededError(PacelineError):
    """Something took longer than it may."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class UnavailableError(PacelineError):
    """A part that is needed is away; `retry_after_seconds` is there when it is known when to try again."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self, description: str, retry_after_seconds: float | None = None) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(description)


class FailedPreconditionError(PacelineError):
    """The system is not in a state for this request."""

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, description: str, reason: str = "") -> None:
        self.reason = reason
        super().__init__(description)


class AbortedError(PacelineError):
    """A request was ended half way, for a reason of its own; the same request again would end the same way."""

    code = grpc.StatusCode.ABORTED

    def __init__(self, description: str, reason: str) -> None:
        self.reason = reason
        super().__init__(description)


class InternalError(PacelineError):
    """Something that should not happen did."""

    code = grpc.StatusCode.INTERNAL


class ClosedError(PacelineError):
    """The client was closed while something was asked with it."""

    code = grpc.StatusCode.CANCELLED

    def __init__(self) -> None:
        super().__init__("the client was closed before this was over")


_BY_CODE: dict[grpc.StatusCode, type[PacelineError]] = {
    kind.code: kind for kind in PacelineError.__subclasses__() if kind not in (QuotaExceededError, ClosedError)
}


def has_details(error: grpc.aio.AioRpcError) -> bool:
    """Whether a service wrote the status, and not gRPC in the place of one that is gone."""
    return any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ())


def from_call(call: Any) -> PacelineError:
    """The error of a failed call: a grpc.RpcError, or anything that has code(), details() and trailing_metadata()."""
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # The details are another status's, or none at all.
        status = None
    found = _read(status.details) if status is not None else {}
    code, message = call.code(), call.details() or call.code().name
    kind = QuotaExceededError if "subject" in found else _BY_CODE.get(code, PacelineError)
    if status is None and (problem := problem_of(message)) is not None:
        message, found = problem.says, {"reason": problem.reason}
    return kind._received(code, message, found)


def _read(details: Any) -> dict[str, Any]:
    """What known details say, by attribute; others are left alone."""
    found: dict[str, Any] = {}
    for detail in details:
        match detail.TypeName():
            case "google.rpc.BadRequest":
                bad = _unpacked(detail, error_details_pb2.BadRequest())
                found["violations"] = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
            case "google.rpc.ResourceInfo":
                info = _unpacked(detail, error_details_pb2.ResourceInfo())
                found["resource_type"], found["resource_name"] = info.resource_type, info.resource_name
            case "google.rpc.QuotaFailure":
                failure = _unpacked(detail, error_details_pb2.QuotaFailure())
                found["subject"] = next((violation.subject for violation in failure.violations), "")
            case "google.rpc.ErrorInfo":
                found["reason"] = _unpacked(detail, error_details_pb2.ErrorInfo()).reason
            case "google.rpc.RetryInfo":
                delay = _unpacked(detail, error_details_pb2.RetryInfo()).retry_delay
                found["retry_after_seconds"] = delay.ToNanoseconds() / 1e9
    return found


def _unpacked(detail: Any, message: Any) -> Any:
    detail.Unpack(message)
    return message


def _as_many_as_fit(violations: Sequence[FieldViolation]) -> list[error_details_pb2.BadRequest.FieldViolation]:
    """The first violations that fit together, the first of all in any case, and how many do not."""
    found: list[error_details_pb2.BadRequest.FieldViolation] = []
    left = _VIOLATIONS_BYTES
    for violation in violations:
        field, description = (_cut(text, _DETAIL_BYTES) for text in violation)
        message = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
        left -= message.ByteSize()
        if found and left < 0:
            rest = f"and {len(violations) - len(found)} more"
            found.append(error_details_pb2.BadRequest.FieldViolation(field=found[-1].field, description=rest))
            break
        found.append(message)
    return found


def _cut(text: str, most: int) -> str:
    """A text of so many bytes at most; one that was longer ends in an ellipsis."""
    encoded = text.encode(errors="replace")  # What was read from JSON may hold half of a character.
    return encoded.decode() if len(encoded) <= most else encoded[: most - 3].decode(errors="ignore") + "\u2026"
