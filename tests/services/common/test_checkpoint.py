"""What cannot be served is told from its files, in a sentence that says what to do, and before anything is loaded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.common.checkpoint import CheckpointError, check_model, check_tokenizer
from services.draft.settings import DraftSettings
from services.engine.config import EngineConfig
from services.verifier.settings import VerifierSettings

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def _quantized(method: str) -> dict[str, Any]:
    return {"config.json": {**LLAMA, "quantization_config": {"quant_method": method}}, "model.safetensors": {}}


FOLDERS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "holds no model: there is no config.json in it"),
    "GGUF": ({"model-q4.gguf": {}}, "GGUF file, which is converted first: `paceline get .*` prints the folder"),
    "GGUF beside a config": ({"config.json": LLAMA, "model-q4.gguf": {}}, "GGUF file, which is converted first"),
    "an adapter": (
        {"adapter_config.json": {"base_model_name_or_path": "org/base"}, "adapter_model.safetensors": {}},
        "is an adapter: serve org/base, then upload it with `paceline adapters upload",
    ),
    "a pipeline": ({"model_index.json": {}}, "is a pipeline of diffusers"),
    "no JSON": ({"config.json": "{"}, "config.json cannot be read"),
    "a list": ({"config.json": []}, "config.json is no JSON object"),
    "no type": ({"config.json": {}, "model.safetensors": {}}, "does not say what kind of model it is"),
    "an encoder and a decoder": (
        {"config.json": {"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5"]}},
        "has an encoder and a decoder",
    ),
    "another task": (
        {"config.json": {"model_type": "bert", "architectures": ["BertForMaskedLM"]}},
        "made for another task than continuing text",
    ),
    "an unknown type": ({"config.json": {"model_type": "odd"}}, "does not know models of type odd .*a newer one may"),
    "code of its own": (
        {"config.json": {"model_type": "odd", "auto_map": {"AutoModelForCausalLM": "odd.Odd"}}},
        "set trust_remote_code if you trust",
    ),
    "AWQ": (_quantized("awq"), r"quantized \(awq\).*pip install gptqmodel"),
    "GPTQ": (_quantized("gptq"), r"quantized \(gptq\).*pip install gptqmodel optimum"),
    "bitsandbytes": (_quantized("bitsandbytes"), "pip install bitsandbytes"),
    "FP8": (_quantized("fp8"), "pip install accelerate"),
    "MXFP4": (_quantized("mxfp4"), "pip install accelerate"),
    "no weights": ({"config.json": LLAMA}, "holds no weights"),
    "weights that are not all there": (
        {
            "config.json": LLAMA,
            "model.safetensors.index.json": {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}},
            "model-1.safetensors": {},
        },
        "lacks model-2.safetensors",
    ),
}


def _write(folder: Path, files: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("case", sorted(FOLDERS))
def test_a_folder_that_holds_something_else_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    files, said = FOLDERS[case]
    for package in ("accelerate", "bitsandbytes", "gptqmodel", "optimum"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CheckpointError, match=said) as refusal:
        check_model(_write(tmp_path / "it", files))
    assert "\n" not in str(refusal.value)
    assert "tmp" in str(refusal.value)


def test_code_of_its_own_that_is_trusted_passes(tmp_path: Path) -> None:
    files = {**FOLDERS["code of its own"][0], "model.safetensors": {}}
    check_model(_write(tmp_path / "it", files), trust_remote_code=True)


def test_the_models_that_ship_pass(repository: Path) -> None:
    for name in ("target", "draft"):
        check_model(str(repository / "models" / name))
        check_tokenizer(str(repository / "models" / name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./my-target", "there is no folder ./my-target"),
        ("~/nowhere/at/all", "there is no folder ~/nowhere"),
        ("a b", "no model of the hub can have that name"),
        ("org/model", "HF_HUB_OFFLINE is set"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for check in (check_model, check_tokenizer):
        with pytest.raises(CheckpointError, match=said):
            check(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    for name, said in (("a.gguf", "GGUF"), ("a.bin", "is a file")):
        (tmp_path / name).write_bytes(b"GGUF")
        with pytest.raises(CheckpointError, match=said):
            check_model(str(tmp_path / name))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        check_tokenizer(_write(tmp_path / "it", {"config.json": LLAMA, "tokenizer_config.json": {}}))


@pytest.mark.parametrize("process", ["verifier", "draft", "gateway"])
def test_a_process_ends_with_the_sentence_before_it_loads_anything(tmp_path: Path, process: str) -> None:
    folder = _write(tmp_path / "it", {})
    kinds = {"verifier": VerifierSettings, "draft": DraftSettings}
    if process in kinds:
        settings = kinds[process](engine=EngineConfig(model=folder)).to_json()
    else:
        settings = json.dumps({"models": [{"id": "it", "tokenizer": folder}]})
    command = [sys.executable, "-X", "importtime", "-m", "paceline", "serve", process, "--settings", "-"]
    done = subprocess.run(command, input=settings, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 1, done.stderr
    assert len(lines) == 1
    assert str(folder) in lines[0]
    assert " torch\n" not in done.stderr
    assert " transformers\n" not in done.stderr
