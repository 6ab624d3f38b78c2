"""Rotary frequencies that do not depend on what else is in a step.

Two kinds of rope choose their frequencies by the longest text of a forward ("longrope" and "dynamic"). With several
texts in a step one would change the others, and what was computed for a short text would not fit it once it is long.
Here they are chosen once, by the longest text that is served.
"""

import logging
from typing import Any

import torch

_log = logging.getLogger(__name__)
_FIXED = "fixed"
_ENDLESS = ("default", "linear", "llama3", "yarn", "proportional")
"""Kinds whose frequencies are the same for texts of all lengths."""
_OFFSETS = 8
"""A table of positions may have so many rows more than the context."""


def fix_frequencies(model: Any, max_context_tokens: int) -> None:
    """Has every rotary embedding of a model keep the frequencies of a text of so many tokens, for texts of all lengths.

    They are those of `transformers` where a text is past the length at which the kind switches, or where the served
    context is not.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        by_layer = _by_layer(kinds)
        changing = [layer for layer, kind in by_layer.items() if kind == "longrope" or "dynamic" in str(kind)]
        for layer in changing:
            last = torch.tensor([[max_context_tokens - 1]], device=model.device)
            more = {} if layer is None else {"layer_type": layer}
            with torch.inference_mode(False), torch.no_grad():
                module(torch.zeros(1, device=model.device), last, **more)
            _log.info("rope of kind %s is that of texts of %d tokens", by_layer[layer], max_context_tokens)
        if changing:
            fixed = {layer: _FIXED if layer in changing else kind for layer, kind in by_layer.items()}
            module.rope_type = fixed if isinstance(kinds, dict) else _FIXED


def goes_on(model: Any, max_context_tokens: int) -> bool:
    """Whether a model can compute past the context that it was trained for: its positions are turned, and not looked up
    in a table of about as many.
    """
    kinds = {kind for module in model.modules() for kind in _by_layer(getattr(module, "rope_type", None)).values()}
    tables = (module.num_embeddings for module in model.modules() if isinstance(module, torch.nn.Embedding))
    has_table = any(0 <= size - max_context_tokens <= _OFFSETS for size in tables)
    return bool(kinds - {None}) and kinds <= {None, *_ENDLESS} and not has_table


def _by_layer(kinds: Any) -> dict[str | None, str | None]:
    return kinds if isinstance(kinds, dict) else {None: kinds}
