"""What the draft service measures of itself."""

from services.common.telemetry import meter
from services.draft.draft_role import DraftRole
from services.engine.engine_loop import EngineLoop
from services.model_server.metrics import Counts, observe_engine, readings
from services.model_server.streams import OpenStreams


class DraftMetrics:
    """Counters of proposals and the gauges of the engine."""

    def __init__(self, engine_loop: EngineLoop[DraftRole], open_streams: OpenStreams) -> None:
        instruments = meter("paceline.draft")
        self._proposals = Counts(instruments, "paceline.proposals", "{proposal}", "Proposals sent.")
        self._proposed = Counts(instruments, "paceline.proposed_tokens", "{token}", "Tokens proposed.")
        instruments.create_observable_counter(
            "paceline.branches", [readings(engine_loop, "branches")], "{branch}", "Branches, begun and taken."
        )
        observe_engine(instruments, engine_loop, open_streams)

    def record(self, num_tokens: int) -> None:
        """Counts one proposal."""
        self._proposals.add(1)
        self._proposed.add(num_tokens)
