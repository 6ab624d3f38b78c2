"""One of several processes that do the same work: whether it lives, when it is tried again, how much it has to do."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Generic, Protocol, TypeAlias, TypeVar

import grpc
from cachetools import LRUCache

from paceline.connecting import problem_of
from paceline.errors import UnavailableError
from services.common.backoff import Backoff
from services.common.incarnation import Incarnations

_log = logging.getLogger(__name__)
_TRIAL_SECONDS = 1.0
"""A use that has lasted as long without failing shows that a replica works, whether or not it has answered."""
_STALE_SECONDS = 10.0
"""A replica that runs something else than is wanted is asked again after as long."""
_NUM_ADAPTERS = 8
"""Adapters that a replica is taken to have loaded: those it was last sent sequences of, as many as slots by default."""


class Client(Protocol):
    """The other end of a service."""

    target: str
    incarnation: str
    """Which process answered last; empty where none has said."""

    async def close(self) -> None:
        """Ends the channel."""


C = TypeVar("C", bound=Client)
I = TypeVar("I")  # noqa: E741
Ask: TypeAlias = Callable[[C], Awaitable[I]]


class State(Enum):
    """What is known of a replica."""

    AWAY = auto()
    """It has not answered yet, or it failed: nobody is sent there."""
    BACK = auto()
    """It failed in use and answers again: one use at a time shows whether it works."""
    LIVING = auto()
    """It can be used."""


class Replica(Generic[C, I]):
    """One replica as all requests of a gateway see it.

    A failure begins a pause. After it the replica is asked once what it is, while nobody waits who has another one to
    go to. When it answers and had failed in use, one use at a time tries it, until one has worked.
    """

    def __init__(
        self,
        kind: str,
        client: C,
        ask: Ask[C, I],
        backoff: Backoff,
        on_change: Callable[[], None],
    ) -> None:
        """`ask` has the replica say what it is, and raises grpc.aio.AioRpcError or UnavailableError when it cannot."""
        self.client = client
        self.info: I | None = None
        """What it said last."""
        self.state = State.AWAY
        self.num_uses = 0
        self.num_failures = 0
        self.heard_at = 0.0
        """When it last gave a sign of life to anybody, by the monotonic clock."""
        self.wants_proposals = False
        """Whether a verifier's latest commit, of any sequence, wanted more; until one has come that is not known."""
        self.adapters: LRUCache[str, bool] = LRUCache(_NUM_ADAPTERS)
        """Digests of adapters that it was last used with."""
        self._name = f"{kind} {client.target}"
        self._ask = ask
        self._backoff = backoff
        self._on_change = on_change
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._incarnations = Incarnations()
        self._tried_at: float | None = None
        """When the use began that tries whether it works."""
        self._failed_in_use = False
        """Whether a use failed since the last one that worked: then it takes more than an answer to be trusted."""

    @property
    def is_there(self) -> bool:
        """Whether it is not known to be away."""
        return self.state is not State.AWAY

    @property
    def is_free(self) -> bool:
        """Whether one more use may begin."""
        if self.state is State.BACK:
            return self._tried_at is None or time.monotonic() >= self._tried_at + _TRIAL_SECONDS
        return self.state is State.LIVING

    def is_free_for(self, suits: Callable[[I], bool]) -> bool:
        """Whether one more use may begin, of something that what it said suits."""
        return self.is_free and self.info is not None and suits(self.info)

    def may_suit(self, suits: Callable[[I], bool]) -> bool:
        """Whether what it said last suits, or it has said nothing yet."""
        return self.info is None or suits(self.info)

    def next_moment(self, *, suits: bool) -> float:
        """When there is something to do about it, though nothing happens to it; infinity where there is not."""
        if self._asking is not None:
            return float("inf")
        if self.state is State.AWAY:
            return self._backoff.until
        if not suits:
            return self._asked_at + _STALE_SECONDS
        if self._tried_at is None or self.is_free:
            return float("inf")
        return self._tried_at + _TRIAL_SECONDS

    def ask_if_due(self, *, suits: bool = True) -> "asyncio.Task[None] | None":
        """Asks what it is when it is away and its pause is over, or when what it said does not suit and is old.

        Returns the task that asks, if one does.
        """
        due = self.state is State.AWAY or not suits
        if due and self._asking is None and time.monotonic() >= self.next_moment(suits=suits):
            return self.ask()
        return self._asking

    def ask(self) -> "asyncio.Task[None]":
        """Asks what it is; who comes meanwhile joins."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._run_ask())
        return self._asking

    async def renew(self) -> None:
        """Returns when it has said anew what it is. Many may wait for one answer, and none ends with another."""
        await asyncio.wait([self.ask()])

    def begin(self) -> int:
        """Counts a use; returns what `end`, `worked` and `failed` take."""
        self.num_uses += 1
        if self.state is State.BACK:
            self._tried_at = time.monotonic()
        return self.num_failures

    def end(self, begun: int) -> None:
        """Ends a use."""
        self.num_uses -= 1
        if begun == self.num_failures and self._tried_at is not None:
            self._tried_at = None
            self._on_change()

    def worked(self, begun: int) -> None:
        """Says that a use got what it wanted."""
        self.heard_at = time.monotonic()
        if begun == self.num_failures and self.state is State.BACK:
            _log.info("%s works again", self._name)
            self.state, self._tried_at, self._failed_in_use = State.LIVING, None, False
            self._backoff.worked()
            self._on_change()

    def failed(self, begun: int, reason: str) -> None:
        """Says that a use failed. Only the first of those that one failure ends counts."""
        if begun == self.num_failures:
            self._failed_in_use = True
            self._pause(reason)

    async def close(self) -> None:
        """Ends the channel."""
        if self._asking is not None:
            self._asking.cancel()
        await self.client.close()

    async def _run_ask(self) -> None:
        begun, self._asked_at = self.num_failures, time.monotonic()
        try:
            self.info = await self._ask(self.client)
        except (grpc.aio.AioRpcError, UnavailableError) as error:
            if begun == self.num_failures:
                self._pause(reason_of(error))
            return
        finally:
            self._asking = None
        if self._incarnations.is_new(self.client.incarnation):
            _log.info("%s was started anew", self._name)
            self._forget()
        if self.state is State.AWAY:
            self.state = State.BACK if self._failed_in_use else State.LIVING
            if self.state is State.LIVING:
                self._backoff.worked()
        self._on_change()

    def _pause(self, reason: str) -> None:
        """Leaves it alone for a while."""
        level = logging.DEBUG
        if self.state is not State.AWAY:
            level = logging.WARNING
        elif not self.num_failures:  # It was never there, which is as it must be for who starts before it.
            level = logging.INFO
        _log.log(level, "%s failed (%s); left alone for %.2f s", self._name, reason, self._backoff.failed())
        self.num_failures += 1
        self.state, self._tried_at = State.AWAY, None
        self._forget()
        self._on_change()

    def _forget(self) -> None:
        """What a process had it has no longer."""
        self.adapters.clear()
        self.wants_proposals = False


def reason_of(error: BaseException) -> str:
    """What an error says, in a line."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return str(error)
    details = error.details() or ""
    problem = problem_of(details)
    return f"{error.code().name}: {details if problem is None else problem.says}"
