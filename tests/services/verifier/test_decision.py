"""Whether to speculate: never slower than off, with any draft, by simulated rounds; and what is said and kept of it."""

import math
import random
from pathlib import Path

import pytest

from benchmarks.controller import Change, Pair, grid, simulate
from services.verifier.decision import CREDIT, MAX_LOADS, SELDOM, STAY, Decider
from services.verifier.load import Load, Prospect, Way
from services.verifier.rate import Rate, Ratio
from services.verifier.verdicts import Verdicts

CELLS = random.Random(7).sample(list(grid()), 16)


@pytest.mark.parametrize(("pair", "streams"), CELLS)
def test_whatever_the_draft_the_better_way_is_soon_gone_and_little_is_lost(pair: Pair, streams: int) -> None:
    outcome = simulate(pair, streams, seed=3)
    assert outcome.settled >= 0.98
    assert outcome.loss <= 0.01


@pytest.mark.parametrize(("pair", "streams"), CELLS[:6])
def test_the_same_where_what_is_expected_is_right(pair: Pair, streams: int) -> None:
    outcome = simulate(pair, streams, seed=3, expected=1.0)
    assert outcome.settled >= 0.98
    assert outcome.loss <= 0.01


def test_a_change_for_the_worse_is_noticed() -> None:
    good, bad = Pair(0.1, 0.9), Pair(1.5, 0.3)
    outcome = simulate(good, 4, seed=1, rounds=4000, changes=[Change(2000, bad, 4)])
    assert outcome.way is Way.OFF
    assert outcome.settled >= 0.98
    assert outcome.loss <= 0.02


def test_another_number_of_streams_is_another_load() -> None:
    pair = Pair(0.3, 0.78, row=0.2)
    outcome = simulate(pair, 1, seed=2, rounds=3000, changes=[Change(1000, pair, 16), Change(2000, pair, 1)])
    assert outcome.settled >= 0.98


def run(decider: Decider, rounds: int, on_seconds: float, ways: tuple[Way, ...] = (Way.DRAFT,), rows: int = 8) -> None:
    """Rounds without noise: one token a row and second when off, and what `on_seconds` make of it when on."""
    for _ in range(rounds):
        way = decider.decide(rows, "draft", ways)
        seconds = 1.0 if way is Way.OFF else on_seconds
        decider.record(rows, rows, seconds, lambda _: 1.0, drafted=way is Way.DRAFT)


def test_a_clear_loss_ends_a_trial_after_a_few_rounds_and_says_why() -> None:
    decider = Decider()
    run(decider, 30, on_seconds=1 / 0.7)
    assert decider.lost < 5
    assert "off at 8 rows: draft 0.70 +- " in decider.decisions[-1].words


def test_all_that_trials_lose_comes_out_of_the_account() -> None:
    decider = Decider()
    run(decider, 10_000, on_seconds=20.0)
    assert decider.lost <= CREDIT + 0.005 * decider.seconds + 20.0
    assert decider.lost < 0.01 * decider.seconds


def test_who_can_wait_leaves_others_what_their_first_trial_takes() -> None:
    unclear = Ratio(mean=-0.05, weight=100.0)
    assert unclear.pays is None
    decider = Decider([Load(8, "draft", Way.OFF, {Way.DRAFT: unclear})])
    run(decider, 1, on_seconds=1.05)
    decider.account = 10.0
    run(decider, 200, on_seconds=1.05)
    assert not decider.decisions, "off is followed, and asking again can wait"
    run(decider, 60, on_seconds=0.5, rows=4)
    assert "on at 4 rows" in decider.decisions[0].words


def test_who_follows_what_is_not_proven_compares_it_with_off_whatever_there_is_to_lose() -> None:
    decider = Decider([Load(8, "draft", Way.DRAFT, {Way.DRAFT: Ratio(mean=0.05, weight=100.0)})])
    run(decider, 1, on_seconds=1.1)
    decider.account = 0.0
    run(decider, 200, on_seconds=1.1)
    assert "off at 8 rows" in decider.decisions[0].words


