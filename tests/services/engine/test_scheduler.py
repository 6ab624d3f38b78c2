"""Whatever comes, goes, grows and is cut: every token is computed, in order, in blocks that are its own."""

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.common.background import BACKGROUND_PRIORITY
from services.engine.block_pool import BlockPool
from services.engine.roots import Roots
from services.engine.scheduler import Scheduler
from services.engine.sequence import Sequence
from support.driver import GREEDY

BLOCK = 4
NUM_BLOCKS = 12
STEP_TOKENS = 9
MAX_SEQUENCES = 3
TEXTS = (1, 2)
"""Sequences repeat one of these tokens, so that many begin alike."""
LENGTHS = st.integers(1, (NUM_BLOCKS - 1) * BLOCK // 2)
NOW = 100.0


def scheduler(**changes: int) -> Scheduler:
    sizes = {"num_blocks": NUM_BLOCKS, "max_step_tokens": STEP_TOKENS, "max_sequences": MAX_SEQUENCES, **changes}
    pool = BlockPool(sizes.pop("num_blocks"))
    return Scheduler(pool, BLOCK, **sizes)


def sequence(length: int, token: int = 1, priority: int = 0, roots: Roots | None = None) -> Sequence:
    return Sequence([token] * length, length, GREEDY, priority=priority, roots=roots or Roots())


class SchedulerMachine(RuleBasedStateMachine):
    """Runs steps over a model of the KV: which sequence's tokens were last written into each slot."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = scheduler()
        self.written: dict[int, tuple[int, ...]] = {}
        """By slot: the tokens up to the one whose KV lies there."""

    @property
    def sequences(self) -> list[Sequence]:
        return list(self.scheduler)

    @rule(length=LENGTHS, token=st.sampled_from(TEXTS), priority=st.integers(0, 2))
    def add(self, length: int, token: int, priority: int) -> None:
        self.scheduler.add(sequence(length, token, priority))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self.scheduler.remove(data.draw(st.sampled_from(self.sequences)))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.sequences))
        self.scheduler.forget(chosen)
        assert not chosen.num_computed

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), tokens=st.lists(st.sampled_from(TEXTS), max_size=6), settles=st.booleans())
    def grow(self, data: st.DataObject, tokens: list[int], settles: bool) -> None:
        chosen = data.draw(st.sampled_from(self.sequences))
        if len(chosen) + len(tokens) <= self.scheduler.max_sequence_tokens:
            chosen.token_ids += tokens
            if settles:
                chosen.num_settled = len(chosen)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.sequences))
        chosen.truncate(data.draw(st.integers(chosen.num_settled, len(chosen))))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.sequences))
        self.scheduler.fork(chosen, data.draw(st.integers(1, len(chosen))), priority=-1)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), until=st.sampled_from([0.0, NOW + 1]))
    def hold(self, data: st.DataObject, until: float) -> None:
        data.draw(st.sampled_from(self.sequences)).hold_until = until

    @rule()
    def step(self) -> None:
        works, copies = self.scheduler.schedule(NOW)
        assert sum(work.num_tokens for work in works) <= STEP_TOKENS
        for source, destination in copies:
            for line in range(BLOCK):
                self.written[destination * BLOCK + line] = self.written.get(source * BLOCK + line, ())
        for each, start, count in works:
            assert each.hold_until <= NOW
            assert start == each.num_computed
            for position in range(start, start + count):
                self.written[self._slot(each, position)] = tuple(each.token_ids[: position + 1])
        self.scheduler.computed(works)

    @invariant()
    def what_counts_as_computed_is(self) -> None:
        for each in self.sequences:
            for position in range(each.num_computed):
                assert self.written[self._slot(each, position)] == tuple(each.token_ids[: position + 1])

    @invariant()
    def no_block_is_lost(self) -> None:
        self.scheduler.check_integrity()
        assert sum(1 for each in self.sequences if each.block_table) <= MAX_SEQUENCES + len(self._forks())

    def _forks(self) -> list[Sequence]:
        """Forks come with the blocks of what they were forked from."""
        return [each for each in self.sequences if each.priority < 0]

    @staticmethod
    def _slot(each: Sequence, position: int) -> int:
        return each.block_table[position // BLOCK] * BLOCK + position % BLOCK


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def run(what: Scheduler) -> list[list[Sequence]]:
    """Steps until nothing is left to compute; who was in each."""
    steps = []
    while what.seconds_until_runnable(NOW) == 0:
        works, _ = what.schedule(NOW)
        assert works, "it makes no progress"
        what.computed(works)
        steps.append([work.sequence for work in works])
    return steps


def test_all_is_computed_in_order_of_priority_then_of_arrival() -> None:
    what = scheduler(max_sequences=8)
    late, first, second = sequence(9, 1, priority=-1), sequence(9, 2), sequence(9, 3)
    for each in (late, first, second):
        what.add(each)
    assert run(what) == [[first], [second], [late]]


def test_the_last_in_order_gives_its_blocks_to_the_first_and_is_computed_again() -> None:
    what = scheduler(num_blocks=8, max_step_tokens=64)
    one, other = sequence(14, 1), sequence(12, 2)
    what.add(one)
    what.add(other)
    run(what)
    one.token_ids += [1] * 10
    works, _ = what.schedule(NOW)
    what.computed(works)
    assert [work.sequence for work in works] == [one]
    assert what.num_preemptions == 1
    assert other.num_uncomputed > 0
    assert what.schedule(NOW).works == [], "for want of blocks"
    what.remove(one)
    run(what)
    assert other.num_uncomputed == 0
    what.check_integrity()


def test_a_text_that_was_computed_before_is_not_computed_again() -> None:
    what = scheduler(max_step_tokens=64)
    for expected in (0, 12):
        each = sequence(13)
        what.add(each)
        run(what)
        assert each.num_cached == expected
        what.remove(each)
    stranger = sequence(13, roots=Roots(b"another's"))
    what.add(stranger)
    run(what)
    assert stranger.num_cached == 0


def test_only_settled_blocks_with_a_label_are_handed_on() -> None:
    what = scheduler(max_step_tokens=64)
    labelled = sequence(13, roots=Roots(b"own", b"public", 1, "mine", "everybody's"))
    labelled.num_settled = 9
    for each in (labelled, sequence(13, 2)):
        what.add(each)
        run(what)
        what.remove(each)
    assert [label for label, _ in what.registered] == ["everybody's", "mine"]


def test_held_sequences_wait_for_their_time() -> None:
    what = scheduler()
    each = sequence(3)
    what.add(each)
    each.hold_until = NOW + 2
    assert what.seconds_until_runnable(NOW) == 2
    assert what.schedule(NOW).works == []
    assert what.seconds_until_runnable(NOW + 3) == 0
    each.hold_until = float("inf")
    assert what.seconds_until_runnable(NOW) is None


def test_no_digest_depends_on_what_follows_and_every_one_on_all_before() -> None:
    roots = Roots(b"own", b"public", 1)
    texts = list(itertools.product((1, 2), repeat=3))
    chains = {}
    for text in texts:
        before, chain = b"", []
        for index, token in enumerate(text):
            before = roots.digest(index, before, [token])
            chain.append(before)
        chains[text] = chain
    for one, other in itertools.combinations(texts, 2):
        common = next(at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        assert chains[one][:common] == chains[other][:common]
        assert not set(chains[one][common:]) & set(chains[other][common:])


def test_what_a_sequence_loses_and_finds_again_was_not_cached() -> None:
    made = scheduler(num_blocks=7, max_step_tokens=64)
    preempted = sequence(16)
    made.add(preempted)
    made.computed(made.schedule(NOW).works)
    made.add(sequence(12, token=2, priority=1))
    made.computed(made.schedule(NOW).works)
    assert made.num_preemptions == 1
    made.remove(next(iter(made)))
    assert made.schedule(NOW).works[0].start > 0
    assert preempted.num_cached == 0


def test_blocks_of_a_sequence_that_failed_are_known_to_nobody() -> None:
    made = scheduler(max_step_tokens=64)
    made.add(sequence(16))
    made.computed(made.schedule(NOW).works)
    made.schedule(NOW)
    (failed,) = made
    failed.token_ids.append(1)
    made.schedule(NOW)
    assert failed.num_registered
    made.forget(failed)
    made.remove(failed)
    made.check_integrity()
    made.add(sequence(16))
    assert made.schedule(NOW).works[0].start == 0


def test_the_background_has_all_rows_alone_and_only_spare_ones_beside_others() -> None:
    asked: list[int] = []

    def spare(rows: int) -> int:
        asked.append(rows)
        return 3

    pool = BlockPool(NUM_BLOCKS)
    made = Scheduler(pool, BLOCK, STEP_TOKENS, 8, spare)
    background = [sequence(5, priority=BACKGROUND_PRIORITY) for _ in range(2)]
    for each in background:
        made.add(each)
    assert [work.num_tokens for work in made.schedule(NOW).works] == [5, 4]
    other = sequence(2)
    made.add(other)
    assert [(work.sequence, work.num_tokens) for work in made.schedule(NOW).works] == [(other, 2), (background[0], 3)]
    other.hold_until = NOW + 1
    assert [work.num_tokens for work in made.schedule(NOW).works] == [3]
    assert asked == [2, 0]
