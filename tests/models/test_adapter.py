"""Training, writing and reading an adapter, on a tiny target."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from models.adapter import BATCH_TOKENS, export_adapter, load_adapter, train_adapter, windows_loss
from models.corpus import Windows

# peft asks transformers for a property by its earlier name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

IDS = torch.arange(32)[None]


@pytest.fixture
def windows() -> Windows:
    return Windows(np.tile(np.arange(256, dtype=np.uint16), 40), seed=0)


def load_target(folder: str) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def trained(folder: str, windows: Windows, checkpoint: Path, num_batches: int = 4, **options: int) -> PeftModel:
    target = load_target(folder)
    budget = num_batches * BATCH_TOKENS
    options = {"save_every": 50, **options}
    return train_adapter(target, windows_loss(target, windows), checkpoint, token_budget=budget, **options)


def test_an_adapter_is_written_small_and_names_no_machine(target_folder: str, windows: Windows, tmp_path: Path) -> None:
    model = trained(target_folder, windows, tmp_path / "x.pt", num_batches=2, rank=4)
    export_adapter(tmp_path / "x", model)
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((tmp_path / "x" / "adapter_config.json").read_text())["base_model_name_or_path"] == "target"
    tensors = load_file(tmp_path / "x" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 2  # layers, linear layers, low-rank factors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert {min(tensor.shape) for tensor in tensors.values()} == {4}


def test_an_adapter_that_is_read_changes_the_target(target_folder: str, windows: Windows, tmp_path: Path) -> None:
    before = load_target(target_folder)(IDS).logits
    model = trained(target_folder, windows, tmp_path / "x.pt")
    expected = model(IDS).logits
    export_adapter(tmp_path / "x", model)
    after = load_adapter(load_target(target_folder), tmp_path / "x")(IDS).logits
    assert (expected - before).abs().max() > 0.05
    torch.testing.assert_close(after, expected, atol=0.05, rtol=0.05)


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
        return trained(target_folder, seen, checkpoint, save_every=2)(IDS).logits

    with pytest.raises(StoppedError):
        train(Interrupting(np.zeros(0, dtype=np.uint16), 0), tmp_path / "x.pt")
    torch.testing.assert_close(train(windows, tmp_path / "x.pt"), train(windows, tmp_path / "y.pt"))
