"""Whether to speculate, and how: by measurement alone, so that it is never slower than off.

What is measured is committed tokens a wall second, commit to commit: the draft's time, its cores, messages and waits
are inside. It is measured by load: a bucket of running rows, and a draft. In a load one way is followed. Another
is tried between two stretches of it, so that drift cancels: on, off, off, on, or the reverse. What is lost by ways that
are not proven comes out of an account, which bounds the loss whatever is tried.
"""

import math
import time
from collections import abc, deque

from cachetools import FIFOCache

from services.verifier.load import NOT_KNOWN, STRETCH, WINDOW, Decision, Load, Prospect, Trial, Way, bucket
from services.verifier.rate import Rate

CREDIT, FEED = 30, 0.005
"""Trials may lose so many rounds before anything was earned, enough for three of a draft that costs two target steps,
and this share of wall time: half of the one percent that all may cost together."""
KEPT = 15
"""So many of these rounds are kept for loads of which nothing was measured, or that follow what is not proven: to ask
again where off is followed may wait. Else one load in which both ways are nearly as fast would spend what another's
first trial takes."""
LOOK, MOST = 4, 8
"""A trial is looked at every four rounds. It is two windows, or the second number where it loses less than four rounds:
where both ways are nearly as fast, only many rounds tell them apart, and cost little. What it is compared with is the
latest sixteen windows of the followed way before it, and one after it."""
EARLY = 2.6
"""Standard errors, 99 %, beyond which a trial ends early: it is looked at four times."""
UNCLEAR, FIRST, SELDOM, LONGEST = 16, 64, 256, 4096
"""Rounds from one trial to the next, doubled whenever the same was found. From the first to the third while nothing is
proven: a load settles within a hundred rounds, and a close one costs less than the account earns. From the second once
something is, up to the last where a trial costs much: trials may spend half of what is earned. A first trial that is
expected to lose waits for the third, so that a short visit pays for none."""
SETTLING, MAX_SETTLING = 2, 12
"""Rounds after a change of way that do not count: what was begun is still about. A draft has the second number to come
with its proposals; then it is measured as it is."""
STAY = 3
"""Rounds in a row in another bucket until it counts: streams come and go one by one."""
FOLLOW = 0.1
"""Weight of the latest window in the rate from which changes are told: the last ten say most."""
MAX_DECISIONS, MAX_LOADS = 50, 256
"""What is remembered: the latest decisions, and loads, whose drafts are what others say that they are."""