def test_what_short_answers_pay_for_the_draft_to_begin_counts_wherever_a_trial_begins() -> None:
    def found(answer: float) -> str:
        decider = Decider()
        for number in range(200):
            way = decider.decide(8, "draft", (Way.DRAFT,), lambda: Prospect(0.0, math.nan, answer))
            if decider.decisions:
                return decider.decisions[0].words
            opens = way is Way.DRAFT and number < 14
            seconds = 1 / 1.2 if way is Way.DRAFT else 1.0
            decider.record(8, 8, 2.0 if opens else seconds, lambda _: 1.0, drafted=way is Way.DRAFT and not opens)
        return ""

    assert "on at 8 rows: draft 1.2" in found(answer=math.inf)
    assert "on at 8 rows: draft 1.1" in found(answer=128.0), "a little"
    assert "off at 8 rows: draft 0.8" in found(answer=16.0), "it begins for every sixteen tokens"


def test_where_a_draft_that_is_known_is_expected_to_lose_its_first_trial_waits() -> None:
    def tried_after(decider: Decider, ratio: float, opening: float = 0.0) -> int:
        for number in range(1000):
            if decider.decide(8, "draft", (Way.DRAFT,), lambda: Prospect(opening, ratio)) is Way.DRAFT:
                return number
            decider.record(8, 8, 1.0, lambda _: 1.0, drafted=False)
        return 1000

    def met() -> Decider:
        return Decider([lost(1)])

    assert tried_after(Decider(), ratio=0.9) < 20, "nothing is known of the draft"
    assert tried_after(met(), ratio=1.1) < 20, "it is expected to gain"
    assert SELDOM <= tried_after(met(), ratio=0.9) < 2 * SELDOM, "what is expected never decides"
    assert tried_after(met(), ratio=0.9, opening=1000.0) >= SELDOM, "nor is it tried before that when it costs much"


def lost(rows: int) -> Load:
    return Load(rows, "draft", Way.OFF, {Way.DRAFT: Ratio(mean=-0.5, weight=900.0)})


def test_a_load_not_met_before_goes_the_way_that_pays_at_more_rows_if_it_is_expected_to() -> None:
    def first(ratio: float, *loads: Load, rows: int = 6, opening: float = 0.0) -> Way:
        return Decider(loads).decide(rows, "draft", (Way.DRAFT,), lambda: Prospect(opening, ratio))

    assert first(1.5, known()) is Way.DRAFT
    assert first(1.5, known(), rows=12) is Way.OFF, "more rows leave less room"
    assert first(0.9, known()) is Way.OFF, "it is expected to lose"
    assert first(math.nan, known()) is Way.OFF, "nothing is known of rounds with a draft yet"
    assert first(1.5, known(), opening=1.0) is Way.OFF, "its beginning costs more than trials may"
    assert first(1.5, lost(8)) is Way.OFF
    assert first(1.5, lost(8), known(rows=12)) is Way.OFF, "what has the fewest more rows says most"
    unclear = Load(8, "draft", Way.DRAFT, {Way.DRAFT: Ratio(mean=0.05, weight=100.0)})
    assert first(1.5, unclear) is Way.OFF, "it is not proven there"


@pytest.mark.parametrize(("on_seconds", "way"), [(0.93, Way.DRAFT), (1.1, Way.OFF)])
def test_with_nothing_left_to_lose_what_is_not_proven_is_still_measured(on_seconds: float, way: Way) -> None:
    decider = Decider([Load(8, "draft", Way.DRAFT, {Way.DRAFT: Ratio(mean=0.05, weight=100.0)})])
    run(decider, 1, on_seconds)
    for _ in range(400):
        decider.account = min(decider.account, 0.0)
        run(decider, 1, on_seconds)
    assert decider.loads[8, "draft"].way is way
    assert decider.decisions, "it was compared"


def test_while_no_trial_can_be_paid_nothing_is_taken_over() -> None:
    decider = Decider([known()])
    run(decider, 1, on_seconds=1.0)
    decider.account = 0.0
    for _ in range(STAY):
        way = decider.decide(6, "draft", (Way.DRAFT,), lambda: Prospect(0.0, 1.5))
    assert decider.loads[6, "draft"].way is way is Way.OFF


def test_text_that_pays_at_more_rows_is_taken_over_whatever_a_draft_would_give_and_compared_with_off_first() -> None:
    decider = Decider([Load(8, "", Way.TEXT, {Way.TEXT: Ratio(0.4, 900.0, 12)})])
    ways = []
    for _ in range(100):
        ways.append(decider.decide(6, "", (Way.TEXT, Way.DRAFT), lambda: Prospect(0.0, 0.1)))
        decider.record(6, 6, {Way.OFF: 1.0, Way.TEXT: 0.7, Way.DRAFT: 2.0}[ways[-1]], lambda _: 1.0, drafted=True)
    assert ways[0] is Way.TEXT
    assert next(way for way in ways if way is not Way.TEXT) is Way.OFF
    assert decider.loads[6, ""].way is Way.TEXT


