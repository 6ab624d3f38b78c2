"""A draft that ships without its target's embedding is put together with it: once, whole, and only where it fits."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from services.common.checkpoint import CheckpointError
from services.common.graft import SCALE, WEIGHTS, assembly_of, check_graft
from services.engine.graft_assembly import assemble
from services.local.errors import LaunchError
from services.local.model_files import draft_folder_of
from services.local.pair import Pair
from support.driver import generate, make_engine
from support.grafts import CHANGED, HEAD, SCALES, save_graft, save_target

PROMPT = list(range(3, 20))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return save_target(tmp_path / "target")


def test_it_has_the_targets_embedding_and_its_own_layers(tmp_path: Path, target: Path) -> None:
    folder = assemble(save_graft(tmp_path, target), target)
    got = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    its = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).state_dict()
    own = load_file(tmp_path / "graft" / WEIGHTS)
    own |= {name: own[name] * own[name + SCALE].unsqueeze(1) for name in own if name + SCALE in own}
    ours, theirs = "model.layers.0", "model.layers.1"

    def equal(name: str, expected: torch.Tensor) -> bool:
        return torch.equal(got[name], expected.bfloat16().float())

    assert equal("model.embed_tokens.weight", its["model.embed_tokens.weight"])
    assert equal("model.norm.weight", own["model.norm.weight"])
    assert equal(f"{ours}.input_layernorm.weight", own[f"{ours}.input_layernorm.weight"])
    for name in ("post_attention_layernorm", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        assert equal(f"{ours}.{name}.weight", its[f"{theirs}.{name}.weight"])
    assert equal(f"{ours}.mlp.down_proj.weight", SCALES * its[f"{theirs}.mlp.down_proj.weight"])
    for module, scale in zip(CHANGED, (1.0, SCALES), strict=True):
        added = own[f"{ours}.{module}.up"] @ own[f"{ours}.{module}.down"]
        assert equal(f"{ours}.{module}.weight", scale * its[f"{theirs}.{module}.weight"] + added)
    assert torch.equal(got["lm_head.weight"][HEAD], own["lm_head.weight"].bfloat16().float())


def test_it_drafts_its_tokens_alone(tmp_path: Path, target: Path) -> None:
    engine = make_engine(str(assemble(save_graft(tmp_path, target), target)), is_draft=True)
    assert engine.facts.description.vocab_size == 256
    (said,) = generate(engine, [PROMPT], 16)
    assert set(said) <= set(HEAD)


def test_it_knows_the_targets_tokens(tmp_path: Path, target: Path) -> None:
    its, folder = make_engine(str(target)), assemble(save_graft(tmp_path, target), target)
    digest = make_engine(str(folder), is_draft=True).facts.description.vocabulary_digest
    assert digest == its.facts.description.vocabulary_digest != ""


def test_it_is_put_together_once(tmp_path: Path, target: Path) -> None:
    graft = save_graft(tmp_path, target)
    folder = assemble(graft, target)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert assemble(graft, target) == folder == assembly_of(graft, target)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_one_without_its_end_is_refused(tmp_path: Path, target: Path) -> None:
    graft = save_graft(tmp_path, target)
    whole = (graft / WEIGHTS).read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 40):
        (graft / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"graft.safetensors is not whole: get it again"):
            check_graft(graft)
    (graft / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="is no draft that can be read"):
        check_graft(graft)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"hidden_size": 32}, r"is not for .*: it was made for another model"),
        ({"vocab_size": 300}, r"is not for .*: it was made for another model"),
        ({"format": 1}, "is a draft of format 1; this version reads format 2"),
    ],
)
def test_one_for_another_is_refused(tmp_path: Path, target: Path, said: dict[str, object], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        assemble(save_graft(tmp_path, target, **said), target)


def test_where_there_is_no_room_it_is_said(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graft = save_graft(tmp_path, target)
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(CheckpointError, match=r"takes 0.1 GB, and 0.0 GB are free: make room, or set XDG_CACHE_HOME"):
        assemble(graft, target)
    assert not assembly_of(graft, target).exists()


async def test_a_pair_names_it_as_any_draft(tmp_path: Path, target: Path) -> None:
    graft = save_graft(tmp_path, target)
    pair = Pair(model=str(target), draft=str(graft))
    pair.check()
    ready = await pair.ready()
    assert ready.draft == await draft_folder_of(str(graft), str(target)) == str(assembly_of(graft, target))
    assert json.loads((Path(ready.draft) / "config.json").read_text())["num_hidden_layers"] == 1
    other = save_target(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    with pytest.raises(LaunchError, match="it was made for another model"):
        await asyncio.wait_for(Pair(model=str(other), draft=str(graft)).ready(), 60)
