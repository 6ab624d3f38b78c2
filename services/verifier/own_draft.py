"""A draft in the verifier's own process: where both have the same cores, a process between them only costs.

It is the draft service's role with no messages around it. Behind a step of the target it follows what was decided, and
makes its proposals at once, for all sequences together: every core is the draft's then, and the target's otherwise. It
is only ever help: a text that it cannot follow goes on without proposals.
"""

import logging
from collections import abc
from dataclasses import replace
from typing import Any

from services.common.checkpoint import CheckpointError
from services.common.vocabulary import problem_of
from services.draft.draft_role import DraftRole
from services.draft.draft_sequence import NEVER, DraftSequence, Event
from services.draft.fitting import fit_params
from services.draft.path import Proposed
from services.engine.config import EngineConfig
from services.engine.engine import Engine
from services.engine.outbox import Outbox
from services.engine.readings import Readings
from services.engine.sequence import Sequence
from services.verifier.target_sequence import TargetSequence

_log = logging.getLogger(__name__)
DRAFT_STEP_SECONDS = "draft_step_seconds"
"""Name of the readings that say how long its steps take."""
_MAX_STEP_TOKENS = 256
"""The target waits for as many tokens of texts that the draft does not know yet, once a round."""
_NEAR = 32
"""Of a text that it knows it is no more tokens behind."""
_MAX_HELD = 64
"""A text that is so far ahead of the draft, since nothing is wanted for it, is let go: it holds memory for others."""


class _AtOnce:
    """Delivers what the role emits on the thread that they share."""

    def put(self, deliver: abc.Callable[[Any], None], event: Any) -> None:
        """Calls `deliver(event)`."""
        deliver(event)


class OwnDraft:
    """Belongs to the engine's thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.digest = f"{engine.facts.description.revision_digest}:own"
        """By which it is known what it gains: the same draft as a service gains less. Empty once it has failed."""
        self._role = DraftRole(engine, _AtOnce(), max_branches=0)  # type: ignore[arg-type]
        self._drafts: dict[TargetSequence, DraftSequence | None] = {}
        """None: there is nothing to propose for this text any more."""
        self._proposed: list[tuple[TargetSequence, Proposed]] = []

    @classmethod
    def load(cls, config: EngineConfig, engine: Engine) -> "OwnDraft":
        """The draft of this configuration for the model of an engine. Raises CheckpointError where it is of no use."""
        # Blocks are as long as the target's: a sequence's roots say which of them others share.
        given: dict[str, Any] = {"is_draft": True, "max_adapters": 0, "block_size": engine.config.block_size}
        given |= {"num_threads": engine.config.num_threads}
        given |= {"max_step_tokens": min(config.max_step_tokens, _MAX_STEP_TOKENS)}
        own = Engine(config.model_copy(update=given))
        if problem := problem_of(f"the draft {config.model}", own.facts.description, engine.facts.description):
            raise CheckpointError(problem)
        own.warm_up()
        return cls(own)

    def readings(self) -> Readings:
        """What a step of it takes, by rows."""
        return {DRAFT_STEP_SECONDS: self.engine.readings()["step_seconds"]}

    def close(self, target: TargetSequence) -> None:
        """Lets a sequence go."""
        if (draft := self._drafts.pop(target, None)) is not None:
            self._role.close(draft)

    def run(
        self, targets: abc.Collection[TargetSequence], outbox: Outbox[Any]
    ) -> list[tuple[TargetSequence, Proposed]]:
        """Makes the proposals that sequences want, so that none waits for any; what the outbox holds is handed over
        meanwhile.
        """
        self._proposed = []
        try:
            if self.digest:
                self._run(targets, outbox)
        except Exception:
            _log.exception("the draft in this process has failed: it proposes nothing any more")
            self.digest = ""
            self._drafts.clear()
        for target in targets:
            target.waiting_until = 0.0
            if not self.digest:
                target.draft, target.wanted = "", 0
        return self._proposed

    def _run(self, targets: abc.Iterable[TargetSequence], outbox: Outbox[Any]) -> None:
        """Texts of which much is unknown to the draft are followed by one step a round: nobody waits for all of it."""
        ways = [draft.path.sequence for target in targets if (draft := self._follow(target)) is not None]
        near = [way for way in ways if way.num_uncomputed <= _NEAR]
        far = [way for way in ways if way.num_uncomputed > _NEAR]
        for way in far:
            way.hold_until = NEVER
        while any(way.num_uncomputed and way.hold_until != NEVER for way in near) and self._step(outbox):
            pass
        for way in far:
            way.hold_until = 0.0
        if far:
            self._step(outbox)

    def _step(self, outbox: Outbox[Any]) -> bool:
        """Computes what may go on. Returns whether there was anything, and room for it."""
        num_steps = self.engine.num_steps
        results = self.engine.step(outbox.bell)
        is_made, failures = self.engine.num_steps > num_steps, self.engine.take_failures()
        if is_made and not failures:  # Else it may have ended before it rang.
            outbox.told()
        for sequence, error in failures:
            self._role.end(sequence, error)
        self._role.advance(results)
        return is_made

    def _follow(self, target: TargetSequence) -> DraftSequence | None:
        """The draft's side of a sequence, brought to where that is; None where nothing is proposed for it now."""
        if target not in self._drafts:
            return self._open(target) if target.wanted else None
        draft = self._drafts[target]
        if draft is None:
            return None
        if not target.wanted:
            if target.committed - draft.root > _MAX_HELD:
                self.close(target)
            return None
        fresh = target.sequence.token_ids[draft.root : target.committed]
        self._role.commit(draft, draft.root, fresh, target.wanted)
        if draft.root < target.committed:  # It was let go: its model knows no such text.
            self._give_up(target)
            return None
        return draft

    def _open(self, target: TargetSequence) -> DraftSequence | None:
        facts, opened = self.engine.facts, target.sequence
        token_ids = opened.token_ids[: target.committed]
        vocab_size, context = facts.description.vocab_size, facts.max_context_tokens
        if len(token_ids) >= context or max(token_ids) >= vocab_size:
            self._drafts[target] = None
            return None

        def emit(event: Event) -> None:
            if isinstance(event, BaseException):
                _log.warning("the draft cannot follow a text of %d tokens", target.committed, exc_info=event)
                self._give_up(target)
            else:
                self._proposed.append((target, event))

        params = replace(fit_params(opened.params, vocab_size), logprobs=None)
        roots = replace(opened.roots, label="", public_label="")  # Its blocks are kept here alone.
        sequence = Sequence(token_ids, opened.num_prompt_tokens, params, priority=opened.priority, roots=roots)
        draft = DraftSequence(
            sequence, emit, target.max_draft_tokens, target.end, ahead=False, root_digest=target.digest
        )
        draft.wanted = target.wanted
        self._drafts[target] = draft
        self._role.open(draft)
        return draft

    def _give_up(self, target: TargetSequence) -> None:
        self.close(target)
        self._drafts[target] = None
