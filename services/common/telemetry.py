"""Logs as JSON, traces and metrics through OpenTelemetry. Exporters are off unless set. Prompts are never logged."""

import json
import logging
import sys
import time
from collections.abc import Sequence

import grpc
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.grpc import aio_client_interceptors, aio_server_interceptor, filters
from opentelemetry.metrics import Histogram, Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

from services.common.settings import LogFormat, MetricExporter, TelemetrySettings, TraceExporter

_WORTH_A_SPAN = filters.negate(
    filters.any_of(
        filters.health_check(),
        filters.service_prefix("grpc.reflection"),
        filters.service_prefix("grpc.channelz"),
        filters.service_name("paceline.internal.v1.ModelServerService"),
    )
)
"""Calls that belong to no request are not traced: there are thousands of them before the first one that does."""
_SECONDS = View(
    instrument_type=Histogram,
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
"""OpenTelemetry's own buckets are for milliseconds. These hold both a token's time and a long prompt's."""


def setup_telemetry(service_name: str, settings: TelemetrySettings) -> None:
    """Sets up logging and, where exporters are set, the global tracer and meter providers."""
    _setup_logging(service_name, settings)
    resource = Resource.create({"service.name": service_name})
    spans = _span_exporter(settings)
    if spans is not None:
        traces = TracerProvider(resource=resource)
        traces.add_span_processor(BatchSpanProcessor(spans))
        trace.set_tracer_provider(traces)
    reader = _metric_reader(settings)
    if reader is not None:
        metrics.set_meter_provider(MeterProvider([reader], resource, views=[_SECONDS]))


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
    """What makes a span of every call that is made; none without traces."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        return ()
    interceptors: Sequence[grpc.aio.ClientInterceptor] = aio_client_interceptors(filter_=_WORTH_A_SPAN)  # type: ignore[no-untyped-call]
    return interceptors


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


def _metric_reader(settings: TelemetrySettings) -> MetricReader | None:
    if settings.metrics is MetricExporter.CONSOLE:
        return PeriodicExportingMetricReader(ConsoleMetricExporter(out=sys.stderr))
    if settings.metrics is MetricExporter.OTLP:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        return PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=settings.otlp_endpoint.get_secret_value()))
    if settings.metrics is MetricExporter.PROMETHEUS:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import start_http_server

        start_http_server(settings.prometheus_port, addr=settings.prometheus_host)
        return PrometheusMetricReader()
    return None


def _setup_logging(service_name: str, settings: TelemetrySettings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format is LogFormat.JSON:
        handler.setFormatter(_JsonFormatter(service_name))
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_says_something)


def _says_something(record: logging.LogRecord) -> bool:
    """Leaves out what gRPC says, with a stack trace, of every client that goes away while something is sent to it."""
    return not str(record.msg).startswith("ExecuteBatchError raised in core")


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, with the ids of the trace that it belongs to."""

    def __init__(self, service_name: str) -> None:
        super().__init__()
        self._service_name = service_name

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "service": self._service_name,
            "logger": record.name,
            "message": record.getMessage(),
        }
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            line["trace_id"] = trace.format_trace_id(context.trace_id)
            line["span_id"] = trace.format_span_id(context.span_id)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
