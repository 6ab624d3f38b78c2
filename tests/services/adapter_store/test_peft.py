"""Configurations mean here what they mean to PEFT, and what is not computed is never ignored."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from paceline.errors import InvalidArgumentError
from services.adapter_store.targets import targeted
from services.common.lora.config import CONFIG_NAME, parse_lora_config
from services.engine.adapter import find_targets
from support.lora import PEFT_WARNING
from support.tiny import save_tiny

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)
TARGETS = ["q_proj", "down_proj"]
COMPUTED = {
    "r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["v_proj"], "exclude_modules": ["down_proj"],
    "layers_to_transform": [0], "layers_pattern": "layers", "base_model_name_or_path": "some/model",
    "init_lora_weights": "gaussian", "task_type": "CAUSAL_LM", "peft_type": "LORA", "bias": "none",
    "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"layers.0.self_attn.q_proj": 5},
}  # fmt: skip
"""What the engine or the store minds, with a value other than the default."""
HARMLESS = {
    "auto_mapping": {"base_model_class": "X"}, "peft_version": "0.1", "revision": "main", "inference_mode": True,
    "lora_dropout": 0.5, "fan_in_fan_out": True, "qalora_group_size": 32, "megatron_core": "other",
    "runtime_config": {"ephemeral_gpu_offload": True},
}  # fmt: skip
"""What changes no number of a saved adapter."""


def written(folder: Path, **fields: Any) -> bytes:
    """What PEFT writes."""
    LoraConfig(**{"target_modules": TARGETS, "task_type": "CAUSAL_LM", **fields}).save_pretrained(folder)
    return (folder / CONFIG_NAME).read_bytes()


def test_what_peft_writes_by_default_is_taken(tmp_path: Path) -> None:
    parsed = parse_lora_config(written(tmp_path), 64)
    assert (parsed.rank, parsed.scaling_of("q_proj"), sorted(parsed.target_modules)) == (8, 1.0, sorted(TARGETS))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(LoraConfig)])
def test_every_field_of_peft_is_computed_harmless_or_refused(tmp_path: Path, field: str) -> None:
    values = json.loads(written(tmp_path))
    if field in HARMLESS:
        parse_lora_config(json.dumps({**values, field: HARMLESS[field]}).encode(), 64)
        return
    if field in COMPUTED:
        needed = {"layers_to_transform": [0]} if field == "layers_pattern" else {}
        parse_lora_config(json.dumps({**values, **needed, field: COMPUTED[field]}).encode(), 64)
        return
    for value in (True, 1, "on", ["on"], {"on": 1}):
        with pytest.raises(InvalidArgumentError) as raised:
            parse_lora_config(json.dumps({**values, field: value}).encode(), 64)
        assert raised.value.violations[0].field == f"{CONFIG_NAME}:{field}"


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 4, "lora_alpha": 16},
        {"r": 4, "lora_alpha": 16, "use_rslora": True},
        {"target_modules": ["q_proj", "layers.1.mlp.down_proj"]},
        {"target_modules": r".*\.[01]\.self_attn\.(q|k)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1, 2]},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.mlp\..*"},
        {"rank_pattern": {"q_proj": 3}, "lora_alpha": 6},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 5, "q_proj": 3}, "alpha_pattern": {"down_proj": 7}},
        {"rank_pattern": {"model.layers.2.mlp.down_proj": 5}, "alpha_pattern": {"q_proj": 7}, "use_rslora": True},
    ],
)
def test_layers_and_scaling_are_those_of_peft(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = save_tiny(tmp_path / "model", "llama", num_hidden_layers=3)
    loaded = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.float32)
    names = list(find_targets(loaded))
    config = LoraConfig(**{"target_modules": TARGETS, "task_type": "CAUSAL_LM", **fields})
    peft = get_peft_model(loaded, config)
    adapted = {name: module for name, module in peft.base_model.model.named_modules() if hasattr(module, "lora_A")}
    config.save_pretrained(tmp_path)
    for data in (written(tmp_path / "before", **fields), (tmp_path / CONFIG_NAME).read_bytes()):
        parsed = parse_lora_config(data, 64)
        assert set(targeted(parsed, names)) == set(adapted)
        for name, module in adapted.items():
            assert (module.r["default"], module.scaling["default"]) == (parsed.rank_of(name), parsed.scaling_of(name))
