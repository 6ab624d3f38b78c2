"""`paceline doctor` in front of real processes."""

import json
from pathlib import Path

import pytest

from services.local.launcher import running
from services.local.pair import Pair
from services.local.system import SystemSettings
from support.tiny import save_noisy, save_tokenizer
from support.typed import typed


def _turn_tokens(folder: Path) -> None:
    """Has each id of a model's tokenizer stand for another token."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: (number + 1) % len(vocabulary) for token, number in vocabulary.items()}
    file.write_text(json.dumps(tokenizer))


@pytest.mark.timeout(240)
async def test_a_draft_of_another_tokenizer_is_told_of_until_one_fits(target_folder: str, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    save_noisy(draft, target_folder)
    save_tokenizer(draft)
    _turn_tokens(draft)
    threads = {"threads": 1, "draft_threads": 1}
    pair = Pair(id="tiny", model=target_folder, draft=str(draft), dtype="float32", **threads)
    settings = SystemSettings((pair,), prefix_cache=True, cache_folder=str(tmp_path / "cache"), adapter_store=True)
    async with running(settings) as launcher:
        done = await typed("doctor", "--json", "--address", launcher.address())
        assert done.code == 1, done.err
        found = json.loads(done.out)["findings"]
        (wrong,) = (each for each in found if each["mark"] == "wrong")
        assert f"the draft at {launcher.address('draft')} is not used" in wrong["says"]
        assert "the tokenizer of draft is another than the model's" in wrong["says"]
        assert "tokenizer.json" in wrong["do"]
        checks = {each["check"] for each in found if each["mark"] == "ok"}
        assert {"gateway", "access", "versions", "clock", "connections", "tiny"} <= checks
        assert {"prefix cache", "adapter store", "disk of database", "disk of blocks", "disk of adapters"} <= {
            each["check"] for each in found
        }

        launcher.kill("prefix-cache")
        done = await typed("doctor", "--address", launcher.address())
        assert f"the prefix cache at {launcher.address('prefix-cache')} does not answer" in done.out
    save_tokenizer(draft)
    async with running(SystemSettings((pair,))) as launcher:
        done = await typed("doctor", "--address", launcher.address())
        assert done.code == 0, done.out
        assert "is used, and its tokens are the target's" in done.out
