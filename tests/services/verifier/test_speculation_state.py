"""What a verifier says of its speculation."""

import pytest

from services.verifier.acceptance import DEFAULT_TYPICAL, TypicalAcceptance
from services.verifier.planner import Planner
from services.verifier.speculation_state import to_state


def test_acceptance_is_unset_until_a_round_has_shown_some() -> None:
    acceptance = TypicalAcceptance()
    assert not to_state(Planner(), acceptance).HasField("acceptance")
    acceptance.observe("an adapter's", 0.1)
    assert not to_state(Planner(), acceptance).HasField("acceptance")
    for _ in range(500):
        acceptance.observe("", 0.2)
    state = to_state(Planner(), acceptance)
    assert state.num_acceptance_rounds == 500
    assert state.acceptance == pytest.approx(0.2, abs=0.01)
    assert state.acceptance < DEFAULT_TYPICAL
