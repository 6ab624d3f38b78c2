"""What the verifier measures of itself."""

from collections import Counter

from services.common.telemetry import meter
from services.engine.engine_loop import EngineLoop
from services.model_server.metrics import observe_engine, readings
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
_FEW = (0, 1, 2, 3, 4, 6, 8, 12, 16, 32)


class VerifierMetrics:
    """Counters of rounds and tokens, and the gauges of the engine."""

    def __init__(self, engine_loop: EngineLoop[TargetRole], open_streams: OpenStreams) -> None:
        instruments = meter("paceline.verifier")
        self._rounds = instruments.create_counter("paceline.rounds", "{round}", "Verifications.")
        self._drafted = instruments.create_counter("paceline.drafted_tokens", "{token}", "Proposed tokens verified.")
        self._accepted = instruments.create_counter("paceline.accepted_tokens", "{token}", "Proposed tokens accepted.")
        self._length = instruments.create_histogram(
            "paceline.acceptance_length",
            "{token}",
            "Tokens that a round with proposed tokens committed: those accepted, and the target's own.",
            explicit_bucket_boundaries_advisory=_FEW,
        )
        self._wanted = instruments.create_histogram(
            "paceline.wanted_tokens",
            "{token}",
            "Proposed tokens that the governor would take in a sequence's next round.",
            explicit_bucket_boundaries_advisory=_FEW,
        )
        self._waits = instruments.create_histogram(
            "paceline.draft_wait", "s", "How long a round that wanted a proposal was put off for one."
        )
        self._committed = instruments.create_counter("paceline.committed_tokens", "{token}", "Tokens decided.")
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
        origin = {"origin": committed.origin.value}
        waited = committed.waited_seconds > 0
        self._rounds.add(1, {**origin, "ready": committed.was_ready, "waited": waited, "wanted": wanted > 0})
        self._committed.add(len(committed.token_ids))
        if committed.num_drafted:
            of = {**origin, "adapter": committed.adapter[:_SHOWN_DIGITS]}
            self._drafted.add(committed.num_drafted, of)
            self._accepted.add(committed.num_accepted, of)
            self._length.record(len(committed.token_ids), origin)
            self._num_drafts += 1
            self._num_drafted += committed.num_drafted
            self._num_accepted.update(range(committed.num_accepted))
        if wanted:
            self._waits.record(committed.waited_seconds)
        self._wanted.record(committed.num_wanted)
