"""How much there is to do, as load balancers hear of it: by gRPC's own client, and message by message."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.internal.v1 import load_pb2
from services.common.server import Served, running_server
from services.common.settings import ServerSettings
from services.engine.config import Device, Dtype, EngineConfig
from services.engine.engine_loop import EngineLoop
from services.model_server.load_reports import SERVICE, LoadReports
from services.model_server.streams import OpenStreams
from services.verifier.target_role import TargetRole
from support.system import System, first_tokens

METHOD = f"/{SERVICE}/StreamCoreMetrics"
NUM_CALLS = 400


class Scripted(LoadReports):
    """Is as busy as a test says."""

    busy = 0.0

    def _report(self, *_: object) -> load_pb2.LoadReport:
        return load_pb2.LoadReport(application_utilization=self.busy, rps_fractional=100)


class Counting(health_pb2_grpc.HealthServicer):
    """Counts calls that a balancer spreads."""

    def __init__(self) -> None:
        self.num_calls = 0

    async def Check(self, request: object, context: object) -> health_pb2.HealthCheckResponse:
        self.num_calls += 1
        return health_pb2.HealthCheckResponse()


@pytest.fixture
async def engine_loop(target_folder: str) -> AsyncIterator[EngineLoop[Any]]:
    config = EngineConfig(model=target_folder, device=Device.CPU, dtype=Dtype.FLOAT32, num_blocks=64, num_threads=1)
    loop = EngineLoop(config, TargetRole)
    await loop.ready()
    yield loop
    await loop.stop()


def listen(channel: grpc.aio.Channel, seconds: float = 0.0) -> Any:
    request = load_pb2.LoadReportRequest()
    request.report_interval.FromMilliseconds(int(1000 * seconds))
    return channel.unary_stream(
        METHOD,
        request_serializer=load_pb2.LoadReportRequest.SerializeToString,
        response_deserializer=load_pb2.LoadReport.FromString,
    )(request)


async def test_reports_tell_of_a_running_sequence_and_of_its_end(system: System) -> None:
    async with grpc.aio.insecure_channel(system.verifier) as channel:
        reports = listen(channel, 0.5)
        idle = await reports.read()
        assert idle.named_metrics == {"num_requests_running": 0, "num_requests_waiting": 0}
        assert idle.utilization["kv_cache"] == idle.application_utilization == idle.rps_fractional == 0
        stream = system.client.generate("def f(", max_tokens=400, ignore_eos=True)
        await first_tokens(stream)
        busy = await reports.read()
        while not busy.named_metrics["num_requests_running"]:
            busy = await reports.read()
        assert 0 < busy.utilization["kv_cache"] <= busy.application_utilization < 1
        assert busy.rps_fractional > 0
        await stream.aclose()
        while busy.named_metrics["num_requests_running"]:
            busy = await reports.read()
        assert busy.utilization["kv_cache"] == 0


@pytest.mark.parametrize("seconds", [-(1 << 60), 1 << 60])
async def test_an_odd_interval_is_none(engine_loop: EngineLoop[Any], seconds: int) -> None:
    reports = LoadReports(engine_loop, OpenStreams(1), 1)
    request = load_pb2.LoadReportRequest(report_interval={"seconds": seconds})
    stream = reports.stream(request, None)
    assert (await anext(stream)).application_utilization == 0
    reports.drain()
    assert [report async for report in stream] == []
    assert reports.num_listeners == 0


async def test_a_server_that_stops_does_not_wait_for_those_who_listen(engine_loop: EngineLoop[Any]) -> None:
    reports = LoadReports(engine_loop, OpenStreams(1), 1)

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        reports.add_to(server)
        yield Served((), drain=reports.drain)

    async with AsyncExitStack() as stack:
        running = running_server(ServerSettings(port=0, grace_seconds=100), lifespan)
        port = (await stack.enter_async_context(running)).port
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        call = listen(channel)
        await call.read()
        assert reports.num_listeners == 1
        async with asyncio.timeout(20):
            await running.__aexit__(None, None, None)
            stack.pop_all()
            assert await call.read() is grpc.aio.EOF
            await channel.close()
    assert reports.num_listeners == 0


async def test_grpcs_own_balancer_sends_more_to_who_says_that_it_has_less_to_do(engine_loop: EngineLoop[Any]) -> None:
    """gRPC's client reads the reports by the messages of the specification, which ours have to be on the wire."""
    balancer = {"enableOobLoadReport": True, "oobReportingPeriod": "0.5s", "blackoutPeriod": "0s"}
    balancer |= {"weightUpdatePeriod": "0.1s", "weightExpirationPeriod": "60s"}
    config = {"loadBalancingConfig": [{"weighted_round_robin": balancer}]}
    all_reports, counts, ports = [], [], []
    async with AsyncExitStack() as stack:
        for busy in (0.1, 0.9):
            reports, counting = Scripted(engine_loop, OpenStreams(1), 1), Counting()
            reports.busy = busy
            server = grpc.aio.server()
            reports.add_to(server)
            health_pb2_grpc.add_HealthServicer_to_server(counting, server)
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            stack.push_async_callback(server.stop, None)
            all_reports.append(reports)
            counts.append(counting)
        target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        options = [("grpc.service_config", json.dumps(config))]
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=options))
        stub = health_pb2_grpc.HealthStub(channel)
        async with asyncio.timeout(30):
            while min(reports.num_listeners for reports in all_reports) < 1:
                await stub.Check(health_pb2.HealthCheckRequest())
            share = 0.0
            while share < 0.8:
                for counting in counts:
                    counting.num_calls = 0
                for _ in range(NUM_CALLS):
                    await stub.Check(health_pb2.HealthCheckRequest())
                share = counts[0].num_calls / NUM_CALLS
        assert 0.8 <= share < 1
