"""Checkpoints of quantized weights: what `transformers` can make plain weights of is served like any other model."""

import copy
import importlib.util
import logging
from collections import abc
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.quantizers.base import HfQuantizer

from services.common.checkpoint import CheckpointError, first_line, quantization_method

_log = logging.getLogger(__name__)

_KERNELS = "kernels"
"""The package that brings what multiplies quantized weights on a GPU."""


def quantization_of(hf_config: Any) -> Mapping[str, Any] | None:
    """What a model's configuration says of its quantization; None where weights are plain."""
    for config in (hf_config, hf_config.get_text_config()):
        if found := getattr(config, "quantization_config", None):
            return dict(found)
    return None


def reading_options(hf_config: Any, weights: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Options of `from_pretrained` for a model whose weights are to be of a data type.

    Quantized weights become plain ones while they are read; not where a GPU multiplies them as they are. What cannot
    become plain on the CPU is read for computing in float32, as plain models compute there. Raises what `transformers`
    raises for a configuration that it does not take.
    """
    quantization = quantization_of(hf_config)
    if quantization is None or (device.type == "cuda" and importlib.util.find_spec(_KERNELS) is not None):
        return {"dtype": weights}
    if not hasattr(AutoQuantizationConfig.from_dict(dict(quantization)), "dequantize"):
        return {"dtype": torch.float32 if device.type == "cpu" else weights}
    plain = copy.deepcopy(hf_config)
    plain.quantization_config = {**quantization, "dequantize": True}
    return {"dtype": weights, "config": plain}


def made_plain(model: Any, weights: torch.dtype, device: torch.device) -> bool:
    """Has a model that was read from a quantized checkpoint keep plain weights, where it can; whether it does now.

    `weights` is their data type then: of what is not quantized such a checkpoint may hold another.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and device.type == "cpu":
        if type(quantizer)._dequantize is not HfQuantizer._dequantize:
            model.dequantize(weights)
        elif _unwrap(model):
            quantizer.remove_quantization_config(model)
    is_plain = getattr(model, "hf_quantizer", None) is None
    if not is_plain and device.type != "cpu":  # What its kernels read, scales above all, stays as it is.
        return False
    dtype = weights if is_plain else torch.float32
    kept = model._get_dtype_plan(dtype)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.element_size() > 1 and not any(part in name for part in kept):
            parameter.data = parameter.data.to(dtype)
    return is_plain


def tell_how_served(quantization: Mapping[str, Any], weights: torch.dtype, *, is_plain: bool) -> None:
    """Logs in what tokens of a quantized checkpoint may differ from those that it gives elsewhere."""
    method = quantization_method(quantization)
    if is_plain:
        _log.warning(
            "quantized weights (%s) are served as plain ones, in %s: activations are not rounded as the layers of "
            "their package round them, so near ties may fall otherwise than there",
            method,
            str(weights).removeprefix("torch."),
        )
    else:
        _log.warning(
            "quantized weights (%s) are computed by the layers of their package, which may round a text by what runs "
            "beside it: near ties may fall otherwise with a draft than without",
            method,
        )


def _unwrap(model: nn.Module) -> bool:
    """Has weights that are tensors around others (torchao's) be what they stand for; whether there were some."""
    found = False
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not _wraps_others(weight := parameter.data):
                continue
            setattr(module, name, nn.Parameter(weight.dequantize(), requires_grad=False))
            found = True
    return found


def _wraps_others(tensor: torch.Tensor) -> bool:
    return is_traceable_wrapper_subclass(tensor)


@contextmanager
def naming_the_kind(model: str, hf_config: Any, device: torch.device) -> abc.Iterator[None]:
    """Has what keeps a quantized checkpoint from being read said with its kind, and with what to do.

    Raises CheckpointError; what a model of plain weights runs into passes.
    """
    quantization = quantization_of(hf_config)
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # Whatever packages of others raise, these weights cannot be had here.
        if quantization is None:
            raise
        method = quantization_method(quantization)
        raise CheckpointError(
            f"{model} is quantized ({method}), which cannot be read for {device.type} here ({first_line(error)}): "
            "take the checkpoint that it was made from"
        ) from error
