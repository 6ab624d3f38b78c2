"""What the verifier measures of itself."""

from services.common.telemetry import meter
from services.engine.engine_loop import EngineLoop
from services.model_server.metrics import observe_engine, readings
from services.model_server.streams import OpenStreams
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
_WANTED_BUCKETS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 32)


class VerifierMetrics:
    """Counters of rounds and tokens, and the gauges of the engine."""

    def __init__(self, engine_loop: EngineLoop[TargetRole], open_streams: OpenStreams) -> None:
        instruments = meter("paceline.verifier")
        self._rounds = instruments.create_counter("paceline.rounds", "{round}", "Verifications.")
        self._drafted = instruments.create_counter("paceline.drafted_tokens", "{token}", "Proposed tokens verified.")
        self._accepted = instruments.create_counter("paceline.accepted_tokens", "{token}", "Proposed tokens accepted.")
        self._wanted = instruments.create_histogram(
            "paceline.wanted_tokens",
            "{token}",
            "Proposed tokens that the governor would take in a sequence's next round.",
            explicit_bucket_boundaries_advisory=_WANTED_BUCKETS,
        )
        self._committed = instruments.create_counter("paceline.committed_tokens", "{token}", "Tokens decided.")
        for name, unit, description in _GAUGES:
            gauge = [readings(engine_loop, name)]
            instruments.create_observable_gauge(f"paceline.{name}", gauge, unit, description)
        observe_engine(instruments, engine_loop, open_streams)

    def record(self, committed: Committed) -> None:
        """Counts one round."""
        origin = {"origin": committed.origin.value}
        self._rounds.add(1, {**origin, "ready": committed.was_ready, "waited": committed.waited})
        self._committed.add(len(committed.token_ids))
        if committed.num_drafted:
            of = {**origin, "adapter": committed.adapter[:_SHOWN_DIGITS]}
            self._drafted.add(committed.num_drafted, of)
            self._accepted.add(committed.num_accepted, of)
        self._wanted.record(committed.num_wanted)
