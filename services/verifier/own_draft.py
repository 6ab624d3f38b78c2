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
from services.draft.draft_role import DraftRole
from services.draft.draft_sequence import NEVER, DraftSequence, Event
from services.draft.fitting import fit_params
from services.engine.config import EngineConfig
from services.engine.engine import Engine
from services.engine.outbox import NO_BELL
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

    def __init__(self, engine: Engine, propose: abc.Callable[..., None]) -> None:
        """`propose` takes a proposal for a sequence, as `TargetRole.propose` does."""
        self.engine = engine
        self.digest = f"{engine.facts.description.revision_digest}:own"
        """By which it is known what it gains: the same draft as a service gains less."""
        self._propose = propose
        self._role = DraftRole(engine, _AtOnce(), max_branches=0)  # type: ignore[arg-type]
        self._drafts: dict[TargetSequence, DraftSequence | None] = {}
        """None: there is nothing to propose for this text any more."""
        self._has_failed = False

    @classmethod
    def load(cls, config: EngineConfig, engine: Engine, propose: abc.Callable[..., None]) -> "OwnDraft":
        """The draft of this configuration for the model of an engine. Raises CheckpointError where it is of no use."""
        given = {"is_draft": True, "num_threads": engine.config.num_threads, "max_adapters": 0}
        given |= {"max_step_tokens": min(config.max_step_tokens, _MAX_STEP_TOKENS)}
        own = Engine(config.model_copy(update=given))
        draft, target = own.facts.description, engine.facts.description
        if draft.vocabulary_digest and target.vocabulary_digest:
            if draft.vocabulary_digest != target.vocabulary_digest:
                raise CheckpointError(f"the tokenizer of the draft {config.model} is another than the model's")
        elif draft.vocab_size != target.vocab_size:
            raise CheckpointError(
                f"the draft {config.model} has {draft.vocab_size} tokens and the model {target.vocab_size}"
            )
        own.warm_up()
        return cls(own, propose)

    def readings(self) -> Readings:
        """What a step of it takes, by rows."""
        return {DRAFT_STEP_SECONDS: self.engine.readings()["step_seconds"]}

    def close(self, target: TargetSequence) -> None:
        """Lets a sequence go."""
        if (draft := self._drafts.pop(target, None)) is not None:
            self._role.close(draft)

    def run(self, targets: abc.Iterable[TargetSequence], bell: int = NO_BELL) -> bool:
        """Makes the proposals that sequences want, so that none waits for any. Returns whether the bell was rung, once
        computing had begun.
        """
        targets, begun = list(targets), False
        try:
            begun = not self._has_failed and self._run(targets, bell)
        except Exception:
            _log.exception("the draft in this process has failed: it proposes nothing any more")
            self._has_failed, self.digest = True, ""
        for target in targets:
            target.waiting_until = 0.0
            if self._has_failed:
                target.draft, target.wanted = self.digest, 0
        return begun

    def _run(self, targets: abc.Iterable[TargetSequence], bell: int) -> bool:
        """Texts of which much is unknown to the draft are followed by one step a round: nobody waits for all of it."""
        ways = [draft.path.sequence for target in targets if (draft := self._follow(target)) is not None]
        near = [way for way in ways if way.num_uncomputed <= _NEAR]
        far = [way for way in ways if way.num_uncomputed > _NEAR]
        for way in far:
            way.hold_until = NEVER
        begun = False
        while any(way.num_uncomputed and way.hold_until != NEVER for way in near):
            if not self._step(NO_BELL if begun else bell):
                break  # There is no room for what is left.
            begun = True
        for way in far:
            way.hold_until = 0.0
        return bool(far and self._step(NO_BELL if begun else bell)) or begun

    def _step(self, bell: int) -> bool:
        """Computes what may go on. Returns whether there was anything."""
        num_steps = self.engine.num_steps
        results = self.engine.step(bell)
        for sequence, error in self.engine.take_failures():
            self._role.end(sequence, error)
        self._role.advance(results)
        return self.engine.num_steps > num_steps

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
                self._propose(target, *event)

        params = replace(fit_params(opened.params, vocab_size), logprobs=None)
        sequence = Sequence(token_ids, opened.num_prompt_tokens, params, priority=opened.priority, roots=opened.roots)
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
