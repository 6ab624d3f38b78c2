"""Every service is stopped and started again, one after the other, under load: nothing is lost, and no token differs.

Real processes with real signals, two of each service that has an engine or answers clients, all over mutual TLS. One of
the two has so little grace that streams move, the other so much that they finish. PACELINE_ROLLS makes it longer.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.settings import GatewaySettings, ModelSettings
from paceline import Client, Tls
from services.adapter_store.settings import AdapterStoreSettings
from services.common.channel import open_channel
from services.common.identities import Identity
from services.common.settings import ServerSettings, TelemetrySettings
from services.common.tls_settings import ServerTls, tls_to
from services.common.tokens import new_signing_key, public_key
from services.draft.settings import DraftSettings
from services.engine.config import EngineConfig
from services.local.certificate_folder import CertificateFolder
from services.local.child import Child
from services.local.loading import wait_serving
from services.local.system import Process
from services.prefix_cache.settings import PrefixCacheSettings
from services.verifier.settings import VerifierSettings
from support.databases import new_sqlite_url
from support.lora import PEFT_WARNING, save_adapters
from support.redis_server import free_ports
from support.tls import make_certificates

NUM_ROLLS = int(os.environ.get("PACELINE_ROLLS", "1"))
NUM_TOKENS = 120
GRACES = (20.0, 0.3)
"""Seconds that running streams may take to finish: more than any takes, and less."""
SETTINGS = {
    Identity.VERIFIER: VerifierSettings, Identity.DRAFT: DraftSettings, Identity.GATEWAY: GatewaySettings,
    Identity.PREFIX_CACHE: PrefixCacheSettings, Identity.ADAPTER_STORE: AdapterStoreSettings,
}  # fmt: skip
REQUESTS: list[dict[str, Any]] = [
    {"prompt": "def f(", "temperature": 0.0},
    {"prompt": "import", "temperature": 0.9, "seed": 1},
    {"prompt": "class A:", "temperature": 0.7, "seed": 2, "n": 2, "logprobs": 2},
    {"prompt": "def f(" * 20, "temperature": 0.0, "adapter": "a0"},
    {"prompt": "return", "temperature": 0.8, "seed": 3, "speculation": False},
    {"prompt": "def f(" * 20, "temperature": 0.5, "seed": 4},
]

pytestmark = [pytest.mark.timeout(180 + 240 * NUM_ROLLS), pytest.mark.filterwarnings(PEFT_WARNING)]
Streamed = dict[int, tuple[list[int], str, list[float]]]


class Fleet:
    """Two verifiers, drafts and gateways, a prefix cache and an adapter store."""

    def __init__(self, folder: CertificateFolder, target: str, draft: str, own_folder: Path) -> None:
        self._folder = folder
        self._children: dict[str, Child] = {}
        self._lines: dict[str, list[str]] = {}
        self._reading: set[asyncio.Task[int]] = set()
        names = ["prefix-cache", "adapter-store"]
        names += [f"{kind} {number}" for kind in ("verifier", "draft", "gateway") for number in (1, 2)]
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        key = new_signing_key()
        keys = {"token_keys": (public_key(key),)}
        stores = {"prefix_cache": self.address("prefix-cache"), "adapter_store": self.address("adapter-store")}
        engine = {"dtype": "float32", "num_threads": 1, "kv_bytes": 16 << 20, "device": "cpu"}
        model = ModelSettings(
            id="tiny", tokenizer=target,
            verifiers=(self.address("verifier 1"), self.address("verifier 2")),
            drafts=(self.address("draft 1"), self.address("draft 2")),
        )  # fmt: skip
        self._own: dict[Identity, dict[str, Any]] = {
            Identity.VERIFIER: {"engine": EngineConfig(model=target, **engine), "model_id": "tiny", **keys, **stores},
            Identity.DRAFT: {"engine": EngineConfig(model=draft, **engine), **keys, **stores},
            Identity.PREFIX_CACHE: {"disk_folder": own_folder / "blocks", **keys},
            Identity.ADAPTER_STORE: {"folder": own_folder / "adapters", **keys},
            Identity.GATEWAY: {
                "models": (model,), "signing_key": key, "database": new_sqlite_url(), "resume_seconds": 60.0,
                "prefix_caches": (stores["prefix_cache"],), "adapter_stores": (stores["adapter_store"],),
            },
        }  # fmt: skip

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def tls(self, name: str) -> Tls | None:
        """What a process is asked with, in the gateway's name."""
        return tls_to(Identity(name.split(maxsplit=1)[0]), self._folder.channels(Identity.GATEWAY))

    def client(self) -> Client:
        """A client that knows both gateways."""
        return Client([self.address("gateway 1"), self.address("gateway 2")], tls=Tls(self._folder.ca))

    async def start(self, name: str, grace_seconds: float) -> None:
        """Returns when the process serves."""
        kind = Identity(name.split(maxsplit=1)[0])
        tls = ServerTls(**self._folder.server(kind, with_callers=kind is not Identity.GATEWAY))
        channels = self._folder.channels(kind)
        own = {} if kind in (Identity.PREFIX_CACHE, Identity.ADAPTER_STORE) else {"channel_tls": channels}
        settings = SETTINGS[kind](
            server=ServerSettings(port=self.ports[name], grace_seconds=grace_seconds, tls=tls),
            telemetry=TelemetrySettings(log_level="WARNING"),
            **own, **self._own[kind],
        )  # fmt: skip
        child = self._children[name] = await Child.spawn(Process(name, str(kind), settings))
        self._lines[name] = []
        reading = asyncio.create_task(child.read(self._lines[name].append))
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        async with asyncio.timeout(60):
            await wait_serving(self.address(name), lambda: child.returncode is None, self.tls(name))

    async def drain(self, name: str) -> None:
        """Tells a process to stop. Its health says so at once, and it ends with 0."""
        async with open_channel(self.address(name), tls=self.tls(name)) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            self._children[name].signal(signal.SIGTERM)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watch.cancel()
        assert await self._children[name].wait() == 0, self._lines[name]

    async def stop(self) -> None:
        for child in self._children.values():
            child.signal(signal.SIGKILL)
        await asyncio.gather(*self._reading)


