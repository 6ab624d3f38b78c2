"""Loads a causal language model through `transformers` and finds out what a forward has to know of it."""

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from blake3 import blake3
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging as transformers_logging

from services.engine.adapter import Target, find_targets
from services.engine.config import Device, Dtype, EngineConfig
from services.engine.kv_cache import KVShape
from services.engine.loading import Report, reporting_weights

_RECORDING = "paceline_record"
"""The name under which attention is registered that only notes what each layer asks for."""


class AttentionLayer(NamedTuple):
    """What one layer of a model asks of its attention."""

    kv_shape: KVShape
    scaling: float
    window: int | None
    """A window is how many tokens a row sees, its own included; None is all of them."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What there is to know of a loaded model without its weights."""

    revision_digest: str
    architecture: str
    max_context_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    num_parameters: int
    dtype: str
    device: str


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model as `transformers` has it. What runs it is chosen afterwards."""

    model: PreTrainedModel
    description: ModelDescription
    layers: list[AttentionLayer]
    targets: dict[str, Target]
    """Targets are the layers that adapters may change, by name."""
    weights: torch.dtype
    """The weights' data type is the one that was asked for, in which a forward may keep them."""
    dtype: torch.dtype
    """This is the data type of activations and KV."""
    device: torch.device
    is_quantized: bool


def load_model(config: EngineConfig, report: Report) -> LoadedModel:
    """Loads folder or hub id `config.model`. Raises OSError or ValueError when it cannot be loaded."""
    quiet_transformers()
    device = _pick_device(config.device)
    hf_config = AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
    text_config = hf_config.get_text_config()
    weights = _pick_dtype(config.dtype, hf_config)
    quantized = getattr(hf_config, "quantization_config", None) is not None
    layers: dict[int, AttentionLayer] = {}
    ALL_ATTENTION_FUNCTIONS.register(_RECORDING, partial(_record, layers))
    with reporting_weights(report):
        model: Any = AutoModelForCausalLM.from_pretrained(
            config.model,
            dtype=weights,
            attn_implementation=_RECORDING,
            trust_remote_code=config.trust_remote_code,
        )
    num_parameters = model.num_parameters()
    model.eval().requires_grad_(False)
    # On the CPU activations are float32 whatever the weights are: few CPUs compute in bfloat16, and packed layers read
    # half-precision weights all the same.
    widens = device.type == "cpu" and not quantized
    model.to(torch.float32 if widens else device)
    description = ModelDescription(
        revision_digest=revision_digest(config.model, hf_config),
        architecture=(hf_config.architectures or [type(model).__name__])[0],
        max_context_tokens=_max_context(text_config, config.max_context_tokens),
        vocab_size=text_config.vocab_size,
        eos_token_ids=_eos_token_ids(model),
        num_parameters=num_parameters,
        dtype=str(weights).removeprefix("torch."),
        device=str(device),
    )
    return LoadedModel(
        model=model,
        description=description,
        layers=_attention_layers(model, layers, text_config),
        targets=find_targets(model),
        weights=weights,
        dtype=torch.float32 if widens else weights,
        device=device,
        is_quantized=quantized,
    )


def revision_digest(model: str, hf_config: Any) -> str:
    """SHA-like digest (BLAKE3, hexadecimal) over a model's configuration and weight files."""
    hasher = blake3(json.dumps(hf_config.to_dict(), sort_keys=True, default=str).encode())
    folder = Path(model)
    if not folder.is_dir():
        # A file of the hub's cache is named by its content already; its commit says it all.
        hasher.update(f"{model}@{getattr(hf_config, '_commit_hash', None)}".encode())
        return hasher.hexdigest()
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")):
        hasher.update(path.name.encode())
        hasher.update_mmap(path)
    return hasher.hexdigest()


def _pick_device(device: Device) -> torch.device:
    if device is Device.AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device is Device.CUDA and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU here")
    return torch.device(device.value)


def _pick_dtype(dtype: Dtype, hf_config: Any) -> torch.dtype:
    if dtype is not Dtype.AUTO:
        picked: torch.dtype = getattr(torch, dtype.value)
        return picked
    saved = getattr(hf_config.get_text_config(), "dtype", None) or getattr(hf_config, "dtype", None)
    if isinstance(saved, str):
        saved = getattr(torch, saved)
    return saved or torch.bfloat16


def _max_context(text_config: Any, limit: int | None) -> int:
    own = getattr(text_config, "max_position_embeddings", None) or limit
    if own is None:
        raise ValueError("the model's configuration has no context length; set max_context_tokens")
    return min(own, limit) if limit else int(own)


def _eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation = model.generation_config
    eos = getattr(generation, "eos_token_id", None)
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)


def _attention_layers(
    model: PreTrainedModel, layers: dict[int, AttentionLayer], text_config: Any
) -> list[AttentionLayer]:
    """What each layer asks of its attention, learnt by running two tokens past the recording one."""
    with torch.inference_mode():
        token = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        model(input_ids=token, position_ids=torch.arange(2, device=model.device)[None], use_cache=False)
    if sorted(layers) != list(range(len(layers))) or not layers:
        raise ValueError(f"{type(model).__name__} does not use the attention interface of transformers in every layer")
    if len(layers) != text_config.num_hidden_layers:
        raise ValueError(f"{type(model).__name__} has layers without attention, which are not supported")
    return [layers[index] for index in range(len(layers))]


def _record(
    layers: dict[int, AttentionLayer],
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_: Any,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """In place of attention: notes what it would have had to compute, and gives zeros."""
    shape = KVShape(key.shape[1], key.shape[-1], value.shape[-1])
    scaling, window = more.get("scaling") or shape.key_dim**-0.5, more.get("sliding_window")
    layers[int(module.layer_idx)] = AttentionLayer(shape, scaling, window)  # type: ignore[arg-type]
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None


def quiet_transformers() -> None:
    """Keeps the progress bars of `transformers` out of a server's log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
