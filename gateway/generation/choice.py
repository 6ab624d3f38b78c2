"""One text of a request: commits in, deltas out, until an end-of-sequence token, a stop string or the limit."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from itertools import pairwise

from gateway.generation.relay import Relay
from gateway.generation.resumption import Received
from gateway.generation.stop_strings import Passed, StopStrings
from gateway.model.detokenizer import Detokenizer
from paceline.errors import InvalidArgumentError
from paceline.internal.v1 import speculation_pb2
from paceline.v1 import inference_pb2, sampling_pb2

_STOP = sampling_pb2.FINISH_REASON_STOP


class Choice:
    """Turns commits into events and counts what they cost.

    A text that ends with a stop string is cut before it; its token ids go up to the one that completed the stop string.
    """

    def __init__(self, index: int, detokenizer: Detokenizer, stops: StopStrings, min_tokens: int = 0) -> None:
        """Stop strings are looked for behind the first `min_tokens` tokens."""
        self._index = index
        self._detokenizer = detokenizer
        self._stops = stops
        self._min_tokens = min_tokens
        self.usage = inference_pb2.Usage()
        self._is_first_round = True

    async def events(
        self, relay: Relay, received: Received | None = None
    ) -> AsyncIterator[inference_pb2.Delta | inference_pb2.Finished]:
        """Yields deltas, then one Finished. Ending the iterator ends the relay's streams.

        Goes on behind what was `received`, where another gateway began it.
        """
        if received is not None and (reason := self._catch_up(received)):
            yield inference_pb2.Finished(choice=self._index, finish_reason=reason)
            return
        async with aclosing(relay.commits()) as commits:  # type: ignore[type-var]
            async for commit in commits:
                self._count(commit)
                delta, reason = self._take(commit)
                yield delta
                if reason:
                    yield inference_pb2.Finished(choice=self._index, finish_reason=reason)
                    return

    def _catch_up(self, received: Received) -> "sampling_pb2.FinishReason.ValueType":
        """Brings the text to where its client has it; returns why it ended there, if it did.

        Raises InvalidArgumentError where nobody can have received as much.
        """
        commit = speculation_pb2.Commit(token_ids=received.token_ids, finish_reason=received.finish_reason)
        _, reason = self._take(commit)
        num_taken = self.usage.num_completion_tokens
        self.usage.CopyFrom(received.usage)
        if num_taken < len(received.token_ids):
            place = f"resume.choices[{self._index}].token_ids"
            raise InvalidArgumentError(place, f"the text ends behind {num_taken} of them, with a stop string")
        return reason

    def _take(
        self, commit: speculation_pb2.Commit
    ) -> tuple[inference_pb2.Delta, "sampling_pb2.FinishReason.ValueType"]:
        """The delta of a commit, and why the text ends with it, if it does."""
        delta = inference_pb2.Delta(choice=self._index, num_drafted_tokens=commit.num_drafted)
        for start, end in self._pieces(commit):
            token_ids = commit.token_ids[start:end]
            delta.token_ids.extend(token_ids)
            delta.logprobs.extend(commit.logprobs[start:end])
            self.usage.num_completion_tokens += len(token_ids)
            is_last = commit.finish_reason != 0 and end == len(commit.token_ids)
            # A token that was to end the text is no part of it.
            shown = token_ids[:-1] if is_last and commit.finish_reason == _STOP else token_ids
            text = self._detokenizer.push(shown) + (self._detokenizer.flush() if is_last else "")
            is_long_enough = self.usage.num_completion_tokens >= self._min_tokens
            passed = self._stops.push(text) if is_long_enough else Passed(text, stopped=False)
            delta.text += passed.text
            if start < commit.num_accepted:
                delta.num_accepted_tokens, delta.num_accepted_characters = len(delta.token_ids), len(delta.text)
            if passed.stopped:
                return delta, _STOP
        if commit.finish_reason:
            delta.text += self._stops.flush()
        return delta, commit.finish_reason

    def _pieces(self, commit: speculation_pb2.Commit) -> Iterator[tuple[int, int]]:
        """From where to where its tokens are turned into text at once: accepted ones, then the target's own.

        Where there are stop strings, tokens are looked at one by one.
        """
        count = len(commit.token_ids)
        ends = range(1, count + 1) if self._stops else sorted({min(commit.num_accepted, count), count} - {0})
        return pairwise([0, *ends])

    def _count(self, commit: speculation_pb2.Commit) -> None:
        self.usage.num_rounds += 1
        self.usage.num_ready_rounds += commit.was_ready
        self.usage.num_drafted_tokens += commit.num_drafted
        self.usage.num_accepted_tokens += commit.num_accepted
        if self._is_first_round:  # What another verifier finds later this request has computed itself.
            self.usage.num_cached_tokens = commit.num_cached_tokens
        self._is_first_round = False
