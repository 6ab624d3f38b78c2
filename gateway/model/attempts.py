"""One request's way over the replicas of a service: who was met, who comes next, and when to give up."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic

import grpc

from gateway.model.affinity import Affinity
from gateway.model.replica import C, I, Replica, reason_of
from gateway.model.replica_list import ReplicaList
from gateway.model.retry_budget import RetryBudget
from paceline.errors import UnavailableError, has_details
from paceline.sent import WRITTEN_TOO_LATE
from services.common.backoff import Backoff

_RETRY_AFTER_SECONDS = 1.0
_LOST = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
"""Statuses of a replica that is gone or going, or hangs. All others are its answer to the request."""
_GOES_ON_ELSEWHERE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL})
"""Statuses with which a living replica says that it cannot do it, where another may."""


class LostError(Exception):
    """A replica could not do what was asked of it, and another one may."""


class NoneSuitsError(Exception):
    """No replica is what is wanted, and none that is away was when it was last heard of."""


class Attempts(Generic[C, I]):
    """The attempts of one request, which goes to each newly dead replica once at most while another one lives."""

    def __init__(
        self,
        replicas: ReplicaList[C, I],
        seconds: float,
        suits: Callable[[I], bool],
        affinity: Affinity,
        budget: RetryBudget | None = None,
    ) -> None:
        """Who tries again does so within the `budget`, if there is one."""
        self._replicas = replicas
        self._seconds = seconds
        self._suits = suits
        self._affinity = affinity
        self._budget = budget
        self._tries_again_at: Replica[C, I] | None = None
        """Where it has taken of the budget."""
        self._give_up: float | None = None
        self._met: dict[Replica[C, I], Backoff] = {}
        """Replicas that failed this request since it last got on, and when it may go there again."""
        self._reason = "none has answered yet"

    @asynccontextmanager
    async def another(self) -> AsyncIterator["Use[C, I]"]:
        """A replica to use as `use` has it: the best of those that were not met, as soon as there is one.

        Raises UnavailableError when there was none for too long, NoneSuitsError when there is none to wait for.
        """
        try:
            async with self.use(await self._take()) as use:
                yield use
        finally:
            self._give_back()

    @asynccontextmanager
    async def use(self, replica: Replica[C, I]) -> AsyncIterator["Use[C, I]"]:
        """One use of this replica.

        In the block grpc.aio.AioRpcError, asyncio.InvalidStateError and LostError are taken as said by the replica:
        when they mean that it is lost, LostError is raised in their place.
        """
        use = Use(replica, self)
        if self._affinity.adapter:
            replica.adapters[self._affinity.adapter] = True
        try:
            yield use
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, LostError) as error:
            if is_answer(error):
                use.answered()
                raise
            use.lost(error)
            raise LostError(self._reason) from error
        finally:
            use.end()

    def choose(self) -> Replica[C, I] | None:
        """The best replica that can be used now, and may by this request."""
        rested = {replica for replica, pause in self._met.items() if not pause.is_off}
        return self._replicas.choose(self._suits, self._affinity, avoid=self._met.keys() - rested, rather_not=rested)

    def meet(self, replica: Replica[C, I], reason: str) -> None:
        """Has this request go elsewhere, if it can."""
        self._reason = reason
        self._met.setdefault(replica, self._replicas.backoff()).failed()

    def got_on(self) -> None:
        """Forgets what was: the request is being served."""
        if self._met or self._give_up is not None:
            self._met.clear()
            self._give_up = None
            self._give_back()

    def has_another(self) -> bool:
        """Whether there is one to go to that was not met."""
        chosen = self.choose()
        return chosen is not None and chosen not in self._met

    def has_other_than(self, replica: Replica[C, I]) -> bool:
        """Whether there is one to go to besides this one. Those that are due are asked."""
        self._replicas.ask_those_due(self._suits)
        avoid = {replica, *self._met}
        return self._replicas.choose(self._suits, self._affinity, avoid=avoid, rather_not=()) is not None

    async def _take(self) -> Replica[C, I]:
        while True:
            self._replicas.ask_those_due(self._suits)
            chosen = self.choose()
            now, until = time.monotonic(), float("inf") if self._give_up is None else self._give_up
            if chosen is not None and now < until and not self._may_try(chosen):
                await self._replicas.changed(self._suits, until)
                continue
            if chosen is not None and chosen not in self._met:
                return chosen
            if self._give_up is None:
                self._give_up = now + self._seconds
            if not self._replicas.may_come(self._suits):
                raise NoneSuitsError(self._reason)
            if now >= self._give_up:
                kind = self._replicas.kind
                raise UnavailableError(f"no {kind} could be reached ({self._reason})", _RETRY_AFTER_SECONDS)
            if chosen is not None:
                return chosen
            own = min((pause.until for pause in self._met.values() if pause.is_off), default=self._give_up)
            await self._replicas.changed(self._suits, min(own, self._give_up))

    def _may_try(self, replica: Replica[C, I]) -> bool:
        """Whether it may go to a replica now; who tries again takes of the budget for it."""
        if not self._met or self._budget is None:
            return True
        if self._budget.take(replica):
            self._tries_again_at = replica
        return self._tries_again_at is not None

    def _give_back(self) -> None:
        if self._tries_again_at is not None and self._budget is not None:
            self._budget.give_back(self._tries_again_at)
            self._tries_again_at = None


class Use(Generic[C, I]):
    """One use of one replica by one request."""

    def __init__(self, replica: Replica[C, I], attempts: Attempts[C, I]) -> None:
        self.replica = replica
        self.client = replica.client
        self._attempts = attempts
        self._begun = replica.begin()
        self.has_worked = False

    def worked(self) -> None:
        """Says that the replica does what it is asked for."""
        self.has_worked = True
        self._attempts.got_on()
        self.answered()

    def answered(self) -> None:
        """Says that the replica lives, though it may not do what it was asked for."""
        self.replica.worked(self._begun)

    def refused(self, reason: str) -> None:
        """Has the request go elsewhere, if it can, though the replica works."""
        self._attempts.meet(self.replica, reason)

    def lost(self, error: BaseException) -> None:
        """Takes an error as the end of this use, and of the replica where it says nothing else."""
        reason = reason_of(error)
        self._attempts.meet(self.replica, reason)
        if isinstance(error, grpc.aio.AioRpcError) and has_details(error):
            self.answered()
        elif not (isinstance(error, grpc.aio.AioRpcError) and error.details() == WRITTEN_TOO_LATE):
            self.replica.failed(self._begun, reason)

    def end(self) -> None:
        """Ends the use."""
        self.replica.end(self._begun)


def is_answer(error: BaseException) -> bool:
    """Whether an error is what a replica answers to the request, wherever it is asked."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return False
    return error.code() not in (_GOES_ON_ELSEWHERE if has_details(error) else _LOST)
