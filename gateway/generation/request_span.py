"""A request as a span: below the call that it came by, above the streams to verifiers and drafts."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context, trace
from opentelemetry.trace import Span, Status, StatusCode

from gateway.generation import gen_ai
from gateway.generation.outcome import Outcome, Record

_TRACER = trace.get_tracer("paceline.gateway", schema_url=gen_ai.SCHEMA_URL)


@contextmanager
def request_span(record: Record) -> Iterator[Span]:
    """The current span while the block lasts. It says how the request ended, which the record has to know by then.

    A request may be ended by another task than began it, as when its client takes nothing any more: then what is
    current there is not its span, and stays as it is.
    """
    span = _TRACER.start_span(record.operation)
    span.set_attribute("paceline.request_id", record.request_id)
    task, token = asyncio.current_task(), context.attach(trace.set_span_in_context(span))
    try:
        yield span
    finally:
        if span.is_recording():
            _describe(span, record)
        span.end()
        if asyncio.current_task() is task:
            context.detach(token)


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