class Decider:
    """Decides before every step and learns after it. Rounds in which prompts are computed it is not told of."""

    def __init__(self, known: abc.Iterable[Load] = ()) -> None:
        """`known` is what an earlier process found."""
        self.loads: FIFOCache[tuple[int, str], Load] = FIFOCache(MAX_LOADS)
        self.loads.update({(load.rows, load.draft): load for load in known})
        self.decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)
        self.account = self.seconds = self.lost = 0.0
        """Seconds that trials may lose, of all that were told, and that trials lost."""
        self._round_seconds = 0.0
        self._load: Load | None = None
        self._settling: int | None = None
        """Rounds since the latest change of way; None when enough."""
        self._elsewhere = 0

    @property
    def is_trying(self) -> bool:
        """Whether the next round is one of a trial."""
        return self._load is not None and self._load.present is not self._load.way

    def decide(
        self, rows: int, draft: str, ways: abc.Collection[Way], prospect: abc.Callable[[], Prospect] = lambda: NOT_KNOWN
    ) -> Way:
        """How the next round goes on with so many rows, where there is this draft and these ways beside off.

        What a draft is expected to cost and to give says which way a load begins with, and when others are measured.
        """
        top = bucket(rows)
        load = self._load
        if load is None or (load.rows, load.draft) != (top, draft):
            self._elsewhere += 1
            if load is None or load.draft != draft or self._elsewhere >= STAY:
                before = Way.OFF if load is None else load.present
                load = self._load = self._enter(top, draft, ways, prospect)
                self._elsewhere = 0
                self._settle(before)
        else:
            self._elsewhere = 0
        if load.trial is None and len(load.recent) >= WINDOW and not self._elsewhere:
            self._try(load, ways, prospect)
        return load.present

    def record(
        self, rows: int, tokens: int, seconds: float, plain: abc.Callable[[int], float], *, drafted: bool
    ) -> None:
        """A round committed so many tokens, so long after the round before it.

        `plain` is the expected time of a step of so many rows; `drafted` says whether most sequences had proposals.
        """
        load = self._load
        if load is None or self._elsewhere:
            return
        seconds *= plain(load.rows) / plain(rows) if plain(rows) else 1.0
        self._earn(seconds)
        load.rounds += 1
        this, trial = (tokens / rows, seconds), load.trial
        if trial is not None and not trial.is_over:
            loss, begins = seconds - this[0] / trial.rate, self._settling == 0
            trial.lost += loss
            if self._settles(load, drafted=drafted):
                trial.opening = loss if begins else trial.opening + loss
                if trial.lost > trial.may_lose:
                    self._conclude(load, trial)
            else:
                trial.tried.append(this)
                self._look(load, trial)
        elif self._settles(load, drafted=drafted):
            return
        elif trial is not None:
            trial.after.append(this)
            if len(trial.after) >= WINDOW:
                self._conclude(load, trial)
        else:
            load.recent.append(this)
            if load.rounds % WINDOW == 0 and len(load.recent) >= WINDOW:
                self._watch(load)

    def _enter(self, top: int, draft: str, ways: abc.Collection[Way], prospect: abc.Callable[[], Prospect]) -> Load:
        """Where nothing was measured, takes over what pays at more rows; a draft if it is expected to pay here, too."""
        load = self.loads.setdefault((top, draft), Load(top, draft))
        above = None if load.ratios or load.trial else load.next_above(self.loads.values())
        way = above.way if above is not None and above.is_proven else load.way
        is_open = way is not load.way and way in ways and self.account >= LOOK * self._round_seconds
        if is_open and (way is not Way.DRAFT or prospect().promises(self.account)):
            load.follow(way)
        return load

    def _earn(self, seconds: float) -> None:
        if not self.seconds:
            self._round_seconds, self.account = seconds, CREDIT * seconds
        self._round_seconds += FOLLOW * (min(seconds, 2 * self._round_seconds) - self._round_seconds)
        self.seconds += seconds
        self.account = max(self.account, min(CREDIT * self._round_seconds, self.account + FEED * seconds))

    def _settle(self, before: Way) -> None:
        """A round's way may change: the next rounds do not count then."""
        if self._load is not None and self._load.present is not before:
            self._settling = 0

    def _settles(self, load: Load, *, drafted: bool) -> bool:
        """Whether a round does not count."""
        if self._settling is None:
            return False
        self._settling += 1
        waits = load.trial and load.present is Way.DRAFT and not drafted and self._settling < MAX_SETTLING
        if self._settling >= SETTLING and not waits:
            self._settling = None
        return True

    def _try(self, load: Load, ways: abc.Collection[Way], prospect: abc.Callable[[], Prospect]) -> None:
        """Begins a trial if one is due and can be afforded. Off may always be tried where another way is not proven."""
        if load.way not in (Way.OFF, *ways):
            load.follow(Way.OFF)
            return
        due = [way for way in (Way.OFF, *ways) if way is not load.way and load.due.get(way, 0) <= load.rounds]
        unproven = load.way is not Way.OFF and not load.has_proven(load.way)
        may_wait = not unproven and (load.way is not Way.OFF or all(way in load.ratios for way in due))
        least = LOOK * self._round_seconds
        if unproven and Way.OFF in due:
            due = [Way.OFF]
        elif not due or self.account <= KEPT * may_wait * self._round_seconds + least:
            return
        elif Way.DRAFT in due and (wait := self._wait(load, prospect())):
            load.due[Way.DRAFT] = load.rounds + wait
            return
        before, rounds, known = load.present, list(load.recent), {Way.OFF, *load.ratios}
        way = min(due, key=lambda way: (way in known, load.due.get(way, 0), way != Way.DRAFT))
        answer = prospect().answer if way is Way.DRAFT else math.inf
        load.trial = Trial(way, rounds, Rate.of(rounds).value, max(least, self.account), answer)
        self._settle(before)

    def _wait(self, load: Load, prospect: Prospect) -> int:
        """Rounds for which a trial of the draft has to wait."""
        is_met = any(Way.DRAFT in other.ratios for other in self.loads.values() if other.draft == load.draft)
        if is_met and prospect.ratio < 1 and load.rounds < SELDOM and Way.DRAFT not in load.ratios:
            return SELDOM - load.rounds
        return FIRST if prospect.opening > self.account else 0

    def _look(self, load: Load, trial: Trial) -> None:
        """Ends a trial that is clear, long enough, or more than can be afforded."""
        if len(trial.tried) % LOOK and trial.lost <= trial.may_lose:
            return
        tried, before = trial.result, Rate.of(trial.before)
        lost, windows = trial.lost / self._round_seconds, len(trial.tried) / WINDOW
        if abs(tried.errors_above(before)) > EARLY or (lost > 1 and load.is_confirmed(trial.way, tried, before)):
            self._conclude(load, trial)
        elif trial.lost > trial.may_lose or windows >= (2 if lost > LOOK else MOST):
            trial.is_over = True
            self._settle(trial.way)

    def _conclude(self, load: Load, trial: Trial) -> None:
        """Learns from a trial, and goes the way that gives most."""
        before, tried, lost = load.present, trial.way, max(0.0, trial.lost)
        self.account, self.lost = self.account - lost, self.lost + lost
        way = load.learn(trial)
        ratio, best = load.ratios[way], load.best
        interval = UNCLEAR if best is not load.way else 2 * load.interval.get(tried, UNCLEAR // 2)
        few, many = (UNCLEAR, SELDOM) if ratio.pays is None else (FIRST, self._worth(lost))
        load.interval[tried] = max(few, min(many, interval))
        load.due[tried] = load.due[load.way] = load.rounds + load.interval[tried]
        self._say(load, best, f"{way} {ratio}")
        if best is not load.way:
            load.follow(best, trial.tried if best is tried else ())
        else:
            load.recent.extend(trial.after)
            load.trial = None
        self._settle(before)

    def _worth(self, lost: float) -> int:
        """Rounds until the next trial where one lost so many seconds: half of what trials earn is for it."""
        return min(LONGEST, max(SELDOM, int(2 * lost / (FEED * self._round_seconds))))

    def _watch(self, load: Load) -> None:
        """Looks at the latest window of the followed way: what it loses, and whether it changed."""
        window = list(load.recent)[-WINDOW:]
        rate = Rate.of(load.recent)
        if load.way is Way.OFF:
            load.off = rate
        elif load.off is not None and rate.errors_above(load.off) < -EARLY:
            load.due[Way.OFF] = load.rounds
            if self.account < LOOK * self._round_seconds:
                self._say(load, Way.OFF, f"{load.way} looks slower, and trials have spent what they may")
                load.follow(Way.OFF)
                self._settling = 0
                return
        if load.level is None:
            load.level = math.log(rate.value) if len(load.recent) >= STRETCH else None
            return
        deviation = math.log(Rate.of(window).value) - load.level
        if load.changed(deviation, deviation / math.sqrt(rate.variance * len(load.recent) / WINDOW)):
            self._say(load, load.way, f"the rate changed by {math.expm1(deviation):+.0%}")
            load.follow(load.way)
            for other in self.loads.values():
                if other.draft == load.draft:
                    other.doubt(0 if other is load else FIRST)
        else:
            load.level += FOLLOW * deviation

    def _say(self, load: Load, way: Way, why: str) -> None:
        of = f" with {way}" if way is Way.TEXT else ""
        words = f"{'off' if way is Way.OFF else 'on'}{of} at {load.rows} rows: {why}"
        self.decisions.append(Decision(time.time(), words))
