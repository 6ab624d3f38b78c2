"""A whole system of real processes whose connections are all encrypted, and whose services know who calls them."""

import asyncio
import json
import os
import re
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline import Client, Tls, UnavailableError
from paceline.connecting import REFUSED_AT_ONCE
from paceline.internal.v1 import (
    adapter_store_pb2,
    adapter_store_pb2_grpc,
    draft_pb2,
    draft_pb2_grpc,
    model_server_pb2,
    model_server_pb2_grpc,
    prefix_cache_pb2,
    prefix_cache_pb2_grpc,
    process_pb2,
    process_pb2_grpc,
    verifier_pb2,
    verifier_pb2_grpc,
)
from paceline.v1 import model_pb2, model_pb2_grpc, operations_pb2
from services.common.channel import open_channel
from services.common.identities import Identity
from services.common.tokens import TokenMint
from services.local.certificate_folder import CertificateFolder
from services.local.certificates import renew_certificates
from services.local.launcher import Launcher, running
from services.local.pair import Pair
from services.local.system import SystemSettings
from support.lines import Lines
from support.lora import PEFT_WARNING, save_adapters
from support.redis_server import free_ports
from support.system import first_tokens
from support.tls import as_identity, make_certificates
from support.typed import COMMAND, typed

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings(PEFT_WARNING)]
SEAL_KEY = "5ea1" * 16
NUM_TOKENS = 200


@pytest.fixture
def folder(tmp_path: Path) -> CertificateFolder:
    return make_certificates(tmp_path / "certificates")


@pytest.fixture
def plaintext(target_folder: str, draft_folder: str, tmp_path: Path) -> SystemSettings:
    """All five services."""
    pair = Pair(model=target_folder, draft=draft_folder, dtype="float32", threads=1, draft_threads=1)
    seal = {"prefix_cache_seal_key": SEAL_KEY}
    return SystemSettings(
        (pair,), prefix_cache=True, cache_folder=str(tmp_path / "cache"), adapter_store=True, restart=True,
        database=f"sqlite:///{tmp_path / 'gateway.sqlite'}", log_level="DEBUG",
        overrides={"verifier": seal, "draft": seal},
    )  # fmt: skip


@pytest.fixture
def encrypted(plaintext: SystemSettings, folder: CertificateFolder) -> SystemSettings:
    return replace(plaintext, certificates=folder)


@asynccontextmanager
async def serving(settings: SystemSettings) -> AsyncIterator[tuple[Launcher, Client, Lines]]:
    heard = Lines()
    async with running(settings, heard) as launcher, Client(launcher.address(), tls=launcher.client_tls) as client:
        yield launcher, client, heard


REQUESTS: list[dict[str, Any]] = [
    {"prompt": "def f(", "temperature": 0.0},
    {"prompt": "import", "temperature": 0.9, "seed": 1},
    {"prompt": "class A:", "temperature": 0.7, "seed": 2, "n": 2, "logprobs": 2},
    {"prompt": "def f(" * 20, "temperature": 0.0, "adapter": "a0"},
    {"prompt": "return", "temperature": 0.8, "seed": 3, "speculation": False},
]


async def answers(client: Client) -> list[dict[int, tuple[list[int], str, list[float]]]]:
    """All that the requests stream, at once: by choice, token ids, text and logprobs."""

    async def one(prompt: str, **options: Any) -> dict[int, tuple[list[int], str, list[float]]]:
        found: dict[int, tuple[list[int], str, list[float]]] = {}
        async for event in client.generate(prompt, max_tokens=NUM_TOKENS, ignore_eos=True, **options):
            if event.HasField("delta"):
                ids, text, logprobs = found.get(event.delta.choice, ([], "", []))
                ids = [*ids, *event.delta.token_ids]
                logprobs = [*logprobs, *(each.logprob for each in event.delta.logprobs)]
                found[event.delta.choice] = (ids, text + event.delta.text, logprobs)
        return found

    return list(await asyncio.gather(*(one(**request) for request in REQUESTS)))


