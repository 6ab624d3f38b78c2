"""One text of a request: commits in, deltas out, until an end-of-sequence token, a stop string or the limit."""

from collections.abc import AsyncIterator

from gateway.generation.relay import Relay
from gateway.generation.stop_strings import StopStrings
from gateway.model.detokenizer import Detokenizer
from paceline.internal.v1 import speculation_pb2
from paceline.v1 import inference_pb2, sampling_pb2


class Choice:
    """Turns the commits of a relay into events and counts what they cost.

    A text that ends with a stop string is cut before it; its token ids go up to the one that completed the stop string.
    """

    def __init__(self, index: int, relay: Relay, detokenizer: Detokenizer, stops: StopStrings, *, watch: bool) -> None:
        self._index = index
        self._relay = relay
        self._detokenizer = detokenizer
        self._stops = stops
        self._watch = watch
        """Whether there are stop strings, so that tokens are looked at one by one."""
        self.usage = inference_pb2.Usage()

    async def events(self) -> AsyncIterator[inference_pb2.Delta | inference_pb2.Finished]:
        """Yields deltas, then one Finished."""
        async for commit in self._relay.commits():
            self._count(commit)
            delta, reason = self._take(commit)
            if reason:
                tail = self._stops.flush() if reason != sampling_pb2.FINISH_REASON_STOP else ""
                delta.text += tail
            yield delta
            if reason:
                yield inference_pb2.Finished(choice=self._index, finish_reason=reason)
                return

    def _take(
        self, commit: speculation_pb2.Commit
    ) -> tuple[inference_pb2.Delta, "sampling_pb2.FinishReason.ValueType"]:
        """The delta of a commit, and why the text ends with it, if it does."""
        delta = inference_pb2.Delta(choice=self._index)
        step = 1 if self._watch else max(1, len(commit.token_ids))
        for start in range(0, len(commit.token_ids), step):
            token_ids = commit.token_ids[start : start + step]
            text = self._detokenizer.push(token_ids)
            if commit.finish_reason and start + step >= len(commit.token_ids):
                text += self._detokenizer.flush()
            passed = self._stops.push(text)
            delta.text += passed.text
            delta.token_ids.extend(token_ids)
            delta.logprobs.extend(commit.logprobs[start : start + step])
            if passed.stopped:
                self.usage.num_completion_tokens += len(delta.token_ids)
                return delta, sampling_pb2.FINISH_REASON_STOP
        self.usage.num_completion_tokens += len(delta.token_ids)
        return delta, commit.finish_reason

    def _count(self, commit: speculation_pb2.Commit) -> None:
        self.usage.num_rounds += 1
        self.usage.num_ready_rounds += commit.was_ready
        self.usage.num_drafted_tokens += commit.num_drafted
        self.usage.num_accepted_tokens += commit.num_accepted
        if not self.usage.num_cached_tokens:
            self.usage.num_cached_tokens = commit.num_cached_tokens
