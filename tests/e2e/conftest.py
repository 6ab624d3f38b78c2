"""Tests of whole systems: models of a few thousand weights stand in for large ones."""

import pytest

from support.driver import FlatStepTimes


@pytest.fixture(autouse=True)
def steps_count_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has engines of this process take their steps to be as long as a large model's, so that drafts are waited for."""
    monkeypatch.setattr("services.engine.engine.StepTimes", FlatStepTimes)
