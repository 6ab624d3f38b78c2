"""The replicas of one service, as all of a gateway uses them: verifiers, drafts, prefix caches, adapter stores."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc

from gateway.model.affinity import NONE, Affinity
from gateway.model.attempts import Attempts, LostError
from gateway.model.replica import Ask, C, I, Replica
from gateway.model.replica_list import ReplicaList, anything, pauses
from gateway.model.retry_budget import RetryBudget
from paceline.errors import UnavailableError
from paceline.tls import Tls
from services.common.backoff import Backoff
from services.common.channel import open_channel

T = TypeVar("T")
_CALL_SECONDS = 1.0
"""How long a call looks for a replica when none lives."""
_RETRY_AFTER_SECONDS = 1.0


class Replicas(ReplicaList[C, I]):
    """Replicas of one service. A dead one is tried once in all a pause, whoever asks."""

    @classmethod
    def connect(
        cls,
        kind: str,
        targets: Sequence[str],
        make: Callable[[str, grpc.aio.Channel], C],
        ask: Ask[C, I],
        backoff: Callable[[], Backoff] = pauses,
        tls: Tls | None = None,
    ) -> "Replicas[C, I]":
        """The replicas at these gRPC targets. Raises TlsError for files with which nothing can be encrypted."""
        return cls(kind, [make(target, open_channel(target, tls=tls)) for target in targets], ask, backoff)

    async def ready(self) -> None:
        """Waits until one can be used."""
        while not any(replica.is_free for replica in self):
            self.ask_those_due()
            await self.changed()

    async def look(self) -> None:
        """Asks those that are due, and returns when they have answered."""
        if asking := self.ask_those_due():
            await asyncio.wait(asking)

    def attempts(
        self,
        seconds: float,
        suits: Callable[[I], bool] = anything,
        affinity: Affinity = NONE,
        budget: RetryBudget | None = None,
    ) -> Attempts[C, I]:
        """A request's way over the replicas; it looks for one for so many seconds while none can be used.

        `suits` says by what a replica says of itself whether it can be used. Requests of one `affinity` go to one
        replica, while that has no more than its share to do. Who tries again does so within the `budget`, if there is
        one.
        """
        return Attempts(self, seconds, suits, affinity, budget)

    async def call(
        self,
        ask: Callable[[C], Awaitable[T]],
        *,
        suits: Callable[[I], bool] = anything,
        affinity: Affinity = NONE,
        may_repeat: Callable[[], bool] = lambda: True,
    ) -> T:
        """What a replica answers; another one is asked when one is lost, unless `may_repeat` says no.

        Raises UnavailableError when none could be reached, NoneSuitsError when none suits, grpc.aio.AioRpcError for
        what one refuses.
        """
        attempts = self.attempts(_CALL_SECONDS, suits, affinity)
        while True:
            try:
                async with attempts.another() as use:
                    answer = await ask(use.client)
                    use.worked()
                    return answer
            except LostError as error:
                if not may_repeat():
                    description = f"the {self.kind} was lost half way ({error}); try again"
                    raise UnavailableError(description, _RETRY_AFTER_SECONDS) from error

    async def call_each(self, ask: Callable[[C], Awaitable[T]]) -> list[T]:
        """What all that can be reached answer. Raises UnavailableError when there are none."""
        await self.look()
        lost: list[LostError] = []
        answers = await asyncio.gather(*(self._call_one(replica, ask, lost) for replica in self if replica.is_free))
        found = [answer for answers_of_one in answers for answer in answers_of_one]
        if not found:
            reason = f" ({lost[0]})" if lost else ""
            raise UnavailableError(f"no {self.kind} could be reached{reason}", _RETRY_AFTER_SECONDS)
        return found

    async def _call_one(
        self, replica: Replica[C, I], ask: Callable[[C], Awaitable[T]], lost: list[LostError]
    ) -> list[T]:
        try:
            async with self.attempts(0).use(replica) as use:
                answer = await ask(use.client)
                use.worked()
                return [answer]
        except LostError as error:
            lost.append(error)
            return []
