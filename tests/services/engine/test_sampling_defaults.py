"""Sampling parameters that a model's authors set: what their file names, and nothing else."""

from typing import Any

import pytest
from transformers import GenerationConfig

from services.engine.sampling_defaults import sampling_defaults


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ({}, {}),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        ({"do_sample": True, "top_k": 20, "min_p": 0.1}, {"top_k": 20, "min_p": 0.1}),
        ({"repetition_penalty": 1.05, "max_new_tokens": 7}, {"repetition_penalty": 1.05, "max_tokens": 7}),
        ({"do_sample": True, "temperature": 1000.0}, {}),
    ],
)
def test_what_the_file_names_is_taken(named: dict[str, Any], found: dict[str, float]) -> None:
    assert sampling_defaults(GenerationConfig(**named).to_dict()) == found
