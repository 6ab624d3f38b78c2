"""What the next rounds take follows from acceptance and step times; nothing is wanted while speculation is off."""

import numpy as np
import pytest
from numpy.typing import NDArray

from services.common.sampling_params import SamplingParams
from services.engine.sequence import Sequence
from services.engine.step_times import StepTimes
from services.verifier.planner import Planner
from services.verifier.target_sequence import TargetSequence

MAX_DRAFT_TOKENS = 5


class RowSeconds(StepTimes):
    """A step takes a tenth of a second and so much more for every row."""

    def __init__(self, row: float) -> None:
        super().__init__()
        self._row = row

    def seconds(self, rows: int) -> float:
        return 0.1 + self._row * rows

    def curve(self, first: int, last: int) -> NDArray[np.float64]:
        return 0.1 + self._row * np.arange(first, last + 1)


def target(acceptance: float = 0.9, num_due: int = 1, max_draft_tokens: int = MAX_DRAFT_TOKENS) -> TargetSequence:
    """A sequence of ten tokens that decodes, or has a prompt to be computed."""
    sequence = Sequence(range(10), 10, SamplingParams())
    made = TargetSequence(sequence, lambda _: None, max_draft_tokens, end=100)
    made.committed = len(sequence)
    sequence.num_computed = len(sequence) - num_due
    for _ in range(200):
        made.acceptance.observe_draft([None] * 9, round(9 * acceptance))
    return made


def test_cheap_rows_are_all_wanted_and_dear_ones_are_not() -> None:
    cheap, dear = target(), target()
    planner = Planner()
    planner.plan([cheap], RowSeconds(0.0))
    assert cheap.wanted == MAX_DRAFT_TOKENS
    assert planner.gain > 2
    planner = Planner()
    planner.plan([dear], RowSeconds(10.0))
    assert dear.wanted == 0
    assert planner.gain == pytest.approx(1.0)


def test_rows_go_to_the_sequences_whose_proposals_are_accepted() -> None:
    good, bad = target(0.95), target(0.0)
    Planner().plan([bad, good], RowSeconds(0.03))
    assert good.wanted > bad.wanted


def test_prompts_and_sequences_without_speculation_take_no_part() -> None:
    prompt, plain = target(num_due=7), target(max_draft_tokens=0)
    planner = Planner()
    allocation = planner.plan([prompt, plain], RowSeconds(0.0))
    assert allocation.num_tokens == [0]
    assert (prompt.wanted, plain.wanted) == (0, 0)
    assert not planner.decisions
    assert planner.speculates


def test_every_step_is_decided_once_and_the_decisions_can_be_read() -> None:
    planner = Planner()
    for _ in range(7):
        planner.plan([target()], RowSeconds(0.0))
    readings = planner.readings()
    assert [(r.value, dict(r.attributes)) for r in readings["governor_decisions"]] == [
        (7, {"speculates": True, "reason": "estimated"})
    ]
    assert readings["governor_gain"][0].value == planner.gain


def test_a_sequence_waits_only_for_what_it_wants() -> None:
    planner = Planner()
    eager, idle = target(), target(max_draft_tokens=0)
    for each in (eager, idle):
        each.pacing.has_arrived = True
        planner.wait(each, planner.plan([each], RowSeconds(0.0)), now=50.0)
    assert eager.waiting_until > 50.0
    assert idle.waiting_until == 50.0
