"""Keeps a draft fed with commits and a verifier with its proposals, for one sequence, and never in anybody's way.

A draft is only ever help: whatever happens to it, the sequence goes on. After a failure another one is opened, with all
tokens so far, at a later commit.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import grpc

from gateway.model.replicas import ServicePool
from paceline.internal.v1 import speculation_pb2
from services.draft.client import DraftClient, ProposeStream

_log = logging.getLogger(__name__)
_MAX_COMMITS_BEHIND = 64
"""A draft that is this far behind is given up and opened anew."""
_FIRST_BACKOFF_SECONDS = 0.25
_MAX_BACKOFF_SECONDS = 8.0

Propose = Callable[[speculation_pb2.Proposal], Awaitable[None]]


class Drafting:
    """The draft's side of one sequence."""

    def __init__(
        self, pool: ServicePool, opening: Callable[[], speculation_pb2.Open], token: Callable[[], str], propose: Propose
    ) -> None:
        self._pool = pool
        self._opening = opening
        """Makes an Open with all tokens so far."""
        self._token = token
        self._propose = propose
        self._backlog: Backlog | None = None
        self._task: asyncio.Task[None] | None = None
        self._failed: DraftClient | None = None
        self._backoff = _FIRST_BACKOFF_SECONDS
        self._not_before = 0.0
        self._without_adapter = False
        """Whether a draft failed with its adapter: the next one goes without."""

    def start(self) -> None:
        """Opens a draft, if there is one and it is time."""
        if self._task is not None or time.monotonic() < self._not_before:
            return
        draft = self._pool.draft(self._failed)
        if draft is None:
            return
        opening = self._opening()
        if self._without_adapter:
            opening.adapter_digest = ""
        self._backlog = Backlog()
        self._task = asyncio.create_task(self._run(draft, opening, self._backlog))

    def commit(self, commit: speculation_pb2.Commit) -> None:
        """Tells the draft what the target decided, and opens one when there is none and proposals are wanted."""
        if self._backlog is not None:
            self._backlog.add(commit)
            if self._backlog.num_due <= _MAX_COMMITS_BEHIND:
                return
            _log.info("the draft is too far behind; opening another stream")
            self.stop()
        if commit.num_wanted:
            self.start()

    def stop(self) -> None:
        """Lets the draft go."""
        if self._task is not None:
            self._task.cancel()
        self._task = self._backlog = None

    async def _run(self, draft: DraftClient, opening: speculation_pb2.Open, backlog: "Backlog") -> None:
        try:
            if await self._pool.suits(draft):
                await self._relay(draft, opening, backlog)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            _log.info("draft %s failed: %r", draft.target, error)
            self._pool.forget(draft)
            self._without_adapter = bool(opening.adapter_digest)
        self._failed = draft
        self._not_before = time.monotonic() + self._backoff
        self._backoff = min(_MAX_BACKOFF_SECONDS, 2 * self._backoff)
        self._task = self._backlog = None

    async def _relay(self, draft: DraftClient, opening: speculation_pb2.Open, backlog: "Backlog") -> None:
        async with self._pool.counted(draft, draft.propose(None, self._token())) as stream:
            await stream.open(opening)
            writer = asyncio.create_task(self._write(stream, backlog))
            try:
                while (proposal := await stream.next_proposal()) is not None:
                    self._backoff = _FIRST_BACKOFF_SECONDS
                    await self._propose(proposal)
            finally:
                writer.cancel()

    @staticmethod
    async def _write(stream: ProposeStream, backlog: "Backlog") -> None:
        """Writes commits until the stream breaks; the reader sees the same break and says why."""
        try:
            while True:
                await stream.commit(await backlog.take())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return


class Backlog:
    """Commits that the draft has not been told of, as one. It is due once the verifier wants proposals."""

    def __init__(self) -> None:
        self._commit: speculation_pb2.Commit | None = None
        self._due = asyncio.Event()
        self.num_due = 0
        """Commits since it became due."""

    def add(self, commit: speculation_pb2.Commit) -> None:
        """Takes the commit that follows those added before."""
        if self._commit is None:
            self._commit = speculation_pb2.Commit(anchor=commit.anchor)
        self._commit.token_ids.extend(commit.token_ids)
        self._commit.num_wanted = commit.num_wanted
        if commit.num_wanted:
            self._due.set()
        if self._due.is_set():
            self.num_due += 1

    async def take(self) -> speculation_pb2.Commit:
        """Everything so far, once it is due."""
        await self._due.wait()
        self._due.clear()
        commit, self._commit, self.num_due = self._commit, None, 0
        if commit is None:
            raise RuntimeError("a backlog is due only with a commit in it")
        return commit
