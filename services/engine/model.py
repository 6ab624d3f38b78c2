"""Loads a causal language model through `transformers` and finds out what a forward has to know of it."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from services.common.checkpoint import CheckpointError, first_line
from services.engine.adapter import Target, find_targets
from services.engine.attention_layers import (
    RECORDING,
    AttentionLayer,
    Recorder,
    find_first_position,
    ignores_positions,
    keeps_a_state,
    record_cached_layers,
    record_layers,
)
from services.engine.config import Device, Dtype, EngineConfig
from services.engine.kv_cache import KVShape
from services.engine.loading import Report, reporting_weights
from services.engine.quantized import made_plain, naming_the_kind, quantization_of, reading_options, tell_how_served
from services.engine.reduced_head import HeadTokens, reduce_head
from services.engine.rope import fix_frequencies, goes_on
from services.engine.sampling_defaults import sampling_defaults
from services.engine.vocabulary import vocabulary_digest

_CONTEXTS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "max_target_positions")
"""What configurations call the most tokens of a text."""
_FAR = 1 << 20
"""Tokens of a text that has no end but that of memory."""
_STORED_IN_VAIN = KVShape(1, 32, 32)


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
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Sampling parameters that its authors set, by name."""
    vocabulary_digest: str = ""
    """Digest over which token each id stands for; empty where there is no tokenizer beside the model."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model as `transformers` has it. What runs it is chosen afterwards."""

    model: PreTrainedModel
    description: ModelDescription
    layers: list[AttentionLayer]
    """None where every step computes a text from its beginning, because the model keeps no keys and values."""
    attention: list[nn.Module]
    """The module of each layer that calls attention."""
    targets: dict[str, Target]
    """Targets are the layers that adapters may change, by name."""
    weights: torch.dtype
    """The weights' data type is the one that was asked for, in which a forward may keep them."""
    dtype: torch.dtype
    """This is the data type of activations and KV."""
    device: torch.device
    is_quantized: bool
    first_position: int = 0
    """The position of a text's first token."""
    attends_itself: bool = False
    """Whether its own attention computes it, text by text, because it does not use the attention interface."""
    head: HeadTokens | None = None
    """The tokens of the logits, where the output layer has but some."""

    @property
    def kv_shapes(self) -> list[KVShape]:
        """What is stored of a token, layer by layer. A model that stores nothing has blocks all the same."""
        return [layer.kv_shape for layer in self.layers] or [_STORED_IN_VAIN]


def load_model(config: EngineConfig, report: Report) -> LoadedModel:
    """Loads folder or hub id `config.model`. Raises CheckpointError, in a sentence, when it cannot be served."""
    try:
        return _load(config, report)
    except CheckpointError:
        raise
    except Exception as error:  # Files and code of others: whatever they raise, the model cannot be loaded.
        raise CheckpointError(f"{config.model} cannot be loaded: {first_line(error)}") from error


def _load(config: EngineConfig, report: Report) -> LoadedModel:
    quiet_transformers()
    device = _pick_device(config.device)
    recorder = Recorder()
    recorder.register()
    hf_config = AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
    text_config = hf_config.get_text_config()
    weights = _pick_dtype(config.dtype, hf_config)
    with reporting_weights(report), naming_the_kind(config.model, hf_config, device):
        model = _read(config, reading_options(hf_config, weights, device))
        quantization = quantization_of(hf_config)
        quantized = quantization is not None and not made_plain(model, weights, device)
    if quantization is not None:
        tell_how_served(quantization, weights, is_plain=not quantized)
    num_parameters = model.num_parameters()
    model.eval().requires_grad_(False)
    head = reduce_head(model, config.model, text_config.vocab_size) if config.is_draft else None
    # On the CPU activations are float32 whatever the weights are: few CPUs compute in bfloat16, and packed layers read
    # half-precision weights all the same.
    widens = device.type == "cpu"
    model.to(torch.float32 if widens and not quantized else device)
    layers, attention = _attention_of(model, recorder, getattr(text_config, "num_hidden_layers", 0))
    first_position = find_first_position(model)
    max_context_tokens = _max_context(text_config, config.max_context_tokens, first_position)
    fix_frequencies(model, max_context_tokens)
    if config.is_draft and goes_on(model, max_context_tokens):  # What it says may get worse, and is only ever help.
        max_context_tokens = config.max_context_tokens or _FAR
    description = ModelDescription(
        revision_digest=revision_digest(config.model, hf_config),
        architecture=(hf_config.architectures or [type(model).__name__])[0],
        max_context_tokens=max_context_tokens,
        vocab_size=text_config.vocab_size,
        eos_token_ids=_eos_token_ids(model),
        num_parameters=num_parameters,
        dtype=str(weights).removeprefix("torch."),
        device=str(device),
        sampling_defaults=sampling_defaults(model.generation_config.to_dict()),
        vocabulary_digest=vocabulary_digest(config.model, trust_remote_code=config.trust_remote_code),
    )
    return LoadedModel(
        model=model,
        description=description,
        layers=layers,
        attention=attention,
        first_position=first_position,
        attends_itself=not attention,
        targets=find_targets(model),
        weights=weights,
        dtype=torch.float32 if widens else weights,
        device=device,
        is_quantized=quantized,
        head=head if head is None else head._replace(ids=head.ids.to(device)),
    )


def _read(config: EngineConfig, options: Mapping[str, Any]) -> Any:
    """The model with its weights, and with the recording attention if it takes another than its own."""
    loader: Any = AutoModelForCausalLM
    more = {"trust_remote_code": config.trust_remote_code, "output_loading_info": True, **options}
    try:
        model, info = loader.from_pretrained(config.model, attn_implementation=RECORDING, **more)
    except KeyError as error:
        if error.args != (RECORDING,):
            raise
        model, info = loader.from_pretrained(config.model, attn_implementation="eager", **more)
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{config.model} lacks weights of {type(model).__name__}, such as {missing[0]}")
    return model


def _attention_of(model: Any, recorder: Recorder, num_layers: int) -> tuple[list[AttentionLayer], list[nn.Module]]:
    """What layers ask of attention and the modules that call it; no modules where the model attends by itself."""
    if keeps_a_state(model):
        name = type(model).__name__
        raise CheckpointError(f"{name} keeps a recurrent state, and such models are not served")
    with contextlib.suppress(CheckpointError):
        record_layers(model, recorder)
        if len(recorder.layers) >= num_layers and not ignores_positions(model):
            return list(recorder.layers), list(recorder.modules)
    return record_cached_layers(model, num_layers), []


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
        raise CheckpointError("device is cuda, but torch sees no GPU here")
    return torch.device(device.value)


def _pick_dtype(dtype: Dtype, hf_config: Any) -> torch.dtype:
    if dtype is not Dtype.AUTO:
        picked: torch.dtype = getattr(torch, dtype.value)
        return picked
    saved = getattr(hf_config.get_text_config(), "dtype", None) or getattr(hf_config, "dtype", None)
    if isinstance(saved, str):
        saved = getattr(torch, saved)
    return saved or torch.bfloat16


def _max_context(text_config: Any, limit: int | None, first_position: int) -> int:
    own = next((known for name in _CONTEXTS if (known := getattr(text_config, name, None))), limit)
    own = own - first_position if own is not None else None
    if own is None:
        raise CheckpointError("the model's configuration has no context length; set max_context_tokens")
    return min(own, limit) if limit else int(own)


def _eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation = model.generation_config
    eos = getattr(generation, "eos_token_id", None)
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)


def quiet_transformers() -> None:
    """Keeps the progress bars of `transformers` out of a server's log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
