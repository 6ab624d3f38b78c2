"""Runs items of batches on what interactive requests leave idle, in every gateway that shares the database."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from gateway.batch.acceptance import Acceptance
from gateway.batch.batches import Batches
from gateway.batch.execution import Execution
from gateway.batch.leases import Ended, Item, Later, Leases
from gateway.batch.states import END_OF, ItemState
from paceline.errors import UnavailableError
from services.common.backoff import Backoff

_log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0
_GATHER_SECONDS = 0.05
"""Items that end within so long are recorded together, and others taken in their places together: transactions cost the
cores that models run on."""
_SWEEP_SECONDS = 1.0
_LAST_SECONDS = 5.0


class Worker:
    """One gateway's share of the work.

    It runs `most` items at once, in the background: verifiers give them what others leave idle.
    """

    def __init__(
        self,
        leases: Leases,
        batches: Batches,
        acceptance: Acceptance,
        execution: Execution,
        most: int,
        keep_seconds: float,
    ) -> None:
        self._leases = leases
        self._batches = batches
        self._acceptance = acceptance
        self._execution = execution
        self._most = most
        self._keep_seconds = keep_seconds
        self._running: dict[str, tuple[Item, asyncio.Task[None]]] = {}
        """By lease."""
        self._stopping: dict[str, ItemState] = {}
        """How items end whose batch is being stopped, by lease."""
        self._ended: list[Ended] = []
        self._has_ended = asyncio.Event()
        self._wake = asyncio.Event()
        self._prolonged_at = 0.0

    def wake(self) -> None:
        """Says that there may be something to do."""
        self._wake.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Works while the block lasts; then gives back what it has not done."""
        works = (self._claim, self._watch, self._sweep, self._record)
        tasks = [asyncio.create_task(_again_and_again(work)) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._give_back()

    async def _claim(self) -> None:
        """Takes items for the room there is."""
        # What cannot be recorded for now holds places too, so that there is never more of it than that.
        room = min(self._most, 2 * self._most - len(self._ended)) - len(self._running)
        claimed = await self._leases.claim(room) if room > 0 else []
        for item in claimed:
            task = asyncio.create_task(self._run(item))
            self._running[item.lease] = (item, task)
            task.add_done_callback(partial(self._over, item.lease))
        if not claimed or len(claimed) < room:
            self._wake.clear()
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                return
            await asyncio.sleep(_GATHER_SECONDS)

    async def _run(self, item: Item) -> None:
        ended = await self._execution.run(item, lambda: self._stopping.get(item.lease))
        if isinstance(ended, Later):
            await self._release({item: ended})
        else:
            self._ended.append(ended)
            self._has_ended.set()

    def _over(self, lease: str, _task: "asyncio.Task[None]") -> None:
        """Lets go of a lease, also where its task ended before it began."""
        del self._running[lease]
        self._stopping.pop(lease, None)
        self._wake.set()

    async def _release(self, items: dict[Item, Later]) -> None:
        """Gives items back; where that fails their leases run out."""
        try:
            await self._leases.release(items)
        except UnavailableError as error:
            _log.warning("%d items are given back when their leases run out: %s", len(items), error)

    async def _record(self) -> None:
        """Records what has ended, all of it in one transaction."""
        await self._has_ended.wait()
        if self._running:
            await asyncio.sleep(_GATHER_SECONDS)
        ended = list(self._ended)
        num_kept = await self._leases.record(ended)
        if num_kept < len(ended):
            _log.info("%d items ended that others had been given", len(ended) - num_kept)
        del self._ended[: len(ended)]
        if not self._ended:
            self._has_ended.clear()
        self._wake.set()

    async def _watch(self) -> None:
        """Prolongs leases, and stops what others were given or whose batch is being stopped."""
        await asyncio.sleep(min(_POLL_SECONDS, self._leases.seconds / 4))
        before, ended = dict(self._running), [each.item.lease for each in self._ended]
        if not before and not ended:
            return
        now = asyncio.get_running_loop().time()
        prolong = now >= self._prolonged_at + self._leases.seconds / 3
        states = await self._leases.renew([*before, *ended], prolong=prolong)
        if prolong:
            self._prolonged_at = now
        for lease, (_, task) in before.items():
            if lease in states and states[lease] not in END_OF:
                continue
            if lease in states:
                self._stopping[lease] = END_OF[states[lease]][0]
            if not task.cancelling():  # Once is enough: what ends must not be kept from closing its streams.
                task.cancel()

    async def _sweep(self) -> None:
        await self._leases.sweep()
        await self._acceptance.drop_abandoned()
        await self._batches.drop_old(self._keep_seconds)
        await asyncio.sleep(_SWEEP_SECONDS)

    async def _give_back(self) -> None:
        """Ends what runs, gives it back, and records what has ended."""
        running = list(self._running.values())
        for _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                if self._ended:
                    await self._leases.record(self._ended)
                if running:
                    await self._release({item: Later(0, item.num_crashes) for item, _ in running})
        except (TimeoutError, UnavailableError):
            _log.warning("%d items were not recorded and are run again", len(self._ended))


async def _again_and_again(work: Callable[[], Awaitable[None]]) -> None:
    """Does it for as long as it is let; what the database cannot do for now it does later."""
    backoff = Backoff(0.1, 5.0)
    while True:
        try:
            await work()
            backoff.worked()
        except UnavailableError:
            await asyncio.sleep(backoff.failed())
        except Exception:
            _log.exception("batches are not worked on for a moment")
            await asyncio.sleep(backoff.failed() + _POLL_SECONDS)
