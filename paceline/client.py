"""Clients of a gateway, for Python programs: a few lines to stream.

async with Client("127.0.0.1:7100") as client:
    async for event in client.generate("def add(", max_tokens=64, temperature=0):
        print(event.delta.text, end="")

with SyncClient("127.0.0.1:7100") as client:
    text = "".join(event.delta.text for event in client.generate("def add(", max_tokens=64))
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

import grpc
from google.rpc import error_details_pb2, status_pb2

from paceline.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    cache_pb2,
    cache_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    sampling_pb2,
)
from services.adapter_store.client import upload
from services.common.channel import channel_options, open_channel
from services.common.lora.config import CONFIG_NAME, UNPICKLED, WEIGHTS_NAME

GenerateResponse = inference_pb2.GenerateResponse
ChatResponse = inference_pb2.ChatResponse
Message = tuple[str, str]
"""(role, content), for example ("user", "Hello")."""
Metadata = Sequence[tuple[str, str]]
"""gRPC metadata: (name, value) each, names in lower case."""

_DETAILS_KEY = "grpc-status-details-bin"
_PIECE_BYTES = 1 << 20


class Options(TypedDict, total=False):
    """What may be said about a request; see SamplingParams and GenerateRequest in the protos."""

    model: str
    adapter: str
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    max_tokens: int
    stop: Sequence[str]
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    ignore_eos: bool
    logprobs: int
    n: int
    priority: int
    speculation: bool
    max_draft_tokens: int


class Client:
    """Asynchronous client. Calls raise grpc.aio.AioRpcError; `error_details` reads what comes with it."""

    def __init__(self, address: str, metadata: Metadata = ()) -> None:
        """`metadata` goes with every call, for a proxy in front that says by it who calls."""
        self._channel = open_channel(address)
        self._metadata = tuple(metadata)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)
        self._cache = cache_pb2_grpc.CacheServiceStub(self._channel)
        self._adapters = adapter_pb2_grpc.AdapterServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()

    def generate(
        self, prompt: str | Sequence[int], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncIterator[GenerateResponse]:
        """Continues a prompt (text or token ids). Stopping the iteration early cancels the request."""
        request = generate_request(prompt, options)
        return _cancelling(self._inference.Generate(request, timeout=timeout, metadata=self._metadata))

    def chat(
        self, messages: Sequence[Message], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncIterator[ChatResponse]:
        """Answers a conversation. Stopping the iteration early cancels the request."""
        request = chat_request(messages, options)
        return _cancelling(self._inference.Chat(request, timeout=timeout, metadata=self._metadata))

    async def list_models(self) -> list[model_pb2.Model]:
        """The models that can be asked for."""
        return list((await self._models.ListModels(model_pb2.ListModelsRequest(), metadata=self._metadata)).models)

    async def tokenize(self, text: str, model: str = "") -> list[int]:
        """Token ids of a text."""
        request = inference_pb2.TokenizeRequest(model=model, text=text)
        return list((await self._inference.Tokenize(request, metadata=self._metadata)).token_ids)

    async def detokenize(self, token_ids: Sequence[int], model: str = "") -> str:
        """Text of token ids."""
        request = inference_pb2.DetokenizeRequest(model=model, token_ids=token_ids)
        return (await self._inference.Detokenize(request, metadata=self._metadata)).text

    async def upload_adapter(
        self, folder: str | Path, name: str, *, on_progress: Callable[[int], None] | None = None, **more: Any
    ) -> adapter_pb2.Adapter:
        """Uploads the adapter that PEFT saved in a folder; `on_progress` is told the bytes sent so far.

        `more`: model, replace, ignore_base_model, and for_draft; see AdapterUpload in adapter.proto. Raises OSError
        when the folder does not hold an adapter.
        """
        files = adapter_files(folder)
        if more.pop("for_draft", False):
            more["role"] = adapter_pb2.ADAPTER_ROLE_DRAFT
        sizes = [adapter_pb2.AdapterFile(name=path.name, num_bytes=path.stat().st_size) for path in files]
        announced = adapter_pb2.AdapterUpload(name=name, files=sizes, **more)

        async def rest() -> AsyncIterator[adapter_pb2.UploadAdapterRequest]:
            sent = 0
            for path in files:
                with path.open("rb") as file:
                    while data := await asyncio.to_thread(file.read, _PIECE_BYTES):
                        yield adapter_pb2.UploadAdapterRequest(data=data)
                        sent += len(data)
                        if on_progress is not None:
                            on_progress(sent)

        call = self._adapters.UploadAdapter(metadata=self._metadata)
        response = await upload(call, adapter_pb2.UploadAdapterRequest(upload=announced), rest())
        adapter: adapter_pb2.Adapter = response.adapter
        return adapter

    async def get_adapter(self, name: str) -> adapter_pb2.Adapter:
        """One of the caller's adapters."""
        request = adapter_pb2.GetAdapterRequest(name=name)
        return (await self._adapters.GetAdapter(request, metadata=self._metadata)).adapter

    async def list_adapters(self) -> list[adapter_pb2.Adapter]:
        """The caller's adapters."""
        request = adapter_pb2.ListAdaptersRequest()
        return list((await self._adapters.ListAdapters(request, metadata=self._metadata)).adapters)

    async def delete_adapter(self, name: str) -> None:
        """Deletes one of the caller's adapters."""
        await self._adapters.DeleteAdapter(adapter_pb2.DeleteAdapterRequest(name=name), metadata=self._metadata)

    async def cache_statistics(self) -> cache_pb2.GetCacheStatisticsResponse:
        """What the prefix cache keeps for this caller."""
        return await self._cache.GetCacheStatistics(cache_pb2.GetCacheStatisticsRequest(), metadata=self._metadata)

    async def clear_cache(self) -> int:
        """Deletes what the prefix cache keeps for this caller; returns how many blocks."""
        request = cache_pb2.ClearCacheRequest()
        return (await self._cache.ClearCache(request, metadata=self._metadata)).num_deleted