async def test_tokens_are_those_of_plaintext_also_when_certificates_change_and_a_verifier_dies(
    plaintext: SystemSettings, encrypted: SystemSettings, folder: CertificateFolder, target_folder: str, tmp_path: Path
) -> None:
    (tmp_path / "adapters").mkdir()
    adapter = save_adapters(target_folder, tmp_path / "adapters")[0]
    async with serving(plaintext) as (_, client, _):
        await client.upload_adapter(adapter, "a0", ignore_base_model=True)
        expected = await answers(client)
    assert all(len(ids) == NUM_TOKENS for reply in expected for ids, _, _ in reply.values())
    async with serving(encrypted) as (launcher, client, heard):
        await client.upload_adapter(adapter, "a0", ignore_base_model=True)
        assert await answers(client) == expected
        stream = client.generate("import", temperature=0.9, seed=1, max_tokens=NUM_TOKENS, ignore_eos=True)
        token_ids = await first_tokens(stream)
        assert all(each.is_new for each in renew_certificates(folder.path, within=1e6, days=1))
        assert await answers(client) == expected
        launcher.kill("verifier")
        launcher.kill("draft")
        token_ids += await collect_rest(stream)
        assert token_ids == expected[1][0][0]
        assert await answers(client) == expected
        status = await client.get_status()
        ready = operations_pb2.SERVICE_STATE_READY
        assert [service.state for service in status.services] == [ready] * 4, status
    assert "verifier ended with exit code -9" in heard.lines


async def collect_rest(stream: Any) -> list[int]:
    return [token async for event in stream for token in event.delta.token_ids]


async def outcome(call: Any) -> grpc.StatusCode:
    """How a call ends; a stream by its first message."""
    try:
        if hasattr(call, "read"):
            await call.read()
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def real_calls(channel: grpc.aio.Channel, server: Identity) -> list[tuple[Any, set[Identity]]]:
    """Calls of a real process's methods, and who may make them."""
    engines, gateway = {Identity.VERIFIER, Identity.DRAFT}, {Identity.GATEWAY}
    cache = prefix_cache_pb2_grpc.PrefixCacheServiceStub(channel)
    store = adapter_store_pb2_grpc.AdapterStoreServiceStub(channel)
    models = model_server_pb2_grpc.ModelServerServiceStub(channel)
    process = process_pb2_grpc.ProcessServiceStub(channel)
    verify = verifier_pb2_grpc.VerifierServiceStub(channel).Verify
    propose = draft_pb2_grpc.DraftServiceStub(channel).Propose
    engine = [
        (models.GetModel(model_server_pb2.GetModelRequest()), gateway),
        (process.GetProcess(process_pb2.GetProcessRequest()), gateway),
    ]
    return {
        Identity.GATEWAY: [
            (model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest()), set(Identity))
        ],
        Identity.VERIFIER: [(verify(iter([verifier_pb2.VerifyRequest()])), gateway), *engine],
        Identity.DRAFT: [(propose(iter([draft_pb2.ProposeRequest()])), gateway), *engine],
        Identity.PREFIX_CACHE: [
            (cache.MatchBlocks(prefix_cache_pb2.MatchBlocksRequest(namespace="a")), engines),
            (cache.FetchBlocks(prefix_cache_pb2.FetchBlocksRequest(namespace="a")), engines),
            (cache.StoreBlocks(iter([prefix_cache_pb2.StoreBlocksRequest()])), engines),
            (cache.DeleteNamespace(prefix_cache_pb2.DeleteNamespaceRequest(namespace="a")), gateway),
        ],
        Identity.ADAPTER_STORE: [
            (store.FetchAdapter(adapter_store_pb2.FetchAdapterRequest(namespace="a", digest="00")), engines),
            (store.ResolveAdapter(adapter_store_pb2.ResolveAdapterRequest(namespace="a", name="a")), gateway),
            (store.ListStoredAdapters(adapter_store_pb2.ListStoredAdaptersRequest(namespace="a")), gateway),
        ],
    }[server]