@asynccontextmanager
async def fleet_of(folder: CertificateFolder, target: str, draft: str, own_folder: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(folder, target, draft, own_folder)
    try:
        await asyncio.gather(*(fleet.start(name, grace_of(number)) for number, name in enumerate(fleet.ports)))
        yield fleet
    finally:
        await fleet.stop()


async def streamed(client: Client, prompt: str, **options: Any) -> Streamed:
    """All that a request streams: by choice, token ids, text and logprobs."""
    found: Streamed = {}
    async for event in client.generate(prompt, max_tokens=NUM_TOKENS, ignore_eos=True, **options):
        if event.HasField("delta"):
            ids, text, logprobs = found.get(event.delta.choice, ([], "", []))
            logprobs = [*logprobs, *(each.logprob for each in event.delta.logprobs)]
            found[event.delta.choice] = ([*ids, *event.delta.token_ids], text + event.delta.text, logprobs)
    return found


async def load(client: Client, request: dict[str, Any], expected: Streamed, is_over: asyncio.Event) -> int:
    """Asks for the same again and again; returns how often."""
    count = 0
    while not is_over.is_set():
        assert await streamed(client, **request) == expected, request
        count += 1
    return count


async def test_a_rolling_restart_loses_nothing_and_changes_no_token(
    target_folder: str, draft_folder: str, tmp_path: Path
) -> None:
    folder = make_certificates(tmp_path / "certificates")
    (tmp_path / "saved").mkdir()
    adapter = save_adapters(target_folder, tmp_path / "saved")[0]
    async with fleet_of(folder, target_folder, draft_folder, tmp_path) as fleet, fleet.client() as client:
        await client.upload_adapter(adapter, "a0", ignore_base_model=True)
        expected = [await streamed(client, **request) for request in REQUESTS]
        assert all(len(ids) == NUM_TOKENS for reply in expected for ids, _, _ in reply.values())
        is_over = asyncio.Event()
        streams = [
            asyncio.create_task(load(client, request, reply, is_over))
            for request, reply in zip(REQUESTS, expected, strict=True)
        ]
        try:
            for number in range(1, NUM_ROLLS + 1):
                await _roll(fleet, streams, number)
        finally:
            is_over.set()
            counts = await asyncio.gather(*streams)
    assert all(counts)


async def _roll(fleet: Fleet, streams: Sequence["asyncio.Task[int]"], roll: int) -> None:
    """Restarts everything once; who had little grace comes back with more, and the other way round."""
    for number, name in enumerate(fleet.ports):
        await fleet.drain(name)
        await fleet.start(name, grace_of(number + roll))
        for stream in streams:
            if stream.done():
                await stream


def grace_of(number: int) -> float:
    return GRACES[number % 2]