class SyncClient:
    """Blocking client. Calls raise grpc.RpcError; `error_details` reads what comes with it."""

    def __init__(self, address: str, metadata: Metadata = ()) -> None:
        """`metadata` goes with every call, for a proxy in front that says by it who calls."""
        self._metadata = tuple(metadata)
        self._channel = grpc.insecure_channel(address, options=channel_options())
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def generate(
        self, prompt: str | Sequence[int], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Iterator[GenerateResponse]:
        """Continues a prompt (text or token ids). Stopping the iteration early cancels the request."""
        call = self._inference.Generate(generate_request(prompt, options), timeout=timeout, metadata=self._metadata)
        try:
            yield from call
        finally:
            call.cancel()

    def chat(
        self, messages: Sequence[Message], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Iterator[ChatResponse]:
        """Answers a conversation. Stopping the iteration early cancels the request."""
        call = self._inference.Chat(chat_request(messages, options), timeout=timeout, metadata=self._metadata)
        try:
            yield from call
        finally:
            call.cancel()

    def list_models(self) -> list[model_pb2.Model]:
        """The models that can be asked for."""
        return list(self._models.ListModels(model_pb2.ListModelsRequest(), metadata=self._metadata).models)

    def tokenize(self, text: str, model: str = "") -> list[int]:
        """Token ids of a text."""
        request = inference_pb2.TokenizeRequest(model=model, text=text)
        return list(self._inference.Tokenize(request, metadata=self._metadata).token_ids)


def generate_request(prompt: str | Sequence[int], options: Options) -> inference_pb2.GenerateRequest:
    """The message for `Client.generate`."""
    request = inference_pb2.GenerateRequest(**_common(options))
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.token_ids.ids.extend(prompt)
    return request


def chat_request(messages: Sequence[Message], options: Options) -> inference_pb2.ChatRequest:
    """The message for `Client.chat`."""
    said = [inference_pb2.ChatMessage(role=role, content=content) for role, content in messages]
    return inference_pb2.ChatRequest(messages=said, **_common(options))


def adapter_files(folder: str | Path) -> tuple[Path, Path]:
    """Both files of an adapter in a folder. Raises OSError when one is missing, and says how to make it."""
    config, weights = Path(folder) / CONFIG_NAME, Path(folder) / WEIGHTS_NAME
    if not config.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG_NAME}")
    if not weights.is_file():
        hint = ""
        if (Path(folder) / "adapter_model.bin").exists():
            hint = f", but an adapter_model.bin; {UNPICKLED}"
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS_NAME}{hint}")
    return config, weights


def error_details(error: grpc.RpcError) -> list[Any]:
    """The google.rpc details of an error: BadRequest, RetryInfo, ResourceInfo, QuotaFailure messages."""
    metadata: Any = error.trailing_metadata()
    for key, value in metadata or ():
        if key == _DETAILS_KEY:
            status = status_pb2.Status.FromString(value)
            return [_unpack(detail) for detail in status.details]
    return []


def _unpack(detail: Any) -> Any:
    message = getattr(error_details_pb2, detail.TypeName().rsplit(".", 1)[-1])()
    detail.Unpack(message)
    return message


def _common(options: Options) -> dict[str, Any]:
    rest: dict[str, Any] = dict(options)
    fields: dict[str, Any] = {name: rest.pop(name) for name in ("model", "adapter", "n", "priority") if name in rest}
    mode = inference_pb2.Speculation.MODE_AUTO if rest.pop("speculation", True) else inference_pb2.Speculation.MODE_OFF
    fields["speculation"] = inference_pb2.Speculation(mode=mode, max_draft_tokens=rest.pop("max_draft_tokens", None))
    fields["sampling"] = sampling_pb2.SamplingParams(**rest)
    return fields


async def _cancelling(call: Any) -> AsyncIterator[Any]:
    try:
        async for response in call:
            yield response
    finally:
        call.cancel()
