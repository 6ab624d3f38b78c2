"""What the gateway measures: what a client waits for."""

import time

from opentelemetry.metrics import CallbackOptions, Observation

from gateway.generation.admission import Admission
from paceline.v1 import inference_pb2
from services.common.telemetry import meter


class GatewayMetrics:
    """Instruments of the gateway. Times in seconds."""

    def __init__(self, admission: Admission) -> None:
        instruments = meter("paceline.gateway")
        self._first = instruments.create_histogram("paceline.time_to_first_token", "s", "Admission to first token.")
        self._gap = instruments.create_histogram("paceline.inter_token_latency", "s", "Time a token, between deltas.")
        self._drafted = instruments.create_counter("paceline.request.drafted_tokens", "{token}", "Proposed, verified.")
        self._accepted = instruments.create_counter("paceline.request.accepted_tokens", "{token}", "Accepted.")
        self._completed = instruments.create_counter("paceline.request.completion_tokens", "{token}", "Produced.")

        def requests(_: CallbackOptions) -> list[Observation]:
            return [
                Observation(admission.active, {"state": "active"}),
                Observation(admission.queued, {"state": "queued"}),
            ]

        instruments.create_observable_gauge("paceline.requests", [requests], "{request}", "Requests by state.")

    def clock(self) -> "RequestClock":
        """Starts to time a request."""
        return RequestClock(self)

    def record_first(self, seconds: float) -> None:
        """A request's first token came."""
        self._first.record(seconds)

    def record_gap(self, seconds: float) -> None:
        """Another token came."""
        self._gap.record(seconds)

    def record_usage(self, usage: inference_pb2.Usage) -> None:
        """A request ended."""
        self._drafted.add(usage.num_drafted_tokens)
        self._accepted.add(usage.num_accepted_tokens)
        self._completed.add(usage.num_completion_tokens)


class RequestClock:
    """Times one request from its admission on."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._started = self._last = time.monotonic()
        self.time_to_first_token = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since admission."""
        return time.monotonic() - self._started

    def tokens(self, count: int) -> None:
        """Notes that `count` tokens are being handed out."""
        if not count:
            return
        now = time.monotonic()
        if not self.time_to_first_token:
            self.time_to_first_token = now - self._started
            self._metrics.record_first(self.time_to_first_token)
        else:
            self._metrics.record_gap((now - self._last) / count)
        self._last = now
