"""A larger model made of a smaller one: of the sizes that were asked for, and nothing that it cannot be made of.

That it says what the smaller one says is tested with the pair that ships.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from services.engine.enlarged import enlarge
from services.local.pair import shipped_model


def test_it_has_the_sizes_that_were_asked_for_and_all_that_a_model_needs(tmp_path: Path) -> None:
    enlarge(Path(shipped_model("target")), tmp_path / "larger", 8, 1408)
    weights = load_file(tmp_path / "larger" / "model.safetensors")
    assert weights["model.layers.7.mlp.gate_proj.weight"].shape == (1408, 512)
    assert weights["model.layers.0.mlp.down_proj.weight"].shape == (512, 1408)
    assert not weights["model.layers.7.self_attn.o_proj.weight"].any()
    assert weights["model.layers.7.mlp.up_proj.weight"].float().std() == pytest.approx(0.02, rel=0.05)
    assert not any(tensor.isnan().any() for tensor in weights.values())
    config = json.loads((tmp_path / "larger" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (8, 1408)
    shipped = {path.name for path in Path(shipped_model("target")).iterdir() if "safetensors" not in path.name}
    assert {path.name for path in (tmp_path / "larger").iterdir()} == shipped | {"model.safetensors"}


def test_what_it_cannot_be_made_of_is_refused(tmp_path: Path, target_folder: str) -> None:
    with pytest.raises(ValueError, match="at most 5 layers"):
        enlarge(Path(shipped_model("target")), tmp_path / "larger", 5, 4096)
    with pytest.raises(ValueError, match="neurons"):
        enlarge(Path(shipped_model("target")), tmp_path / "larger", 8, 64)
    with pytest.raises(ValueError, match="holds F32; bfloat16 is taken"):
        enlarge(Path(target_folder), tmp_path / "larger", 8, 4096)
    assert not (tmp_path / "larger").exists()
