"""Tiny adapters made by hand, good and bad, and a store to send them to."""

import io
import json
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from paceline.internal.v1 import adapter_store_pb2 as pb
from paceline.internal.v1 import model_server_pb2
from paceline.tls import Tls
from paceline.v1 import adapter_pb2
from services.adapter_store.client import AdapterStoreClient
from services.adapter_store.lifespan import adapter_store_lifespan
from services.adapter_store.settings import AdapterStoreSettings
from services.common.channel import open_channel
from services.common.lora.config import CONFIG_NAME, WEIGHTS_NAME, tensor_names
from services.common.settings import ServerSettings
from services.common.tls_settings import ServerTls
from services.common.tokens import TokenMint, new_signing_key, public_key
from support.served import served

MODULES = {
    f"model.layers.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in (("self_attn.q_proj", (8, 8)), ("self_attn.v_proj", (8, 4)), ("mlp.down_proj", (12, 8)))
}
"""Layers of a model that exists nowhere else: (in_features, out_features) by name."""
RANK = 4
TARGETS = ("q_proj", "v_proj", "down_proj")
Tensors = dict[str, NDArray[Any]]


def config(**changes: Any) -> dict[str, Any]:
    """A configuration as PEFT writes it."""
    plain = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/tiny", "r": RANK,
        "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none", "target_modules": list(TARGETS), "use_rslora": False,
        "init_lora_weights": True, "modules_to_save": None, "rank_pattern": {}, "use_dora": False,
        "inference_mode": True, "fan_in_fan_out": False,
    }  # fmt: skip
    return {**plain, **changes}


def tensors(seed: int = 0, rank: int = RANK, targets: Sequence[str] = TARGETS, dtype: Any = np.float32) -> Tensors:
    """A and B of every targeted layer."""
    rng = np.random.default_rng(seed)
    made: Tensors = {}
    for name, (in_features, out_features) in MODULES.items():
        if name.rpartition(".")[2] in targets:
            down, up = tensor_names(name)
            made[down] = rng.standard_normal((rank, in_features)).astype(dtype)
            made[up] = rng.standard_normal((out_features, rank)).astype(dtype)
    return made


def files(seed: int = 0, **changes: Any) -> tuple[bytes, bytes]:
    """Configuration and weights of a good adapter."""
    return json.dumps(config(**changes)).encode(), save(tensors(seed, changes.get("r", RANK)))


def raw(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with whatever header: an object, or its text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


class Store:
    """A running adapter store, and callers of it."""

    def __init__(self, address: str, key: str, tls: Tls | None = None) -> None:
        self.address = address
        self.mint = TokenMint(key, 60)
        self.client = AdapterStoreClient(address, open_channel(address, tls=tls))

    async def upload(
        self, config: bytes, weights: bytes, name: str = "mine", tenant: str = "tenant/a", **more: Any
    ) -> adapter_pb2.Adapter:
        """Sends both files; `more` changes what is announced, or (token, data, names) what is sent."""
        token = more.pop("token", None) or self.mint.owner_token(tenant)
        names = more.pop("names", (CONFIG_NAME, WEIGHTS_NAME))
        data = more.pop("data", config + weights)
        sizes = more.pop("sizes", (len(config), len(weights)))
        announced = [adapter_pb2.AdapterFile(name=n, num_bytes=s) for n, s in zip(names, sizes, strict=True)]
        modules = [
            model_server_pb2.AdapterModule(name=n, in_features=i, out_features=o) for n, (i, o) in MODULES.items()
        ]
        header = pb.StoreAdapterHeader(
            namespace=tenant,
            upload=adapter_pb2.AdapterUpload(name=name, files=announced, **more),
            base=pb.AdapterBase(model="tiny", modules=modules),
        )
        return await self.client.store(token, header, pieces(data), 20)

    async def names(self, tenant: str = "tenant/a") -> list[str]:
        return [adapter.name for adapter in await self.client.list(self.mint.owner_token(tenant), tenant, 5)]

    async def resolve(self, name: str = "mine", tenant: str = "tenant/a", token: str = "") -> adapter_pb2.Adapter:
        return await self.client.resolve(token or self.mint.owner_token(tenant), tenant, name, 5)

    async def fetch(self, digest: str, tenant: str = "tenant/a") -> tuple[bytes, bytes]:
        return await self.client.fetch(self.mint.sequence_token(tenant), tenant, digest, 5)

    async def remove(self, name: str = "mine", tenant: str = "tenant/a") -> None:
        await self.client.remove(self.mint.owner_token(tenant), tenant, name, 5)


async def pieces(data: bytes, size: int = 700) -> AsyncIterator[bytes]:
    """Bytes in pieces that end nowhere in particular."""
    stream = io.BytesIO(data)
    while piece := stream.read(size if len(data) < 1 << 20 else 1 << 18):
        yield piece


@asynccontextmanager
async def running_store(
    folder: Path, tls: Tls | None = None, server_tls: ServerTls | None = None, **settings: Any
) -> AsyncIterator[Store]:
    """A store over real gRPC, encrypted where both ends say with what."""
    key = new_signing_key()
    default: ServerSettings = AdapterStoreSettings.model_fields["server"].default
    server = default.model_copy(update={"port": 0, "grace_seconds": 0.2, "tls": server_tls})
    made = AdapterStoreSettings(token_keys=(public_key(key),), folder=folder, server=server, **settings)
    async with served(adapter_store_lifespan(made), server) as address:
        store = Store(address, key, tls)
        yield store
        await store.client.close()


def contents(folder: Path) -> set[str]:
    """All files of a store's folder but its lock."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"lock"}


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code()


def announced(config: bytes, weights: bytes) -> adapter_pb2.AdapterUpload:
    sizes = ((CONFIG_NAME, len(config)), (WEIGHTS_NAME, len(weights)))
    announced = [adapter_pb2.AdapterFile(name=name, num_bytes=size) for name, size in sizes]
    return adapter_pb2.AdapterUpload(name="mine", files=announced)