async def test_real_processes_answer_those_who_may_call_and_show_no_secret(
    encrypted: SystemSettings, folder: CertificateFolder
) -> None:
    denied = grpc.StatusCode.PERMISSION_DENIED
    async with serving(encrypted) as (launcher, client, heard):
        addresses = {Identity(process.kind): process.address for process in launcher.system.processes}
        assert set(addresses) == set(Identity) - {Identity.CLIENT}
        for server, address in addresses.items():
            for caller in Identity:
                async with open_channel(address, tls=as_identity(folder, caller, server)) as channel:
                    for call, who in real_calls(channel, server):
                        code = await outcome(call)
                        assert (code is not denied) is (caller in who), (server, caller, code)
                        assert code is not grpc.StatusCode.UNAVAILABLE, (server, caller)
            for tls in (None, Tls(folder.ca, name=server)):
                if tls is not None and server is Identity.GATEWAY:
                    continue  # Its callers show keys, no certificates.
                async with open_channel(address, tls=tls) as channel:
                    check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                    assert await outcome(check) is grpc.StatusCode.UNAVAILABLE, (server, tls)
        async with Client(launcher.address()) as plain:
            with pytest.raises(UnavailableError) as caught:
                await plain.list_models()
            assert caught.value.reason == REFUSED_AT_ONCE
        done = await typed("doctor", f"--address=https://{launcher.address()}", f"--ca={folder.ca}")
        assert done.code == 0, done.out
        assert re.search(
            r"ok +certificates +all 5 hold, and name whose they are; the first ends in \d\d days", done.out
        ), done.out
        assert re.search(r"ok +connections +all are encrypted", done.out)
        token = TokenMint(launcher.system.signing_key, 60).sequence_token("tenant/default")
        assert len(await collect_rest(client.generate("def f(", max_tokens=20))) > 0
        made = await typed("keys", "first", f"--database={encrypted.database}")
        assert made.code == 0, made.err
        key = made.out.strip()
        async with Client(launcher.address(), key=key, tls=launcher.client_tls) as known:
            assert len(await collect_rest(known.generate("def f(", max_tokens=20))) > 0
    text = "\n".join(heard.lines)
    assert text.count("settings: {") == 5
    secrets = {"signing key": launcher.system.signing_key, "seal": SEAL_KEY, "API key": key}
    for path in folder.path.glob("*-key.pem"):
        secrets |= {f"{path.name}, line {n}": line for n, line in enumerate(path.read_text().splitlines()[1:-1])}
    for what, secret in secrets.items():
        assert len(secret) > 15
        assert secret not in text, what
    assert token.partition(".")[0] not in text, "a token"
    assert not re.search(r"eyJ[\w-]{10,}\.", text)
    assert "PRIVATE KEY" not in text
    logged = next(line for line in heard.lines if line.startswith("verifier") and "settings: {" in line)
    shown = json.loads(logged.partition("settings: ")[2])
    assert shown["server"]["tls"]["client_ca"] == str(folder.ca)


async def test_up_runs_a_system_with_certificates_as_it_is_typed(target_folder: str, tmp_path: Path) -> None:
    certificates = tmp_path / "certificates"
    names = ("gateway", "draft", "verifier", "prefix-cache", "adapter-store")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    given = [
        *(f"--{name}-port={port}" for name, port in ports.items()), f"--model={target_folder}",
        f"--adapter-folder={tmp_path / 'adapters'}", f"--database=sqlite:///{tmp_path / 'gateway.sqlite'}",
    ]  # fmt: skip
    done = await typed("up", *given, f"--tls={certificates}")
    assert done.code == 1
    assert f"has no certificate of the prefix-cache: `paceline certs make {certificates}`" in done.out + done.err
    assert (await typed("certs", "make", str(certificates))).code == 0
    up = await asyncio.create_subprocess_exec(
        *COMMAND, "up", *given, f"--tls={certificates}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip
    assert up.stdout is not None
    try:
        said = ""
        while "Ctrl-C stops everything" not in said:
            line = await up.stdout.readline()
            assert line, said
            said += line.decode()
        (command,) = re.findall(r"^  paceline generate .*$", said, re.MULTILINE)
        done = await typed(*shlex.split(command)[1:], "--max-tokens=5")
        assert done.code == 0, done.err
        at = (f"--address=127.0.0.1:{ports['verifier']}", f"--ca={certificates / 'ca.pem'}", "--server-name=verifier")
        done = await typed("models", *at)
        assert "asks for a client's certificate; --cert and --cert-key show one" in done.err
    finally:
        up.send_signal(signal.SIGINT)
        await up.communicate()
    assert up.returncode == 0
