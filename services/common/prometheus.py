"""The port that Prometheus reads."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics.export import MetricReader
from prometheus_client import REGISTRY, make_wsgi_app, start_http_server
from prometheus_client.registry import Collector

from services.common.settings import TelemetrySettings

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
    server.set_app(_as_text(make_wsgi_app()))
    _log.info("metrics at %s:%d/metrics", host, server.server_port)
    return PrometheusMetricReader(
        scope_info_enabled=False, resource_attribute_filter=lambda key: key == MODEL_ATTRIBUTE
    )


def _as_text(application: Callable[..., Any]) -> Callable[..., Any]:
    """An application that answers in Prometheus' text format whatever is asked for.

    As OpenMetrics, prometheus_client writes underscores where a name has colons, and vLLM's have some.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        return application({**environ, "HTTP_ACCEPT": ""}, start_response)

    return answer


@contextmanager
def read_by_prometheus(settings: TelemetrySettings, collector: Collector) -> Iterator[None]:
    """Has Prometheus read what `collector` gives too, while the block lasts, where it reads this process at all."""
    if not settings.is_read_by_prometheus:
        yield
        return
    REGISTRY.register(collector)
    try:
        yield
    finally:
        REGISTRY.unregister(collector)
