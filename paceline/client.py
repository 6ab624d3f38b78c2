"""The asynchronous client of a gateway: a few lines to stream.

async with Client("127.0.0.1:7100") as client:
    async for event in client.generate("def add(", max_tokens=64, temperature=0):
        print(event.delta.text, end="")
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack

from paceline.address import encryption, split, to_target
from paceline.admin_calls import AdminCalls
from paceline.batch_calls import BatchCalls
from paceline.calls import Metadata, answer, events
from paceline.channel import open_channel
from paceline.requests import ChatOptions, Message, Options, chat_request, generate_request
from paceline.resuming import R, resumed_events
from paceline.several import SeveralChannel
from paceline.tls import Tls
from paceline.upload import adapter_files, file_pieces, upload
from paceline.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    cache_pb2,
    cache_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from paceline.webhook_calls import WebhookCalls


class Client(BatchCalls, AdminCalls, WebhookCalls):
    """Asynchronous client, of the event loop that it is made in.

    Streams begin when they are first asked for an event. What a gateway refuses is raised as one of `paceline.errors`;
    a mistake in what a call is given is a TypeError or ValueError of the call itself.
    """

    def __init__(
        self, address: str | Sequence[str], metadata: Metadata = (), *, key: str | None = None, tls: Tls | None = None
    ) -> None:
        """`key` is an API key; `metadata` goes with every call, for a proxy in front that says by it who calls.

        Of several addresses (a list, or with commas between them) one is used that can be reached; when a gateway is
        lost while it streams, another goes on with the same text.
        Connections are encrypted where `tls` says with what, or the address begins with https://; then any of the
        public authorities may vouch for the gateway.
        Raises ValueError for what cannot be an address (host:port is one) and for files with which nothing can be
        encrypted.
        """
        channels = [open_channel(to_target(each), tls=encryption(each, tls)) for each in split(address)]
        self._channel = channels[0] if len(channels) == 1 else SeveralChannel(channels)
        self._metadata = (*metadata, *([("authorization", f"Bearer {key}")] if key else []))
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)
        self._operations = operations_pb2_grpc.OperationsServiceStub(self._channel)
        self._cache = cache_pb2_grpc.CacheServiceStub(self._channel)
        BatchCalls.__init__(self, self._channel, self._metadata)
        AdminCalls.__init__(self, self._channel, self._metadata)
        WebhookCalls.__init__(self, self._channel, self._metadata)
        self._adapters = adapter_pb2_grpc.AdapterServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection, and with it what is still running."""
        await self._channel.close()

    def generate(
        self, prompt: str | Sequence[int], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """Continues a prompt (text or token ids). Ending the iteration early cancels the request."""
        request = generate_request(prompt, options)
        return self._events(self._inference.Generate, request, timeout)

    def chat(
        self, messages: Sequence[Message], *, timeout: float | None = None, **options: Unpack[ChatOptions]
    ) -> AsyncGenerator[inference_pb2.ChatResponse, None]:
        """Answers a conversation. Ending the iteration early cancels the request."""
        request = chat_request(messages, options)
        return self._events(self._inference.Chat, request, timeout)

    def _events(self, method: Callable[..., Any], request: R, timeout: float | None) -> AsyncGenerator[Any, None]:
        call = partial(method, metadata=self._metadata)
        if isinstance(self._channel, SeveralChannel):
            return resumed_events(call, request, self._channel, timeout)
        return events(lambda: call(request, timeout=timeout))

    async def list_models(self) -> list[model_pb2.Model]:
        """Lists the models that can be asked for."""
        request = model_pb2.ListModelsRequest()
        return list((await answer(self._models.ListModels(request, metadata=self._metadata))).models)

    async def get_speculation(self, model: str = "") -> model_pb2.GetSpeculationResponse:
        """Says whether speculation pays for a model, by what its verifiers measured."""
        request = model_pb2.GetSpeculationRequest(model=model)
        return await answer(self._models.GetSpeculation(request, metadata=self._metadata))

    async def get_status(self) -> operations_pb2.GetStatusResponse:
        """Says how the gateway and each service that it knows fare; where there are keys, to one of scope admin."""
        request = operations_pb2.GetStatusRequest()
        return await answer(self._operations.GetStatus(request, metadata=self._metadata))

    async def tokenize(self, text: str, model: str = "") -> list[int]:
        """Returns the token ids of a text."""
        request = inference_pb2.TokenizeRequest(model=model, text=text)
        return list((await answer(self._inference.Tokenize(request, metadata=self._metadata))).token_ids)

    async def detokenize(self, token_ids: Sequence[int], model: str = "") -> str:
        """Returns the text of token ids."""
        request = inference_pb2.DetokenizeRequest(model=model, token_ids=token_ids)
        return (await answer(self._inference.Detokenize(request, metadata=self._metadata))).text

    async def upload_adapter(
        self,
        folder: str | Path,
        name: str,
        *,
        model: str = "",
        replace: bool = False,
        ignore_base_model: bool = False,
        for_draft: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> adapter_pb2.Adapter:
        """Uploads the adapter that PEFT saved in a folder; see AdapterUpload in adapter.proto.

        `on_progress` is told the bytes that were sent so far. Raises OSError when the folder holds no adapter.
        """
        files = adapter_files(folder)
        announced = adapter_pb2.AdapterUpload(
            name=name,
            model=model,
            replace=replace,
            ignore_base_model=ignore_base_model,
            role=adapter_pb2.ADAPTER_ROLE_DRAFT if for_draft else adapter_pb2.ADAPTER_ROLE_UNSPECIFIED,
            files=[adapter_pb2.AdapterFile(name=path.name, num_bytes=path.stat().st_size) for path in files],
        )
        call = self._adapters.UploadAdapter(metadata=self._metadata)
        announcement = adapter_pb2.UploadAdapterRequest(upload=announced)
        response = await answer(upload(call, announcement, file_pieces(files, on_progress)))
        adapter: adapter_pb2.Adapter = response.adapter
        return adapter

    async def get_adapter(self, name: str) -> adapter_pb2.Adapter:
        """Returns one of the caller's adapters."""
        request = adapter_pb2.GetAdapterRequest(name=name)
        return (await answer(self._adapters.GetAdapter(request, metadata=self._metadata))).adapter

    async def list_adapters(self) -> list[adapter_pb2.Adapter]:
        """Lists the caller's adapters."""
        request = adapter_pb2.ListAdaptersRequest()
        return list((await answer(self._adapters.ListAdapters(request, metadata=self._metadata))).adapters)

    async def delete_adapter(self, name: str) -> None:
        """Deletes one of the caller's adapters."""
        request = adapter_pb2.DeleteAdapterRequest(name=name)
        await answer(self._adapters.DeleteAdapter(request, metadata=self._metadata))

    async def cache_statistics(self) -> cache_pb2.GetCacheStatisticsResponse:
        """Says what the prefix cache keeps for this caller."""
        request = cache_pb2.GetCacheStatisticsRequest()
        return await answer(self._cache.GetCacheStatistics(request, metadata=self._metadata))

    async def clear_cache(self) -> int:
        """Deletes what the prefix cache keeps for this caller; returns how many blocks."""
        request = cache_pb2.ClearCacheRequest()
        return (await answer(self._cache.ClearCache(request, metadata=self._metadata))).num_deleted
