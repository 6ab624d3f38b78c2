"""Whether a request may be what its verifiers die of, so that it is not carried from one to the next for ever.

A process that dies takes all of its streams with it, and says nothing of which one it was. What speaks against a
request is that a verifier had taken it and had no token for it yet; what speaks for it is any token. Those that nothing
speaks for are tried one at a time: when a verifier dies again, it is clear of whom.
"""

import asyncio
from contextlib import suppress

from gateway.generation.transcript import Transcript
from paceline.errors import AbortedError
from services.verifier.client import VerifyStream

REASON = "CRASHED_TWICE"
_MAX_CRASHES = 2
_TURN_SECONDS = 10.0
"""How long a request waits for the trial of another. Going on matters more than knowing who it was."""


class Suspicion:
    """What is known of one sequence."""

    def __init__(self, trials: asyncio.Lock, transcript: Transcript) -> None:
        """`trials` is held by the one that is being tried, of all sequences of a model."""
        self._trials = trials
        self._transcript = transcript
        self._is_tried = False
        self._has_token = False

    async def begin(self) -> None:
        """Says that it goes to a verifier. Waits for its turn if anything speaks against it."""
        self._has_token = False
        if self._transcript.num_crashes:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TURN_SECONDS):
                    await self._trials.acquire()
                    self._is_tried = True

    def passed(self) -> None:
        """Says that the verifier had a token for it."""
        self._has_token, self._transcript.num_crashes = True, 0
        self.end()

    async def lost(self, stream: VerifyStream | None) -> None:
        """Says that its verifier is lost. Raises AbortedError when it is the second in turn that had taken it."""
        if stream is None or self._has_token or not await stream.was_taken():
            return
        self._transcript.num_crashes += 1
        if self._transcript.num_crashes >= _MAX_CRASHES:
            raise AbortedError(
                f"{_MAX_CRASHES} verifiers in turn ended with this request before its next token", REASON
            )

    def end(self) -> None:
        """Ends its turn, if it is its."""
        if self._is_tried:
            self._is_tried = False
            self._trials.release()
