"""How an adapter travels: it is announced, and its files follow once the other side wants them."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from paceline.sent import response_to_stream
from paceline.v1 import adapter_pb2

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
ACCEPTED = (("paceline-upload", "accepted"),)
"""Initial metadata of the answer to an announcement whose files may follow."""
_PICKLED_NAME = "adapter_model.bin"
_PIECE_BYTES = 1 << 20


def adapter_files(folder: str | Path) -> tuple[Path, Path]:
    """Both files of an adapter that PEFT saved in a folder. Raises OSError when one is missing, and says what to do."""
    config, weights = Path(folder) / CONFIG_NAME, Path(folder) / WEIGHTS_NAME
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    if not config.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG_NAME}")
    if not weights.is_file():
        hint = ""
        if (Path(folder) / _PICKLED_NAME).exists():
            how = "load it with PEFT and save it with save_pretrained(..., safe_serialization=True)"
            hint = f", but an {_PICKLED_NAME}; {how}"
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS_NAME}{hint}")
    return config, weights


async def file_pieces(
    files: Sequence[Path], on_progress: Callable[[int], None] | None = None
) -> AsyncIterator[adapter_pb2.UploadAdapterRequest]:
    """The files as messages, one after the other; `on_progress` is told the bytes that have been taken so far."""
    sent = 0
    for path in files:
        with path.open("rb") as file:
            while data := await asyncio.to_thread(file.read, _PIECE_BYTES):
                yield adapter_pb2.UploadAdapterRequest(data=data)
                sent += len(data)
                if on_progress is not None:
                    on_progress(sent)


async def upload(call: Any, announcement: Any, rest: AsyncIterable[Any]) -> Any:
    """The answer to a call that sends messages: an announcement and, once that was accepted, the rest.

    Nothing is sent that will be refused in any case. Whatever `rest` raises ends the call.
    """
    answer = asyncio.create_task(response_to_stream(call))
    writing = asyncio.create_task(_write(call, announcement, rest))
    try:
        await asyncio.wait((writing, answer), return_when=asyncio.FIRST_COMPLETED)
        if writing.done() and not answer.done():
            writing.result()
        return await answer
    finally:
        call.cancel()
        writing.cancel()
        await asyncio.gather(writing, answer, return_exceptions=True)


async def _write(call: Any, announcement: Any, rest: AsyncIterable[Any]) -> None:
    """Sends an upload, as far as it is wanted."""
    if not await _sent(call, announcement):
        return
    key, value = ACCEPTED[0]
    if (await call.initial_metadata()).get(key) != value:
        return
    async for message in rest:
        if not await _sent(call, message):
            return
    await _sent(call, None)


async def _sent(call: Any, message: Any) -> bool:
    """Sends a message, or the end. False when the call is over already: its answer says why."""
    try:
        await (call.done_writing() if message is None else call.write(message))
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.InternalError):
        return False
    return True
