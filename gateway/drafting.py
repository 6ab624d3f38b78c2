"""Keeps a draft fed with commits and a verifier with its proposals, for one sequence, and never in anybody's way.

A draft is only ever help: whatever happens to it, the sequence goes on. After a failure another one is opened, with all
tokens so far, at a later commit.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import grpc

from gateway.pool import ServicePool
from paceline.v1 import speculation_pb2
from services.draft.client import DraftClient, ProposeStream

_log = logging.getLogger(__name__)
_MAX_PENDING_COMMITS = 64
"""A draft that is this far behind is given up and opened anew."""
_FIRST_BACKOFF_SECONDS = 0.25
_MAX_BACKOFF_SECONDS = 8.0

Propose = Callable[[speculation_pb2.Proposal], Awaitable[None]]


class Drafting:
    """The draft's side of one sequence."""

    def __init__(self, pool: ServicePool, opening: Callable[[], speculation_pb2.Open], propose: Propose) -> None:
        self._pool = pool
        self._opening = opening
        """Makes an Open with all tokens so far."""
        self._propose = propose
        self._commits: asyncio.Queue[speculation_pb2.Commit] | None = None
        self._task: asyncio.Task[None] | None = None
        self._failed: DraftClient | None = None
        self._backoff = _FIRST_BACKOFF_SECONDS
        self._not_before = 0.0

    def start(self) -> None:
        """Opens a draft, if there is one and it is time."""
        if self._task is not None or time.monotonic() < self._not_before:
            return
        draft = self._pool.draft(self._failed)
        if draft is None:
            return
        self._commits = asyncio.Queue(_MAX_PENDING_COMMITS)
        self._task = asyncio.create_task(self._run(draft, self._opening(), self._commits))

    def commit(self, commit: speculation_pb2.Commit) -> None:
        """Tells the draft what the target decided, and opens one when there is none."""
        if self._commits is not None:
            try:
                self._commits.put_nowait(commit)
                return
            except asyncio.QueueFull:
                _log.info("the draft is too far behind; opening another stream")
                self.stop()
        self.start()

    def stop(self) -> None:
        """Lets the draft go."""
        if self._task is not None:
            self._task.cancel()
        self._task = self._commits = None

    async def _run(
        self, draft: DraftClient, opening: speculation_pb2.Open, commits: asyncio.Queue[speculation_pb2.Commit]
    ) -> None:
        try:
            if await self._pool.suits(draft):
                await self._relay(draft, opening, commits)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            _log.info("draft %s failed: %r", draft.target, error)
            draft.forget()
        self._failed = draft
        self._not_before = time.monotonic() + self._backoff
        self._backoff = min(_MAX_BACKOFF_SECONDS, 2 * self._backoff)
        self._task = self._commits = None

    async def _relay(
        self, draft: DraftClient, opening: speculation_pb2.Open, commits: asyncio.Queue[speculation_pb2.Commit]
    ) -> None:
        async with draft.propose(timeout=None) as stream:
            await stream.open(opening)
            writer = asyncio.create_task(self._write(stream, commits))
            try:
                while (proposal := await stream.next_proposal()) is not None:
                    self._backoff = _FIRST_BACKOFF_SECONDS
                    await self._propose(proposal)
            finally:
                writer.cancel()

    @staticmethod
    async def _write(stream: ProposeStream, commits: asyncio.Queue[speculation_pb2.Commit]) -> None:
        """Writes commits until the stream breaks; the reader sees the same break and says why."""
        try:
            while True:
                await stream.commit(await commits.get())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return
