"""Spans that no interceptor makes: of streams, and of what happens to a sequence in rounds.

Where traces are off, or a request is not traced, all of it is next to nothing: every span is the same empty one.
"""

from collections import Counter
from collections.abc import Mapping

import grpc
from opentelemetry import context, propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

_EACH = 8
"""So many events of one size, then of twice the size."""
_TRACER = trace.get_tracer("paceline")


def start_call(method: str, target: str) -> Span:
    """The span of a call that begins, below the current span. Whoever has it ends it."""
    attributes = {"rpc.system": "grpc", "server.address": target}
    return _TRACER.start_span(method, kind=SpanKind.CLIENT, attributes=attributes)


def headers_of(span: Span) -> tuple[tuple[str, str], ...]:
    """Metadata by which the other end of a call continues a trace (W3C Trace Context); none without a trace."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span, context.Context()))
    return tuple(carrier.items())


def end_span(span: Span, error: BaseException | None = None) -> None:
    """Ends a span, as failed where there was an error. What the error says is left out: it may quote its request."""
    if error is not None and span.is_recording():
        code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
        span.set_attribute("error.type", code)
        span.set_status(Status(StatusCode.ERROR))
    span.end()


class RoundEvents:
    """Rounds of a sequence as events of its span, ever more of them in one: 8 events of one round, 8 of two, 8 of four.

    A text of a thousand rounds is 56 events, one of ten thousand 80; OpenTelemetry keeps 128 of a span.
    """

    def __init__(self, span: Span, name: str = "rounds") -> None:
        """`name` is that of the events."""
        self.is_recording = span.is_recording()
        self._span = span
        self._name = name
        self._sums: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()
        self._num_events = 0

    def add(self, **counts: float) -> None:
        """Counts a round. Names are those of attributes, which are sums over the rounds of an event."""
        if not self.is_recording:
            return
        self._sums.update(counts, rounds=1)
        if self._sums["rounds"] >= 1 << self._num_events // _EACH:
            self._flush()

    def end(self, **attributes: AttributeValue) -> None:
        """Says the rest, and more of the sequence; also more than once. A call that was cancelled may have ended its
        span before: what was not said then is missing.
        """
        if self._span.is_recording():
            self._flush()
            self._span.set_attributes(_named(attributes))

    def _flush(self) -> None:
        """Makes an event of what was counted since the last; the span has what all of them came to."""
        if self._sums:
            self._span.add_event(self._name, _named(self._sums))
            self._totals.update(self._sums)
            self._span.set_attributes(_named(self._totals))
            self._sums.clear()
            self._num_events += 1


def _named(counts: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    return {f"paceline.{name}": count for name, count in counts.items()}
