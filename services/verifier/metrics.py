"""What the verifier measures of itself."""

from services.common.telemetry import meter
from services.engine.engine_loop import EngineLoop
from services.engine.metrics import observe_engine
from services.engine.streams import OpenStreams
from services.verifier.target_role import Committed, TargetRole


class VerifierMetrics:
    """Counters of rounds and tokens, and the gauges of the engine."""

    def __init__(self, engine_loop: EngineLoop[TargetRole], open_streams: OpenStreams) -> None:
        instruments = meter("paceline.verifier")
        self._rounds = instruments.create_counter("paceline.rounds", "{round}", "Verifications.")
        self._drafted = instruments.create_counter("paceline.drafted_tokens", "{token}", "Proposed tokens verified.")
        self._accepted = instruments.create_counter("paceline.accepted_tokens", "{token}", "Proposed tokens accepted.")
        self._committed = instruments.create_counter("paceline.committed_tokens", "{token}", "Tokens decided.")
        observe_engine(instruments, engine_loop, open_streams)

    def record(self, committed: Committed) -> None:
        """Counts one round."""
        self._rounds.add(1)
        self._committed.add(len(committed.token_ids))
        if committed.num_drafted:
            self._drafted.add(committed.num_drafted)
            self._accepted.add(committed.num_accepted)
