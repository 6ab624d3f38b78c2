"""A draft's output layer over some of the tokens alone: its pick is always one of them.

With a large vocabulary that layer is most of what a small model costs, and rare tokens are seldom guessed anyway
(FR-Spec, Zhao et al. 2025, arXiv 2502.14856). A folder says which tokens in `head_tokens.json`, a list of ids, beside a
checkpoint that is whole: what serves it otherwise need not know of this.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from services.common.checkpoint import CheckpointError

FILE = "head_tokens.json"


class HeadTokens(NamedTuple):
    """The tokens of a reduced output layer."""

    ids: torch.Tensor
    """Their ids in the order of the layer's outputs, ascending, [columns]."""
    vocab_size: int

    def widened(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [rows, columns] of all tokens, [rows, vocab]: all others are impossible."""
        wide = logits.new_full((len(logits), self.vocab_size), -torch.inf)
        wide[:, self.ids] = logits
        return wide


def reduce_head(model: Any, folder: str, vocab_size: int) -> HeadTokens | None:
    """Leaves of the output layer what the folder's list says; None where there is no list.

    Raises CheckpointError for a list that does not fit the model.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        return None
    head = model.get_output_embeddings()
    try:
        ids = torch.tensor(sorted(set(json.loads(file.read_text()))), dtype=torch.int64)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is no list of token ids") from error
    if not isinstance(head, nn.Linear) or not len(ids) or not 0 <= int(ids[0]) <= int(ids[-1]) < vocab_size:
        raise CheckpointError(f"{file} lists tokens that the model does not have")
    weight = head.weight.detach()
    reduced = nn.Linear(head.in_features, len(ids), head.bias is not None, weight.device, weight.dtype)
    with torch.no_grad():
        reduced.weight.copy_(weight[ids])
        if head.bias is not None:
            reduced.bias.copy_(head.bias[ids])
    model.set_output_embeddings(reduced.requires_grad_(False))
    return HeadTokens(ids.to(weight.device), vocab_size)
