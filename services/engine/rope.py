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


def fix_frequencies(model: Any, max_context_tokens: int) -> None:
    """Has every rotary embedding of a model keep the frequencies of a text of so many tokens, for texts of all lengths.

    They are those of `transformers` where a text is past the length at which the kind switches, or where the served
    context is not.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        by_layer = kinds if isinstance(kinds, dict) else {None: kinds}
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
