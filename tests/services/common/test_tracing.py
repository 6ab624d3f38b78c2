"""Spans that no interceptor makes: how many events a long text has, and who decides what is traced."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN, StatusCode

from paceline.errors import InvalidArgumentError
from services.common.tracing import RoundEvents, end_span, headers_of, start_call
from support.replicas import error

_SAMPLED = """
import sys
from opentelemetry import propagate, trace
from services.common.settings import TelemetrySettings
from services.common.telemetry import setup_telemetry

setup_telemetry("test", TelemetrySettings(traces="console", trace_share=float(sys.argv[1])))
flags = sys.argv[2]
carrier = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-{flags}"} if flags else {}
context = propagate.extract(carrier)
tracer = trace.get_tracer("test")
print(sum(tracer.start_span("a", context).is_recording() for _ in range(2000)))
"""


@pytest.fixture
def span() -> Iterator[Span]:
    provider = TracerProvider()
    with provider.get_tracer("test").start_as_current_span("one") as span:
        assert isinstance(span, Span)
        yield span


@pytest.mark.parametrize("num_rounds", [0, 1, 8, 9, 1_000, 10_000, 100_000])
def test_a_long_text_has_few_events_whose_sums_are_exact(span: Span, num_rounds: int) -> None:
    rounds = RoundEvents(span)
    for number in range(num_rounds):
        rounds.add(accepted_tokens=number % 3, waited_seconds=0.5)
    rounds.end(prompt_tokens=7)
    events = [dict(event.attributes or {}) for event in span.events]
    assert len(events) <= 110
    assert [event["paceline.rounds"] for event in events[:8]] == [1] * min(8, num_rounds)
    assert sum(int(str(event["paceline.rounds"])) for event in events) == num_rounds
    assert sum(int(str(event["paceline.accepted_tokens"])) for event in events) == sum(n % 3 for n in range(num_rounds))
    attributes = dict(span.attributes or {})
    assert attributes["paceline.prompt_tokens"] == 7
    assert attributes.get("paceline.rounds", 0) == num_rounds
    assert attributes.get("paceline.waited_seconds", 0) == 0.5 * num_rounds


def test_a_span_that_was_ended_meanwhile_is_left_alone(span: Span, caplog: pytest.LogCaptureFixture) -> None:
    rounds = RoundEvents(span)
    rounds.add(tokens=1)
    span.end()
    rounds.end(prompt_tokens=1)
    assert not caplog.records


def test_what_is_not_traced_has_no_events_and_no_headers() -> None:
    rounds = RoundEvents(INVALID_SPAN)
    rounds.add(tokens=1)
    rounds.end()
    assert not rounds.is_recording
    assert headers_of(start_call("/a.B/C", "host:1")) == ()


def test_headers_are_those_of_the_span_and_of_no_other(span: Span) -> None:
    ((name, value),) = headers_of(span)
    assert name == "traceparent"
    assert value.split("-")[1:3] == [f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (error(grpc.StatusCode.RESOURCE_EXHAUSTED), "RESOURCE_EXHAUSTED"),
        (InvalidArgumentError("prompt", "holds a secret"), "InvalidArgumentError"),
    ],
)
def test_a_span_says_what_kind_of_error_ended_it_and_nothing_of_what_it_said(raised: Exception, said: str) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    end_span(provider.get_tracer("test").start_span("one"), raised)
    (ended,) = exporter.get_finished_spans()
    assert dict(ended.attributes or {}) == {"error.type": said}
    assert (ended.status.status_code, ended.status.description, ended.events) == (StatusCode.ERROR, None, ())


@pytest.mark.parametrize(
    ("share", "flags", "least", "most"),
    [("0.1", "", 100, 320), ("0", "", 0, 0), ("1", "", 2000, 2000), ("0", "01", 2000, 2000), ("1", "00", 0, 0)],
)
def test_a_share_is_traced_unless_the_caller_has_decided(
    repository: Path, share: str, flags: str, least: int, most: int
) -> None:
    command = [sys.executable, "-c", _SAMPLED, share, flags]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert least <= int(done.stdout) <= most
