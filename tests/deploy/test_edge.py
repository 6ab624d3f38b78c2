"""The edge that ships, as a real Envoy: gRPC and gRPC-Web, cancellation, drain, limits, log, certificates."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from paceline import Client, ResourceExhaustedError, Tls
from paceline.v1 import inference_pb2
from services.common.identities import Identity
from services.local.authority import Authority
from services.local.certificate_folder import CertificateFolder
from support.envoy import FOLDER, Envoy, StartEnvoy
from support.fakes import FakeVerifier, continue_from
from support.grpc_web import HEADERS, browser, framed, frames
from support.lasting import StartLasting
from support.system import collect, first_tokens
from support.tls import DAYS

PROMPT = [70, 71, 72]
GENERATE = "/paceline.v1.InferenceService/Generate"
TOKENIZE = "/paceline.v1.InferenceService/Tokenize"


def client_of(edge: Envoy, certificates: CertificateFolder, **more: Any) -> Client:
    return Client(edge.address("edge"), tls=Tls(certificates.ca), **more)


def request(num_tokens: int) -> bytes:
    made = inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=PROMPT), sampling={"max_tokens": num_tokens}
    )
    return framed(made.SerializeToString())


async def in_browser(edge: Envoy, ca: Path, num_tokens: int) -> tuple[list[int], dict[str, str]]:
    """Tokens and trailers of a request by gRPC-Web."""
    tokens: list[int] = []
    trailers: dict[str, str] = {}
    async with browser(edge.address("edge"), ca) as client:
        async with client.stream("POST", GENERATE, content=request(num_tokens), headers=HEADERS) as answer:
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == HEADERS["origin"]
            async for frame in frames(answer.aiter_raw()):
                tokens += inference_pb2.GenerateResponse.FromString(frame.message).delta.token_ids
                trailers |= frame.trailers
    return tokens, trailers


async def test_grpc_and_grpc_web_give_the_same_tokens(
    start_edge: StartEnvoy, start_encrypted_gateway: StartLasting, certificates: CertificateFolder
) -> None:
    async with start_encrypted_gateway(FakeVerifier()) as gateway, start_edge([gateway.address]) as edge:
        async with client_of(edge, certificates) as client:
            reply = await collect(client.generate(PROMPT, max_tokens=300))
        tokens, trailers = await in_browser(edge, certificates.ca, 300)
    assert reply.token_ids == tokens == continue_from(PROMPT, 300)
    assert trailers["grpc-status"] == "0"


async def test_a_page_of_any_origin_may_ask_whether_it_may_call(
    start_edge: StartEnvoy, start_encrypted_gateway: StartLasting, certificates: CertificateFolder
) -> None:
    asks = {"origin": "https://app.example", "access-control-request-method": "POST"}
    async with start_encrypted_gateway(FakeVerifier()) as gateway, start_edge([gateway.address]) as edge:
        async with browser(edge.address("edge"), certificates.ca) as client:
            answer = await client.options(GENERATE, headers=asks)
    assert answer.headers["access-control-allow-origin"] == asks["origin"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers


async def test_cancelling_reaches_the_verifier_by_grpc_and_by_grpc_web(
    start_edge: StartEnvoy, start_encrypted_gateway: StartLasting, certificates: CertificateFolder
) -> None:
    verifier = FakeVerifier(commit_when=asyncio.Event(), commits_first=True)
    async with start_encrypted_gateway(verifier) as gateway, start_edge([gateway.address]) as edge:
        async with client_of(edge, certificates) as client:
            stream = client.generate(PROMPT, max_tokens=300)
            await first_tokens(stream)
            assert verifier.num_open == 1
            await stream.aclose()
            await asyncio.wait_for(verifier.all_closed.wait(), 10)
        verifier.opened.clear()
        async with browser(edge.address("edge"), certificates.ca) as client:
            async with client.stream("POST", GENERATE, content=request(300), headers=HEADERS) as answer:
                pieces = answer.aiter_raw()  # It ends the call when it is let go.
                await anext(pieces)
                await asyncio.wait_for(verifier.opened.wait(), 10)
        await asyncio.wait_for(verifier.all_closed.wait(), 10)


async def test_a_gateway_that_drains_finishes_what_it_has_and_gets_nothing_new(
    start_edge: StartEnvoy, start_encrypted_gateway: StartLasting, certificates: CertificateFolder
) -> None:
    go = asyncio.Event()
    verifiers = [FakeVerifier(commit_when=go, commits_first=True) for _ in range(2)]
    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(start_encrypted_gateway(each, 20.0)) for each in verifiers]
        edge = await stack.enter_async_context(start_edge([gateway.address for gateway in gateways]))
        client = await stack.enter_async_context(client_of(edge, certificates))
        running = asyncio.create_task(collect(client.generate(PROMPT, max_tokens=100)))
        opened = [asyncio.create_task(verifier.opened.wait()) for verifier in verifiers]
        await asyncio.wait(opened, return_when=asyncio.FIRST_COMPLETED)
        draining = next(number for number, verifier in enumerate(verifiers) if verifier.opened.is_set())
        gateways[draining].stopping.set()
        await edge.healthy("gateway", 1)
        more = [asyncio.create_task(collect(client.generate([*PROMPT, n], max_tokens=9))) for n in range(65, 75)]
        while len(verifiers[1 - draining].opens) < 10:
            await asyncio.sleep(0.01)
        assert not gateways[draining].stopped.is_set()
        go.set()
        assert (await running).token_ids == continue_from(PROMPT, 100)
        assert [(await each).token_ids for each in more] == [continue_from([*PROMPT, n], 9) for n in range(65, 75)]
        assert len(verifiers[draining].opens) == 1


async def test_a_stream_whose_gateway_dies_goes_on_for_who_names_the_edge_twice(
    start_edge: StartEnvoy, start_encrypted_gateway: StartLasting, certificates: CertificateFolder
) -> None:
    go = asyncio.Event()
    verifiers = [FakeVerifier(commit_when=go, commits_first=True) for _ in range(2)]
    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(start_encrypted_gateway(each)) for each in verifiers]
        edge = await stack.enter_async_context(start_edge([gateway.address for gateway in gateways]))
        twice = [edge.address("edge")] * 2
        client = await stack.enter_async_context(Client(twice, tls=Tls(certificates.ca)))
        stream = client.generate(PROMPT, max_tokens=60)
        tokens = await first_tokens(stream)
        dying = next(number for number, verifier in enumerate(verifiers) if verifier.opens)
        gateways[dying].stopping.set()
        await gateways[dying].stopped.wait()
        go.set()
        async for event in stream:
            tokens += event.delta.token_ids
    assert tokens == continue_from(PROMPT, 60)
    assert len(verifiers[1 - dying].opens) == 1


def few(config: dict[str, Any]) -> None:
    """Has the edge take three requests a minute of an address."""
    (manager,) = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
    (limit,) = [each for each in manager["typed_config"]["http_filters"] if "ratelimit" in each["name"]]
    bucket = {"max_tokens": 3, "tokens_per_fill": 3, "fill_interval": "60s"}
    limit["typed_config"]["descriptors"][0]["token_bucket"] = bucket


async def test_what_is_over_the_limit_is_refused_as_a_gateway_would(
    start_edge: StartEnvoy, start_encrypted_gateway: StartLasting, certificates: CertificateFolder
) -> None:
    async with start_encrypted_gateway(FakeVerifier()) as gateway, start_edge([gateway.address], few=few) as edge:
        async with client_of(edge, certificates) as client:
            for _ in range(3):
                await client.tokenize("text")
            with pytest.raises(ResourceExhaustedError, match="rate_limited") as refused:
                await client.tokenize("text")
        async with browser(edge.address("edge"), certificates.ca) as client:
            answer = await client.post(GENERATE, content=request(3), headers=HEADERS)
    assert refused.value.retry_after_seconds == 1
    assert (answer.status_code, answer.headers["grpc-status"]) == (429, "14"), "to Envoy gRPC-Web is no gRPC here"


async def test_the_log_has_a_line_a_call_with_its_trace_and_nothing_of_what_was_said(
    start_edge: StartEnvoy, start_encrypted_gateway: StartLasting, certificates: CertificateFolder
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    parent = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"),)
    async with start_encrypted_gateway(FakeVerifier()) as gateway, start_edge([gateway.address]) as edge:
        async with client_of(edge, certificates, metadata=parent, key="very-secret-key") as client:
            await client.tokenize("very-secret-text")
        line = await edge.line(TOKENIZE)
        async with client_of(edge, certificates) as client:
            await collect(client.generate(PROMPT, max_tokens=5))
        other = await edge.line(GENERATE)
        text = (edge.folder / "stdout").read_text() + (edge.folder / "stderr").read_text()
    assert (line["trace_id"], line["client"]) == (trace, "127.0.0.1")
    assert len(other["trace_id"]) == 32
    assert (other["grpc_status"], other["upstream"]) == ("OK", gateway.address)
    assert "very-secret" not in text


async def test_a_call_that_is_none_of_the_public_ones_ends_at_the_edge(
    start_edge: StartEnvoy, start_encrypted_gateway: StartLasting, certificates: CertificateFolder
) -> None:
    credentials = grpc.ssl_channel_credentials(certificates.ca.read_bytes())
    async with start_encrypted_gateway(FakeVerifier()) as gateway, start_edge([gateway.address]) as edge:
        async with grpc.aio.secure_channel(edge.address("edge"), credentials) as channel:
            for method in ("/paceline.internal.v1.VerifierService/Verify", "/grpc.channelz.v1.Channelz/GetServers"):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary(method)(b"", timeout=10)
                assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
                assert (await edge.line(method))["upstream"] in (None, "-")


@asynccontextmanager
async def shown(edge: Envoy, ca: Path) -> AsyncIterator[Callable[[], bytes]]:
    """What certificate the edge shows to a new connection."""
    host, _, port = edge.address("edge").rpartition(":")
    context = ssl.create_default_context(cafile=str(ca))
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        yield lambda: writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_renewed_certificate_is_shown_without_a_restart(
    start_edge: StartEnvoy, start_encrypted_gateway: StartLasting, tmp_path: Path, certificates: CertificateFolder
) -> None:
    authority = Authority.load(certificates)
    async with start_encrypted_gateway(FakeVerifier()) as gateway, start_edge([gateway.address]) as edge:
        async with shown(edge, certificates.ca) as before:
            old = before()
        authority.issue(Identity.GATEWAY, (), DAYS, "paceline", overwrite=True)
        for source, name in ((certificates.key, "tls.key"), (certificates.certificate, "tls.crt")):
            part = edge.folder / "certs" / "edge" / f".{name}"
            part.write_bytes(source(Identity.GATEWAY).read_bytes())
            os.replace(part, part.with_name(name))
        async with asyncio.timeout(20):
            while True:
                async with shown(edge, certificates.ca) as now:
                    if now() != old:
                        break
                await asyncio.sleep(0.05)


async def test_an_edge_that_is_told_to_go_says_so_and_lets_streams_finish(
    start_edge: StartEnvoy, start_encrypted_gateway: StartLasting, certificates: CertificateFolder
) -> None:
    go = asyncio.Event()
    verifier = FakeVerifier(commit_when=go, commits_first=True)
    async with start_encrypted_gateway(verifier) as gateway, start_edge([gateway.address]) as edge:
        async with client_of(edge, certificates) as client, browser(edge.address("edge"), certificates.ca) as other:
            assert (await other.get("/healthz")).status_code == 200
            running = asyncio.create_task(collect(client.generate(PROMPT, max_tokens=100)))
            await verifier.opened.wait()
            admin = edge.admin.rpartition(":")[2]
            drain = await asyncio.create_subprocess_exec("bash", FOLDER / "drain.sh", "20", admin)
            async with asyncio.timeout(10):
                while (await other.get("/healthz")).status_code != 503:
                    await asyncio.sleep(0.02)
            assert drain.returncode is None, "it waits for the stream"
            go.set()
            assert (await running).token_ids == continue_from(PROMPT, 100)
            assert await asyncio.wait_for(drain.wait(), 10) == 0
