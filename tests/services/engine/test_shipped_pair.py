"""The pair that ships and its heavy twin, in bfloat16: 20,000 tokens, speculation on = off, without one mismatch."""

from pathlib import Path

import pytest
import torch

from benchmarks.heavy import build_heavy
from benchmarks.speculation import held_out_prompts
from services.common.sampling_params import SamplingParams
from services.engine.config import Dtype
from services.engine.engine import Engine
from services.local.pair import shipped_model
from services.verifier.target_sequence import Origin
from support.driver import generate, make_engine
from support.speculating import generate_speculating

NUM_STREAMS = 25
NUM_TOKENS = 200
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, seed=42, ignore_eos=True)


@pytest.fixture(scope="module", params=["shipped", "heavy"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    model = shipped_model("target")
    if request.param == "heavy":
        model = build_heavy(model, tmp_path_factory.mktemp("heavy") / "model")
    engine = make_engine(model, Dtype.BFLOAT16, num_threads=2, num_blocks=1024)
    yield engine
    torch.set_num_threads(1)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_5000_tokens_on_equal_5000_tokens_off(engine: Engine, params: SamplingParams) -> None:
    prompts = [prompt[: 40 + 3 * i] for i, prompt in enumerate(held_out_prompts(shipped_model("target"), NUM_STREAMS))]
    off = generate(engine, prompts, NUM_TOKENS, params=params)
    on, accepted = generate_speculating(engine, prompts, off, "bad", params)
    mismatches = sum(a != b for one, other in zip(off, on, strict=True) for a, b in zip(one, other, strict=True))
    assert mismatches == 0
    assert accepted.total() > NUM_STREAMS * NUM_TOKENS / 3
    assert accepted[Origin.DRAFT] > 300
    assert accepted[Origin.SUFFIX] > 300 or params is SAMPLED


def test_the_heavy_target_says_what_the_shipped_one_says(tmp_path: Path) -> None:
    heavy = make_engine(build_heavy(shipped_model("target"), tmp_path / "heavy"), Dtype.BFLOAT16)
    shipped = make_engine(shipped_model("target"), Dtype.BFLOAT16)
    assert heavy.facts.description.num_parameters > 150e6
    prompts = held_out_prompts(shipped_model("target"), 2)
    assert generate(heavy, prompts, 40) == generate(shipped, prompts, 40)
