"""Runs sequences through the verifier's role with proposals of known quality."""

import random
import time
from collections import Counter
from collections.abc import Sequence as Tokens

from engine.driver import GREEDY
from services.common.digest import extend_digest
from services.common.sampling_params import SamplingParams
from services.engine.engine import Engine
from services.engine.sequence import Sequence
from services.verifier.target_role import TargetRole
from services.verifier.target_sequence import Committed, Origin, TargetSequence


class Collected:
    """Delivers events at once and remembers commits."""

    def __init__(self) -> None:
        self.commits: list[Committed] = []

    def put(self, deliver: object, event: object) -> None:
        deliver(event)  # type: ignore[operator]


def open_target(
    role: TargetRole, prompt: Tokens[int], num_tokens: int, params: SamplingParams = GREEDY, max_draft_tokens: int = 5
) -> tuple[TargetSequence, list[Committed]]:
    """A sequence opened at the role, and the list in which its commits appear."""
    commits: list[Committed] = []
    sequence = Sequence(prompt, len(prompt), params)
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
        role.advance(role.engine.step())


def generate_speculating(
    engine: Engine,
    prompts: Tokens[Tokens[int]],
    expected: Tokens[Tokens[int]],
    draft: str,
    params: SamplingParams = GREEDY,
) -> tuple[list[list[int]], Counter[Origin]]:
    """Continues all prompts with a perfect, bad (every third token wrong) or random draft; returns tokens and how
    many were accepted, by origin."""
    rng = random.Random(3)
    role = TargetRole(engine, Collected())  # type: ignore[arg-type]
    opened = [open_target(role, p, len(e), params) for p, e in zip(prompts, expected, strict=True)]
    vocab = engine.description.vocab_size

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

    run(role, propose)
    engine.check_integrity()
    assert engine.pool.num_used == 0
    produced = [[t for c in commits for t in c.token_ids] for _, commits in opened]
    accepted = Counter[Origin]()
    for commit in (commit for _, commits in opened for commit in commits):
        accepted[commit.origin] += commit.num_accepted
    return produced, accepted
