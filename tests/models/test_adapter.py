"""Training, writing and reading an adapter, on a tiny target."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from models.adapter import BATCH_TOKENS, export_adapter, load_adapter, train_adapter
from models.corpus import Windows

# peft asks transformers for a property by its earlier name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

IDS = torch.arange(32)[None]


@pytest.fixture
def windows() -> Windows:
    return Windows(np.tile(np.arange(256, dtype=np.uint16), 40), seed=0)


def load_target(folder: str) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_an_adapter_is_written_small_and_names_no_machine(target_folder: str, windows: Windows, tmp_path: Path) -> None:
    model = train_adapter(
        load_target(target_folder), windows, tmp_path / "x.pt", token_budget=2 * BATCH_TOKENS, save_every=50
    )
    export_adapter(tmp_path / "x", model)
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((tmp_path / "x" / "adapter_config.json").read_text())["base_model_name_or_path"] == "target"
    tensors = load_file(tmp_path / "x" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 2  # layers, linear layers, low-rank factors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_an_adapter_that_is_read_changes_the_target(target_folder: str, windows: Windows, tmp_path: Path) -> None:
    before = load_target(target_folder)(IDS).logits
    model = train_adapter(
        load_target(target_folder), windows, tmp_path / "x.pt", token_budget=4 * BATCH_TOKENS, save_every=50
    )
    trained = model(IDS).logits
    export_adapter(tmp_path / "x", model)
    after = load_adapter(load_target(target_folder), tmp_path / "x")(IDS).logits
    assert (trained - before).abs().max() > 0.05
    torch.testing.assert_close(after, trained, atol=0.05, rtol=0.05)


def test_training_resumes_where_it_was_interrupted(target_folder: str, windows: Windows, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    class Interrupting(Windows):
        def batch(self, first_token: int, num_windows: int, length: int) -> np.ndarray:
            if first_token == 2 * BATCH_TOKENS:
                raise StoppedError
            return windows.batch(first_token, num_windows, length)

    def train(seen: Windows, checkpoint: Path) -> torch.Tensor:
        torch.manual_seed(0)
        target = load_target(target_folder)
        return train_adapter(target, seen, checkpoint, token_budget=4 * BATCH_TOKENS, save_every=2)(IDS).logits

    with pytest.raises(StoppedError):
        train(Interrupting(np.zeros(0, dtype=np.uint16), 0), tmp_path / "x.pt")
    torch.testing.assert_close(train(windows, tmp_path / "x.pt"), train(windows, tmp_path / "y.pt"))
