"""Loads a causal language model through `transformers` and prepares it for paged, row-invariant forwards."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging as transformers_logging

from services.engine.adapter import Target, find_targets
from services.engine.config import Device, Dtype, EngineConfig
from services.engine.cpu.decoder import FusedDecoder, fuse
from services.engine.cpu.linear import pack_linears
from services.engine.kv_cache import KVShape
from services.engine.torch_forward.attention import IMPLEMENTATION, AttentionLayer, paged_attention

_log = logging.getLogger(__name__)

ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, paged_attention)


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
    """A model ready to run."""

    model: PreTrainedModel
    decoder: FusedDecoder | None
    """A faster forward of the same model, where there is one; still to be compared with the model's own."""
    description: ModelDescription
    layers: list[AttentionLayer]
    targets: dict[str, Target]
    """Layers that adapters may change, by name."""
    dtype: torch.dtype
    """Data type of activations and KV."""
    device: torch.device


def load_model(config: EngineConfig) -> LoadedModel:
    """Loads folder or hub id `config.model`. Raises OSError or ValueError when it cannot be loaded."""
    quiet_transformers()
    device = _pick_device(config.device)
    hf_config = AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
    weights = _pick_dtype(config.dtype, hf_config)
    quantized = getattr(hf_config, "quantization_config", None) is not None
    # On the CPU activations are float32 whatever the weights are: few CPUs compute in bfloat16, and packed layers read
    # half-precision weights all the same.
    packed = device.type == "cpu" and not quantized
    model: Any = AutoModelForCausalLM.from_pretrained(
        config.model,
        dtype=weights,
        attn_implementation=IMPLEMENTATION,
        trust_remote_code=config.trust_remote_code,
    )
    num_parameters = model.num_parameters()
    model.eval().requires_grad_(False)
    model.to(torch.float32 if packed else device)
    activations = torch.float32 if packed else weights
    text_config = hf_config.get_text_config()
    layers = _attention_layers(model, text_config)
    targets = find_targets(model)
    decoder = fuse(model, weights, layers) if packed else None
    if packed and decoder is None:
        pack_linears(model, weights)
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
    return LoadedModel(model, decoder, description, layers, targets, activations, device)


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


def _attention_layers(model: PreTrainedModel, text_config: Any) -> list[AttentionLayer]:
    """What each layer asks of its attention, learnt by running two tokens past a recording one."""
    layers: dict[int, AttentionLayer] = {}

    def record(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **more: Any
    ) -> tuple[torch.Tensor, None]:
        shape = KVShape(key.shape[1], key.shape[-1], value.shape[-1])
        scaling, window = more.get("scaling") or shape.key_dim**-0.5, more.get("sliding_window")
        layers[int(module.layer_idx)] = AttentionLayer(shape, scaling, window)  # type: ignore[arg-type]
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None

    name = f"{IMPLEMENTATION}_record"
    ALL_ATTENTION_FUNCTIONS.register(name, record)
    model.set_attn_implementation(name)
    try:
        with torch.inference_mode():
            token = torch.zeros(1, 2, dtype=torch.long, device=model.device)
            model(input_ids=token, position_ids=torch.arange(2, device=model.device)[None], use_cache=False)
    finally:
        model.set_attn_implementation(IMPLEMENTATION)
    if sorted(layers) != list(range(len(layers))) or not layers:
        raise ValueError(f"{type(model).__name__} does not use the attention interface of transformers in every layer")
    if len(layers) != text_config.num_hidden_layers:
        raise ValueError(f"{type(model).__name__} has layers without attention, which are not supported")
    return [layers[index] for index in range(len(layers))]


def quiet_transformers() -> None:
    """Keeps progress bars of `transformers` out of a server's log; how far loading is goes there as plain lines."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_tqdm_hook(_log_progress)


def _log_progress(make_bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """In place of a bar over tensors: the same items, and a line every twentieth of them."""
    if options.get("desc") != "Loading weights" or not args:
        return make_bar(*args, **options)
    items = list(args[0])
    marks = {len(items) * part // 20: 5 * part for part in range(1, 21)}

    def passing() -> Iterator[Any]:
        for count, item in enumerate(items, 1):
            yield item
            if count in marks:
                _log.info("loading weights: %d %%", marks[count])

    return passing()
