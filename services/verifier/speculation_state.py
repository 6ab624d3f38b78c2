"""What a verifier says of its speculation: messages of what its planner measured and decided."""

from paceline.v1 import model_pb2
from services.verifier.acceptance import TypicalAcceptance
from services.verifier.load import Load, Way
from services.verifier.planner import Planner

_WAYS = {
    Way.OFF: model_pb2.SPECULATION_WAY_OFF,
    Way.TEXT: model_pb2.SPECULATION_WAY_TEXT,
    Way.DRAFT: model_pb2.SPECULATION_WAY_DRAFT,
}


def to_state(planner: Planner, acceptance: TypicalAcceptance) -> model_pb2.SpeculationState:
    """A copy, which any thread may read."""
    decider = planner.decider
    loads = sorted(decider.loads.values(), key=lambda load: (load.rows, load.draft))
    return model_pb2.SpeculationState(
        loads=[_to_load(load) for load in loads],
        decisions=[model_pb2.SpeculationDecision(at_seconds=at, reason=words) for at, words in decider.decisions],
        measured_seconds=decider.seconds,
        lost_seconds=decider.lost,
        account_seconds=decider.account,
        off_tax=planner.off_tax,
        acceptance=acceptance.of("") if acceptance.num_rounds else None,
        num_acceptance_rounds=acceptance.num_rounds,
    )


def _to_load(load: Load) -> model_pb2.SpeculationLoad:
    message = model_pb2.SpeculationLoad(
        num_rows=load.rows, draft_revision_digest=load.draft, way=_WAYS[load.way], num_rounds=load.rounds
    )
    for way, ratio in load.ratios.items():
        low, mean, high = ratio.bounds
        message.ratios.add(way=_WAYS[way], ratio=mean, low=low, high=high, num_windows=ratio.num_windows)
    return message
