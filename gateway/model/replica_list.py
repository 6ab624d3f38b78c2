"""Which replicas of a service there are, which of them can be used now, and when that changes."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Generic

from gateway.model.affinity import Affinity, most_uses, weight
from gateway.model.replica import Ask, C, I, Replica
from services.common.backoff import Backoff

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
        self._replicas = [Replica(kind, client, ask, backoff(), self.note_change) for client in clients]

    def __iter__(self) -> Iterator[Replica[C, I]]:
        return iter(self._replicas)

    def __len__(self) -> int:
        return len(self._replicas)

    def choose(
        self,
        suits: Callable[[I], bool],
        affinity: Affinity,
        *,
        avoid: Collection[Replica[C, I]],
        rather_not: Collection[Replica[C, I]],
    ) -> Replica[C, I] | None:
        """The home of what is asked for, among those that can be used and suit; without a prefix the one with the
        fewest uses. None where there is none.
        """
        usable = [replica for replica in self._replicas if replica.is_free_for(suits) and replica not in avoid]
        if not usable:
            return None
        bound = most_uses(sum(replica.num_uses for replica in usable), len(usable))

        def distance(replica: Replica[C, I]) -> tuple[bool, float, bool, int]:
            if not affinity.prefix:
                return replica in rather_not, replica.num_uses, False, 0
            lacks_adapter = bool(affinity.adapter) and affinity.adapter not in replica.adapters
            # Who loads an adapter is the same for all that begin with it; where it is loaded, prefixes have homes.
            home = weight(replica.client.target, affinity.adapter if lacks_adapter else affinity.prefix)
            return replica in rather_not, replica.num_uses >= bound, lacks_adapter, -home

        return min(usable, key=distance)

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

    def note_change(self) -> None:
        """Has all look who wait for something to change."""
        self._change.set()
        self._change = asyncio.Event()
