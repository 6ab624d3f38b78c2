"""A GGUF file is served by real processes under its own name, with the tokens that transformers gets from it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paceline import Client
from services.local.launcher import running
from services.local.pair import Pair
from services.local.system import SystemSettings
from support.gguf_files import write_gguf

TEXT = "def f(x):\n    return"
NUM_TOKENS = 24


async def test_a_file_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "tiny.gguf")
    pair = Pair(model=str(file), draft=str(file), dtype="float32", kv_bytes=16 << 20)
    async with running(SystemSettings((pair,))) as launcher, Client(launcher.address()) as client:
        (model,) = await client.list_models()
        assert (model.target.id, model.draft_problem) == ("tiny", "")
        told: list[int] = []
        async for event in client.generate(TEXT, temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True):
            told.extend(event.delta.token_ids)
    reference: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    prompt = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)(TEXT, return_tensors="pt")["input_ids"]
    ids = reference.generate(prompt, max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None)[
        0, prompt.shape[1] :
    ]
    assert told == ids.tolist()
