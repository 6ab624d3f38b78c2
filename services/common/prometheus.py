"""The port that Prometheus reads."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.metrics.export import MetricReader
from prometheus_client import REGISTRY, start_http_server
from prometheus_client.registry import Collector

from services.common.settings import MetricExporter, TelemetrySettings

MODEL_ATTRIBUTE = "paceline.model"
"""What a process runs that runs one model: of its resource in OpenTelemetry, and a label of all metrics here."""
_log = logging.getLogger(__name__)


def prometheus_reader(host: str, port: int) -> MetricReader:
    """Has Prometheus read this process there. Ends the process with a sentence where it cannot listen."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader

    try:
        server, _ = start_http_server(port, addr=host)
    except OSError as error:
        sys.exit(f"Prometheus cannot read this process at {host}:{port}: {error.strerror or error}")
    _log.info("metrics at %s:%d/metrics", host, server.server_port)
    return PrometheusMetricReader(
        scope_info_enabled=False, resource_attribute_filter=lambda key: key == MODEL_ATTRIBUTE
    )


@contextmanager
def read_by_prometheus(settings: TelemetrySettings, collector: Collector) -> Iterator[None]:
    """Has Prometheus read what `collector` gives too, while the block lasts, where it reads this process at all."""
    if settings.metrics not in (MetricExporter.PROMETHEUS, MetricExporter.BOTH):
        yield
        return
    REGISTRY.register(collector)
    try:
        yield
    finally:
        REGISTRY.unregister(collector)
