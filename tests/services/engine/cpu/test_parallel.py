"""Compiled code that is kept on disk is that of the sources as they are."""

from pathlib import Path

from services.engine.cpu.lora_kernel import add_shares
from services.engine.cpu.parallel import state_of


def test_another_state_of_any_source_is_another_name_of_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "called.py").write_text("ONE = 1")
    (tmp_path / "kernel.py").write_text("from called import ONE")
    before = state_of(tmp_path)
    assert state_of(tmp_path) == before
    (tmp_path / "called.py").write_text("ONE = 2")
    assert state_of(tmp_path) != before


def test_kernels_are_kept_by_the_state_of_their_folder() -> None:
    folder = Path(__file__).parents[4] / "services" / "engine" / "cpu"
    assert add_shares.made.__qualname__.endswith(state_of(folder))
