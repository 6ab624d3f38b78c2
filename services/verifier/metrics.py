"""What the verifier measures of itself."""

from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, Observation

from services.common.telemetry import meter
from services.engine.streams import OpenStreams
from services.verifier.target_role import Committed, TargetRole


class VerifierMetrics:
    """Counters of rounds and tokens, and gauges read from the engine when they are collected."""

    def __init__(self, role: TargetRole, open_streams: OpenStreams) -> None:
        instruments = meter("paceline.verifier")
        self._rounds = instruments.create_counter("paceline.rounds", "{round}", "Verifications.")
        self._drafted = instruments.create_counter("paceline.drafted_tokens", "{token}", "Proposed tokens verified.")
        self._accepted = instruments.create_counter("paceline.accepted_tokens", "{token}", "Proposed tokens accepted.")
        self._committed = instruments.create_counter("paceline.committed_tokens", "{token}", "Tokens decided.")
        engine = role.engine

        def blocks(_: CallbackOptions) -> Iterable[Observation]:
            yield Observation(engine.pool.num_used, {"state": "used"})
            yield Observation(engine.pool.num_available, {"state": "available"})

        def gauge(name: str, unit: str, description: str, read: "object") -> None:
            instruments.create_observable_gauge(name, [read], unit, description)  # type: ignore[list-item]

        gauge("paceline.kv_blocks", "{block}", "KV blocks.", blocks)
        gauge("paceline.open_sequences", "{sequence}", "Open streams.", lambda _: [Observation(open_streams.count)])
        gauge("paceline.step_seconds", "s", "Time of a step.", lambda _: [Observation(engine.step_seconds)])
        gauge(
            "paceline.preemptions",
            "{preemption}",
            "Sequences that lost their blocks and are computed anew.",
            lambda _: [Observation(engine.scheduler.num_preemptions)],
        )

    def record(self, committed: Committed) -> None:
        """Counts one round."""
        self._rounds.add(1)
        self._committed.add(len(committed.token_ids))
        if committed.num_drafted:
            self._drafted.add(committed.num_drafted)
            self._accepted.add(committed.num_accepted)
