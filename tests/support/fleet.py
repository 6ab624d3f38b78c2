"""Every service twice, each a process of its own, all over mutual TLS: to be stopped, killed and started again."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.steady import is_busy
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
from support.driver import DEVICE
from support.redis_server import free_ports
from support.s3_server import s3_server, s3_settings

NUM_TOKENS = 120
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

Streamed = dict[int, tuple[list[int], str, list[float]]]


class Fleet:
    """Two verifiers, drafts, gateways and prefix caches, and two stores of the same adapters."""

    def __init__(self, folder: CertificateFolder, target: str, draft: str, own_folder: Path, s3: str) -> None:
        """`s3` is the address of a server that speaks S3."""
        self._folder = folder
        self._own_folder = own_folder
        self._children: dict[str, Child] = {}
        self._lines: dict[str, list[str]] = {}
        self._reading: set[asyncio.Task[int]] = set()
        kinds = ("prefix-cache", "adapter-store", "verifier", "draft", "gateway")
        names = [f"{kind} {number}" for kind in kinds for number in (1, 2)]
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        key = new_signing_key()
        keys = {"token_keys": (public_key(key),)}
        engine = {"dtype": "float32", "num_threads": 1, "kv_bytes": 16 << 20, "device": DEVICE}
        model = ModelSettings(
            id="tiny", tokenizer=target,
            verifiers=(self.address("verifier 1"), self.address("verifier 2")),
            drafts=(self.address("draft 1"), self.address("draft 2")),
        )  # fmt: skip
        self._own: dict[Identity, dict[str, Any]] = {
            Identity.VERIFIER: {"engine": EngineConfig(model=target, **engine), "model_id": "tiny", **keys},
            Identity.DRAFT: {"engine": EngineConfig(model=draft, **engine), **keys},
            Identity.PREFIX_CACHE: keys,
            Identity.ADAPTER_STORE: {**s3_settings(s3, "fleet"), **keys},
            Identity.GATEWAY: {
                "models": (model,), "signing_key": key, "database": new_sqlite_url(), "resume_seconds": 60.0,
                "prefix_caches": (self.address("prefix-cache 1"), self.address("prefix-cache 2")),
                "adapter_stores": (self.address("adapter-store 1"), self.address("adapter-store 2")),
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
        own: dict[str, Any] = {}
        if kind not in (Identity.PREFIX_CACHE, Identity.ADAPTER_STORE):
            own["channel_tls"] = channels
        if kind is Identity.ADAPTER_STORE:
            own["folder"] = self._own_folder / name.replace(" ", "-")
        if kind in (Identity.VERIFIER, Identity.DRAFT):
            number = name[-1]
            own |= {
                each.replace("-", "_"): self.address(f"{each} {number}") for each in ("prefix-cache", "adapter-store")
            }
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

    async def kill(self, name: str) -> None:
        """Returns when the process has ended."""
        self._children[name].signal(signal.SIGKILL)
        await self._children[name].wait()

    def pause(self, name: str) -> None:
        """Has the process stand still, its connections with it."""
        self._children[name].signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """Has it go on."""
        self._children[name].signal(signal.SIGCONT)

    def memory(self, name: str) -> int:
        """Resident bytes of a process."""
        return int(psutil.Process(self._children[name].pid).memory_info().rss)

    async def idle(self) -> None:
        """Returns when no engine has a sequence or holds a block."""
        async with asyncio.timeout(30):
            for name in self.ports:
                while name.startswith(("verifier", "draft")) and await is_busy(self.address(name), self.tls(name)):
                    await asyncio.sleep(0.1)

    async def stop(self) -> None:
        for child in self._children.values():
            child.signal(signal.SIGKILL)
        await asyncio.gather(*self._reading)


@asynccontextmanager
async def fleet_of(
    folder: CertificateFolder, target: str, draft: str, own_folder: Path, graces: tuple[float, float]
) -> AsyncIterator[Fleet]:
    """One that serves; the first of each two has the first of these graces, in seconds, the second the other."""
    with s3_server() as s3:
        fleet = Fleet(folder, target, draft, own_folder, s3)
        try:
            await asyncio.gather(*(fleet.start(name, graces[number % 2]) for number, name in enumerate(fleet.ports)))
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


async def keep_asking(client: Client, request: dict[str, Any], expected: Streamed, is_over: asyncio.Event) -> int:
    """Asks for the same again and again, and has it be the same each time; returns how often."""
    count = 0
    while not is_over.is_set():
        assert await streamed(client, **request) == expected, request
        count += 1
    return count
