"""Runs sequences through the verifier's role with proposals of known quality."""

import random
import time
from collections import Counter, abc
from typing import Any

from services.common.digest import extend_digest
from services.common.sampling_params import SamplingParams
from services.engine.engine import Engine
from services.engine.outbox import NO_BELL
from services.engine.roots import Roots
from services.engine.sequence import NO_SLOT, Sequence
from services.verifier.target_role import TargetRole
from services.verifier.target_sequence import Committed, Origin, TargetSequence
from support.driver import GREEDY


class Collected:
    """Delivers events at once and remembers commits."""

    bell = NO_BELL

    def __init__(self) -> None:
        self.commits: list[Committed] = []

    def put(self, deliver: abc.Callable[[Any], None], event: Any) -> None:
        deliver(event)

    def told(self) -> None:
        pass


def open_target(
    role: TargetRole,
    prompt: abc.Sequence[int],
    num_tokens: int,
    params: SamplingParams = GREEDY,
    max_draft_tokens: int = 5,
    adapter_slot: int = NO_SLOT,
) -> tuple[TargetSequence, list[Committed]]:
    """A sequence opened at the role, and the list in which its commits appear."""
    commits: list[Committed] = []
    sequence = Sequence(
        prompt, len(prompt), params, adapter_slot=adapter_slot, roots=Roots(bytes([adapter_slot + 1]) * 32)
    )
    target = TargetSequence(sequence, commits.append, max_draft_tokens, len(prompt) + num_tokens)
    role.open(target)
    return target, commits


def run(role: TargetRole, propose: object = None) -> None:
    """Steps until all sequences are done. Nothing waits: holds are lifted at once."""
    while role.engine.scheduler:
        if propose is not None:
            propose()  # type: ignore[operator]
        role.prepare(time.monotonic())
        for sequence in role.engine.scheduler:
            sequence.hold_until = 0.0
        results = role.engine.step()
        for sequence, error in role.engine.take_failures():
            role.end(sequence, error)
        role.advance(results)


def propose_from(
    role: TargetRole,
    opened: abc.Sequence[tuple[TargetSequence, list[Committed]]],
    prompts: abc.Sequence[abc.Sequence[int]],
    expected: abc.Sequence[abc.Sequence[int]],
    draft: str,
    rng: random.Random,
) -> abc.Callable[[], None]:
    """Proposes for every sequence as a perfect, bad (every third token wrong) or random draft would."""
    vocab = role.engine.facts.description.vocab_size

    def guess(token: int, at: int) -> int:
        if draft == "perfect" or (draft == "bad" and at % 3):
            return token
        return rng.randrange(vocab)

    def propose() -> None:
        for (target, _), prompt, answer in zip(opened, prompts, expected, strict=True):
            if target.done:
                continue
            at = target.committed - len(prompt)
            tokens = [guess(token, at + i) for i, token in enumerate(answer[at : at + 5])]
            role.propose(
                target, target.committed, extend_digest(0, target.sequence.token_ids[: target.committed]), tokens
            )

    return propose


def generate_speculating(
    engine: Engine,
    prompts: abc.Sequence[abc.Sequence[int]],
    expected: abc.Sequence[abc.Sequence[int]],
    draft: str,
    params: SamplingParams = GREEDY,
) -> tuple[list[list[int]], Counter[Origin]]:
    """Continues all prompts with a draft of some quality; returns tokens and how many were accepted, by origin."""
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    opened = [open_target(role, p, len(e), params) for p, e in zip(prompts, expected, strict=True)]
    run(role, propose_from(role, opened, prompts, expected, draft, random.Random(3)))
    engine.check_integrity()
    assert engine.pool.num_used == 0
    produced = [[t for c in commits for t in c.token_ids] for _, commits in opened]
    accepted = Counter[Origin]()
    for commit in (commit for _, commits in opened for commit in commits):
        accepted[commit.origin] += commit.num_accepted
    return produced, accepted
