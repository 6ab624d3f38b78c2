"""What a model's authors have sampled with where nobody says otherwise, from its generation_config.json."""

import logging
from collections.abc import Mapping
from typing import Any

from services.common.sampling_params import InvalidSamplingError, SamplingParams

_log = logging.getLogger(__name__)
_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""Fields of generation_config.json, and of SamplingParams."""


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters that the file names; with `do_sample` off, the likeliest token.

    What the file does not name is left to the defaults of SamplingParams.
    """
    named = {ours: generation_config.get(theirs) for theirs, ours in _NAMES.items()}
    found: dict[str, Any] = {name: value for name, value in named.items() if type(value) in (int, float)}
    if generation_config.get("do_sample") is False:
        found["temperature"] = 0.0
    try:
        SamplingParams(**found)
    except InvalidSamplingError as error:
        _log.warning("generation_config.json is not used: %s", error)
        return {}
    return found
