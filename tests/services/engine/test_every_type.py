"""Whatever a model is, it gives the tokens of transformers or is refused in a sentence. All types: `make sweep`."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.common.checkpoint import CheckpointError
from services.engine import probe
from services.engine.model import LoadedModel
from support.driver import add, append, generate, make_engine
from support.every_type import causal_types
from support.sweep import Found, try_type
from support.tiny import save_tiny

EQUAL = [
    "gpt_oss", "gemma2", "llama4_text", "olmo", "olmo3", "deepseek_v3", "qwen3_moe", "cohere2", "granite", "stablelm",
    "starcoder2", "opt", "longcat_flash", "gptj", "falcon", "bloom", "roberta", "diffllama", "bart", "mllama", "lfm2",
]  # fmt: skip
REFUSED = {
    "mamba": "keeps a recurrent state",
    "bamba": "keeps a recurrent state",
    "minimax": "keeps a recurrent state",
    "rwkv": "keeps a recurrent state",
    "xlnet": "cannot be computed in pieces",
    "musicgen": "has an encoder and a decoder",
}


@pytest.fixture(autouse=True)
def _verdicts_of_this_test_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_all_types_of_the_installed_transformers_are_known() -> None:
    assert len(causal_types()) > 150
    assert {*EQUAL, *REFUSED} <= set(causal_types())


@pytest.mark.parametrize("model_type", EQUAL)
def test_a_type_is_equal_alone_in_chunks_and_beside_others(model_type: str) -> None:
    assert try_type(model_type) == Found("equal")


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_a_type_that_cannot_be_equal_is_refused_in_a_sentence(model_type: str) -> None:
    verdict, reason = try_type(model_type)
    assert verdict == "refused"
    assert "\n" not in reason
    with pytest.raises(CheckpointError, match=REFUSED[model_type]):
        raise CheckpointError(reason)


SHORT, LONG = [1.0 + 0.1 * at for at in range(8)], [3.0 + 0.5 * at for at in range(8)]
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "rope_theta": 10_000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    ("architecture", "rope"),
    [("phi3", {**LONGROPE, "original_max_position_embeddings": 32}), ("llama", DYNAMIC)],
)
def test_rotary_frequencies_do_not_depend_on_neighbours(
    tmp_path: Path, architecture: str, rope: dict[str, object]
) -> None:
    model = save_tiny(tmp_path, architecture, rope_parameters=rope, max_position_embeddings=128)
    text, long = list(range(3, 20)), [(at * 7) % 250 + 3 for at in range(90)]
    alone = generate(make_engine(model), [text], 8)
    engine = make_engine(model)
    add(engine, long)
    beside = add(engine, text)
    while len(beside) < len(text) + 8:
        for result in engine.step():
            append(result.sequence, result.token_ids[-1])
    assert beside.token_ids[len(text) :] == alone[0]
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    expected = reference.generate(torch.tensor([long]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert generate(make_engine(model), [long], 8)[0] == expected[0, len(long) :].tolist()


def test_below_the_length_at_which_they_switch_frequencies_are_those_of_short_texts(tmp_path: Path) -> None:
    rope = {**LONGROPE, "original_max_position_embeddings": 64}
    model = save_tiny(tmp_path, "phi3", rope_parameters=rope, max_position_embeddings=128)
    text = list(range(3, 40))
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    expected = reference.generate(torch.tensor([text]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert generate(make_engine(model, max_context_tokens=64), [text], 8)[0] == expected[0, len(text) :].tolist()


def test_a_model_that_mixes_its_rows_beside_attention_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that runs along the text beside attention, as in Falcon-H1: equal in one piece, and nowhere else."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    own = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: own(self, x) + 0.1 * x.cumsum(dim=1))
    with pytest.raises(CheckpointError, match="computes something else in pieces and beside other texts"):
        make_engine(save_tiny(tmp_path, "llama"))


def test_a_model_that_was_found_equal_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny(tmp_path / "a", "gpt2")
    tried: list[LoadedModel] = []
    own = probe.own_forward
    monkeypatch.setattr(probe, "own_forward", lambda loaded, kv_cache: (tried.append(loaded), own(loaded, kv_cache))[1])
    make_engine(model)
    assert tried
    tried.clear()
    make_engine(save_tiny(tmp_path / "b", "gpt2", seed=1))
    assert not tried
    make_engine(save_tiny(tmp_path / "c", "gpt2", n_inner=80))
    assert tried
