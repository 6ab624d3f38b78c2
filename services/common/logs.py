"""Logs on standard error: an object of JSON a line, with the trace that it belongs to. Prompts are never logged."""

import json
import logging
import sys
import time

from opentelemetry import trace

from services.common.settings import LogFormat, TelemetrySettings


def setup_logging(service_name: str, settings: TelemetrySettings) -> None:
    """Has everything be logged on standard error as the settings say."""
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
