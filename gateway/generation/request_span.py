"""A request as a span: below the call that it came by, above the streams to verifiers and drafts."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode

from gateway.generation import gen_ai
from gateway.generation.outcome import Outcome, Record

_TRACER = trace.get_tracer("paceline.gateway", schema_url=gen_ai.SCHEMA_URL)


@contextmanager
def request_span(record: Record) -> Iterator[Span]:
    """The current span while the block lasts. It says how the request ended, which the record has to know by then."""
    with _TRACER.start_as_current_span(record.operation, record_exception=False, set_status_on_exception=False) as span:
        span.set_attribute("paceline.request_id", record.request_id)
        try:
            yield span
        finally:
            if span.is_recording():
                _describe(span, record)


def _describe(span: Span, record: Record) -> None:
    usage = record.usage()
    if record.model:
        span.update_name(f"{record.operation} {record.model}")
    span.set_attributes(gen_ai.attributes(record))
    span.set_attributes(
        {
            "paceline.outcome": str(record.outcome),
            "paceline.rounds": usage.num_rounds,
            "paceline.ready_rounds": usage.num_ready_rounds,
            "paceline.drafted_tokens": usage.num_drafted_tokens,
            "paceline.accepted_tokens": usage.num_accepted_tokens,
            "paceline.failovers": record.num_failovers,
        }
    )
    if record.outcome is Outcome.FAILED:
        span.set_status(Status(StatusCode.ERROR))
