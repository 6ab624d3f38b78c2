"""An OpenTelemetry collector for tests: keeps the spans and the metrics that processes send."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class Span:
    """A span as it came."""

    service: str
    name: str
    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    is_error: bool


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes whatever comes."""

    spans: list[Span] = field(default_factory=list)
    metrics: set[tuple[str, str]] = field(default_factory=set)
    """(service, name of an instrument) each."""
    address: str = ""
    received: asyncio.Event = field(default_factory=asyncio.Event)

    async def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: object) -> object:
        for resource in request.resource_spans:
            service = _values(resource.resource.attributes)["service.name"]
            self.spans.extend(_span(service, span) for scope in resource.scope_spans for span in scope.spans)
        self.received.set()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def trace_with(self, *spans: tuple[str, str], **attributes: Any) -> list[Span]:
        """The first trace that holds spans of these services and names, and one span with these attributes."""
        while True:
            for trace_id in {span.trace_id for span in self.spans}:
                trace = [span for span in self.spans if span.trace_id == trace_id]
                names = {(span.service, span.name) for span in trace}
                if names.issuperset(spans) and any(attributes.items() <= span.attributes.items() for span in trace):
                    return trace
            self.received.clear()
            await self.received.wait()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    async def Export(self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: object) -> object:
        for resource in request.resource_metrics:
            service = _values(resource.resource.attributes)["service.name"]
            for scope in resource.scope_metrics:
                self._collector.metrics.update((service, metric.name) for metric in scope.metrics)
        self._collector.received.set()
        return metrics_service_pb2.ExportMetricsServiceResponse()


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector that listens on a free port."""
    server = grpc.aio.server()
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(collector), server)
    collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)


def _span(service: str, span: trace_pb2.Span) -> Span:
    return Span(
        service, span.name, span.trace_id, span.span_id, span.parent_span_id, _values(span.attributes),
        [(event.name, _values(event.attributes)) for event in span.events],
        span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
    )  # fmt: skip


def _values(attributes: Iterable[common_pb2.KeyValue]) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: common_pb2.AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None
