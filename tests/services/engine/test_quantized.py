"""Checkpoints of quantized weights give the tokens of `transformers` or are refused in a sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from services.common.checkpoint import CheckpointError, check_model
from services.engine.config import Dtype
from services.engine.cpu.forward import CpuForward
from support.driver import generate, make_engine
from support.quantized import KINDS, save_quantized, set_quantization
from support.tiny import save_tiny

NUM_TOKENS = 16
PROMPTS = [[5, 9, 77, 33], [8] * 20, [(31 * at) % 250 + 3 for at in range(50)]]
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
"""What compiles for BitNet is torch's own, and warns of itself when it is imported."""
LLAMAS = ["fp8 by block", "fp8 by tensor", "mxfp8"]


@pytest.fixture(autouse=True)
def nothing_is_compiled() -> Iterator[None]:
    """Has what `transformers` compiles for some kinds run as it is, which takes seconds less."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module", params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(kind: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_quantized(tmp_path_factory.mktemp("quantized"), kind)


def expected(model: Any) -> list[list[int]]:
    """Greedy tokens of `transformers` by itself."""
    options = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = [torch.tensor([prompt]) for prompt in PROMPTS]
    return [model.generate(i, attention_mask=torch.ones_like(i), **options)[0, i.shape[1] :].tolist() for i in ids]


def reference(checkpoint: str, dtype: torch.dtype) -> Any:
    """The model as `transformers` reads it, computing in float32 as engines on a CPU do."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    return model if getattr(model, "hf_quantizer", None) else model.float()


def test_tokens_are_those_of_transformers(checkpoint: str) -> None:
    check_model(checkpoint)
    engine = make_engine(checkpoint, max_step_tokens=16)
    tokens = expected(reference(checkpoint, torch.float32))
    assert generate(engine, PROMPTS, NUM_TOKENS) == tokens
    assert len({token for produced in tokens for token in produced}) > 4


def test_the_data_type_of_the_checkpoint_serves_too(
    checkpoint: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(checkpoint, Dtype.AUTO)
    how = "computed by the layers of their package" if kind == "bitnet" else "served as plain ones, in bfloat16"
    assert how in caplog.text
    asked = torch.float32 if kind == "bitnet" else torch.bfloat16
    assert generate(engine, PROMPTS[:1], 4)[0] == expected(reference(checkpoint, asked))[0][:4]


@pytest.mark.parametrize("kind", LLAMAS, indirect=True, scope="module")
def test_weights_that_became_plain_run_fused(checkpoint: str) -> None:
    assert isinstance(make_engine(checkpoint, Dtype.AUTO).runner.forward, CpuForward)


def test_what_transformers_would_read_as_if_it_were_plain_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    set_quantization(tmp_path, {"quant_method": "modelopt", "quant_algo": "FP8"})
    with pytest.raises(CheckpointError, match=r"quantized \(modelopt\).*take the checkpoint that it was made from"):
        check_model(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"quantized \(modelopt\).*take the checkpoint that it was made from"):
        make_engine(str(tmp_path))


@pytest.mark.parametrize(
    ("method", "reason"),
    [("fbgemm_fp8", "requires a GPU"), ("nvfp4", "not supported yet"), ("higgs", "only supported on GPU")],
)
def test_what_no_cpu_computes_is_refused_with_what_to_do(tmp_path: Path, method: str, reason: str) -> None:
    save_tiny(tmp_path)
    set_quantization(tmp_path, {"quant_method": method})
    with pytest.raises(CheckpointError) as refusal:
        make_engine(str(tmp_path))
    said = str(refusal.value)
    assert f"is quantized ({method}), which cannot be read for cpu here" in said
    assert reason in said
    assert said.endswith("take the checkpoint that it was made from")


def test_what_keeps_a_checkpoint_from_being_read_is_said_with_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("it takes a GPU of another kind\nand more")

    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", missing)
    with pytest.raises(CheckpointError) as refusal:
        make_engine(save_quantized(tmp_path, "fp8 by block"))
    said = str(refusal.value)
    assert said.endswith(
        "is quantized (fp8), which cannot be read for cpu here (it takes a GPU of another kind): "
        "take the checkpoint that it was made from"
    )


def test_a_known_kind_of_unknown_sizes_is_refused(tmp_path: Path) -> None:
    folder = save_quantized(tmp_path, "fp8 by block")
    set_quantization(tmp_path, {"quant_method": "fp8", "weight_block_size": [0, 32]})
    with pytest.raises(CheckpointError, match=r"quantized \(fp8\), which cannot be read .*weight_block_size"):
        make_engine(folder)
