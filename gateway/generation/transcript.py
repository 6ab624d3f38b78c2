"""A sequence as it stands: how it began and what was produced since. What relay and drafting share of it."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc

from gateway.model.affinity import Affinity
from gateway.model.served_model import DraftBeside
from paceline.internal.v1 import speculation_pb2
from services.verifier.client import VerifyStream


class Transcript:
    """One sequence, whoever serves it now."""

    def __init__(
        self, opening: speculation_pb2.Open, draft_adapter: str, num_crashes: int = 0, prefix: str = ""
    ) -> None:
        """`draft_adapter` is the digest of the draft's adapter, or empty; see prefix_key for `prefix`."""
        self.opening = opening
        self.num_failovers = 0
        """How often it had to be opened again."""
        self.num_crashes = num_crashes
        """Verifiers in turn that ended with it before its next token."""
        self.num_wanted: int | None = None
        """Proposed tokens that the verifier would take in its next round; None until it has said so."""
        self.num_dropped = 0
        """Proposals that came between two verifiers."""
        self.verifiers: set[str] = set()
        """Targets of the verifiers that it was opened at."""
        self._draft_adapter = draft_adapter
        self._prefix = prefix
        self._produced: list[int] = []
        self._was_begun_elsewhere = False
        self._verifier: VerifyStream | None = None

    @property
    def produced(self) -> Sequence[int]:
        """The tokens behind its prompt."""
        return self._produced

    @property
    def has_begun(self) -> bool:
        """Whether anything was produced, here or elsewhere, so that another revision cannot go on with it."""
        return self._was_begun_elsewhere or bool(self._produced)

    @property
    def affinity(self) -> Affinity:
        """Which verifier is its home."""
        return Affinity(self._prefix, self.opening.adapter_digest)

    @property
    def draft_affinity(self) -> Affinity:
        """Which draft is its home."""
        return Affinity(self._prefix, self._draft_adapter)

    def go_on_behind(self, token_ids: Sequence[int]) -> None:
        """Goes on where another gateway was."""
        self._produced.extend(token_ids)
        self._was_begun_elsewhere = True

    def add(self, commit: speculation_pb2.Commit) -> None:
        """Takes what the target decided."""
        self._produced.extend(commit.token_ids)
        self.num_wanted = commit.num_wanted

    def open_message(self, revision: str, draft: DraftBeside | None = None) -> speculation_pb2.Open:
        """Opens the sequence at a verifier of this revision, with all tokens so far; this draft stands beside it."""
        message = speculation_pb2.Open()
        message.CopyFrom(self.opening)
        message.token_ids.extend(self._produced)
        message.revision_digest = self.opening.revision_digest = revision
        if draft is not None:
            message.draft_revision_digest, message.draft_is_apart = draft
        return message

    def draft_message(self, *, with_adapter: bool) -> speculation_pb2.Open:
        """Opens it at a draft, which has revisions and adapters of its own."""
        message = self.open_message(self.opening.revision_digest)
        message.revision_digest = ""
        if self.num_wanted is not None:
            message.num_wanted = self.num_wanted
        message.adapter_digest = self._draft_adapter if with_adapter else ""
        return message

    @contextmanager
    def verified_by(self, stream: VerifyStream) -> Iterator[None]:
        """Has proposals go to this stream while the block lasts."""
        self._verifier = stream
        try:
            yield
        finally:
            self._verifier = None

    async def propose(self, proposal: speculation_pb2.Proposal) -> None:
        """Passes a proposal on to the verifier of the moment; one that comes between two is dropped."""
        try:
            if self._verifier is not None:
                await self._verifier.propose(proposal)
                return
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        except asyncio.CancelledError:  # The stream was, or whoever proposes.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        self.num_dropped += 1
