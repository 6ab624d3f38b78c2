"""What a mask lets rows see is read from the mask itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    sliding_window_causal_mask_function,
)

from services.engine.reach import Reach, ReachError, read_reach


def _chunks(size: int) -> Callable[..., Any]:
    return chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize(
    ("mask", "reach"),
    [
        (causal_mask_function, Reach()),
        (sliding_window_causal_mask_function(1), Reach(window=1)),
        (sliding_window_causal_mask_function(4096), Reach(window=4096)),
        (sliding_window_causal_mask_function(1 << 20), Reach()),
        (_chunks(5), Reach(chunk=5)),
        (_chunks(8192), Reach(chunk=8192)),
    ],
)
def test_causal_masks_windows_and_chunks_are_told_apart(mask: Callable[..., Any], reach: Reach) -> None:
    assert read_reach(mask) == reach


@pytest.mark.parametrize(
    "mask",
    [
        bidirectional_mask_function,
        and_masks(sliding_window_causal_mask_function(50), _chunks(64)),
        or_masks(sliding_window_causal_mask_function(50), lambda _b, _h, _q, key: key < 4),
        lambda _b, _h, query, key: (key <= query) & ((query - key) % 2 == 0),
        lambda _b, _h, query, key: key < query,
        lambda _b, _h, query, key: torch.zeros(3)[query] + key,
    ],
)
def test_other_masks_are_refused(mask: Callable[..., Any]) -> None:
    with pytest.raises(ReachError):
        read_reach(mask)
