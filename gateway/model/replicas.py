"""The verifiers and drafts that a gateway knows: what they run, and which to take next."""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc

from paceline.internal.v1 import model_server_pb2, speculation_pb2
from paceline.v1 import model_pb2, sampling_pb2
from services.common.channel import open_channel
from services.common.errors import FailedPreconditionError, NotFoundError
from services.draft.client import DraftClient
from services.model_server.client import SequenceStream
from services.verifier.client import VerifierClient

S = TypeVar("S", bound=SequenceStream[Any, Any])
_log = logging.getLogger(__name__)
_ASK_TIMEOUT_SECONDS = 5.0
_RETRY_SECONDS = 0.5
_MAX_REMEMBERED = 4096


class ServicePool:
    """All verifiers run the same target; a draft is used when its vocabulary has the target's size."""

    def __init__(self, verifiers: Sequence[str], drafts: Sequence[str]) -> None:
        self._verifiers = [VerifierClient(target, open_channel(target)) for target in verifiers]
        self._drafts = [DraftClient(target, open_channel(target)) for target in drafts]
        self._num_streams: Counter[object] = Counter()
        self._wants: dict[object, bool] = {}
        self._draft_infos: dict[DraftClient, model_pb2.ModelInfo] = {}
        self._target_info: model_pb2.ModelInfo | None = None
        self._last_with: OrderedDict[str, VerifierClient] = OrderedDict()
        """Which verifier a stream with an adapter went to last."""

    @property
    def target_info(self) -> model_pb2.ModelInfo:
        """The target model; known once `ready` is done."""
        if self._target_info is None:
            raise RuntimeError("no verifier has answered yet")
        return self._target_info

    async def ready(self) -> None:
        """Waits until a verifier has said what it runs."""
        while self._target_info is None:
            for verifier in self._verifiers:
                try:
                    self._target_info = await verifier.get_model(_ASK_TIMEOUT_SECONDS)
                    return
                except grpc.aio.AioRpcError as error:
                    _log.info("verifier %s is not ready: %s", verifier.target, error.code().name)
            await asyncio.sleep(_RETRY_SECONDS)

    def check_model(self, model: str) -> model_pb2.ModelInfo:
        """The target that a request names. Raises NotFoundError for another; empty names the only one there is."""
        info = self.target_info
        if model not in ("", info.id):
            raise NotFoundError("model", model, f"this gateway serves {info.id!r}")
        return info

    async def suits(self, draft: DraftClient) -> bool:
        """Whether a draft's vocabulary has the target's size. Raises grpc.aio.AioRpcError."""
        size = (await self._draft_model(draft)).vocab_size
        if size == self.target_info.vocab_size:
            return True
        _log.error("draft %s has %d tokens, the target %d", draft.target, size, self.target_info.vocab_size)
        return False

    async def draft_info(self) -> model_pb2.ModelInfo | None:
        """The first reachable draft's model, or None."""
        for draft in self._drafts:
            try:
                return await self._draft_model(draft)
            except grpc.aio.AioRpcError as error:
                _log.info("draft %s is away: %s", draft.target, error.code().name)
        return None

    async def target_modules(self) -> list[model_server_pb2.AdapterModule]:
        """The target's layers that adapters may change. Raises FailedPreconditionError when there are none."""
        modules = await self.verifier(None).list_adapter_modules(_ASK_TIMEOUT_SECONDS)
        if not modules:
            raise FailedPreconditionError("the verifier takes no adapters")
        return modules

    async def draft_modules(self) -> tuple[model_pb2.ModelInfo, list[model_server_pb2.AdapterModule]]:
        """A draft and its layers that adapters may change. Raises FailedPreconditionError when there are none."""
        for draft in self._drafts:
            try:
                modules = await draft.list_adapter_modules(_ASK_TIMEOUT_SECONDS)
                if modules:
                    return await self._draft_model(draft), modules
            except grpc.aio.AioRpcError as error:
                _log.info("draft %s is away: %s", draft.target, error.code().name)
        raise FailedPreconditionError("there is no draft that takes adapters")

    def verifier(self, avoid: VerifierClient | None, adapter: str = "") -> VerifierClient:
        """The verifier with the fewest streams; another than `avoid` where there is one.

        Among those with equally few, the one that last had the adapter, if there is one.
        """
        others = [verifier for verifier in self._verifiers if verifier is not avoid]
        last = self._last_with.get(adapter)
        chosen = min(
            others or self._verifiers, key=lambda verifier: (self._num_streams[verifier], verifier is not last)
        )
        if adapter:
            self._last_with[adapter] = chosen
            self._last_with.move_to_end(adapter)
            if len(self._last_with) > _MAX_REMEMBERED:
                self._last_with.popitem(last=False)
        return chosen

    def draft(self, avoid: DraftClient | None) -> DraftClient | None:
        """The draft with the fewest streams; another than `avoid` where there is one. None without drafts."""
        others = [draft for draft in self._drafts if draft is not avoid]
        return min(others or self._drafts, key=lambda draft: self._num_streams[draft], default=None)

    @asynccontextmanager
    async def counted(self, replica: object, stream: S) -> AsyncIterator[S]:
        """A stream that counts as one of the replica's."""
        self._num_streams[replica] += 1
        try:
            async with stream:
                yield stream
        finally:
            self._num_streams[replica] -= 1

    def note(self, verifier: VerifierClient, commit: speculation_pb2.Commit) -> None:
        """Remembers whether a verifier's latest commit wanted more; a full batch wants none."""
        if commit.finish_reason == sampling_pb2.FINISH_REASON_UNSPECIFIED:
            self._wants[verifier] = commit.num_wanted > 0

    def wants_proposals(self, verifier: VerifierClient) -> bool:
        """Whether the verifier's latest commit, of any sequence, wanted more."""
        return self._wants.get(verifier, True)

    def forget(self, draft: DraftClient) -> None:
        """Has a draft's model asked for again: it was lost and may come back with another."""
        self._draft_infos.pop(draft, None)

    async def _draft_model(self, draft: DraftClient) -> model_pb2.ModelInfo:
        if draft not in self._draft_infos:
            self._draft_infos[draft] = await draft.get_model(_ASK_TIMEOUT_SECONDS)
        return self._draft_infos[draft]

    async def close(self) -> None:
        """Ends all channels."""
        for verifier in self._verifiers:
            await verifier.close()
        for draft in self._drafts:
            await draft.close()
