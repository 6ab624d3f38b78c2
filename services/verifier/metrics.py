"""What the verifier measures of itself."""

from collections import Counter

from services.common.telemetry import meter
from services.engine.engine_loop import EngineLoop
from services.model_server.metrics import Counts, observe_engine, readings
from services.model_server.streams import OpenStreams
from services.model_server.vllm_metrics import Drafts
from services.verifier.target_role import TargetRole
from services.verifier.target_sequence import Committed

_SHOWN_DIGITS = 12
"""An adapter's digest is shown by so many of its first digits."""
_GAUGES = (
    ("speculation_on", "1", "Whether speculation is on, by load."),
    ("speculation_ratio", "1", "Measured tokens a second relative to off, by load and way: the 95 % interval."),
    ("speculation_seconds", "s", "Wall time that was measured, and what of it trials lost."),
    ("speculation_account", "s", "Wall time that trials may still lose."),
    ("speculation_off_tax", "1", "Share of the time of rounds without speculation that deciding about it took."),
)


class VerifierMetrics:
    """Counters of rounds and tokens, and the gauges of the engine."""

    def __init__(self, engine_loop: EngineLoop[TargetRole], open_streams: OpenStreams) -> None:
        instruments = meter("paceline.verifier")
        self._rounds = Counts(
            *(instruments, "paceline.rounds", "{round}", "Verifications.", "origin", "ready", "waited", "wanted")
        )
        self._committed = Counts(instruments, "paceline.committed_tokens", "{token}", "Tokens decided.", "origin")
        self._drafted, self._accepted = (
            Counts(instruments, f"paceline.{name}_tokens", "{token}", description, "origin", "adapter")
            for name, description in (("drafted", "Proposed tokens verified."), ("accepted", "Those accepted."))
        )
        self._wanted = Counts(
            instruments, "paceline.wanted_tokens", "{token}", "Proposed tokens that the governor would take next."
        )
        self._waited = Counts(
            instruments, "paceline.draft_wait", "s", "How long rounds that wanted a proposal were put off for one."
        )
        for name, unit, description in _GAUGES:
            gauge = [readings(engine_loop, name)]
            instruments.create_observable_gauge(f"paceline.{name}", gauge, unit, description)
        observe_engine(instruments, engine_loop, open_streams)
        self._num_drafts = self._num_drafted = 0
        self._num_accepted = Counter[int]()

    def drafts(self) -> Drafts:
        """What was verified so far. Any thread may ask."""
        return Drafts(self._num_drafts, self._num_drafted, self._num_accepted.copy())

    def record(self, committed: Committed, wanted: int) -> None:
        """Counts one round, before which so many proposed tokens were wanted."""
        origin, waited = committed.origin.value, committed.waited_seconds > 0
        self._rounds.add(1, origin, committed.was_ready, waited, wanted > 0)
        self._committed.add(len(committed.token_ids), origin)
        if committed.num_drafted:
            adapter = committed.adapter[:_SHOWN_DIGITS]
            self._drafted.add(committed.num_drafted, origin, adapter)
            self._accepted.add(committed.num_accepted, origin, adapter)
            self._num_drafts += 1
            self._num_drafted += committed.num_drafted
            self._num_accepted.update(range(committed.num_accepted))
        if wanted:
            self._waited.add(committed.waited_seconds)
        self._wanted.add(committed.num_wanted)
