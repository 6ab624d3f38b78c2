"""What the next rounds take follows from acceptance and step times; nothing is wanted while speculation is off."""

import numpy as np
import pytest
from numpy.typing import NDArray

from services.common.sampling_params import SamplingParams
from services.engine.sequence import Sequence
from services.engine.step_times import StepTimes
from services.verifier.load import WINDOW, Way
from services.verifier.planner import Planner
from services.verifier.settings import Speculation
from services.verifier.target_sequence import Offer, Origin, TargetSequence

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


def always() -> Planner:
    return Planner(Speculation.ALWAYS)


def test_cheap_rows_are_all_wanted_and_of_dear_ones_the_fewest() -> None:
    cheap, dear = target(), target()
    always().plan([cheap], RowSeconds(0.0))
    assert cheap.wanted == MAX_DRAFT_TOKENS
    always().plan([dear], RowSeconds(10.0))
    assert dear.wanted == 1


def test_rows_go_to_the_sequences_whose_proposals_are_accepted() -> None:
    good, bad = target(0.95), target(0.0)
    always().plan([bad, good], RowSeconds(0.03))
    assert good.wanted > bad.wanted


def test_prompts_and_sequences_without_speculation_take_no_part() -> None:
    prompt, plain = target(num_due=7), target(max_draft_tokens=0)
    allocation = always().plan([prompt, plain], RowSeconds(0.0))
    assert allocation is not None
    assert allocation.num_tokens == [0]
    assert (prompt.wanted, plain.wanted) == (0, 0)


def test_a_draft_stands_still_while_a_prompt_is_computed_on_its_cores_alone() -> None:
    beside, apart, prompt = target(), target(), target(num_due=7)
    apart.draft_is_apart = True
    always().plan([beside, apart, prompt], RowSeconds(0.0))
    assert beside.wanted == 0
    assert apart.wanted == MAX_DRAFT_TOKENS


def test_fewer_tokens_are_wanted_of_a_draft_whose_steps_take_long() -> None:
    wanted = []
    for step_seconds in (0.0, 0.02, 0.2):
        one, planner = target(0.8), always()
        planner.arrived(one, step_seconds, now=1.0)
        planner.plan([one], RowSeconds(0.0))
        wanted.append(one.wanted)
    assert wanted == sorted(wanted, reverse=True)
    assert wanted[0] == MAX_DRAFT_TOKENS
    assert wanted[-1] == 1


def test_what_rounds_take_beside_steps_is_learned_for_each_number_of_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, planner, steps = [1.0], always(), RowSeconds(0.1)
    monkeypatch.setattr("services.verifier.planner.time.monotonic", lambda: clock[0])
    streams = [target(0.8) for _ in range(8)]

    def wanted_after(taken: list[TargetSequence], rest: float) -> int:
        for _ in range(100):
            planner.plan(taken, steps)
            for one in taken:
                one.taken = Offer(Origin.DRAFT, [7], [0.8], [None], 0)
            clock[0] += steps.seconds(2 * len(taken)) + rest
            planner.record(len(taken), taken, 2 * len(taken), steps)
        planner.plan(streams[:1], steps)
        return streams[0].wanted

    planner.plan(streams[:6], steps)
    assert wanted_after(streams, rest=9.0) == MAX_DRAFT_TOKENS, "one stream is taken to be as eight, until it was seen"
    planner.plan(streams[:6], steps)
    assert streams[0].wanted == MAX_DRAFT_TOKENS, "nothing was learned of six, which were only planned for"
    assert wanted_after(streams[:1], rest=0.0) < MAX_DRAFT_TOKENS
    assert wanted_after(streams, rest=9.0) < MAX_DRAFT_TOKENS


def test_answers_that_are_over_say_how_long_the_next_ones_are() -> None:
    planner = always()
    assert planner.answer_tokens > 100, "none is over"
    for _ in range(100):
        planner.ended(16)
    assert planner.answer_tokens == pytest.approx(16, abs=2)


def test_it_begins_off_and_nothing_is_wanted_until_off_was_measured() -> None:
    one, planner = target(), Planner()
    one.draft, one.pacing.has_arrived = "a draft", True
    for _ in range(WINDOW):
        assert planner.plan([one], RowSeconds(0.0)) is None
        assert (planner.way, one.wanted) == (Way.OFF, 0)
        planner.record(1, [one], 1, RowSeconds(0.0))
    planner.plan([one], RowSeconds(0.0))
    planner.record(1, [one], 1, RowSeconds(0.0))
    planner.plan([one], RowSeconds(0.0))
    assert (planner.way, one.wanted) == (Way.DRAFT, MAX_DRAFT_TOKENS)


def test_rounds_in_which_prompts_were_computed_do_not_count() -> None:
    one, planner = target(), Planner()
    one.draft = "a draft"
    for _ in range(5 * WINDOW):
        planner.mix()
        planner.plan([one], RowSeconds(0.0))
        planner.record(1, [one], 1, RowSeconds(0.0))
    assert planner.decider.seconds == 0.0
    assert planner.way is Way.OFF


def test_without_a_draft_there_is_text_alone() -> None:
    one, planner = target(), Planner()
    for _ in range(WINDOW + 1):
        planner.plan([one], RowSeconds(0.0))
        planner.record(1, [one], 1, RowSeconds(0.0))
    planner.plan([one], RowSeconds(0.0))
    assert (planner.way, one.wanted) == (Way.TEXT, 0)


def test_a_sequence_waits_only_for_what_it_wants() -> None:
    planner = always()
    eager, idle = target(), target(max_draft_tokens=0)
    for each in (eager, idle):
        each.pacing.has_arrived = True
        planner.wait(each, planner.plan([each], RowSeconds(0.0)), plain=0.1, now=50.0)
    assert eager.waiting_until > 50.0
    assert idle.waiting_until == 50.0


def test_where_cores_are_shared_it_waits_as_long_as_plain_steps_would_take() -> None:
    beside, apart = target(), target()
    apart.draft_is_apart = True
    for each in (beside, apart):
        planner = always()
        planner.wait(each, planner.plan([each], RowSeconds(0.0)), plain=0.1, now=50.0)
    assert beside.waiting_until - 50.0 == pytest.approx(beside.expected_tokens * 0.1 - 0.1)
    assert apart.waiting_until < beside.waiting_until
