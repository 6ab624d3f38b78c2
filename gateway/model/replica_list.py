"""Which replicas of a service there are, which of them can be used now, and when that changes."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Generic

from cachetools import LRUCache

from gateway.model.replica import Ask, C, I, Replica
from services.common.backoff import Backoff

_MAX_REMEMBERED = 4096
_FIRST_PAUSE = 0.1
_MAX_PAUSE = 2.0


def pauses() -> Backoff:
    """How long a replica that failed is left alone, where nobody says otherwise."""
    return Backoff(_FIRST_PAUSE, _MAX_PAUSE)


def anything(_: object) -> bool:
    """Suits whatever a replica says of itself."""
    return True


class ReplicaList(Generic[C, I]):
    """All replicas of one service."""

    def __init__(
        self, kind: str, clients: Sequence[C], ask: Ask[C, I], backoff: Callable[[], Backoff] = pauses
    ) -> None:
        """`kind` is what errors and logs call a replica; `backoff` makes the pauses of each; see Replica for `ask`."""
        self.kind = kind
        self.backoff = backoff
        self._change = asyncio.Event()
        self._replicas = [Replica(kind, client, ask, backoff(), self._note_change) for client in clients]
        self._last_with: LRUCache[str, Replica[C, I]] = LRUCache(_MAX_REMEMBERED)
        """Where a use with an affinity went last."""

    def __iter__(self) -> Iterator[Replica[C, I]]:
        return iter(self._replicas)

    def __len__(self) -> int:
        return len(self._replicas)

    def choose(
        self,
        suits: Callable[[I], bool],
        affinity: str,
        *,
        avoid: Collection[Replica[C, I]],
        rather_not: Collection[Replica[C, I]],
    ) -> Replica[C, I] | None:
        """The one with the fewest uses of those that can be used and suit; None where there is none."""
        last = self._last_with.get(affinity)
        chosen = min(
            (replica for replica in self._replicas if replica.is_free_for(suits) and replica not in avoid),
            key=lambda replica: (replica in rather_not, replica.num_uses, replica is not last),
            default=None,
        )
        if chosen is not None and affinity:
            self._last_with[affinity] = chosen
        return chosen

    def may_come(self, suits: Callable[[I], bool]) -> bool:
        """Whether there is one that suits or may turn out to."""
        return any(replica.may_suit(suits) for replica in self._replicas)

    def ask_those_due(self, suits: Callable[[I], bool] = anything) -> "list[asyncio.Task[None]]":
        """Has those that are due say what they are; returns the tasks that ask."""
        asking = [replica.ask_if_due(suits=replica.may_suit(suits)) for replica in self._replicas]
        return [task for task in asking if task is not None]

    async def changed(self, suits: Callable[[I], bool] = anything, until: float = float("inf")) -> None:
        """Returns when something happened to a replica, when there is something to do about one, or at `until`."""
        moments = [replica.next_moment(suits=replica.may_suit(suits)) for replica in self._replicas]
        left = min([until, *moments]) - time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(None if left == float("inf") else max(0.0, left)):
                await self._change.wait()

    async def close(self) -> None:
        """Ends all channels."""
        for replica in self._replicas:
            await replica.close()

    def _note_change(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
