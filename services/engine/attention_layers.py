"""What the layers of a model ask of their attention, found out by running a few tokens past one that only notes it."""

import contextlib
import inspect
from collections import abc
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionCacheLayerMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from services.common.checkpoint import CheckpointError
from services.engine.kv_cache import KVShape
from services.engine.reach import Reach, ReachError, read_reach

RECORDING = "paceline_record"
"""The name under which attention is registered that only notes what each layer asks for."""
_NUM_TOKENS = 6
_HARMLESS = frozenset(
    {"position_ids", "cache_position", "position_embeddings", "attention_mask", "input_ids", "padding_mask", "s_aux"}
)
"""Tensors that may come with a call of attention and say nothing that is not known otherwise."""


class AttentionLayer(NamedTuple):
    """What one layer of a model asks of its attention."""

    kv_shape: KVShape
    scaling: float
    reach: Reach = Reach()
    softcap: float | None = None
    """Scores are bent to stay within it: softcap * tanh(score / softcap)."""
    has_sinks: bool = False
    """Whether a head has a score of its own that takes part in the softmax and stands for no token."""

    @property
    def window(self) -> int | None:
        """A window is how many tokens a row sees, its own included; None is all of them."""
        return self.reach.window

    @property
    def is_plain(self) -> bool:
        """Whether it is the softmax over the tokens of a window or of all, and nothing else."""
        return self.reach.chunk is None and self.softcap is None and not self.has_sinks


@dataclass(slots=True)
class Recorder:
    """Takes the place of attention and of masks."""

    layers: list[AttentionLayer] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    """Modules that called attention, in the order of their calls. One that calls twice has two layers' KV."""

    def register(self) -> None:
        """Has models with the recording attention implementation call this."""
        ALL_ATTENTION_FUNCTIONS.register(RECORDING, self.attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(RECORDING, self.mask)

    def mask(self, mask_function: abc.Callable[..., torch.Tensor], **_: Any) -> Reach | ReachError:
        """In the place of a mask what it lets rows see. Models hand it on to their layers.

        What cannot be read is nobody's fault before a layer uses it: some models make masks for layers they lack.
        """
        try:
            return read_reach(mask_function)
        except ReachError as error:
            return error

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any = None,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        """In the place of attention: notes what it would have had to compute, and gives zeros."""
        beside = [name for name, given in more.items() if isinstance(given, torch.Tensor) and name not in _HARMLESS]
        if beside:
            raise ReachError(f"gives its attention {beside[0]}, which is not computed")
        if key.shape[2] != query.shape[2]:
            raise ReachError("attends to other tokens than its own")
        shape = KVShape(key.shape[1], key.shape[-1], value.shape[-1])
        scaling = more.get("scaling")
        self.layers.append(
            AttentionLayer(
                shape,
                shape.key_dim**-0.5 if scaling is None else float(scaling),
                _reach(module, attention_mask, more.get("sliding_window"), query.shape[2]),
                more.get("softcap"),
                more.get("s_aux") is not None,
            )
        )
        self.modules.append(module)
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


def record_layers(model: PreTrainedModel, recorder: Recorder) -> None:
    """Fills a recorder. Raises CheckpointError, in a sentence, for a model whose attention is of no known kind."""
    name = type(model).__name__
    parameters = inspect.signature(model.forward).parameters
    if "position_ids" not in parameters and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise CheckpointError(f"{name} is not told the positions of tokens, so texts cannot be computed side by side")
    token = torch.zeros(1, _NUM_TOKENS, dtype=torch.long, device=model.device)
    positions = torch.arange(_NUM_TOKENS, device=model.device)[None]
    try:
        with torch.inference_mode():
            model(input_ids=token, position_ids=positions, use_cache=False)
    except ReachError as error:
        raise CheckpointError(f"{name} {error}, so it cannot be served") from error
    except Exception as error:  # Whatever its code does with what stands in the place of attention, it does not fit.
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{name} does not use the attention interface of transformers ({problem})") from error
    if not recorder.layers:
        raise CheckpointError(f"{name} does not use the attention interface of transformers in any layer")


def use_own_attention(model: PreTrainedModel) -> None:
    """Has a model attend by its own eager code, whether or not it says that its attention can be chosen."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = "eager"


def ignores_positions(model: PreTrainedModel) -> bool:
    """Whether a model counts tokens by itself, whatever positions it is given. It attends by its own code then."""
    if "position_ids" in inspect.signature(model.forward).parameters:
        return False
    use_own_attention(model)
    ids = torch.arange(_NUM_TOKENS, device=model.device)[None]
    with torch.inference_mode():
        one, other = (model(input_ids=ids, position_ids=at, use_cache=False).logits for at in (ids, ids.flip(1)))
    return torch.equal(one, other)


def keeps_a_state(model: PreTrainedModel) -> bool:
    """Whether a model keeps a recurrent state of a text. The few last rows of a convolution are none."""
    layers: list[Any] = []
    with contextlib.suppress(Exception):  # A configuration may lack what a cache is made by.
        layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    states = [layer for layer in layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    if not states:
        # Such a model does not keep its state in that cache, unless it brings a kind of cache of its own.
        known = LinearAttentionCacheLayerMixin.__module__
        return model._is_stateful and all(type(layer).__module__ == known for layer in layers)
    use_own_attention(model)
    cache = DynamicCache()
    cache.layers = layers
    with contextlib.suppress(Exception), torch.inference_mode():  # Then nothing is known, and a state is assumed.
        ids = torch.zeros(1, _NUM_TOKENS, dtype=torch.long, device=model.device)
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    return not all(layer.is_croppable for layer in states)


def record_cached_layers(model: PreTrainedModel, num_layers: int) -> list[AttentionLayer]:
    """What each layer keeps of a token, learnt from the model's own cache; none where it keeps anything else."""
    cache = DynamicCache()
    use_own_attention(model)
    try:
        ids = torch.zeros(1, _NUM_TOKENS, dtype=torch.long, device=model.device)
        with torch.inference_mode():
            for piece in ids.tensor_split(2, dim=1):
                model(input_ids=piece, past_key_values=cache, use_cache=True)
    except Exception:  # It is the model's own code, which may take no such cache.
        return []
    layers: list[Any] = list(cache.layers)
    if len(layers) != num_layers or any(type(layer) is not DynamicLayer for layer in layers):
        return []
    if any(layer.keys is None or layer.keys.shape[-2] != _NUM_TOKENS for layer in layers):
        return []
    shapes = [KVShape(layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1]) for layer in layers]
    return [AttentionLayer(shape, 1.0) for shape in shapes]