def test_short_visits_add_up_until_what_was_taken_over_is_measured() -> None:
    decider = Decider([known()])
    for number in range(400):
        rows = 6 if number % 12 < 8 else 8
        way = decider.decide(rows, "draft", (Way.DRAFT,), lambda: Prospect(0.0, 1.5))
        decider.record(rows, rows, 1.0 if way is Way.OFF or rows == 8 else 1.5, lambda _: 1.0, drafted=True)
    assert decider.loads[6, "draft"].way is Way.OFF
    assert decider.loads[6, "draft"].ratios[Way.DRAFT].pays is False


def test_text_alone_is_a_way_of_its_own() -> None:
    decider = Decider()
    for _ in range(400):
        way = decider.decide(4, "draft", (Way.DRAFT, Way.TEXT))
        seconds = {Way.OFF: 1.0, Way.TEXT: 0.7, Way.DRAFT: 1.2}[way]
        decider.record(4, 4, seconds, lambda _: 1.0, drafted=way is Way.DRAFT)
    load = decider.loads[4, "draft"]
    assert load.way is Way.TEXT
    assert load.ratios[Way.DRAFT].mean < 0


def test_a_draft_whose_beginning_costs_more_than_may_be_lost_is_not_tried() -> None:
    decider = Decider()
    for _ in range(200):
        assert decider.decide(8, "draft", (Way.DRAFT,), lambda: Prospect(1000.0, 2.0)) is Way.OFF
        decider.record(8, 8, 1.0, lambda _: 1.0, drafted=False)


def test_a_stall_is_not_what_a_way_costs_but_what_comes_often_is() -> None:
    even = [(1.0, 1.0)] * 31
    assert Rate.of([*even, (1.0, 5.0)]).value == pytest.approx(1.0)
    assert Rate.of([(1.0, 1.0), (1.0, 5.0)] * 16).value == pytest.approx(1 / 3, rel=0.05)


def known(way: Way = Way.DRAFT, rows: int = 8) -> Load:
    load = Load(rows, "draft", way)
    load.ratios[Way.DRAFT] = Ratio(0.4, 900.0, 12)
    return load


def test_what_was_measured_is_where_the_next_start_begins(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "speculation.json")
    Verdicts(path, "one").save([known()])
    Verdicts(path, "other").save([known(Way.OFF)])
    assert Decider(Verdicts(path, "one").load()).decide(8, "draft", (Way.DRAFT,)) is Way.DRAFT
    assert Decider(Verdicts(path, "other").load()).decide(8, "draft", (Way.DRAFT,)) is Way.OFF
    assert Decider(Verdicts(path, "third").load()).decide(8, "draft", (Way.DRAFT,)) is Way.OFF


def test_a_verdict_that_holds_no_more_is_soon_found_out(tmp_path: Path) -> None:
    path = str(tmp_path / "speculation.json")
    Verdicts(path, "one").save([known()])
    decider = Decider(Verdicts(path, "one").load())
    run(decider, 100, on_seconds=1 / 0.7)
    assert decider.loads[8, "draft"].way is Way.OFF


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"version": 2, "setups": {}}', '{"version": 1, "setups": {"one": 5}}',
     '{"version": 1, "setups": {"one": {"at": 1, "loads": [{"rows": "x"}]}}}',
     '{"version": 1, "setups": {"one": {"at": 1, "loads": [{"rows": 1, "draft": "", "way": "no", "ratios": {}}]}}}'],
)  # fmt: skip
def test_a_damaged_file_is_as_good_as_none_and_is_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "speculation.json"
    path.write_text(content)
    verdicts = Verdicts(str(path), "one")
    assert verdicts.load() == []
    verdicts.save([known()])
    assert [load.way for load in verdicts.load()] == [Way.DRAFT]


def test_without_a_path_nothing_is_kept() -> None:
    verdicts = Verdicts("", "one")
    verdicts.save([known()])
    assert verdicts.load() == []


def test_drafts_that_are_only_said_to_be_there_take_no_more_memory_than_some() -> None:
    decider = Decider()
    for number in range(3 * MAX_LOADS):
        decider.decide(1, f"draft {number}", (Way.DRAFT,))
        decider.record(1, 1, 1.0, lambda _: 1.0, drafted=False)
    assert len(decider.loads) == MAX_LOADS
