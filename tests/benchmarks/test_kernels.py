"""The page of products: every kind can be asked for, and those that engines take are held to their bounds."""

from pathlib import Path

import pytest
import torch

from benchmarks.kernels import Measured, holds, settings_of, taken, write_kernels
from services.engine.config import Weights
from services.engine.cpu.kinds import Kind, kinds
from services.engine.cpu.packed import kind_for


def measured(kind: Kind, eight: float, read: float) -> Measured:
    return Measured(kind.name, {1: 10.0, 4: 10.5, 8: 10 * eight, 16: 20.0, 32: 40.0}, read, 3e10, 1.5)


@pytest.mark.parametrize("kind", sorted(kinds()), ids=lambda kind: kind.name.lower())
def test_every_kind_of_this_processor_can_be_asked_for(kind: Kind) -> None:
    settings = settings_of(kind)
    rounded = settings["weights"] is Weights.INT8
    dtype = getattr(torch, str(settings["dtype"]))
    assert kind_for(dtype, settings["instructions"], round_to_int8=rounded) is kind  # type: ignore[arg-type]


def test_the_kinds_that_engines_take_are_held_to_their_bounds_and_no_others() -> None:
    good = [measured(kind, 1.2, 0.9) for kind in sorted(kinds())]
    assert holds(good)
    assert holds([*good, measured(Kind.FLOAT32, 3.0, 0.1)])
    for kind in taken():
        assert not holds([*good, measured(kind, 1.4, 0.9)])
        assert not holds([*good, measured(kind, 1.2, 0.7)])


def test_the_page_has_a_line_for_every_kind(tmp_path: Path) -> None:
    page = write_kernels([measured(Kind.FLOAT32, 1.25, 0.875), measured(Kind.INT8, 1.1, 0.8)], tmp_path).read_text()
    assert "| float32, portable | 10.0 | 10.5 | 12.5 | 20.0 | 40.0 | **1.25** | **0.88** | 30.0 | 1.5 |" in page
    assert "| int8, portable | 10.0 |" in page
