"""Logs, and traces and metrics through OpenTelemetry. Exporters are off unless set."""

import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

import grpc
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.grpc import aio_client_interceptors, aio_server_interceptor, filters
from opentelemetry.metrics import Counter, Histogram, Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from services.common.logs import setup_logging
from services.common.prometheus import MODEL_ATTRIBUTE
from services.common.settings import MetricExporter, TelemetrySettings, TraceExporter

_WORTH_A_SPAN = filters.negate(
    filters.any_of(
        filters.health_check(),
        filters.service_prefix("grpc.reflection"),
        filters.service_prefix("grpc.channelz"),
        filters.service_prefix("xds.service.orca"),
        filters.service_name("paceline.internal.v1.ModelServerService"),
        filters.service_name("paceline.internal.v1.ProcessService"),
        filters.method_name("GetSpeculation"),
        filters.method_name("StoreBlocks"),
    )
)
"""Calls that belong to no request are not traced: there are thousands of them before the first one that does."""
_SEND_MANY = (grpc.aio.StreamUnaryClientInterceptor, grpc.aio.StreamStreamClientInterceptor)
_SECONDS = View(
    instrument_type=Histogram,
    instrument_name="paceline.*",
    instrument_unit="s",
    aggregation=ExplicitBucketHistogramAggregation(
        (
            0.001,
            0.0025,
            0.005,
            0.01,
            0.02,
            0.03,
            0.04,
            0.06,
            0.08,
            0.1,
            0.15,
            0.25,
            0.5,
            0.75,
            1,
            2.5,
            5,
            7.5,
            10,
            30,
            60,
        )
    ),
)
"""OpenTelemetry's own buckets are for milliseconds. These hold both a token's time and a long prompt's. What its
conventions name has theirs."""


def setup_telemetry(service_name: str, settings: TelemetrySettings, model: str = "") -> None:
    """Sets up logging and, where exporters are set, the global tracer and meter providers.

    `model` is what a process runs that runs one model; all that it measures is told apart by it.
    """
    setup_logging(service_name, settings)
    resource = Resource.create(
        {
            "service.name": service_name,
            "service.namespace": "paceline",
            "service.version": version("paceline"),
            "service.instance.id": str(uuid.uuid4()),
            **({MODEL_ATTRIBUTE: model} if model else {}),
        }
    )
    spans = _span_exporter(settings)
    if spans is not None:
        traces = TracerProvider(ParentBased(TraceIdRatioBased(settings.trace_share)), resource)
        traces.add_span_processor(BatchSpanProcessor(spans))
        trace.set_tracer_provider(traces)
    readers = _metric_readers(settings)
    if readers:
        metrics.set_meter_provider(MeterProvider(readers, resource, views=[_SECONDS]))


def shutdown_telemetry() -> None:
    """Sends what is still to be sent. Nothing is exported afterwards."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        if isinstance(provider, TracerProvider | MeterProvider):
            provider.shutdown()
    sys.stdout.flush()


def tracing_server_interceptors() -> Sequence[grpc.aio.ServerInterceptor]:
    """What makes a span of every call that is served; none without traces."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        return ()
    return (aio_server_interceptor(filter_=_WORTH_A_SPAN),)  # type: ignore[no-untyped-call]


def tracing_client_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """What makes a span of every call that is made; none without traces.

    Calls that send many messages are left out: with an interceptor gRPC takes every one of them through a task and a
    queue more, and `write` waits for an answer that only comes when all is written. They carry the trace themselves
    (`services.common.tracing`).
    """
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        return ()
    interceptors = aio_client_interceptors(filter_=_WORTH_A_SPAN)  # type: ignore[no-untyped-call]
    return [each for each in interceptors if not isinstance(each, _SEND_MANY)]


def counter(
    instruments: Meter, name: str, unit: str, description: str, of: Iterable[Mapping[str, str]] = ({},)
) -> Counter:
    """A counter that shows 0 for these attributes until it counts something.

    Of one whose first value is another, Prometheus does not know that it grew.
    """
    made = instruments.create_counter(name, unit, description)
    for attributes in of:
        made.add(0, attributes)
    return made


def meter(name: str) -> Meter:
    """The meter of a part; its instruments cost next to nothing while no exporter is set."""
    return metrics.get_meter(name)


def _span_exporter(settings: TelemetrySettings) -> SpanExporter | None:
    if settings.traces is TraceExporter.CONSOLE:
        return ConsoleSpanExporter(out=sys.stderr)
    if settings.traces is TraceExporter.OTLP:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(endpoint=settings.otlp_endpoint.get_secret_value())
    return None


def _metric_readers(settings: TelemetrySettings) -> list[MetricReader]:
    readers: list[MetricReader] = []
    if settings.metrics is MetricExporter.CONSOLE:
        readers.append(PeriodicExportingMetricReader(ConsoleMetricExporter(out=sys.stderr)))
    if settings.metrics in (MetricExporter.OTLP, MetricExporter.BOTH):
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        exporter = OTLPMetricExporter(endpoint=settings.otlp_endpoint.get_secret_value())
        readers.append(PeriodicExportingMetricReader(exporter))
    if settings.is_read_by_prometheus:
        from services.common.prometheus import prometheus_reader

        readers.append(prometheus_reader(settings.prometheus_host, settings.prometheus_port))
    return readers
