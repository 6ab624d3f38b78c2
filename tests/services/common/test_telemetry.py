"""What is exported, seen from outside: each case in a process of its own, because exporters are global."""

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.redis_server import free_ports

_TRACED = """
import asyncio
from contextlib import asynccontextmanager

from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.internal.v1 import model_server_pb2 as pb, model_server_pb2_grpc
from paceline.v1 import model_pb2, model_pb2_grpc
from services.common.channel import open_channel
from services.common.server import Served, running_server
from services.common.settings import ServerSettings, TelemetrySettings
from services.common.telemetry import setup_telemetry


class Both(model_pb2_grpc.ModelServiceServicer, model_server_pb2_grpc.ModelServerServiceServicer):
    async def GetModel(self, request, context):
        return pb.GetModelResponse()

    async def ListModels(self, request, context):
        return model_pb2.ListModelsResponse()


@asynccontextmanager
async def lifespan(server):
    model_pb2_grpc.add_ModelServiceServicer_to_server(Both(), server)
    model_server_pb2_grpc.add_ModelServerServiceServicer_to_server(Both(), server)
    yield Served(())


async def main():
    async with running_server(ServerSettings(port=0), lifespan) as running:
        async with open_channel(f"127.0.0.1:{running.port}") as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            await model_server_pb2_grpc.ModelServerServiceStub(channel).GetModel(pb.GetModelRequest())
            await model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest())


setup_telemetry("test", TelemetrySettings(traces="console"))
asyncio.run(main())
"""
_LEFT = """
import asyncio
from contextlib import asynccontextmanager

import grpc

from services.common.server import Served, running_server
from services.common.settings import ServerSettings, TelemetrySettings
from services.common.telemetry import setup_telemetry

SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4096))
closed = 0
all_closed = asyncio.Event()


class Endless(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_stream_rpc_method_handler(self.send)

    async def send(self, request, context):
        global closed
        try:
            while True:
                yield b"x" * 1000
        finally:
            closed += 1
            if closed == 16:
                all_closed.set()


@asynccontextmanager
async def lifespan(server):
    server.add_generic_rpc_handlers([Endless()])
    yield Served(())


async def main():
    async with running_server(ServerSettings(port=0), lifespan) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}", options=SMALL_WINDOW) as channel:
            calls = [channel.unary_stream("/a/b")(b"") for _ in range(16)]
            for call in calls:
                await call.read()
            for call in calls:
                call.cancel()
            await all_closed.wait()
        # What gRPC says of them it says in the same turn of the event loop, or in the next.
        await asyncio.sleep(0.1)


setup_telemetry("test", TelemetrySettings(log_format="text"))
asyncio.run(main())
"""
_MEASURED = """
import sys
from services.common.settings import TelemetrySettings
from services.common.telemetry import meter, setup_telemetry

setup_telemetry("test", TelemetrySettings(metrics="prometheus", prometheus_port=int(sys.argv[1])))
histogram = meter("test").create_histogram("paceline.some", "s", "Some time.")
for seconds in (0.004, 0.027, 3.0):
    histogram.record(seconds)
print("ready", flush=True)
sys.stdin.read()
"""
_SHOWN = """
import sys
from prometheus_client.core import GaugeMetricFamily
from services.common.prometheus import read_by_prometheus
from services.common.settings import TelemetrySettings
from services.common.telemetry import counter, meter, setup_telemetry


class Vllm:
    def describe(self):
        return ()

    def collect(self):
        family = GaugeMetricFamily("vllm:num_requests_running", "Some.", labels=("model_name",))
        family.add_metric(["m"], 3)
        yield family


settings = TelemetrySettings(metrics="prometheus", prometheus_port=int(sys.argv[1]), prometheus_host=sys.argv[2])
setup_telemetry("test", settings, "m")
counter(meter("test"), "paceline.some", "{thing}", "Some things.")
with read_by_prometheus(settings, Vllm()):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_calls_of_requests_are_traced_and_polling_is_not(repository: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _TRACED], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = [line.split('"')[3] for line in done.stderr.splitlines() if line.startswith('    "name":')]
    assert set(names) == {"/paceline.v1.ModelService/ListModels"}
    assert len(names) == 2  # One at each end.


def test_times_fall_into_buckets_that_tell_them_apart(repository: Path) -> None:
    (port,) = free_ports(1)
    with subprocess.Popen(
        [sys.executable, "-c", _MEASURED, str(port)], cwd=repository,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        process.communicate()
    counts = {
        line.split('le="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("paceline_some_seconds_bucket")
    }
    assert [counts[bound] for bound in ("0.0025", "0.005", "0.02", "0.03", "2.5", "5")] == [0, 1, 1, 2, 2, 3]


@contextmanager
def measured(repository: Path, *arguments: str) -> Iterator[str]:
    """A process that Prometheus can read at a port of its own; that port."""
    (port,) = free_ports(1)
    with subprocess.Popen(
        [sys.executable, "-c", _SHOWN, str(port), *arguments], cwd=repository,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield str(port)
        process.communicate()


def test_metrics_are_read_where_it_is_told_and_nowhere_else(repository: Path) -> None:
    with measured(repository, "127.0.0.2") as port:
        assert b"paceline_some_total" in urllib.request.urlopen(f"http://127.0.0.2:{port}/metrics").read()
        with pytest.raises(urllib.error.URLError, match="refused"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")


@pytest.mark.parametrize("accept", ["", "text/plain;version=1.0.0", "application/openmetrics-text;version=1.0.0"])
def test_names_have_their_colons_whatever_format_is_asked_for(repository: Path, accept: str) -> None:
    with measured(repository, "127.0.0.1") as port:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(request) as answer:
            text = answer.read().decode()
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'vllm:num_requests_running{model_name="m"} 3.0' in text
    # Counters are there before they count, and say which model they are of.
    assert 'paceline_some_total{paceline_model="m"} 0.0' in text
    assert "otel_scope" not in text


def test_a_port_that_is_taken_ends_the_process_in_a_sentence(repository: Path) -> None:
    with measured(repository, "127.0.0.1") as port:
        done = subprocess.run(
            [sys.executable, "-c", _SHOWN, port, "127.0.0.1"],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == f"Prometheus cannot read this process at 127.0.0.1:{port}: Address already in use\n"


def test_clients_that_go_away_while_they_are_sent_something_leave_no_stack_traces() -> None:
    run = subprocess.run([sys.executable, "-c", _LEFT], check=True, capture_output=True, text=True)
    assert "serving" in run.stderr
    assert "Traceback" not in run.stderr
    assert "ERROR" not in run.stderr
