"""The engine's thread: commands in through an inbox, events out in one hand-over a step.

The thread builds and owns the engine, its role and every sequence that was opened. Nothing is locked because nothing is
shared: asyncio puts commands (callables) into the inbox, the thread runs them between steps, and what a role emits is
delivered on the event loop in the order in which it was emitted. What may be read from outside is

- `facts`, frozen, once the engine is there;
- `readings`, a copy of what is counted and measured, replaced while steps are made;
- `progress`, how far the engine is loaded, replaced by messages to the event loop;
- `step_began`, a moment or None, replaced before and after each step.

All else is asked for with `ask`.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import abc
from typing import Any, Generic, TypeVar

from services.engine.config import EngineConfig
from services.engine.engine import Engine, EngineFacts
from services.engine.errors import unavailable
from services.engine.halving import raise_if_broken
from services.engine.loading import Phase, Progress
from services.engine.outbox import Outbox
from services.engine.readings import Readings
from services.engine.role import Role
from services.engine.scheduler import Registered

_log = logging.getLogger(__name__)
_LOADING_RETRY_SECONDS = 2.0
_STUCK_SECONDS = 0.005
_READING_SECONDS = 0.25
"""Readings are replaced at most this often while steps are made, and whenever there is nothing to do."""


R = TypeVar("R", bound=Role)
E = TypeVar("E")
T = TypeVar("T")


class EngineLoop(Generic[R]):
    """Runs an engine and its role on a thread of their own. All of its methods belong to the event loop."""

    def __init__(
        self,
        config: EngineConfig,
        make_role: abc.Callable[[Engine, Outbox[E]], R],
        on_registered: abc.Callable[[list[Registered]], None] | None = None,
    ) -> None:
        """`make_role` runs on the thread; `on_registered` is called on the event loop with blocks just computed."""
        loop = asyncio.get_running_loop()
        self.readings: Readings = {}
        self.progress = Progress(Phase.WEIGHTS, 0.0)
        self._cannot_read = False
        self.step_began: float | None = None
        """When the step began that is running; None between steps. By it is seen from outside that a step hangs."""
        self.stopped: asyncio.Future[None] = loop.create_future()
        """Stopped is done when the thread has ended; it carries the error that ended it."""
        self._config = config
        self._make_role = make_role
        self._on_registered = on_registered
        self._loop = loop
        self._outbox: Outbox[Any] = Outbox(loop)
        self._inbox: queue.SimpleQueue[abc.Callable[[R], object] | None] = queue.SimpleQueue()
        self._engine: Engine | None = None
        self._ready: asyncio.Future[EngineFacts] = loop.create_future()
        self._progressed = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether there are facts."""
        return self._ready.done() and not self._ready.cancelled() and self._ready.exception() is None

    async def ready(self) -> EngineFacts:
        """The facts of the engine, once it is built. Raises what building raised."""
        return await asyncio.shield(self._ready)

    @property
    def facts(self) -> EngineFacts:
        """The facts of the engine. Raises UnavailableError while it is being built, or when it could not be."""
        if not self.is_ready:
            raise unavailable("the model is being loaded", _LOADING_RETRY_SECONDS)
        return self._ready.result()

    async def watch_loading(self) -> abc.AsyncIterator[Progress]:
        """How far the engine is loaded, now and whenever that changes, until it is ready. Raises what loading raised.

        Whoever watches slowly is not told of every change, but always of the last.
        """
        while True:
            progressed, progress = self._progressed, self.progress
            yield progress
            if progress.phase is Phase.READY:
                return
            await progressed.wait()
            if self._ready.done():
                await self.ready()

    def submit(
        self, command: abc.Callable[[R], object], on_error: abc.Callable[[Exception], None] | None = None
    ) -> None:
        """Has `command(role)` run on the engine's thread before its next step.

        `on_error` is told on the event loop what went wrong in it; without one it is logged. The engine ends only when
        it has lost something by it.
        """

        def guarded(role: R) -> None:
            try:
                command(role)
            except Exception as error:
                raise_if_broken(error)
                role.engine.check_integrity()
                if on_error is None:
                    _log.exception("a command failed")
                else:
                    self._outbox.put(on_error, error)  # Behind what was emitted before.

        self._inbox.put(guarded)

    def hurry(self) -> None:
        """Has what was submitted not wait for a step in the background."""
        if self._engine is not None:
            self._engine.hurry(True)

    async def ask(self, question: abc.Callable[[R], T]) -> T:
        """What `question(role)` gives, or raises, on the engine's thread before its next step.

        Raises UnavailableError when the engine ends before it has answered.
        """
        answer: asyncio.Future[T] = self._loop.create_future()

        def command(role: R) -> None:
            try:
                result = question(role)
            except Exception as error:  # It is the asker's, whatever else it is.
                self._loop.call_soon_threadsafe(_settle, answer, None, error)
                raise_if_broken(error)
            else:
                self._loop.call_soon_threadsafe(_settle, answer, result, None)

        self._inbox.put(command)
        await asyncio.wait((answer, self.stopped), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise unavailable("the engine has ended")
        return answer.result()

    async def stop(self) -> None:
        """Ends the thread after the step that it is in. Returns when it has ended."""
        self._inbox.put(None)
        await asyncio.wait([self.stopped])
        # A thread that still frees tensors when the interpreter ends would take the process with it.
        await asyncio.to_thread(self._thread.join)
        self._outbox.close()

    def _main(self) -> None:
        call = self._loop.call_soon_threadsafe
        try:
            engine = Engine(self._config, self._report)
            engine.warm_up(self._report)
            role = self._make_role(engine, self._outbox)
        except BaseException as error:
            call(self._could_not_load, error)
            return
        self.readings = {**engine.readings(), **role.readings()}
        self._engine = engine
        call(_settle, self._ready, engine.facts, None)
        self._report(Progress(Phase.READY, 1.0))
        try:
            self._run(role)
        except Exception as error:
            _log.exception("the engine failed")
            role.fail(error)
            self._outbox.flush()
            call(_settle, self.stopped, None, error)
        else:
            self._outbox.flush()
            call(_settle, self.stopped, None, None)

    def _run(self, role: R) -> None:
        engine = role.engine
        stuck = False
        read_at = 0.0
        while self._take_commands(role, stuck=stuck):
            num_steps = engine.num_steps
            self.step_began = time.monotonic()
            results = engine.step(self._outbox.bell)
            stuck = engine.num_steps == num_steps
            failures = engine.take_failures()
            if not (stuck or failures):  # Else it may have ended before it rang.
                self._outbox.told()
            for sequence, error in failures:
                _log.error("a sequence of %d tokens cannot be computed", len(sequence), exc_info=error)
                role.end(sequence, error)
            role.advance(results)
            self.step_began = None  # What follows a step may be steps of a draft in this process.
            self._hand_over(role)
            if (now := time.monotonic()) > read_at + _READING_SECONDS:
                read_at = now
                self._read(role)

    def _take_commands(self, role: R, *, stuck: bool) -> bool:
        """Runs all commands there are; waits for one while nothing is runnable. False when told to stop.

        `stuck` says that what is runnable could not be run, for want of blocks that others still hold.
        """
        scheduler = role.engine.scheduler
        while True:
            role.engine.hurry(False)  # What is said from here on may be of a command that is not taken here.
            if not self._drain(role):
                return False
            now = time.monotonic()
            role.prepare(now)
            wait = scheduler.seconds_until_runnable(now)
            if stuck and wait is not None:
                wait = max(wait, _STUCK_SECONDS)
            if wait == 0:
                return True
            if wait is None:
                self._read(role)
            self._outbox.flush()
            try:
                command = self._inbox.get(timeout=wait)
            except queue.Empty:
                stuck = False
                continue
            if command is None:
                return False
            command(role)
            stuck = False

    def _drain(self, role: R) -> bool:
        """Runs the commands that are there, and hands over what they emitted. False when told to stop.

        What was emitted before does not wait for them.
        """
        try:
            while (command := self._inbox.get_nowait()) is not None:
                self._outbox.flush()
                command(role)
        except queue.Empty:
            self._hand_over(role)
            return True
        return False

    def _hand_over(self, role: R) -> None:
        """Hands over all events, and the blocks that were computed: at once or, where nobody waits for them, when the
        next step has begun or there is none.
        """
        registered = role.engine.scheduler.registered
        if registered and self._on_registered is not None:
            self._outbox.put(self._on_registered, list(registered))
            registered.clear()
        if role.is_awaited:
            self._outbox.flush()

    def _read(self, role: R) -> None:
        """Replaces the readings. What is told of steps must not end them: where that fails, older ones stay."""
        try:
            self.readings = {**role.engine.readings(), **role.readings()}
        except Exception:
            if not self._cannot_read:
                _log.exception("what is counted and measured cannot be read")
            self._cannot_read = True

    def _report(self, progress: Progress) -> None:
        self._loop.call_soon_threadsafe(self._progress, progress)

    def _progress(self, progress: Progress) -> None:
        self.progress = progress
        self._progressed.set()
        self._progressed = asyncio.Event()

    def _could_not_load(self, error: BaseException) -> None:
        _settle(self._ready, None, error)
        self._progressed.set()
        _settle(self.stopped, None, error)


def _settle(future: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
        future.exception()  # Seen: whoever awaits it gets it again.
