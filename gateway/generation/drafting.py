"""One sequence from a draft to whoever verifies it: proposals, and never in anybody's way.

A draft is only ever help: whatever happens to it, the sequence goes on. In the place of one that failed another one is
opened, with all tokens so far, as soon as there is one and the verifier wants proposals.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Self, TypeAlias

import grpc

from gateway.generation.backlog import Backlog
from gateway.generation.transcript import Transcript
from gateway.model.attempts import Attempts, LostError, NoneSuitsError, Use
from gateway.model.replica import reason_of
from gateway.model.served_model import ServedModel
from paceline.internal.v1 import speculation_pb2
from paceline.v1 import model_pb2
from services.draft.client import DraftClient, ProposeStream

_MAX_COMMITS_BEHIND = 64
"""A draft that is this far behind is given up and opened anew."""
_MAX_CRASHES = 2
_MAX_COMMITS_HELD = 64
"""A draft from which nothing was wanted for as long is let go: it holds memory that others may use."""
_TURNS_UNTIL_WRITTEN = 3
"""Of the event loop: who writes wakes, makes the write a task, and it begins."""
DraftUse: TypeAlias = Use[DraftClient, model_pb2.ModelInfo]
DraftAttempts: TypeAlias = Attempts[DraftClient, model_pb2.ModelInfo]


class Drafting:
    """The draft's side of one sequence. Leaving the block ends the draft's stream."""

    def __init__(self, model: ServedModel, transcript: Transcript, token: Callable[[], str]) -> None:
        self._model = model
        self._transcript = transcript
        self._token = token
        self._is_off = not (transcript.opening.max_draft_tokens and len(model.drafts))
        self._wanted = asyncio.Event()
        """It is set while the latest that the verifier said is that it wants proposals."""
        self._backlog: Backlog | None = None
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        """Tasks that have not ended yet: the one that drafts now, and those that were told to end."""
        self._with_adapter = True
        self._num_lost = 0
        self._num_crashes = 0
        """Drafts in turn that were lost, had taken the sequence and proposed nothing for it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def want(self) -> None:
        """Has a draft opened as soon as there is one, and another in its place when it is lost."""
        if self._is_off:
            return
        self._wanted.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
            self._tasks.add(self._task)
            self._task.add_done_callback(self._tasks.discard)

    async def commit(self, commit: speculation_pb2.Commit) -> None:
        """Tells the draft what the target decided, and has one opened when there is none and proposals are wanted.

        The message is on its way then, unless the one before it still is: the verifier waits for the draft, and for
        whoever reads the text it does not.
        """
        if self._backlog is not None:
            self._backlog.add(commit)
            if self._backlog.num_due > _MAX_COMMITS_BEHIND:
                self._give_up()
        if commit.num_wanted:
            self.want()
            for _ in range(_TURNS_UNTIL_WRITTEN):
                await asyncio.sleep(0)
        else:
            self._wanted.clear()
            if self._backlog is not None and self._backlog.num_held > _MAX_COMMITS_HELD:
                self._give_up()

    def _give_up(self) -> None:
        """Lets a draft go that cannot keep up, or is not wanted. Another is opened once proposals are wanted again."""
        if self._task is not None:
            self._task.cancel()
        self._task = self._backlog = None

    async def _run(self) -> None:
        attempts = self._model.drafts.attempts(float("inf"), self._model.suits, self._transcript.draft_affinity)
        with suppress(NoneSuitsError):
            while True:
                await self._wanted.wait()
                try:
                    async with attempts.another() as use:
                        await self._relay(use)
                        use.refused("the stream ended early")
                except LostError:
                    self._with_adapter = False
                    self._num_lost += 1
                except grpc.aio.AioRpcError as error:
                    self._with_adapter = False
                    use.refused(reason_of(error))
                    if error.code() is grpc.StatusCode.ABORTED:  # No draft can compute this text.
                        return
                if self._num_crashes >= _MAX_CRASHES:
                    return

    async def _relay(self, use: DraftUse) -> None:
        """Passes proposals on until the draft's stream ends."""
        self._backlog = backlog = Backlog()
        message = self._transcript.draft_message(with_adapter=self._with_adapter)
        try:
            route = self._transcript.draft_affinity.route(self._num_lost)
            async with use.client.propose(None, self._token(), route) as stream:
                with suppress(asyncio.InvalidStateError):  # The stream is over already; reading says why.
                    await stream.open(message)
                writer = asyncio.create_task(self._write(stream, backlog))
                proposed = False
                try:
                    while (proposal := await stream.next_proposal()) is not None:
                        use.worked()
                        proposed, self._num_crashes = True, 0
                        await self._transcript.propose(proposal)
                except grpc.aio.AioRpcError:
                    if not proposed and await stream.was_taken():
                        self._num_crashes += 1
                    raise
                finally:
                    writer.cancel()
        finally:
            if self._backlog is backlog:
                self._backlog = None

    @staticmethod
    async def _write(stream: ProposeStream, backlog: Backlog) -> None:
        """Writes commits until the stream breaks; the reader sees the same break and says why."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await stream.commit(await backlog.take())
