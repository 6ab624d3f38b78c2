"""What the verifier measures of itself."""

from collections.abc import Iterable
from functools import partial

from opentelemetry.metrics import CallbackOptions, Observation

from services.common.telemetry import meter
from services.engine.engine_loop import EngineLoop
from services.model_server.metrics import observe_engine
from services.model_server.streams import OpenStreams
from services.verifier.target_role import TargetRole
from services.verifier.target_sequence import Committed

_SHOWN_DIGITS = 12
"""Of an adapter's digest."""
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
        instruments.create_observable_counter(
            "paceline.governor_decisions",
            [partial(_decisions, engine_loop)],
            "{step}",
            "Steps by whether the next round speculates, and why.",
        )
        instruments.create_observable_gauge(
            "paceline.governor_gain",
            [partial(_gain, engine_loop)],
            "1",
            "Estimated tokens a second with speculation, relative to without.",
        )
        instruments.create_observable_gauge(
            "paceline.governor_rate",
            [partial(_rates, engine_loop)],
            "{token}/s",
            "Measured tokens a second of the batch by load, with and without speculation.",
        )
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


def _decisions(engine_loop: EngineLoop[TargetRole], _: CallbackOptions) -> Iterable[Observation]:
    if not engine_loop.is_ready:
        return ()
    counts = engine_loop.role.planner.decisions.copy()
    return [
        Observation(count, {"speculates": decision.speculate, "reason": decision.reason.value})
        for decision, count in counts.items()
    ]


def _gain(engine_loop: EngineLoop[TargetRole], _: CallbackOptions) -> Iterable[Observation]:
    return [Observation(engine_loop.role.planner.gain)] if engine_loop.is_ready else ()


def _rates(engine_loop: EngineLoop[TargetRole], _: CallbackOptions) -> Iterable[Observation]:
    if not engine_loop.is_ready:
        return ()
    rates = engine_loop.role.planner.payoff.rates()
    return [Observation(rate, {"sequences": at, "speculates": way}) for (at, way), rate in rates.items()]
