"""A whole system in one event loop: every service with its real server, engine thread and gRPC, on free ports."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gateway.lifespan import gateway_lifespan
from gateway.settings import GatewaySettings, ModelSettings
from paceline import Client, Options
from paceline.v1 import inference_pb2
from services.draft.lifespan import draft_lifespan
from services.draft.settings import DraftSettings
from services.engine.config import EngineConfig
from services.engine.engine_loop import EngineLoop
from services.verifier.lifespan import verifier_lifespan
from services.verifier.settings import VerifierSettings
from support.databases import new_sqlite_url
from support.driver import DEVICE
from support.served import SERVER, served


class Reply(NamedTuple):
    """All that a request streamed."""

    token_ids: list[int]
    text: str
    started: inference_pb2.Started
    finish_reasons: dict[int, int]
    usage: inference_pb2.Usage


@dataclass
class System:
    """Addresses and the client of a running system."""

    client: Client
    gateway: str
    verifier: str
    drafts: list[str]
    engines: list[EngineLoop[Any]] = field(default_factory=list)

    async def generate(self, prompt: str | Sequence[int], **options: Any) -> Reply:
        """One request, to its end."""
        return await collect(self.client.generate(prompt, **Options(**options)))


StartGateway = Callable[..., AbstractAsyncContextManager[System]]
"""Starts a gateway for lists of verifiers and drafts."""


async def collect(events: AsyncIterator[Any]) -> Reply:
    """Reads a stream to its end. Checks the order that the API promises."""
    token_ids: list[int] = []
    text: list[str] = []
    reasons: dict[int, int] = {}
    started, usage = None, None
    async for event in events:
        kind = event.WhichOneof("event")
        if kind == "started":
            assert started is None
            started = event.started
        assert started is not None, "Started comes first"
        assert usage is None, "Usage comes last"
        if kind == "delta":
            assert event.delta.choice not in reasons, "nothing comes after Finished"
            if event.delta.choice == 0:
                token_ids.extend(event.delta.token_ids)
                text.append(event.delta.text)
        elif kind == "finished":
            reasons[event.finished.choice] = event.finished.finish_reason
        elif kind == "usage":
            usage = event.usage
    assert started is not None
    assert usage is not None
    return Reply(token_ids, "".join(text), started, reasons, usage)


async def first_tokens(events: AsyncIterator[Any]) -> list[int]:
    """The first tokens of a stream: from then on its sequence is at a verifier."""
    async for event in events:
        if event.delta.token_ids:
            return list(event.delta.token_ids)
    raise AssertionError("the stream ended without a token")


def engine_config(model: str, settings: dict[str, Any]) -> tuple[EngineConfig, dict[str, Any]]:
    """The engine's share of flat settings, and the rest."""
    own = {name: value for name, value in settings.items() if name in EngineConfig.model_fields}
    rest = {name: value for name, value in settings.items() if name not in own}
    return EngineConfig(model=model, **own), rest


def gateway_settings(
    model_id: str, tokenizer: str, verifiers: Sequence[str], drafts: Sequence[str] = (), **settings: Any
) -> GatewaySettings:
    """Settings of a gateway for one model; what is the model's own may lie among the others."""
    own = {name: settings.pop(name) for name in tuple(settings) if name in ModelSettings.model_fields}
    for name in ("prefix_cache", "adapter_store"):
        address = settings.pop(name, None)
        settings |= {f"{name}s": (address,)} if address else {}
    model = ModelSettings(id=model_id, tokenizer=tokenizer, verifiers=tuple(verifiers), drafts=tuple(drafts), **own)
    settings = {"server": SERVER, "database": new_sqlite_url(), **settings}
    return GatewaySettings(models=(model,), **settings)


@asynccontextmanager
async def start_system(
    target: str,
    drafts: Sequence[str] = (),
    engine: dict[str, Any] | None = None,
    gateway: dict[str, Any] | None = None,
    verifier: dict[str, Any] | None = None,
) -> AsyncIterator[System]:
    """A system of one verifier and as many drafts as folders are given."""
    engine = {"dtype": "float32", "num_threads": 1, "kv_bytes": 16 << 20, "device": DEVICE, **(engine or {})}
    async with AsyncExitStack() as stack:
        config, more = engine_config(target, engine)
        own = VerifierSettings(engine=config, model_id="tiny", server=SERVER, **more, **(verifier or {}))
        verifier_address = await stack.enter_async_context(served(verifier_lifespan(own)))
        draft_addresses = [
            await stack.enter_async_context(
                served(
                    draft_lifespan(
                        DraftSettings(engine=config.model_copy(update={"model": draft}), server=SERVER, **more)
                    )
                )
            )
            for draft in drafts
        ]
        settings = gateway_settings("tiny", target, [verifier_address], draft_addresses, **(gateway or {}))
        gateway_address = await stack.enter_async_context(served(gateway_lifespan(settings)))
        client = await stack.enter_async_context(Client(gateway_address))
        yield System(client, gateway_address, verifier_address, draft_addresses)
        await asyncio.sleep(0)