def find_first_position(model: PreTrainedModel) -> int:
    """The position by which a model means a text's first token: 0, or what RoBERTa's like count from.

    Positions that only turn keys and queries do not tell one from another, and then 0 is as good as any.
    """
    # No token is the padding, whose positions are not counted by some.
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    token = next(each for each in range(3, 6) if each != padding)
    ids = torch.full((1, _NUM_TOKENS), token, device=model.device)
    positions = torch.arange(_NUM_TOKENS, device=model.device)[None]
    with torch.inference_mode():
        own = model(input_ids=ids, use_cache=False).logits
        for first in (0, 1 + (padding or 0), 2):
            if torch.equal(model(input_ids=ids, position_ids=positions + first, use_cache=False).logits, own):
                return first
    return 0


def _reach(module: nn.Module, mask: Any, window: int | None, num_rows: int) -> Reach:
    if isinstance(mask, ReachError):
        raise mask
    if isinstance(mask, Reach):
        return mask
    if mask is None:
        if getattr(module, "is_causal", True) is False:
            raise ReachError("lets tokens see those behind them")
        return Reach(window=window)
    if not isinstance(mask, torch.Tensor) or mask.shape[-2:] != (num_rows, num_rows):
        raise ReachError("masks its attention in a way that cannot be read")
    visible = mask if mask.dtype == torch.bool else mask >= 0
    if not bool((visible == torch.ones(num_rows, num_rows, dtype=torch.bool, device=mask.device).tril()).all()):
        raise ReachError("masks its attention in a way that is not causal")
    return Reach(window=window)
