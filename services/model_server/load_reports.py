"""Tells load balancers how much an engine has to do, out of band: streams of sequences last too long for trailers.

The service is xds.service.orca.v3.OpenRcaService (https://github.com/cncf/xds), which gRPC's weighted_round_robin and
Envoy know. Its messages are ours, with the same fields: docs/decisions/telemetry.md says why.
"""

import asyncio
import time
from collections import abc
from typing import Any, Final

import grpc

from paceline.errors import ResourceExhaustedError
from paceline.internal.v1 import load_pb2
from services.engine.engine_loop import EngineLoop
from services.model_server.streams import OpenStreams

SERVICE: Final = "xds.service.orca.v3.OpenRcaService"
_MIN_SECONDS = 0.5
_USUAL_SECONDS = 1.0
_MAX_SECONDS = 3600.0
_MAX_LISTENERS = 64
"""Balancers that ask one process; each has a stream for as long as it likes."""


class LoadReports:
    """The reports of one engine."""

    def __init__(self, engine_loop: EngineLoop[Any], open_streams: OpenStreams, max_sequences: int) -> None:
        """`max_sequences` may hold KV blocks at once."""
        self._engine_loop = engine_loop
        self._open_streams = open_streams
        self._max_sequences = max_sequences
        self._drained = asyncio.Event()
        self.num_listeners = 0

    def add_to(self, server: grpc.aio.Server) -> None:
        """Has a server send them to whoever asks."""
        handler = grpc.unary_stream_rpc_method_handler(
            self.stream,
            request_deserializer=load_pb2.LoadReportRequest.FromString,
            response_serializer=load_pb2.LoadReport.SerializeToString,
        )
        generic = grpc.method_handlers_generic_handler(SERVICE, {"StreamCoreMetrics": handler})
        server.add_generic_rpc_handlers((generic,))

    def drain(self) -> None:
        """Ends all streams: a server that stops would wait for them."""
        self._drained.set()

    async def stream(
        self, request: load_pb2.LoadReportRequest, _context: object
    ) -> abc.AsyncIterator[load_pb2.LoadReport]:
        """A report at once, then one an interval, until the caller goes or the server stops."""
        asked = request.report_interval.seconds + 1e-9 * request.report_interval.nanos
        interval = min(max(_MIN_SECONDS, asked), _MAX_SECONDS) if asked > 0 else _USUAL_SECONDS
        if self.num_listeners >= _MAX_LISTENERS:
            raise ResourceExhaustedError(f"{_MAX_LISTENERS} others listen already", _USUAL_SECONDS)
        self.num_listeners += 1
        begun = failed = 0
        at = None
        try:
            while not self._drained.is_set():
                now, streams = time.monotonic(), self._open_streams
                seconds = now - at if at is not None else 0.0
                yield self._report(seconds, streams.num_opened - begun, streams.num_failed - failed)
                at, begun, failed = now, streams.num_opened, streams.num_failed
                try:
                    async with asyncio.timeout(interval):
                        await self._drained.wait()
                except TimeoutError:
                    continue
        finally:
            self.num_listeners -= 1

    def _report(self, seconds: float, num_opened: int, num_failed: int) -> load_pb2.LoadReport:
        """What is to do now, and what was begun in so many seconds."""
        readings, streams = self._engine_loop.readings, self._open_streams
        blocks = {one.attributes["state"]: one.value for one in readings.get("kv_blocks", ())}
        sequences = {one.attributes["state"]: one.value for one in readings.get("sequences", ())}
        num_blocks = sum(blocks.values())
        kv_usage = blocks["used"] / num_blocks if num_blocks else 0.0
        running = sequences.get("running", 0.0)
        waiting = sequences.get("waiting", 0.0) + max(0, streams.count - streams.num_begun)
        return load_pb2.LoadReport(
            application_utilization=max(kv_usage, (running + waiting) / self._max_sequences),
            utilization={"kv_cache": kv_usage},
            rps_fractional=num_opened / seconds if seconds else 0.0,
            eps=num_failed / seconds if seconds else 0.0,
            named_metrics={"num_requests_running": running, "num_requests_waiting": waiting},
        )
