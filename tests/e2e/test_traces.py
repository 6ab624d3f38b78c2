"""One request is one trace, from the gateway to draft and verifier, as a collector sees it; it is found by its id."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from paceline import Client
from services.local.launcher import Listener, running
from services.local.pair import Pair
from services.local.system import SystemSettings


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps (service, span name) by trace id, and the ids of requests that spans carry."""

    def __init__(self) -> None:
        self.traces: dict[bytes, set[tuple[str, str]]] = {}
        self.request_ids: set[tuple[str, str]] = set()
        """(span name, id of a request) each."""
        self.received = asyncio.Event()

    async def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: object) -> object:
        for resource in request.resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.traces.setdefault(span.trace_id, set()).add((names["service.name"], span.name))
                    values = {attribute.key: attribute.value.string_value for attribute in span.attributes}
                    if request_id := values.get("paceline.request_id"):
                        self.request_ids.add((span.name, request_id))
        self.received.set()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def trace_with(self, *spans: tuple[str, str]) -> set[tuple[str, str]]:
        """The first trace that holds all these spans."""
        while True:
            for trace in self.traces.values():
                if trace.issuperset(spans):
                    return trace
            self.received.clear()
            await self.received.wait()


class Lines(Listener):
    """Keeps what processes write."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.came = asyncio.Event()

    def on_line(self, name: str, line: str) -> None:
        self.lines.append(f"{name} {line}")
        self.came.set()

    async def line_with(self, *texts: str) -> str:
        """The first line with all of these."""
        while True:
            for line in self.lines:
                if all(text in line for text in texts):
                    return line
            self.came.clear()
            await self.came.wait()


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, int]]:
    server = grpc.aio.server()
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector, port
    finally:
        await server.stop(None)


async def test_one_trace_from_gateway_to_draft_and_verifier(target_folder: str, draft_folder: str) -> None:
    async with collecting() as (collector, port):
        traced = {"telemetry": {"traces": "otlp", "otlp_endpoint": f"http://127.0.0.1:{port}"}}
        pair = Pair(model=target_folder, draft=draft_folder, dtype="float32", threads=1, draft_threads=1)
        settings = SystemSettings((pair,), overrides=dict.fromkeys(("gateway", "draft", "verifier"), traced))
        heard = Lines()
        request_id = ""
        async with running(settings, heard) as launcher, Client(launcher.address()) as client:
            async for event in client.generate("def f(", seed=1, max_tokens=30, ignore_eos=True):
                request_id = event.started.request_id or request_id
            async with asyncio.timeout(30):
                await heard.line_with("gateway", f"request {request_id} ", "finished")
        trace = await asyncio.wait_for(
            collector.trace_with(
                ("paceline-gateway", "/paceline.v1.InferenceService/Generate"),
                ("paceline-verifier", "/paceline.internal.v1.VerifierService/Verify"),
                ("paceline-draft", "/paceline.internal.v1.DraftService/Propose"),
            ),
            30,
        )
    assert ("paceline-gateway", "/paceline.internal.v1.VerifierService/Verify") in trace
    assert request_id
    assert (f"text_completion {Path(target_folder).name}", request_id) in collector.request_ids
