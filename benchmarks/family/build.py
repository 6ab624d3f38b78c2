"""Makes a pair of a shape: two folders that `transformers` loads, in seconds, the same weights for the same seed.

The weights are random. The target begins with the draft's layers, and all further layers write to the residual stream
what they compute times a small factor: the factor sets how often the two agree, the layers what a step costs. The
factor is found by measuring agreement on random text; on text that the target produces it is the same, because
attention is made so sharp that what follows depends on the whole context and does not repeat itself.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.family.shape import Shape
from services.local.pair import shipped_model

_RECIPE = 1
"""It is counted up when the same shape becomes another pair."""
_MAX_LENGTH = 8192
_END_ID = 0
_EMBEDDING_STD = 0.02
_GAIN = 0.45
"""What a projection does to the size of a vector, roughly."""
_SHARP_GAIN = 1.8
"""The same for queries and keys: scores of this size squared make attention look at a few tokens."""
_LOGIT_STD = 3.5
"""At temperature 1 some ten tokens are likely then, as in text."""
_TEXTS = (4, 257)
_ROUNDS = 4
_FIRST_GUESS = 1.65


class Built(NamedTuple):
    """A pair on disk."""

    target: str
    draft: str
    factor: float
    agreement: float
    """Share of greedy picks, on random text, in which both agree."""


def build_pair(shape: Shape, folder: Path) -> Built:
    """Builds the pair into a folder, unless it is there. Takes some 5 to 15 seconds on two cores."""
    about, recipe = folder / "pair.json", {"recipe": _RECIPE, **asdict(shape)}
    if about.exists():
        written = json.loads(about.read_text())
        if written["shape"] == recipe:
            return Built(str(folder / "target"), str(folder / "draft"), written["factor"], written["agreement"])
    weights = _random_weights(shape)
    target = _load(_config(shape, shape.target_layers, shape.target_neurons), weights)
    own = {name: tensor for name, tensor in weights.items() if _layer(name) < shape.draft_layers}
    draft = _load(_config(shape, shape.draft_layers, shape.draft_neurons), _narrowed(own, shape.draft_neurons))
    factor, agreement = _calibrate(shape, target, draft)
    for model, name in ((target, "target"), (draft, "draft")):
        model.save_pretrained(folder / name)
        _save_tokenizer(shape.vocab_size, folder / name)
    about.write_text(json.dumps({"shape": recipe, "factor": factor, "agreement": agreement}, indent=2))
    return Built(str(folder / "target"), str(folder / "draft"), factor, agreement)


def _config(shape: Shape, num_layers: int, num_neurons: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=num_neurons,
        num_hidden_layers=num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=_MAX_LENGTH,
        tie_word_embeddings=shape.tied,
        bos_token_id=_END_ID,
        eos_token_id=_END_ID,
    )


def _random_weights(shape: Shape) -> dict[str, torch.Tensor]:
    """The target's weights, the factor not yet in them. The draft's layers have no more neurons than the draft."""
    generator = torch.Generator().manual_seed(shape.seed)
    width, neurons = shape.width, shape.target_neurons
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim

    def random(rows: int, columns: int, std: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator).mul_(std).to(torch.bfloat16)

    plain, sharp = (gain / math.sqrt(width) for gain in (_GAIN, _SHARP_GAIN))
    # Logits of a normed row have the norm's weight times the square root of the width times the embedding's deviation.
    final = _LOGIT_STD / (_EMBEDDING_STD * math.sqrt(width))
    weights = {
        "model.embed_tokens.weight": random(shape.vocab_size, width, _EMBEDDING_STD),
        "model.norm.weight": torch.full((width,), final, dtype=torch.bfloat16),
    }
    if not shape.tied:
        weights["lm_head.weight"] = random(shape.vocab_size, width, _EMBEDDING_STD)
    for layer in range(shape.target_layers):
        own = {
            "self_attn.q_proj": random(queries, width, sharp),
            "self_attn.k_proj": random(keys, width, sharp),
            "self_attn.v_proj": random(keys, width, plain),
            "self_attn.o_proj": random(width, queries, plain),
            "mlp.gate_proj": random(neurons, width, plain),
            "mlp.up_proj": random(neurons, width, plain),
            "mlp.down_proj": random(width, neurons, plain),
            "input_layernorm": torch.ones(width, dtype=torch.bfloat16),
            "post_attention_layernorm": torch.ones(width, dtype=torch.bfloat16),
        }
        if layer < shape.draft_layers:
            own["mlp.down_proj"][:, shape.draft_neurons :] = 0
        weights |= {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in own.items()}
    return weights


def _layer(name: str) -> int:
    """The number of the layer that a weight belongs to; -1 where it belongs to none."""
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1


def _narrowed(weights: dict[str, torch.Tensor], neurons: int) -> dict[str, torch.Tensor]:
    """The same with so many neurons in each MLP."""

    def narrow(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name.endswith("down_proj.weight"):
            return tensor[:, :neurons].contiguous()
        return tensor[:neurons].contiguous() if ".mlp." in name else tensor

    return {name: narrow(name, tensor) for name, tensor in weights.items()}


def _load(config: LlamaConfig, weights: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    model: Any = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=torch.bfloat16)
    model.train(False)
    model.generation_config = GenerationConfig.from_model_config(config)
    model.generation_config.pad_token_id = _END_ID
    loaded: LlamaForCausalLM = model
    return loaded


@torch.inference_mode()
def _calibrate(shape: Shape, target: LlamaForCausalLM, draft: LlamaForCausalLM) -> tuple[float, float]:
    """Scales what the target's further layers write until both agree as often as they should; the factor, and how often
    they do.
    """
    further: Any = target.model.layers[shape.draft_layers :]
    written = [(linear.weight, linear.weight.clone()) for layer in further
               for linear in (layer.self_attn.o_proj, layer.mlp.down_proj)]  # fmt: skip
    generator = torch.Generator().manual_seed(shape.seed + 1)
    texts = torch.randint(1, shape.vocab_size, _TEXTS, generator=generator)
    wanted = 1 - shape.acceptance
    factor = wanted / (_FIRST_GUESS * math.sqrt(len(further) / shape.draft_layers))
    picks, agreement = _picks(draft, texts), 0.0
    for round_number in range(_ROUNDS):
        for weight, original in written:
            weight.copy_(original * factor)
        agreement = (_picks(target, texts) == picks).double().mean().item()
        if round_number < _ROUNDS - 1:
            # Of small factors, how often the two differ is all but a multiple.
            factor *= wanted / max(1 - agreement, wanted / 4)
    return factor, agreement


def _picks(model: LlamaForCausalLM, texts: torch.Tensor) -> torch.Tensor:
    """The greedy pick after every token of every text but the last: [texts, tokens]."""
    return torch.stack([model(input_ids=text[None, :-1], use_cache=False).logits[0].argmax(-1) for text in texts])


def _save_tokenizer(vocab_size: int, folder: Path) -> None:
    """The shipped pair's; a larger vocabulary has made-up words behind it, which text is never encoded to."""
    shipped = AutoTokenizer.from_pretrained(shipped_model("target"))
    shipped.save_pretrained(folder)
    if vocab_size > len(shipped):
        path = folder / "tokenizer.json"
        written = json.loads(path.read_text())
        written["model"]["vocab"] |= {f"Ġword{number}": number for number in range(len(shipped), vocab_size)}
        path.write_text(json.dumps(written))
